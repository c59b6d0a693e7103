"""What the widgets have in common: script and style sheet, messages, and a figure for readers without a kernel."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from ..clip import Clip
from ..display import clip_html
from ..params import SpectrogramParams
from ..plot import HZ_TICKS, description
from .pictures import picture_png

STATIC = Path(__file__).parent / "static"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
FIGURE_BYTES = 300_000  # size limit of the figure that a widget leaves in a notebook
# A reopened notebook shows the figure, and below it JupyterLab's "model not found", a text without an HTML element. It
# adds nothing to the figure, so it is hidden. A live widget has elements.
NO_ERROR = (
    "<style>.jp-OutputArea-child:has(.rl-static) + "
    ".jp-OutputArea-child > .jupyter-widgets:not(:has(*)) { display: none; }</style>"
)


def script(name: str) -> str:
    """JavaScript of a widget: the shared part, then its own; one text, because a widget's script cannot import."""
    return "\n".join((STATIC / part).read_text(encoding="utf-8") for part in ("picture.js", name))


def style(*names: str) -> str:
    """Style sheet of a widget: the shared part, then those of its own."""
    return "\n".join((STATIC / part).read_text(encoding="utf-8") for part in ("picture.css", *names))


def scale_facts(params: SpectrogramParams) -> dict[str, Any]:
    """Return what scripts need to draw the frequency axis, since they do not compute the mel scale themselves."""
    halves = np.arange(2 * params.num_frequencies + 1) / 2 - 0.5
    return {
        "low_hz": params.min_frequency,
        "high_hz": params.max_frequency,
        "half_band_hz": [float(params.frequency_hz(band)) for band in halves],
        "ticks_hz": HZ_TICKS,
    }


class WithFigure:
    """A widget that leaves a figure in the notebook, for readers without a kernel.

    The figure is a separate output before the widget; the widget's script hides it with `hideFigure`. The saved
    notebooks of the course keep only the figure.
    """

    button_name = ""  # name of a widget without a clip in a panel's list of buttons

    def _figure_html(self) -> str:
        """Return what readers without a kernel see: at most `FIGURE_BYTES`, and the same text at every call."""
        raise NotImplementedError

    def _ipython_display_(self, **_: Any) -> None:
        """Show the figure, then the widget; ipywidgets 7 and 8 and all versions of IPython call this first."""
        from IPython.display import display

        figure = f'<div class="rl-static">{NO_ERROR}{self._figure_html()}</div>'
        display({"text/plain": repr(self), "text/html": figure}, raw=True)
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}  # type: ignore[attr-defined]
        display({WIDGET_VIEW: view}, raw=True)


class ClipTrait(traitlets.TraitType):  # type: ignore[type-arg]  # generic in newer versions only
    """An attribute that takes clips only."""

    def validate(self, widget: Any, value: object) -> Clip:
        """Return the clip; for any other value, raise a TypeError that names it."""
        if not isinstance(value, Clip):
            given = f"{type(value).__name__} {reprlib.repr(value)}"
            raise TypeError(f"{type(widget).__name__} shows a Clip, not the {given}: see Clip.from_audio, .from_image")
        return value


class AnsweringWidget(anywidget.AnyWidget):
    """A widget whose script sends messages and shows the errors that Python raises for them.

    A message is a dictionary. One of the "kind" "save" is passed to the method `_answer_save`, with its bytes.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.on_msg(self._receive)

    def _receive(self, _: AnsweringWidget, content: dict[str, Any], buffers: list[memoryview]) -> None:
        answer = getattr(self, f"_answer_{content.get('kind')}", lambda *_: None)
        try:
            answer(content, b"".join(buffers))
        except (TypeError, ValueError, OSError) as error:  # shown beside the buttons: a callback has no cell
            self.send({"kind": "refused", "reason": str(error)})


class ClipWidget(WithFigure, AnsweringWidget):
    """A widget that shows the picture of a clip; the clip can be replaced.

    Sound and picture are sent to the browser as messages, once its script asks for them, because traits would be saved
    with the notebook.
    """

    _css = style()
    _asked_for = False  # by the browser; what is sent before it asks is lost
    clip = ClipTrait()

    def __init__(self, clip: Clip, **kwargs: Any) -> None:
        super().__init__(clip=clip, **kwargs)

    def _answer_ready(self, *_: Any) -> None:
        self._asked_for = True
        self._exchange()

    def _answer_plain(self, *_: Any) -> None:
        """Send the figure for readers without a kernel as text, because the front end lost the bytes of a message."""
        self.send({"kind": "plain", "html": self._figure_html()})

    @traitlets.observe("clip")
    def _exchange(self, *_: Any) -> None:
        """Send what the script draws, once it has asked: facts, the picture, and what `_more` adds to both."""
        if not self._asked_for:
            return
        clip, params = self.clip, self.clip.params
        message = {"kind": "clip", "title": clip.title, "description": description(clip), "columns": clip.image.width}
        message |= {"duration_s": clip.duration_s, "columns_per_s": params.sample_rate / params.hop_length}
        message |= {"bands": params.num_frequencies, **scale_facts(params)}
        facts, buffers = self._more()
        self.send(message | facts, buffers=[picture_png(clip), *buffers])

    def _more(self) -> tuple[dict[str, Any], list[bytes]]:
        return {}, []

    def _figure_html(self) -> str:
        return clip_html(self.clip, max_bytes=FIGURE_BYTES)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.clip!r})"

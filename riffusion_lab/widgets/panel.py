"""A column of ipywidgets that hides its figure, and says when its kernel is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import traitlets

from .base import AnsweringWidget, WithFigure, script, style
from .figures import panel_html

RUN_IT = "It answers where a kernel runs: run this cell."


class PanelScript(AnsweringWidget):
    """The script of a panel in the browser, since plain ipywidgets have no script of their own.

    It hides the figure, says when the kernel is gone, reports Enter in a text field, and shows words to pick.

    Parameters
    ----------
    groups : mapping of str to two sequences of str, optional
        Words by kind: those that are shown, and those that only a search finds.
    on_word : function, optional
        Called with a word that was picked.
    on_enter : function, optional
        Called with the texts of all text fields, when Enter was pressed in one.
    """

    _esm = script("panel.js")
    _css = style()
    groups: traitlets.List[Any] = traitlets.List(help="kind, words, further words; in the order on the screen").tag(
        sync=True
    )

    def __init__(
        self,
        groups: Mapping[str, tuple[Sequence[str], Sequence[str]]] | None = None,
        *,
        on_word: Callable[[str], None] | None = None,
        on_enter: Callable[[list[str]], None] | None = None,
    ) -> None:
        self._on_word, self._on_enter = on_word, on_enter
        super().__init__(groups=[[kind, list(usual), list(others)] for kind, (usual, others) in (groups or {}).items()])

    def _answer_ready(self, *_: Any) -> None:
        """Say that the kernel is there, and still has this panel."""
        self.send({"kind": "pong"})

    _answer_ping = _answer_ready

    def _answer_word(self, content: dict[str, Any], _: bytes) -> None:
        self._answer_ready()
        if self._on_word:
            self._on_word(str(content.get("word")))

    def _answer_enter(self, content: dict[str, Any], _: bytes) -> None:
        self._answer_ready()
        if self._on_enter:
            self._on_enter([str(text) for text in content.get("texts", ())])

    def __repr__(self) -> str:
        return "PanelScript()"


class Panel(WithFigure, widgets.VBox):
    """A column of ipywidgets that can also be read without a kernel.

    A plain `VBox` leaves nothing but `VBox(children=…` in a saved notebook. This one leaves a table of its fields and
    buttons, which is hidden while the panel is live. After a restart of the kernel, the panel says that its cell must
    be run again.

    Parameters
    ----------
    children : sequence of ipywidgets
    caption : str
        What the panel is for.

    Taught in: 00
    """

    def __init__(self, children: Sequence[widgets.Widget], *, caption: str = "", **kwargs: Any) -> None:
        self.caption = caption
        super().__init__([*children, PanelScript()], **kwargs)

    def _figure_html(self) -> str:
        return panel_html(self.children, f"{self.caption} {RUN_IT}".strip())

    def __repr__(self) -> str:
        names = (type(child).__name__ for child in self.children if not isinstance(child, PanelScript))
        return f"Panel({', '.join(names)})"

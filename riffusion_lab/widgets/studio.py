"""A panel to generate clips: prompt, settings, progress, and the clips generated so far."""

from __future__ import annotations

import base64
import html
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from itertools import count, islice
from pathlib import Path
from threading import Event, RLock
from typing import Any

import diffusers
import ipywidgets as widgets
import torch
import traitlets
from PIL import Image

from ..clip import Clip
from ..display import TEXT_BYTES, clip_html
from ..edit import audio_to_audio, inpaint
from ..generate import text_to_audio
from ..image import open_image
from ..latents import latent_size
from ..models import Pipeline, model_settings, vocabulary
from ..params import COLUMNS_PER_S
from ..prompts import Prompt, check_prompt
from ..requests import Point, as_model_clip, check_point, clip_width, find_hints
from ..values import N_SEEDS, silence_thread
from .base import FIGURE_BYTES, WithFigure
from .figures import panel_html
from .mask_painter import MaskPainter
from .panel import RUN_IT, PanelScript
from .pictures import picture_image, png_bytes
from .player import Player, file_stem
from .words import word_groups

N_SHOWN = 12  # clips in the history
PREVIEW_STEPS = 3  # from one preview to the next
MADE = "the clip below"  # as a source


class _Cancelled(Exception):
    """The clip in progress is no longer wanted."""


class Studio(WithFigure, widgets.VBox):
    """Generate clips at the press of a button: from a prompt, from another clip, or inside a mask.

    Enter in the prompt also presses *Generate*. Clips are generated in a separate thread, so that the kernel stays idle
    and *Cancel* works, which stops after the current step. Each clip is saved as a PNG that can be played again, named
    after its prompt and seed; no file is overwritten. The clips in `folder` are listed, newest first, also when the
    panel is created again. Errors and hints are shown in the panel; after an error, everything is as before.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    prompt, negative_prompt : str
        Initial values.
    seed : int
        Initial value.
    source : Clip or mapping of str to Clip, optional
        The clip to restyle; of several, one is chosen by name. The clip in the player can be chosen too, to restyle it
        again.
    painter : MaskPainter, optional
        Instead of a source: its clip is inpainted where it is marked. *Paint on this clip* switches to the clip in the
        player.
    strength : float, optional
        Initial value, in [0, 1]. Default: 0.75, or 1 with a painter.
    folder : path
        Where clips are saved; created when there is something to save.
    words : bool
        Show the words that the model was trained on, by kind, as buttons that add them to the prompt.

    Attributes
    ----------
    clip : Clip or None
        The clip in the player: the last one generated, chosen or set. ``studio.observe(function, "clip")`` calls a
        function with each new one, in the thread that generated it.
    history : list of Clip
        The listed clips, newest first, at most 12.
    prompt, negative_prompt, seed, num_inference_steps, guidance_scale, duration_s, strength, generate, cancel, ...
        The widgets of the panel: ``studio.prompt.value`` is the text in the field, ``studio.generate.click()`` presses
        the button.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    Taught in: 00, 05, 06, 07
    """

    clip = traitlets.Instance(Clip, allow_none=True)

    def __init__(
        self,
        pipe: Pipeline,
        *,
        prompt: str = "",
        negative_prompt: str = "",
        seed: int = 0,
        source: Clip | Mapping[str, Clip] | None = None,
        painter: MaskPainter | None = None,
        strength: float | None = None,
        folder: str | Path = "clips",
        words: bool = False,
    ) -> None:
        self._cancelled = Event()
        self._lock = RLock()
        self._job: Future[None] | None = None
        self._worker = ThreadPoolExecutor(1, "riffusion_lab studio", _begin_thread)
        self.pipe = pipe
        self.painter = painter
        self.folder = Path(folder)
        self.history: list[Clip] = []
        sources = {"clip": source} if isinstance(source, Clip) else dict(source or {})
        self._sources = {name: as_model_clip(clip) for name, clip in sources.items()}
        if painter is not None and (sources or not isinstance(painter, MaskPainter)):
            raise TypeError(f"painter must be a MaskPainter, and there must be no source, not {painter!r:.80}")
        strength = (1.0 if painter else 0.75) if strength is None else strength
        point = check_point(pipe, Point((Prompt(prompt, seed, negative_prompt, strength=strength),)))
        self._make_parts(prompt, negative_prompt, point.start.seed, point.strength)
        known = word_groups(vocabulary(pipe), model_settings(pipe).tempi_bpm) if words else {}
        self._script = PanelScript(known, on_word=self._add_word, on_enter=self._enter)
        super().__init__(self._rows())
        for name, clip in reversed(list(islice(_clips_in(self.folder), N_SHOWN))):
            self._list_clip(name, clip)

    def _make_parts(self, prompt: str, negative_prompt: str, seed: int, strength: float) -> None:
        pipe, settings = self.pipe, model_settings(self.pipe)
        clip_s = clip_width(pipe) / COLUMNS_PER_S
        self.source = widgets.Dropdown(options=[*self._sources, MADE], description="Source")
        self.prompt = widgets.Text(prompt, description="Prompt", layout={"width": "98%"})
        self.negative_prompt = widgets.Text(negative_prompt, description="Negative", layout={"width": "98%"})
        self.seed = _number("Seed", seed, N_SEEDS - 1, 1)
        self.next_seed = _button("Next seed", self._take_next_seed)
        self.num_inference_steps = _number("Steps", settings.num_inference_steps, 1_000, 1, least=1)
        self.guidance_scale = _number("Guidance", float(settings.guidance_scale), 50, 0.5)
        self.duration_s = _number("Seconds", clip_s, 60, clip_s)
        self.strength = _number("Strength", strength, 1, 0.05)
        self.generate = _button("Generate", self._start, button_style="primary")
        self.cancel = _button("Cancel", self._stop, disabled=True)
        self.go_on = _button("Paint on this clip", lambda _: setattr(self.painter, "clip", self.clip), disabled=True)
        self.progress, self.preview, self.status = widgets.FloatProgress(max=1.0), widgets.HTML(), widgets.HTML()
        self._player, self._list = widgets.VBox(), widgets.VBox(layout={"max_height": "300px", "overflow": "auto"})

    def _rows(self) -> list[widgets.Widget]:
        numbers = [self.seed, self.next_seed, self.num_inference_steps, self.guidance_scale]
        numbers += [self.strength if self.painter or self._sources else self.duration_s]
        buttons = [self.generate, self.cancel, *[self.go_on] * bool(self.painter), self.progress]
        self._asked = [self.source] * bool(self._sources)
        self._asked += [self.prompt, self._script, self.negative_prompt, _wrapped(numbers), _wrapped(buttons)]
        return [*self._asked, self.status, self.preview, self._player, self._list]

    def _take_next_seed(self, _: object) -> None:
        self.seed.value = (self.seed.value + 1) % N_SEEDS

    def _add_word(self, word: str) -> None:
        self.prompt.value = f"{self.prompt.value} {word}".strip()

    def _enter(self, texts: list[str]) -> None:
        """Start with the texts in the browser's fields: ipywidgets may not have sent all of them yet."""
        for field, text in zip((self.prompt, self.negative_prompt), texts, strict=False):
            field.value = text
        self._start(None)

    def _start(self, _: object) -> None:
        """Start generating with the current values."""
        if self.painter and self.painter.mask is None:
            return self._say("Nothing is marked: mark in the picture what shall be made anew.")
        order = self._order()
        with self._lock:
            if self.generate.disabled:
                return self._say("A clip is being made already: wait for it, or press Cancel.")
            self._switch(busy=True)
            job = self._worker.submit(self._make, *order)
            self._job = job
        if "google.colab" in sys.modules:  # Colab shows what a thread does only until the click is handled
            wait([job])

    def _stop(self, button: widgets.Button) -> None:
        self._cancelled.set()
        button.disabled = True

    def _order(self) -> tuple[Callable[..., Clip], dict[str, Any]]:
        """Return the function to call, and its options."""
        options = {name: getattr(self, name).value for name in ("prompt", "seed", "num_inference_steps")}
        options |= {"guidance_scale": self.guidance_scale.value, "negative_prompt": self.negative_prompt.value or None}
        if not self.painter and not self._sources:
            return partial(text_to_audio, self.pipe, duration_s=self.duration_s.value), options
        options["strength"] = self.strength.value
        if self.painter:
            return partial(inpaint, self.pipe, self.painter.clip, self.painter.mask), options
        return partial(audio_to_audio, self.pipe, self._sources.get(self.source.value, self.clip)), options

    def _make(self, call: Callable[..., Clip], options: dict[str, Any]) -> None:
        """Generate a clip, save it and show it; runs in the worker's thread."""
        try:
            check_prompt(options["prompt"], may_be_empty=False)  # an empty text box is likely an oversight
            asked = (options[name] for name in ("prompt", "seed", "negative_prompt", "guidance_scale"))
            found = find_hints(self.pipe, [check_point(self.pipe, Point((Prompt(*asked),)))])
            self._say("Making a clip …", *found)
            clip = call(**options, callback_on_step_end=self._on_step_end)
            _ = clip.waveform  # computed here, where nobody waits for it
            if self._cancelled.is_set():
                raise _Cancelled
            self._say(self._save(clip), *found)
            self.clip = clip
        except _Cancelled:
            self._say("Cancelled.")
        except Exception as error:  # whatever a model may raise: the thread survives and shows it
            in_words = isinstance(error, TypeError | ValueError | OSError)  # their messages say what to do
            self._say(f"{error}" if in_words else f"No clip: {type(error).__name__}: {error}; try again, or with less.")
        finally:
            with self._lock:
                self._switch(busy=False)

    def _on_step_end(self, pipe: Pipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> None:
        if self._cancelled.is_set():
            raise _Cancelled
        self.progress.value = float((pipe.scheduler.timesteps >= timestep).float().mean())
        if step % PREVIEW_STEPS == PREVIEW_STEPS - 1 and isinstance(pipe.vae, diffusers.AutoencoderTiny):
            self.preview.value = _picture_html(_preview(pipe, tensors["latents"]), "a first look at the picture")

    def _switch(self, *, busy: bool) -> None:
        self.progress.value, self.preview.value = 0.0, ""
        self.generate.disabled, self.cancel.disabled = busy, not busy
        self._cancelled.clear()

    def _say(self, *texts: str) -> None:
        """Show sentences, as plain text: neither HTML nor, because of <pre>, LaTeX."""
        text = html.escape("\n".join(texts))
        self.status.value = f'<pre role="status" style="white-space: pre-wrap; font-family: inherit">{text}</pre>'

    def _save(self, clip: Clip) -> str:
        """Save a clip, and say where, or why not."""
        recipe = clip.recipe or {}
        stem = f"{file_stem(clip)}-seed-{recipe['seed']}"
        paths = (self.folder / f"{stem}{f'-{number}' * (number > 1)}.png" for number in count(1))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = next(path for path in paths if not path.exists())
            clip.save(path)
        except OSError as error:
            return f"Not saved ({error}): studio.clip.save(…) puts it elsewhere."
        self._list_clip(path.stem, clip)
        return f"Saved as {path}"

    def _list_clip(self, name: str, clip: Clip) -> None:
        small = picture_image(clip).convert("RGB").resize((96, 32))
        play = _button(name, lambda _: setattr(self, "clip", clip))
        self.history = [clip, *self.history][:N_SHOWN]
        row = widgets.HBox([widgets.HTML(_picture_html(small, "")), play])
        self._list.children = (row, *self._list.children)[:N_SHOWN]

    @traitlets.observe("clip")
    def _show(self, _: object) -> None:
        with self._lock:  # if threads show clips at the same time, the last one wins in the player too
            if self.clip is None:
                return
            self.go_on.disabled = False
            self._player.children = self._player.children or (Player(self.clip),)
            self._player.children[0].clip = self.clip

    def _figure_html(self) -> str:
        """Return the panel as a table, and the clip in the player."""
        panel = panel_html(self._asked, f"A panel to make clips. {RUN_IT}")
        return panel + clip_html(self.clip, max_bytes=FIGURE_BYTES - len(panel) - TEXT_BYTES) if self.clip else panel

    def close(self) -> None:
        """Cancel the clip in progress, and remove the panel."""
        self._cancelled.set()
        super().close()

    def __repr__(self) -> str:
        return f"Studio({self.prompt.value!r}, seed={self.seed.value})"


def _begin_thread() -> None:
    """Prepare the thread that makes clips: the panel shows the hints itself."""
    torch.set_grad_enabled(False)  # of this thread
    silence_thread()


def _clips_in(folder: Path) -> Iterator[tuple[str, Clip]]:
    """Find the generated clips in a folder, newest first."""
    for path in sorted(folder.glob("*.png"), key=lambda path: (path.lstat().st_mtime_ns, path.name), reverse=True):
        with suppress(TypeError, ValueError, OSError):  # not a clip
            clip = Clip.from_picture(open_image(path))
            if clip.recipe:
                yield path.stem, clip


def _preview(pipe: Pipeline, latents: torch.Tensor) -> Image.Image:
    """Decode the beginning of latents roughly, at half their size."""
    half = torch.nn.functional.avg_pool2d(latents[:1, :, :, : latent_size(pipe)[1]], 2) / pipe.vae.config.scaling_factor
    return pipe.image_processor.postprocess(pipe.vae.decode(half).sample)[0].convert("L").resize((128, 128))


def _picture_html(image: Image.Image, description: str) -> str:
    return f'<img alt="{description}" src="data:image/png;base64,{base64.b64encode(png_bytes(image)).decode()}">'


def _number(name: str, value: float, most: float, step: float, least: float = 0) -> widgets.Widget:
    kind = widgets.BoundedIntText if isinstance(value, int) else widgets.BoundedFloatText
    return kind(value=value, min=least, max=most, step=step, description=name, layout={"width": "180px"})


def _button(name: str, pressed: Callable[[widgets.Button], None], **look: Any) -> widgets.Button:
    button = widgets.Button(description=name, layout={"width": "auto"}, **look)
    button.on_click(pressed)
    return button


def _wrapped(parts: list[widgets.Widget], **look: str) -> widgets.Box:
    return widgets.Box(parts, layout={"flex_flow": "row wrap", **look})

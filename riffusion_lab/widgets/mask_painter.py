"""Mark in a clip's picture what shall be made anew."""

from __future__ import annotations

import base64
import html
import reprlib
from typing import Any

import numpy as np
import traitlets
from PIL import Image

from ..clip import Clip
from ..masks import as_mask
from ..plot import description
from .base import ClipWidget, script
from .pictures import picture_image, png_bytes

TINT = (64, 224, 208)  # what is marked, in the figure and in the widget
FIGURE_SIZE = (600, 220)  # pixels


class MaskTrait(traitlets.TraitType):
    """An attribute that takes what `as_mask` takes for the widget's clip, and None for nothing."""

    def validate(self, painter: MaskPainter, value: object) -> np.ndarray | None:
        """Return the mask as a read-only array: one that changes in place would go unseen."""
        if value is None:
            return None
        try:
            mask = as_mask(value, painter.clip)
        except (TypeError, ValueError) as error:
            raise type(error)(f"the mask {reprlib.repr(value)}: {error}") from error
        mask.flags.writeable = False
        return mask


class MaskPainter(ClipWidget):
    """Mark in a clip's picture what `inpaint` shall make anew.

    With boxes, a brush and an eraser; by numbers; or by keyboard, while the picture has the focus: arrows move a box,
    Shift and arrows resize it, Enter adds it (with the eraser: takes it away), Delete clears, Ctrl + Z undoes.

    Parameters
    ----------
    clip : Clip
    mask : array, PIL.Image.Image or tuple, optional
        To begin with: whatever `inpaint` takes as a mask.

    Attributes
    ----------
    clip : Clip
        Set another one to mark that; the mask stays if it has the right size.
    mask : np.ndarray [shape=(512, columns), bool] or None
        As the picture: row 0 is the highest frequency. True is made anew. None while nothing is marked. Read-only; may
        be set. ``painter.observe(function, "mask")`` calls a function after each change.

    Raises
    ------
    TypeError, ValueError
        If `clip` is no clip, or `mask` no mask for it.

    Taught in: 05
    """

    _esm = script("mask_painter.js")
    _from_browser = False
    mask = MaskTrait(allow_none=True, default_value=None)

    def __init__(self, clip: Clip, mask: object = None, **kwargs: Any) -> None:
        super().__init__(clip, mask=mask, **kwargs)

    @traitlets.observe("mask")
    def _send_mask(self, change: Any) -> None:
        if self._asked_for and not self._from_browser:
            self.send({"kind": "mask"}, buffers=_bytes(change["new"]))

    @traitlets.observe("clip")
    def _exchange(self, change: Any) -> None:
        """Forget a mask that does not fit, then show the new clip."""
        clip = change["new"]
        if self.mask is not None and self.mask.shape != (clip.params.num_frequencies, clip.image.width):
            self.mask = None
        super()._exchange(change)

    def _more(self) -> tuple[dict[str, Any], list[bytes]]:
        return {}, _bytes(self.mask)

    def _answer(self, content: dict[str, Any], buffers: list[memoryview]) -> None:
        """Take the mask of {"kind": "mask"}: one buffer, a byte for each pixel, 1 is made anew, row by row."""
        if content.get("kind") != "mask":
            return
        size = (self.clip.params.num_frequencies, self.clip.image.width)
        mask = np.frombuffer(b"".join(bytes(buffer) for buffer in buffers), np.uint8)
        if mask.size != size[0] * size[1]:
            raise ValueError(f"a mask of {mask.size:,} pixels came for a picture of {size}: mark it again")
        self._from_browser = True
        try:
            self.mask = mask.reshape(size).astype(bool) if mask.any() else None
        finally:
            self._from_browser = False

    def _figure_html(self) -> str:
        """The picture and what is marked in it now."""
        image = picture_image(self.clip).convert("RGB")
        marked = "nothing is marked"
        if self.mask is not None:
            tinted = Image.blend(image, Image.new("RGB", image.size, TINT), 0.5)
            image.paste(tinted, mask=Image.fromarray(self.mask).resize(image.size))
            marked = f"marked to be made anew: {self.mask.mean():.1%} of the picture"
        png = png_bytes(image.resize(FIGURE_SIZE).quantize(64, dither=Image.Dither.NONE))
        return (
            f'<figure style="margin:0"><img alt="{html.escape(description(self.clip))}; {marked}" '
            f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
            f"<figcaption>{html.escape(self.clip.title)} {marked}</figcaption></figure>"
        )


def _bytes(mask: np.ndarray | None) -> list[bytes]:
    return [] if mask is None else [mask.astype(np.uint8).tobytes()]

"""Mark the part of a clip's picture to be inpainted."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np
import traitlets
from PIL import Image

from ..clip import Clip
from ..masks import as_mask
from ..plot import description
from .base import ClipWidget, script
from .figures import picture_html
from .pictures import picture_image

TINT = (64, 224, 208)  # what is marked, in the figure and in the widget


class MaskTrait(traitlets.TraitType):  # type: ignore[type-arg]  # generic in newer versions only
    """An attribute that accepts any mask that `as_mask` accepts for the widget's clip, or None."""

    def validate(self, painter: MaskPainter, value: object) -> np.ndarray:
        """Return the mask as a read-only array, because a change in place would not be noticed."""
        try:
            mask = as_mask(value, painter.clip)
        except (TypeError, ValueError) as error:
            raise type(error)(f"the mask {reprlib.repr(value)}: {error}") from error
        mask.flags.writeable = False
        return mask


class MaskPainter(ClipWidget):
    """Mark the part of a clip's picture that `inpaint` regenerates.

    Use boxes, a brush and an eraser, or type numbers. With the keyboard, while the picture has the focus: arrows move a
    box, Shift and arrows resize it, Enter adds it (with the eraser: removes it), Delete clears, Ctrl + Z undoes, Ctrl +
    Shift + Z redoes.

    Parameters
    ----------
    clip : Clip
    mask : array, PIL.Image.Image or tuple, optional
        The initial mask: whatever `inpaint` accepts as a mask.

    Attributes
    ----------
    clip : Clip
        Set another clip to mark that one; the mask stays if it has the right size.
    mask : np.ndarray [shape=(512, columns), bool] or None
        As the picture: row 0 is the highest frequency. True is regenerated. None while nothing is marked. Read-only;
        may be set. ``painter.observe(function, "mask")`` calls a function after each change.

    Raises
    ------
    TypeError, ValueError
        If `clip` is not a clip, or `mask` is not a mask for it.

    Taught in: 05
    """

    _esm = script("mask_painter.js")
    _from_browser = False
    mask = MaskTrait(allow_none=True, default_value=None)

    def __init__(self, clip: Clip, mask: object = None, **kwargs: Any) -> None:
        super().__init__(clip, mask=mask, **kwargs)

    @traitlets.observe("mask")
    def _send_mask(self, _: Any) -> None:
        if self._asked_for and not self._from_browser:
            self.send({"kind": "mask"}, buffers=self._more()[1])

    @traitlets.observe("clip")
    def _exchange(self, *_: Any) -> None:
        """Forget a mask that does not fit, then show the new clip."""
        if self.mask is not None and self.mask.shape != self.clip.image.size[::-1]:
            self.mask = None
        super()._exchange()

    def _more(self) -> tuple[dict[str, Any], list[bytes]]:
        return {}, [] if self.mask is None else [self.mask.tobytes()]

    def _answer_mask(self, _: Any, data: bytes) -> None:
        """Take the mask of {"kind": "mask"}: one byte per pixel, row by row; 1 is regenerated."""
        shape = self.clip.image.size[::-1]
        if len(data) != np.prod(shape):
            raise ValueError(f"a mask of {len(data):,} pixels came for a picture of {shape}: mark it again")
        self._from_browser = True
        try:
            self.mask = np.frombuffer(data, np.uint8).reshape(shape).astype(bool) if any(data) else None
        finally:
            self._from_browser = False

    def _figure_html(self) -> str:
        """The picture and what is marked in it now."""
        image = picture_image(self.clip).convert("RGB")
        marked = "nothing is marked"
        if self.mask is not None:
            tinted = Image.blend(image, Image.new("RGB", image.size, TINT), 0.5)
            image.paste(tinted, mask=Image.fromarray(self.mask).resize(image.size))
            marked = f"marked to be inpainted: {self.mask.mean():.1%} of the picture"
        caption = f"{self.clip.title} · {marked}" if self.clip.title else marked.capitalize()
        return picture_html(image.resize((600, 220)), f"{description(self.clip)}; {marked}", caption)

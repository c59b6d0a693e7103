"""Recording clips into a sound file as they are heard."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile

from .clip import Clip
from .join import CROSSFADE_S, crossfade, loop_from
from .params import PARAMS
from .soundfiles import FORMATS, WRITE_BLOCK


class Recording:
    """A sound file that grows clip by clip; each clip is joined to the one before as a listener hears it.

    A clip is written when it is over, since only then it is known how much of it was heard.

    If no more can be written, for example because the disk is full, an OSError names the file, which is closed and
    holds what was written before.

    Parameters
    ----------
    path : path
        Ends in one of `soundfiles.FORMATS`.

    Raises
    ------
    ValueError, OSError
        If the name ends in no known format, or the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.sounding: Clip | None = None
        self.before: tuple[Clip, int] | None = None  # the clip that was written last, and how many samples of it
        self.n_written = 0  # samples
        if self.path.suffix.lower() not in FORMATS:
            raise ValueError(f"{self.path.name} ends in no known format: give one of {', '.join(FORMATS)}")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{path} cannot be recorded: the folder {self.path.parent} does not exist")
        file_format = FORMATS[self.path.suffix.lower()]
        try:
            self.file = soundfile.SoundFile(self.path, "w", PARAMS.sample_rate, PARAMS.n_channels, format=file_format)
        except soundfile.SoundFileError as error:
            advice = "give a file in a folder that can be written to, on a disk with room"
            raise OSError(f"{path} cannot be recorded ({error}): {advice}") from error

    def begin(self, clip: Clip, n_heard: int | None = None) -> None:
        """Note that a clip begins to sound; the one that sounded before is over, and is written.

        Parameters
        ----------
        clip : Clip
        n_heard : int, optional
            How many samples of the clip before were heard. Default: all.

        Raises
        ------
        OSError
            If no more can be written, for example because the disk is full.
        """
        self._write_sounding(n_heard)
        self.sounding = clip

    def _write_sounding(self, n_heard: int | None) -> None:
        """Write what was heard of the clip that sounded; the clip before it fades out under its beginning."""
        clip = self.sounding
        if clip is None:
            return
        sound = clip.waveform
        n_samples = sound.shape[1] if n_heard is None else n_heard
        goes_round = self.before is not None and self.before[0] is clip and self.before[1] == sound.shape[1]
        if self.before is not None and not goes_round:
            n_fade = round(CROSSFADE_S * clip.sample_rate)
            sound = crossfade(loop_from(*self.before, n_fade), sound, n_fade)
        self.before = (clip, n_samples)
        for start in range(0, n_samples, WRITE_BLOCK):
            self._write(sound[:, start : min(start + WRITE_BLOCK, n_samples)])

    def _write(self, sound: np.ndarray) -> None:
        """Write samples of shape (channels, samples)."""
        try:
            self.file.write(sound.T)
        except (soundfile.SoundFileError, OSError, AssertionError) as error:  # it asserts that all samples were written
            self._rescue()
            heard = f"about the first {self.n_written / PARAMS.sample_rate:.1f} s"
            reason = f"no more could be written ({error}); is the disk full?"
            raise OSError(f"The recording {self.path} ends here and holds {heard}: {reason}") from error
        self.n_written += sound.shape[1]

    def _rescue(self) -> None:
        """Close a file that cannot grow any more, so that what it holds can be read."""
        with suppress(soundfile.SoundFileError, OSError):  # the error that led here is raised
            self.file.close()
        if FORMATS[self.path.suffix.lower()] == "FLAC":
            with suppress(OSError):
                _write_flac_length(self.path, self.n_written)

    def close(self, n_heard: int | None = None) -> Path:
        """Write the clip that sounds, all of it or its first `n_heard` samples; finish the file and return its path.

        Raises
        ------
        OSError
            If the end of the file cannot be written.
        """
        self._write_sounding(n_heard)
        self.sounding = None
        try:
            self.file.close()
        except soundfile.SoundFileError as error:
            raise OSError(f"the end of {self.path} could not be written ({error}): is the disk full?") from error
        return self.path


def _write_flac_length(path: Path, n_written: int) -> None:
    """Write the number of samples into a FLAC file; libFLAC leaves it out after an error.

    The file begins with the block STREAMINFO (https://www.rfc-editor.org/rfc/rfc9639#section-8.2): bytes 8 and 9 are
    the number of samples in a frame, the last 36 bits of bytes 18 to 25 the number of samples in the file. The encoder
    holds back what does not fill a frame, and one sample more, so these are not in the file.
    """
    with path.open("r+b") as file:
        header = bytearray(file.read(26))
        frame = int.from_bytes(header[8:10], "big")
        numbers = int.from_bytes(header[18:26], "big")
        if numbers % 2**36:  # the encoder has written it itself
            return
        n_samples = max(0, n_written - 1) // frame * frame
        header[18:26] = (numbers + n_samples).to_bytes(8, "big")
        file.seek(0)
        file.write(header)

"""Mel amplitudes → waveform: a picture says how loud each frequency is; the phases must be estimated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

from .params import SpectrogramParams
from .resampling import reflected, resample
from .spectrogram import mel_filterbank, mel_from_waveform, mel_options
from .torch_defaults import torch_defaults
from .values import check_whole

Method = Literal["fast", "best", "riffusion"]
# Changes a waveform in place after each iteration; its arguments are the waveform and the iteration's number
Constraint = Callable[[Tensor, int], None]


class Stage(NamedTuple):
    """Griffin-Lim iterations on every `step`-th column."""

    step: int
    n_iter: int


N_ITER = {"fast": 10, "best": 48, "riffusion": 32}  # on all columns
OPEN_ITER = 4  # additional "fast" iterations if the sound is not a loop, since its ends start unconstrained
COARSE = Stage(step=4, n_iter=24)  # a first estimate, for a fourth of the cost
MEDIUM = Stage(step=2, n_iter=10)  # its refinement
BEYOND = 8  # columns by which an open picture is extended at each end: more than half a window
MOMENTUM = 0.99  # of fast Griffin-Lim; Perraudin, Balazs, Søndergaard (2013)
FADE = 2  # columns over which a stream crossfades from the known sound to the new part
PART = 256  # columns processed at once: longer sounds take no more memory
CEILING_ITER = 40  # iterations that bring peaks under a ceiling
HEADROOM = 2.1  # lowest working sample rate divided by the picture's highest frequency
SEED = 0
NOISE_AMPLITUDE = 1e-6  # of the initial noise: so small that momentum carries none of it into the result


@torch_defaults()
def waveform_from_mel(
    mel: Tensor, params: SpectrogramParams, *, loop: bool = False, method: Method = "fast", n_iter: int | None = None
) -> Tensor:
    """Estimate a waveform with these mel amplitudes. The same picture always gives the same waveform.

    Parameters
    ----------
    mel : Tensor [shape=(channels, num_frequencies, n_columns), non-negative, float32]
        A batch of mono clips may be passed as channels. The computation runs on the tensor's device.
    params : SpectrogramParams
    loop : bool
        Let the frames wrap around, so that the end continues at the beginning without a seam. Otherwise the sound is
        assumed to continue as its mirror image beyond both ends, as in Riffusion's analysis; see `mel_from_waveform`.
    method : {"fast", "best", "riffusion"}
        "best" differs from "fast" only in the number of iterations. "riffusion" is the original: torchaudio's
        InverseMelScale, then GriffinLim. It cannot make loops.
    n_iter : int, optional
        Iterations over all columns; default: 10 (14 without `loop`) for "fast", 48 for "best", 32 for "riffusion".
        More iterations match the picture more closely and take longer.

    Returns
    -------
    Tensor [shape=(channels, hop_length * n_columns), float32]
        At `params.sample_rate`, at the level of the amplitudes.

    Raises
    ------
    ValueError
        If the method is unknown or cannot make loops, or `n_iter` is below 1.

    Taught in: 02
    """
    if method not in N_ITER:
        raise ValueError(f"method {method!r} is unknown: use one of {', '.join(map(repr, get_args(Method)))}")
    if n_iter is None:
        n_iter = _default_n_iter(method, loop=loop)
    n_iter = check_whole("n_iter", n_iter, 1, math.inf)
    mel = mel.float()
    if method == "riffusion":
        if loop:
            raise ValueError("method 'riffusion' cannot make loops: take method='fast', or loop=False")
        return _inverse_mel_griffin_lim(mel, params, n_iter)
    nothing_known = mel.new_zeros(0)
    waveforms = [_griffin_lim(channel, params, n_iter, loop=loop, known=nothing_known) for channel in mel]
    return resample(torch.stack(waveforms), _working_hop(params), params.hop_length, loop=loop)


@torch_defaults()
def lower_peaks(
    waveform: Tensor, mel: Tensor, params: SpectrogramParams, *, ceiling: float, loop: bool = False
) -> Tensor:
    """Change the phases of a reconstructed waveform so that no sample exceeds a ceiling.

    Estimated phases sometimes align where the original ones did not: a mastered song with a crest factor of 7 dB comes
    back with 13 dB. Here Griffin-Lim continues from the waveform with one more constraint: after each iteration all
    samples are clipped at the ceiling. The next iteration repairs what clipping changed in the picture, and removes
    what it added above the picture's highest frequency. This keeps level and picture, whereas a limiter alone would
    turn down the loud passages. The iterations run at the full sample rate, since resampling would raise the peaks
    again.

    Parameters
    ----------
    waveform : Tensor [shape=(channels, n_samples), float32]
        From `waveform_from_mel`.
    mel : Tensor [shape=(channels, num_frequencies, n_columns), non-negative, float32]
        The amplitudes it was reconstructed from, at the same level.
    params : SpectrogramParams
    ceiling : float
        The largest amplitude allowed.
    loop : bool

    Returns
    -------
    Tensor [like waveform, range [-ceiling, ceiling]]

    Taught in: 02
    """
    hop = params.hop_length
    n_columns = mel.shape[-1]
    window = torch.hann_window(params.win_length, device=mel.device)
    filters = _filters(params, hop).to(mel.device)
    if loop:
        frames = _Frames(window, hop, n_columns, loop=True)
    else:
        mel = _with_end_column(mel)
        frames = _Frames(window, hop, n_columns + 1, n_samples=hop * n_columns)

    def clip(samples: Tensor, _iteration: int) -> None:
        samples.clamp_(-ceiling, ceiling)

    lowered = [
        _iterate(channel, samples.clone(), frames, filters, n_iter=CEILING_ITER, constrain=clip)
        for channel, samples in zip(mel.float(), waveform, strict=True)
    ]
    return torch.stack(lowered)


class PhaseStream:
    """Turn a growing strip of pictures into sound, part by part, as if it were one picture.

    Each part continues the phases of the last 0.2 s of sound before it. The sound returned for a part ends 70 ms before
    the part itself does, since the rest depends on what comes next. Time and memory per part do not depend on the
    length of the strip.

    Parameters
    ----------
    params : SpectrogramParams
    method : {"fast", "best"}

    Attributes
    ----------
    rest : Tensor [shape=(channels, n_samples), float32] or None
        The end of the sound, which `push` holds back: play it if no part follows.

    Taught in: 02
    """

    def __init__(self, params: SpectrogramParams, method: Literal["fast", "best"] = "fast") -> None:
        self.params = params
        self.n_iter = _default_n_iter(method, loop=False)
        self.half_window = math.ceil(params.win_length / params.hop_length / 2)  # in columns
        # The last columns, and their sound at the working rate except for the last half window
        self.mel: Tensor | None = None
        self.known: Tensor | None = None
        self.rest: Tensor | None = None

    @torch_defaults()
    def push(self, mel: Tensor) -> Tensor:
        """Add a part.

        Parameters
        ----------
        mel : Tensor [shape=(channels, num_frequencies, n_columns), non-negative]
            At the same scale as the other parts, and at least one window long.

        Returns
        -------
        Tensor [shape=(channels, n_samples), float32]
            The sound that follows the samples returned before. As long as this part, except that the first one is 70 ms
            shorter.
        """
        hop = _working_hop(self.params)
        mel = mel.float()
        if self.mel is None or self.known is None:
            known = mel.new_zeros(len(mel), 0)
        else:
            mel = torch.cat([self.mel, mel], dim=-1)
            known = self.known
        waveforms = [
            _griffin_lim(channel, self.params, self.n_iter, loop=False, known=known_channel)
            for channel, known_channel in zip(mel, known, strict=True)
        ]
        waveform = torch.stack(waveforms)

        # In columns: the next part changes what lies under the last half window, and fades in before that.
        n_final = mel.shape[-1] - self.half_window
        first_kept = max(0, n_final - 4 * self.half_window)
        returned_before = max(0, known.shape[-1] // hop - FADE)
        returned_now = n_final - FADE
        self.mel = mel[..., first_kept:]
        self.known = waveform[..., first_kept * hop : n_final * hop]
        full_hop = self.params.hop_length
        resampled = resample(waveform, hop, full_hop)
        self.rest = resampled[..., returned_now * full_hop :]
        return resampled[..., returned_before * full_hop : returned_now * full_hop]


@torch_defaults()
def spectral_convergence(waveform: Tensor, mel: Tensor, params: SpectrogramParams, *, loop: bool = False) -> float:
    """Relative error of a waveform's mel amplitudes: ‖g·mel(y) - M‖ / ‖M‖ with the best gain g.

    Parameters
    ----------
    waveform : Tensor [shape=(channels, n_samples), float32]
    mel : Tensor [shape=(channels, num_frequencies, n_columns), non-negative]
    params : SpectrogramParams
    loop : bool

    Returns
    -------
    float
        0 for a perfect waveform, at most 1; NaN if the target amplitudes are all zero.

    Taught in: 02
    """
    found = mel_from_waveform(waveform, params, loop=loop)
    gain = (found * mel).sum() / found.square().sum().clamp(min=1e-20)
    return float((gain * found - mel).norm() / mel.norm())


class _Frames:
    """STFT of a waveform and its inverse, some columns at a time.

    Frame k is centred on sample k * hop, so the first and the last frames reach beyond the ends of the waveform. There
    they see its other end (a loop) or its mirror image.
    """

    def __init__(
        self, window: Tensor, hop: int, n_columns: int, *, loop: bool = False, n_samples: int | None = None
    ) -> None:
        self.hop = hop
        self.n_columns = n_columns
        self.n_fft = 2 * len(window)
        self.n_samples = hop * n_columns if n_samples is None else n_samples
        self.hops_per_frame = math.ceil(len(window) / hop)
        padding = self.hops_per_frame * hop - len(window)
        self.window = F.pad(window, (padding // 2, padding - padding // 2))
        # Which sample of the waveform stands at each position of the extended waveform that all frames cover
        half = len(self.window) // 2
        position = torch.arange(-half, hop * n_columns + len(self.window) - half, device=window.device)
        self.index = position % self.n_samples if loop else reflected(position, self.n_samples)
        self.parts = [slice(first, min(first + PART, n_columns)) for first in range(0, n_columns, PART)]
        self.padded_frames = window.new_zeros(min(PART, n_columns), self.n_fft)  # used again for every part
        self.window_sums = self._overlap_add(self._windows)

    def spectra(self, waveform: Tensor, part: slice) -> Tensor:
        """Spectra of some columns, shape (columns, n_fft // 2 + 1)."""
        first = part.start * self.hop
        last = (part.stop - 1) * self.hop + len(self.window)
        extended = waveform[self.index[first:last]]
        frames = self.padded_frames[: part.stop - part.start]
        torch.mul(extended.unfold(0, len(self.window), self.hop), self.window, out=frames[:, : len(self.window)])
        return torch.fft.rfft(frames)

    def waveform(self, spectra: Callable[[slice], Tensor]) -> Tensor:
        """Waveform with the nearest spectra, shape (n_samples,); Griffin and Lim (1984), eq. 6."""

        def frames(part: slice) -> Tensor:
            return torch.fft.irfft(spectra(part), n=self.n_fft)

        return self._overlap_add(frames) / self.window_sums

    def _windows(self, part: slice) -> Tensor:
        return self.window.expand(part.stop - part.start, -1)

    def _overlap_add(self, frames: Callable[[slice], Tensor]) -> Tensor:
        """Add up windowed frames, shape (n_samples,)."""
        sums = self.window.new_zeros(self.n_columns + self.hops_per_frame, self.hop)
        for part in self.parts:
            windowed = frames(part)[:, : len(self.window)] * self.window
            hops = windowed.unflatten(1, (self.hops_per_frame, self.hop))  # (columns, hops_per_frame, hop)
            for offset in range(self.hops_per_frame):
                sums[part.start + offset : part.stop + offset] += hops[:, offset]
        return sums.new_zeros(self.n_samples).index_add_(0, self.index, sums.reshape(-1))


class _Filters(NamedTuple):
    """Mel filters for the spectra of `_Frames`."""

    mel: Tensor  # [shape=(num_frequencies, n_bins), sparse]
    shares: Tensor  # [shape=(n_bins, num_frequencies), sparse]: transposed filters; those of each bin add up to 1

    def to(self, device: torch.device) -> _Filters:
        """Copy to a device."""
        return _Filters(self.mel.to(device), self.shares.to(device))


@lru_cache(maxsize=4)
def _filters(params: SpectrogramParams, hop: int) -> _Filters:
    """Mel filters for an FFT of two windows, at a sample rate with `hop` samples per column."""
    short = replace(params, padded_duration_ms=2 * params.window_duration_ms)
    filterbank = mel_filterbank(short)  # (n_bins, num_frequencies)
    n_bins = int(filterbank.any(dim=1).nonzero().max()) + 1
    filterbank = filterbank[:n_bins]
    shares = filterbank / filterbank.sum(dim=1, keepdim=True).clamp(min=1e-16)
    # There are fewer bins under a filter than with the full FFT, and fewer samples under the window.
    mel = filterbank.T * (params.n_fft / short.n_fft) * (params.hop_length / hop)
    return _Filters(mel.to_sparse_coo(), shares.to_sparse_coo())


def _default_n_iter(method: Method, *, loop: bool) -> int:
    if method == "fast" and not loop:
        return N_ITER[method] + OPEN_ITER
    return N_ITER[method]


def _working_hop(params: SpectrogramParams) -> int:
    """Samples per column at the lowest rate that holds all frequencies of the picture and windows of whole samples."""
    hop = params.hop_length
    fewest = math.ceil(HEADROOM * params.max_frequency * hop / params.sample_rate)
    whole = hop // math.gcd(hop, params.win_length)
    return min(hop, math.ceil(fewest / whole) * whole)


def _griffin_lim(mel: Tensor, params: SpectrogramParams, n_iter: int, *, loop: bool, known: Tensor) -> Tensor:
    """Griffin-Lim on one channel, at a sample rate just high enough, and at first on only some of the columns.

    A waveform that fits every fourth column nearly fits the others too, for a fourth of the cost.

    Parameters
    ----------
    mel : Tensor [shape=(num_frequencies, n_columns), float32]
    params : SpectrogramParams
    n_iter : int
    loop : bool
    known : Tensor [shape=(n_known,), float32]
        Known beginning of a sound that is not a loop; it is kept. May be empty.

    Returns
    -------
    Tensor [shape=(working_hop * n_columns,), float32]
    """
    hop = _working_hop(params)
    window = torch.hann_window(params.win_length * hop // params.hop_length, device=mel.device)
    filters = _filters(params, hop).to(mel.device)
    if loop:
        return _reconstruct_loop(mel, window, hop, filters, n_iter=n_iter)
    return _reconstruct_open(mel, window, hop, filters, n_iter=n_iter, known=known)


def _reconstruct_loop(mel: Tensor, window: Tensor, hop: int, filters: _Filters, *, n_iter: int) -> Tensor:
    """Reconstruct a loop: its frames wrap around."""
    n_columns = mel.shape[1]
    waveform = _initial_noise(hop * n_columns, mel.device)
    for stage in (COARSE, MEDIUM, Stage(step=1, n_iter=n_iter)):
        is_closed = n_columns % stage.step == 0
        step = stage.step if is_closed else 1
        frames = _Frames(window, step * hop, n_columns // step, loop=True)
        waveform = _iterate(mel[:, ::step], waveform, frames, filters, n_iter=stage.n_iter)
    return waveform


def _reconstruct_open(
    mel: Tensor, window: Tensor, hop: int, filters: _Filters, *, n_iter: int, known: Tensor
) -> Tensor:
    """Reconstruct a sound whose frames see its mirror image beyond both ends.

    At a mirror every frequency has phase 0 or π, and iterations cannot turn one into the other: they would keep
    whichever one the initial noise happens to have. So at first only the picture is mirrored beyond its ends, and the
    waveform is free there. Then the waveform is gradually pulled towards its mirror image. In the last iterations, on
    all columns, it is its mirror image.
    """
    n_columns = mel.shape[1]
    n_samples = hop * n_columns
    margin = hop * BEYOND
    mel = _with_end_column(mel)
    columns = torch.arange(-BEYOND, n_columns + BEYOND, device=mel.device)
    extended_mel = mel[:, reflected(columns, n_columns + 1)]
    mirror = _Mirror(n_samples, margin, mel.device)
    beginning = _Beginning(known, n_fade=FADE * hop)

    def keep_beginning(waveform: Tensor, _iteration: int) -> None:
        beginning.restore(waveform, first=0)

    def keep_beginning_inside(waveform: Tensor, _iteration: int) -> None:
        beginning.restore(waveform, first=margin)

    def pull_towards_mirror(waveform: Tensor, iteration: int) -> None:
        # Free in the first half of the iterations, then more and more symmetric: the weight rises from 0 to 1.
        weight = max(0.0, 2 * iteration / (MEDIUM.n_iter - 1) - 1)
        if weight > 0:
            mirror.pull(waveform, weight)
        beginning.restore(waveform, first=margin)

    waveform = _initial_noise(mirror.n_extended, mel.device)
    for stage, constrain in ((COARSE, keep_beginning_inside), (MEDIUM, pull_towards_mirror)):
        some_mel = extended_mel[:, :: stage.step]
        frames = _Frames(window, stage.step * hop, some_mel.shape[1])
        waveform = _iterate(some_mel, waveform, frames, filters, n_iter=stage.n_iter, constrain=constrain)
        waveform = waveform[: mirror.n_extended]
    frames = _Frames(window, hop, n_columns + 1, n_samples=n_samples)
    inside = waveform[margin : margin + n_samples]
    return _iterate(mel, inside, frames, filters, n_iter=n_iter, constrain=keep_beginning)


def _with_end_column(mel: Tensor) -> Tensor:
    """Repeat the last column: pictures have none for the frame centred on the very end."""
    return torch.cat([mel, mel[..., -1:]], dim=-1)


class _Mirror:
    """A waveform extended by `margin` samples at each end, where its mirror image belongs."""

    def __init__(self, n_samples: int, margin: int, device: torch.device) -> None:
        self.n_samples = n_samples
        self.n_extended = n_samples + 2 * margin
        position = torch.arange(-margin, n_samples + margin, device=device)
        self.index = reflected(position, n_samples + 1)  # the sample that each position mirrors
        self.n_images = self._sum_images(torch.ones(self.n_extended, device=device))

    def pull(self, waveform: Tensor, weight: float) -> None:
        """Move samples towards the mean of their mirror images, in place; with weight 1 all images become equal."""
        extended = waveform[: self.n_extended]
        mean = self._sum_images(extended) / self.n_images
        extended.lerp_(mean[self.index], weight)

    def _sum_images(self, extended: Tensor) -> Tensor:
        return extended.new_zeros(self.n_samples + 1).index_add_(0, self.index, extended)


class _Beginning:
    """The known beginning of a waveform, which crossfades into the unknown rest."""

    def __init__(self, known: Tensor, n_fade: int) -> None:
        self.known = known
        n_remaining = torch.arange(len(known), 0, -1, device=known.device)
        self.weight = (n_remaining / n_fade).clamp(max=1)

    def restore(self, waveform: Tensor, first: int) -> None:
        """Put the known samples back in place, from sample `first` on."""
        waveform[first : first + len(self.known)].lerp_(self.known, self.weight)


def _initial_noise(n_samples: int, device: torch.device) -> Tensor:
    """White noise to start the iterations from; always the same."""
    generator = torch.Generator().manual_seed(SEED)
    return NOISE_AMPLITUDE * torch.randn(n_samples, generator=generator).to(device)


def _iterate(
    mel: Tensor,
    waveform: Tensor,
    frames: _Frames,
    filters: _Filters,
    *,
    n_iter: int,
    constrain: Constraint | None = None,
) -> Tensor:
    """Griffin-Lim iterations with momentum; a shorter waveform is padded with silence to the frames' length."""
    waveform = F.pad(waveform, (0, frames.n_samples - len(waveform)))
    previous = waveform
    if constrain is not None:
        constrain(waveform, 0)
    for iteration in range(n_iter):
        accelerated = previous.lerp(waveform, 1 + MOMENTUM)
        previous = waveform
        waveform = _projected(mel, accelerated, frames, filters)
        if constrain is not None:
            constrain(waveform, iteration)
    return waveform


def _projected(mel: Tensor, waveform: Tensor, frames: _Frames, filters: _Filters) -> Tensor:
    """One step of Griffin-Lim: the waveform of the spectra, corrected towards these mel amplitudes.

    The amplitudes of the FFT bins are not fixed. In each iteration every bin is scaled by the ratio of target to found
    amplitude in the mel bands it belongs to, as in Richardson (1972), https://doi.org/10.1364/JOSA.62.000055. That
    leaves the phases more freedom than one fixed estimate of the spectrum would. It also makes quiet places as accurate
    as loud ones, which is what counts in a picture.
    """
    n_bins = len(filters.shares)

    def corrected_spectra(part: slice) -> Tensor:  # (columns, n_fft // 2 + 1)
        spectra = frames.spectra(waveform, part)
        spectra[:, n_bins:] = 0  # above the picture
        # On real and imaginary parts: abs() takes three times as long, and multiplying would make the gain complex
        parts = torch.view_as_real(spectra)[:, :n_bins]
        real, imaginary = parts.unbind(dim=-1)
        amplitude = real.square().addcmul_(imaginary, imaginary).sqrt_()
        found = torch.sparse.mm(filters.mel, amplitude.T).clamp_(min=1e-16)
        gain = torch.sparse.mm(filters.shares, mel[:, part] / found).T
        parts.mul_(gain[..., None])
        return spectra

    return frames.waveform(corrected_spectra)


def _inverse_mel_griffin_lim(mel: Tensor, params: SpectrogramParams, n_iter: int) -> Tensor:
    """Riffusion's own method, on all channels."""
    inverse_mel = torchaudio.transforms.InverseMelScale(params.n_fft // 2 + 1, **mel_options(params))
    amplitude = inverse_mel(mel)
    # GriffinLim returns one hop less than there are columns, so the last column is repeated.
    amplitude = _with_end_column(amplitude)
    griffin_lim = torchaudio.transforms.GriffinLim(
        n_fft=params.n_fft,
        win_length=params.win_length,
        hop_length=params.hop_length,
        n_iter=n_iter,
        power=1.0,
        momentum=MOMENTUM,
    )
    with torch.random.fork_rng(devices=[]):  # GriffinLim draws its initial phases from torch's global generator
        torch.manual_seed(SEED)
        waveform: Tensor = griffin_lim(amplitude)
    return waveform

"""Mel amplitudes → waveform: a picture says how loud each frequency is, the phase must be found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial

import torch
import torchaudio
from torch import Tensor

from .params import SpectrogramParams
from .resampling import reflected, resample
from .spectrogram import mel_filterbank, mel_from_waveform, mel_options
from .torch_defaults import torch_defaults
from .values import check_whole

N_ITER = {"fast": 10, "best": 48, "riffusion": 32}
OPEN_ITER = 4  # more iterations where the sound is no loop: at first its ends are free
COARSE = ((4, 24), (2, 10))  # before these, on every 4th and every 2nd column: (columns, iterations)
BEYOND = 8  # columns that an open picture is mirrored by while its ends are free: more than half a window
MOMENTUM = 0.99  # of fast Griffin-Lim; Perraudin, Balazs, Søndergaard (2013)
FADE = 2  # columns over which a stream's new part takes over from what is known
PART = 256  # columns that are worked on at once: longer sounds take no more memory
CEILING_ITER = 40  # iterations that bring peaks under a ceiling
HEADROOM = 2.1  # sample rate / highest frequency in the picture
SEED, QUIET = 0, 1e-6  # of the noise to begin with: nothing of it is left in the momentum


@torch_defaults()
def waveform_from_mel(
    mel: Tensor, params: SpectrogramParams, *, loop: bool = False, method: str = "fast", n_iter: int | None = None
) -> Tensor:
    """Find a waveform with these mel amplitudes. The same picture always gives the same waveform.

    Parameters
    ----------
    mel : Tensor [shape=(channels, num_frequencies, n_columns), non-negative, float32]
        A batch of clips goes as so many channels. The work is done where the tensor lies, on a CPU or a GPU.
    params : SpectrogramParams
    loop : bool
        Let the frames wrap around, so that the end runs into the beginning without a seam. Otherwise the sound is
        taken to go on mirrored beyond both ends, as Riffusion's analysis has it; see `mel_from_waveform`.
    method : {"fast", "best", "riffusion"}
        "best" differs from "fast" by its iterations only. "riffusion" is the original: torchaudio's InverseMelScale,
        then GriffinLim; it knows no loops.
    n_iter : int, optional
        Iterations over all columns; default 10 (14 without `loop`), 48, or the original's 32. More are closer to the
        picture, and slower.

    Returns
    -------
    Tensor [shape=(channels, hop_length * n_columns), float32]
        At `params.sample_rate`, as loud as the amplitudes say.

    Raises
    ------
    ValueError
        If the method is unknown or cannot do loops, or `n_iter` is below 1.

    Taught in: 02
    """
    if method not in N_ITER:
        raise ValueError(f"method {method!r} is unknown: give one of {', '.join(map(repr, N_ITER))}")
    if n_iter is None:
        n_iter = N_ITER[method] + (OPEN_ITER if method == "fast" and not loop else 0)
    n_iter = check_whole("n_iter", n_iter, 1, math.inf)
    if method != "riffusion":
        none = mel.new_zeros(0)
        waveforms = [_griffin_lim(channel, params, n_iter, loop=loop, known=none) for channel in mel.float()]
        return resample(torch.stack(waveforms), _working_hop(params), params.hop_length, loop=loop)
    if loop:
        raise ValueError("method 'riffusion' knows no loops: take method='fast', or loop=False")
    return _riffusion(mel.float(), params, n_iter)


@torch_defaults()
def lower_peaks(
    waveform: Tensor, mel: Tensor, params: SpectrogramParams, *, ceiling: float, loop: bool = False
) -> Tensor:
    """Find other phases for a waveform, with which no sample goes beyond a ceiling.

    Phases that are found anew line up now and then where those of the original did not: a mastered song, whose peaks
    were pressed down to 7 dB above its RMS, comes back with 13 dB. Here Griffin-Lim goes on from the waveform with one
    more constraint: after each iteration all samples are clipped at the ceiling. Each next iteration mends what the
    clipping did to the picture; what it did above the picture's highest frequency stays. So the level and the picture
    are kept, where a limiter alone would take from the loud places. It works at the full sample rate, since peaks
    would rise again in resampling.

    Parameters
    ----------
    waveform : Tensor [shape=(channels, n_samples), float32]
        From `waveform_from_mel`.
    mel : Tensor [shape=(channels, num_frequencies, n_columns), non-negative, float32]
        Amplitudes that it was found for, at its level.
    params : SpectrogramParams
    ceiling : float
        The largest amplitude allowed.
    loop : bool

    Returns
    -------
    Tensor [like waveform, range [-ceiling, ceiling]]

    Taught in: 02
    """
    hop, n_columns = params.hop_length, mel.shape[-1]
    window = torch.hann_window(params.win_length, device=mel.device)
    filters, shares = (part.to(mel.device) for part in _filters(params, hop))
    if loop:
        frames = _Frames(window, hop, n_columns, loop=True)
    else:
        mel = torch.cat([mel, mel[..., -1:]], dim=-1)  # as in `_mirror_ends`
        frames = _Frames(window, hop, n_columns + 1, n_samples=hop * n_columns)

    def clip(sound: Tensor, _: int) -> None:
        sound.clamp_(-ceiling, ceiling)

    lowered = [
        _iterate(channel, frames, CEILING_ITER, sound.clone(), clip, filters=filters, shares=shares)
        for channel, sound in zip(mel.float(), waveform, strict=True)
    ]
    return torch.stack(lowered)


class PhaseStream:
    """Turn a growing strip of pictures into sound, part by part, as if it were one picture.

    Each part hears the last 0.2 s of the sound before it, and goes on with its phase. What a part gives ends 70 ms
    before the part's own end: the rest depends on what comes next. Time and memory for a part do not depend on how
    long the strip is.

    Parameters
    ----------
    params : SpectrogramParams
    method : {"fast", "best"}

    Attributes
    ----------
    rest : Tensor
        What the last part has held back: the end of the sound, if nothing follows.

    Taught in: 02
    """

    def __init__(self, params: SpectrogramParams, method: str = "fast") -> None:
        self.params, self.n_iter = params, N_ITER[method] + (OPEN_ITER if method == "fast" else 0)
        self.half = math.ceil(params.win_length / params.hop_length / 2)  # of a window, in columns
        # the last columns, their sound but for half a window, and what of it was not given yet
        self.mel = self.known = self.rest = None

    @torch_defaults()
    def push(self, mel: Tensor) -> Tensor:
        """Add a part.

        Parameters
        ----------
        mel : Tensor [shape=(channels, num_frequencies, n_columns), non-negative]
            Of one scale throughout, at least a window long.

        Returns
        -------
        Tensor [shape=(channels, n_samples), float32]
            What follows on the last part's samples: as long as this part, the first one is shorter by the lag.
        """
        hop, n_out = _working_hop(self.params), self.params.hop_length
        mel = mel.float() if self.mel is None else torch.cat([self.mel, mel.float()], dim=-1)
        known = mel.new_zeros(len(mel), 0) if self.known is None else self.known
        pairs = zip(mel, known, strict=True)
        sound = torch.stack([_griffin_lim(m, self.params, self.n_iter, loop=False, known=k) for m, k in pairs])
        said = max(0, known.shape[-1] // hop - FADE)
        final = mel.shape[-1] - self.half
        keep = max(0, final - 4 * self.half)
        self.mel, self.known = mel[..., keep:], sound[..., keep * hop : final * hop]
        heard = resample(sound, hop, n_out)
        self.rest = heard[..., (final - FADE) * n_out :]
        return heard[..., said * n_out : (final - FADE) * n_out]


@torch_defaults()
def spectral_convergence(waveform: Tensor, mel: Tensor, params: SpectrogramParams, *, loop: bool = False) -> float:
    """How far a waveform's mel amplitudes are from those wanted: ‖g·mel(y) - M‖ / ‖M‖ with the best gain g.

    Parameters
    ----------
    waveform : Tensor [shape=(channels, n_samples), float32]
    mel : Tensor [shape=(channels, num_frequencies, n_columns), non-negative]
    params : SpectrogramParams
    loop : bool

    Returns
    -------
    float
        0 for a perfect waveform, at most 1; NaN where nothing is wanted but silence.

    Taught in: 02
    """
    heard = mel_from_waveform(waveform, params, loop=loop)
    gain = (heard * mel).sum() / heard.square().sum().clamp(min=1e-20)
    return float((gain * heard - mel).norm() / mel.norm())


class _Frames:
    """Windowed FFTs of a waveform and back, some columns at a time.

    Frame k is centred on sample k * hop, so the first and the last ones reach beyond the ends of the waveform. There
    they see its other end (a loop), or its mirror image.
    """

    def __init__(
        self, window: Tensor, hop: int, n_columns: int, *, loop: bool = False, n_samples: int | None = None
    ) -> None:
        self.hop, self.n_columns, self.n_fft = hop, n_columns, 2 * len(window)
        self.n_samples = hop * n_columns if n_samples is None else n_samples
        self.n_hops = math.ceil(len(window) / hop)  # that one frame reaches across
        padding = self.n_hops * hop - len(window)
        self.window = torch.nn.functional.pad(window, (padding // 2, padding - padding // 2))
        reach = torch.arange(hop * n_columns + len(self.window), device=window.device) - len(self.window) // 2
        self.index = reach % self.n_samples if loop else reflected(reach, self.n_samples)
        self.parts = [slice(i, min(i + PART, n_columns)) for i in range(0, n_columns, PART)]
        self.overlap = self._overlap_add(lambda part: self.window.expand(part.stop - part.start, -1))

    def spectra(self, waveform: Tensor, part: slice, n_bins: int) -> Tensor:
        """Spectra of a part of the columns, shape (columns, n_bins)."""
        reach = slice(part.start * self.hop, part.stop * self.hop + len(self.window) - self.hop)
        samples = waveform[self.index[reach]]
        return torch.fft.rfft(samples.unfold(0, len(self.window), self.hop) * self.window, n=self.n_fft)[:, :n_bins]

    def waveform(self, spectra: Callable[[slice], Tensor]) -> Tensor:
        """Waveform whose spectra are nearest, shape (n_samples,); Griffin and Lim (1984), eq. 6."""
        return self._overlap_add(lambda part: torch.fft.irfft(spectra(part), n=self.n_fft)) / self.overlap

    def _overlap_add(self, frames: Callable[[slice], Tensor]) -> Tensor:
        sums = self.window.new_zeros(self.n_columns + self.n_hops, self.hop)
        for part in self.parts:
            windowed = frames(part)[:, : len(self.window)] * self.window
            for i, hops in enumerate(windowed.unflatten(1, (self.n_hops, self.hop)).unbind(1)):
                sums[part.start + i : part.stop + i] += hops
        return sums.new_zeros(self.n_samples).index_add_(0, self.index, sums.reshape(-1))


@lru_cache(maxsize=4)
def _filters(params: SpectrogramParams, hop: int) -> tuple[Tensor, Tensor]:
    """Mel filters for the FFT of `_Frames`, and each bin's share of them.

    Returns
    -------
    filters : Tensor [shape=(num_frequencies, n_bins), sparse]
    shares : Tensor [shape=(n_bins, num_frequencies), sparse]
        Transposed filters; those of each bin add up to 1.
    """
    short = replace(params, padded_duration_ms=2 * params.window_duration_ms)
    filters = mel_filterbank(short)
    filters = filters[: int(filters.any(dim=1).nonzero().max()) + 1]
    shares = filters / filters.sum(dim=1, keepdim=True).clamp(min=1e-16)
    # Fewer bins fall under a filter than at the full FFT length, and fewer samples under the window.
    filters = filters.T * (params.n_fft / short.n_fft) * (params.hop_length / hop)
    return filters.to_sparse_coo(), shares.to_sparse_coo()


def _working_hop(params: SpectrogramParams) -> int:
    """Fewest samples per column that still hold the picture's highest frequency and whole frames."""
    hop = params.hop_length
    fewest = math.ceil(HEADROOM * params.max_frequency * hop / params.sample_rate)
    whole = hop // math.gcd(hop, params.win_length)
    return min(hop, math.ceil(fewest / whole) * whole)


def _griffin_lim(mel: Tensor, params: SpectrogramParams, n_iter: int, *, loop: bool, known: Tensor) -> Tensor:
    """Griffin-Lim at a sample rate just high enough, on one channel; first on some of the columns.

    A sound that fits every fourth column nearly fits the others too, for a fourth of the cost. What is `known` of the
    beginning of an open sound stays.
    """
    hop = _working_hop(params)
    window = torch.hann_window(params.win_length * hop // params.hop_length, device=mel.device)
    filters, shares = (part.to(mel.device) for part in _filters(params, hop))
    iterate = partial(_iterate, filters=filters, shares=shares)
    if loop:
        return _close_loop(mel, window, hop, n_iter, iterate)
    return _mirror_ends(mel, window, hop, n_iter, iterate, known)


def _close_loop(mel: Tensor, window: Tensor, hop: int, n_iter: int, iterate: Callable[..., Tensor]) -> Tensor:
    """Find a loop: its frames wrap around."""
    n_columns = mel.shape[1]
    waveform = _first_noise(hop * n_columns, mel.device)
    for step, n_steps in (*COARSE, (1, n_iter)):
        step = 1 if n_columns % step else step  # else the loop would not close
        frames = _Frames(window, step * hop, n_columns // step, loop=True)
        waveform = iterate(mel[:, ::step], frames, n_steps, waveform)
    return waveform


def _mirror_ends(
    mel: Tensor, window: Tensor, hop: int, n_iter: int, iterate: Callable[..., Tensor], known: Tensor
) -> Tensor:
    """Find an open sound, whose frames see it mirrored at both ends.

    At a mirror every frequency has phase 0 or π, and iterations cannot turn one into the other: they would keep what
    the noise began with. So the picture is mirrored first, beyond its ends, and the sound is free there. Then it is
    drawn towards its mirror image step by step, and in the last iterations, on all columns, it is the mirror image.
    """
    n_columns = mel.shape[1]
    n_samples = hop * n_columns
    mel = torch.cat([mel, mel[:, -1:]], dim=1)  # with a column at the very end, which no picture has
    columns = torch.arange(-BEYOND, n_columns + BEYOND, device=mel.device)
    wider = mel[:, reflected(columns, n_columns + 1)]
    start = BEYOND * hop
    wider_samples = torch.arange(-start, n_samples + start, device=mel.device)
    mirror = reflected(wider_samples, n_samples + 1)
    n_alike = mel.new_zeros(n_samples + 1).index_add_(0, mirror, torch.ones_like(mirror, dtype=mel.dtype))
    weight = (torch.arange(len(known), 0, -1, device=mel.device) / (FADE * hop)).clamp(max=1)

    def keep_known(waveform: Tensor, first: int = 0) -> None:
        waveform[first : first + len(known)].lerp_(known, weight)

    def constrain(waveform: Tensor, share: float) -> None:
        if share > 0:
            inside = waveform[: len(mirror)]
            mean = mel.new_zeros(n_samples + 1).index_add_(0, mirror, inside) / n_alike
            inside.lerp_(mean[mirror], share)
        keep_known(waveform, start)

    waveform = _first_noise(len(mirror), mel.device)
    (coarse, n_free), (fine, n_drawn) = COARSE
    for step, n_steps, is_free in ((coarse, n_free, True), (fine, n_drawn, False)):
        some = wider[:, ::step]
        frames = _Frames(window, step * hop, some.shape[1])
        shares = [0.0 if is_free else max(0.0, 2 * i / (n_steps - 1) - 1) for i in range(n_steps)]
        waveform = iterate(some, frames, n_steps, waveform, lambda w, i, s=shares: constrain(w, s[i]))
        waveform = waveform[: len(mirror)]
    frames = _Frames(window, hop, n_columns + 1, n_samples=n_samples)
    return iterate(mel, frames, n_iter, waveform[start : start + n_samples], lambda w, _: keep_known(w))


def _first_noise(n_samples: int, device: torch.device) -> Tensor:
    """Draw what the iterations begin with; always the same."""
    return QUIET * torch.randn(n_samples, generator=torch.Generator().manual_seed(SEED)).to(device)


def _iterate(
    mel: Tensor,
    frames: _Frames,
    n_iter: int,
    waveform: Tensor,
    constrain: Callable[[Tensor, int], None] | None = None,
    *,
    filters: Tensor,
    shares: Tensor,
) -> Tensor:
    """Griffin-Lim with momentum; `constrain` changes the waveform in place after each iteration.

    Amplitudes are not fixed: in each iteration they are made louder by how much too quiet they are under the filters,
    as in Richardson (1972), https://doi.org/10.1364/JOSA.62.000055. That leaves the phase more room than one guess of
    the spectrum, and gets quiet places as right as loud ones, as a picture wants it.
    """

    def corrected(part: slice) -> Tensor:  # (columns, n_bins)
        spectra = frames.spectra(ahead, part, len(shares))
        # As spectra.abs(), in a third of its time
        amplitude = spectra.real.square().addcmul_(spectra.imag, spectra.imag).sqrt_()
        heard = torch.sparse.mm(filters, amplitude.T).clamp(min=1e-16)
        return spectra * torch.sparse.mm(shares, mel[:, part] / heard).T

    waveform = previous = torch.nn.functional.pad(waveform, (0, frames.n_samples - len(waveform)))
    if constrain:
        constrain(waveform, 0)
    for iteration in range(n_iter):
        ahead = previous.lerp(waveform, 1 + MOMENTUM)
        waveform, previous = frames.waveform(corrected), waveform
        if constrain:
            constrain(waveform, iteration)
    return waveform


def _riffusion(mel: Tensor, params: SpectrogramParams, n_iter: int) -> Tensor:
    """Riffusion's own way, on all channels."""
    amplitude = torchaudio.transforms.InverseMelScale(params.n_fft // 2 + 1, **mel_options(params))(mel)
    # GriffinLim makes one hop less than there are columns: the last column twice gives a whole waveform.
    amplitude = torch.cat([amplitude, amplitude[..., -1:]], dim=-1)
    with torch.random.fork_rng(devices=[]):  # GriffinLim draws its first phase from torch's global generator
        torch.manual_seed(SEED)
        lengths = {"n_fft": params.n_fft, "win_length": params.win_length, "hop_length": params.hop_length}
        return torchaudio.transforms.GriffinLim(**lengths, n_iter=n_iter, power=1.0, momentum=MOMENTUM)(amplitude)

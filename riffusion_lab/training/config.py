"""Settings of each training stage: frozen dataclasses, checked when they are made, read from and written to JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from ..files import write_whole
from .vocabulary import DRUMS, FUSION

PRECISIONS = ("fastest", "fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")
MOST_SEED = 2**63 - 1  # torch's generators take no larger one
WIDTH_MULTIPLE = 16  # of the U-Net's widths: its group norms have 16 groups
ATTENTION_MULTIPLE = 48  # of the two inner widths: 6 heads, 16 groups


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a stage, checked when they are made."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_finite(self)

    def _at_least(self, minimum: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, not {getattr(self, name)}")

    def _shares(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share and must be in [0, 1], not {getattr(self, name)}")

    def _one_of(self, options: tuple[str, ...], name: str) -> None:
        if getattr(self, name) not in options:
            raise ValueError(f"{name} must be one of {', '.join(options)}, not {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """All settings, as JSON has them."""
        content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return content

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        """Settings by name; those that are missing have their defaults.

        Raises
        ------
        ValueError
            If there is no such setting, or its value is not possible.
        """
        names = [each.name for each in dataclasses.fields(cls)]
        if unknown := sorted(settings.keys() - set(names)):
            raise ValueError(f"there is no setting {', '.join(unknown)}; {cls.__name__} has {', '.join(names)}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
        }
        return cls(**values)

    def to_json(self, file: str | Path) -> None:
        """Write all settings to a JSON file."""
        write_whole(file, (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    @classmethod
    def from_json(cls, file: str | Path) -> Self:
        """Read settings from a JSON file; those that are missing have their defaults.

        Raises
        ------
        OSError
            If there is no such file.
        ValueError
            If it is not a JSON object, or a setting is wrong; the message names the file.
        """
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError('write an object, such as {"steps": 1000}')
            return cls.from_dict(content)
        except ValueError as error:  # also what json raises
            raise ValueError(f"{file}: {error}") from error

    def override(self, settings: list[str]) -> Self:
        """A copy with settings changed by texts ``name=value``, as on the command line; values are JSON or plain text.

        Raises
        ------
        ValueError
            If a text is no pair of name and value, or the setting is wrong.
        """
        changed: dict[str, Any] = {}
        for text in settings:
            name, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"{text!r} does not set anything: write name=value, such as steps=1000")
            changed[name.strip()] = _value(value)
        return type(self).from_dict(self.to_dict() | changed)


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Settings):
    """Settings that all stages share. A run with the same settings and data gives the same weights.

    That holds to the bit on the same machine with the same number of threads, and also for a run that was interrupted
    and resumed. A run with `minutes` cannot be repeated: it depends on how fast the machine was. Another number of
    processes or of parts (`accumulation`), another device, or compiling round differently.

    An interrupted run may be resumed with other values of the settings in `MAY_CHANGE`. If `steps` or `minutes` change,
    the learning rate follows the new budget from there on.
    """

    steps: int = 1000  # the budget, in steps of the optimizer
    # A second limit, without the time of compiling; the learning rate follows whichever of the two is further on
    minutes: float | None = None
    batch_size: int = 16  # examples in a step, of all processes together
    accumulation: int = 1  # parts in which each process computes its share of a batch: more parts, less memory
    learning_rate: float = 1e-3  # the highest one
    warmup: float = 0.02  # share of the run in which the learning rate rises; then it falls to 0 along half a cosine
    weight_decay: float = 0.0  # share of a weight that a step with a learning rate of 1 would remove
    max_grad_norm: float = 1.0  # longer gradients are scaled down to this length
    seed: int = 0  # of first weights, order of clips, captions and noise
    precision: str = "fastest"  # "fp32", "bf16", "fp16" (CUDA only); "fastest": the fastest of those that train well
    device: str = "auto"  # "cpu", "cuda"; "auto": CUDA if there is one
    compile_network: bool | None = False  # by torch.compile, which takes two minutes; None: where that is worth it
    save_every_s: float = 240.0  # seconds between checkpoints; a lost machine loses no more than that
    sample_every: int = 250  # steps between snapshots for report.html; 0: none

    MAY_CHANGE: ClassVar = frozenset(
        {"steps", "minutes", "accumulation", "device", "compile_network", "save_every_s", "sample_every"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "steps", "seed", "sample_every", "learning_rate", "weight_decay", "save_every_s")
        self._at_least(1, "batch_size", "accumulation")
        self._shares("warmup")
        if self.seed > MOST_SEED:
            raise ValueError(f"seed must be at most {MOST_SEED}, not {self.seed}")
        self._one_of(PRECISIONS, "precision")
        self._one_of(DEVICES, "device")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes must be positive, not {self.minutes}; null or None sets no time limit")
        if self.max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm must be positive, not {self.max_grad_norm}; 1.0 is usual")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be divided into accumulation = {self.accumulation} equal parts: "
                "use a divisor"
            )

    def fixed(self) -> dict[str, Any]:
        """The settings on which the weights depend: a checkpoint can be resumed only with the same."""
        return {name: value for name, value in self.to_dict().items() if name not in self.MAY_CHANGE}


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(LoopConfig):
    """The autoencoder from nothing: pictures to latents and back."""

    steps: int = 1400  # 12 minutes on two cores
    learning_rate: float = 1e-3
    width: int = 32  # channels of every layer, when it is trained from nothing
    crop: int = 256  # pixels: no output depends on more than about 150 around it
    latent_noise: float = 0.08  # standard deviation of noise on the latents, so that the decoder tolerates errors
    squared_weight: float = 6.0  # weight of the squared error beside the absolute one

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "width")
        self._at_least(0, "latent_noise", "squared_weight")
        _check_crop(self.crop)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(LoopConfig):
    """The decoder trained on with the error of what is heard."""

    steps: int = 2000  # 20 to 30 minutes on two cores
    batch_size: int = 8
    learning_rate: float = 8e-4
    crop: int = 256  # pixels
    both_halves: bool = False  # train the encoder as well; the clips must then be encoded again, which is automatic
    latent_noise: float = 0.08  # the most; each crop has noise of an even share of it
    squared_weight: float = 6.0  # weight of the squared error beside the absolute one
    audible_weight: float = 3.2  # weight of the spectral convergence
    grain_weight: float = 0.02  # weight of the error of the fine grain, per dB
    latent_weight: float = 0.1  # weight of the latents' distance from those a denoiser was trained on

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "latent_noise", "squared_weight", "audible_weight", "grain_weight", "latent_weight")
        _check_crop(self.crop)


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig(LoopConfig):
    """A new text encoder, trained to predict the composer's facts from captions."""

    steps: int = 1500  # estimated from an earlier budget of 5 minutes on two cores
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    caption_dropout: float = 0.05  # share of empty captions
    anchor_weight: float = 6.0  # weight of the distance from the embeddings that a U-Net was trained with

    def __post_init__(self) -> None:
        super().__post_init__()
        self._shares("caption_dropout")
        self._at_least(0, "anchor_weight")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(LoopConfig):
    """The classifier that judges generated clips."""

    steps: int = 1500  # estimated from an earlier budget of 5 minutes on two cores
    batch_size: int = 48
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    label_smoothing: float = 0.05  # share of the target spread over all classes
    noise: float = 0.1  # the most noise on a picture, whose range is [-1, 1], so that it does not judge by fine grain

    def __post_init__(self) -> None:
        super().__post_init__()
        self._shares("label_smoothing")
        self._at_least(0, "noise")


def _composer_weights() -> dict[str, float]:
    return {"solo": 1.0, "style": 1.3, DRUMS: 3.0, "effect": 0.7, FUSION: 4.0}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """The denoiser: U-Net and text encoder."""

    steps: int = 2200  # 85 minutes on two cores
    learning_rate: float = 6e-4
    weight_decay: float = 0.01
    compile_network: bool | None = None  # in half precision, from 1000 steps and 20 minutes on: a fifth faster
    widths: tuple[int, ...] | None = None  # channels of the U-Net's four levels; None: riffling's, or start_from's
    ema_decay: float = 0.9995  # the model is a running average of the weights: share of the average that a step keeps
    caption_dropout: float = 0.1  # share of empty captions, which classifier-free guidance needs
    full_captions: float = 0.4  # share of captions with all facts, because rare facts are learned slowly
    text_learning_rate: float = 0.1  # of the text encoder, as a share of the U-Net's
    text_steps: int = 1500  # of a new text encoder, before the U-Net (`TextEncoderConfig`)
    new_text_encoder: bool = False  # train a new tokenizer and text encoder even for a model to start from
    kind_weights: dict[str, float] = field(default_factory=_composer_weights)  # how often to draw classes of a kind
    favoured: tuple[str, ...] = ()  # labels to draw three times as often
    circular_share: float = 0.1  # share of batches of loops with little noise and circular layers, as in generation
    position_weight: float = 0.1  # weight of the error of the `PositionProbe`
    visible_share: float = 0.5  # share of the error that counts as much as noise lets it be seen: `VisibleError`
    timestep_power: float = 0.45  # of an even draw: below 1 favours noisy time steps, where the prompt decides
    sample_prompts: tuple[str, ...] = ()  # for the snapshots; empty: four captions of held-out clips

    MAY_CHANGE: ClassVar = LoopConfig.MAY_CHANGE | {"sample_prompts"}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._shares("ema_decay", "caption_dropout", "full_captions", "circular_share", "visible_share")
        self._at_least(0, "text_learning_rate", "text_steps", "position_weight")
        if self.timestep_power <= 0:
            raise ValueError(f"timestep_power must be positive, not {self.timestep_power}; 1 draws all steps alike")
        if negative := {kind: weight for kind, weight in self.kind_weights.items() if weight < 0}:
            raise ValueError(f"kind_weights must not be negative: {negative}")
        if self.widths is not None:
            _check_widths(self.widths)


@dataclass(frozen=True, kw_only=True)
class DistillConfig(LoopConfig):
    """A model of few steps, which follows the paths of its teacher."""

    steps: int = 2500
    batch_size: int = 8
    learning_rate: float = 3e-4
    # Of the student: a divisor of the teacher's, at least 3, because loops are closed in the last third of the steps
    num_inference_steps: int = 3
    n_paths: int = 2048  # of the teacher, 0.43 MB each
    caption_dropout: float = 0.05  # share of paths from an empty prompt, which guidance and negative prompts need
    start_share: float = 0.6  # share of examples where a step of the student starts; the others are on the way
    late_share: float = 0.45  # share of batches in the last third of the steps, which is circular in loops
    ema_decay: float = 0.99  # the model is a running average of the weights: share of the average that a step keeps
    sample_prompts: tuple[str, ...] = ()  # for the snapshots; empty: those of the last four paths, which are held out

    MAY_CHANGE: ClassVar = LoopConfig.MAY_CHANGE | {"sample_prompts"}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(3, "num_inference_steps")
        self._at_least(64, "n_paths")  # half of them are held out then
        self._shares("caption_dropout", "start_share", "late_share", "ema_decay")


def _check_crop(crop: int) -> None:
    if not 64 <= crop <= 512 or crop % 8:
        raise ValueError(f"crop must be a multiple of 8 in [64, 512], not {crop}")


def _check_widths(widths: tuple[int, ...]) -> None:
    fits = len(widths) == 4 and all(width > 0 and width % WIDTH_MULTIPLE == 0 for width in widths)
    if not fits or any(width % ATTENTION_MULTIPLE for width in widths[2:]):
        raise ValueError(
            f"widths must be four multiples of {WIDTH_MULTIPLE}, the last two multiples of {ATTENTION_MULTIPLE}, such "
            f"as (16, 32, 48, 48), not {widths}"
        )


def _value(text: str) -> Any:
    """A setting from the command line: JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check_types(config: Settings) -> None:
    """Check that every field's value is of the type that the field is declared with."""
    hints = get_type_hints(type(config))
    for each in dataclasses.fields(config):
        value, hint = getattr(config, each.name), hints[each.name]
        if not _is_of(value, hint):
            name = getattr(hint, "__name__", None) if get_origin(hint) is None else str(hint)
            raise ValueError(f"{each.name} must be {name}, not {value!r}")


def _check_finite(config: Settings) -> None:
    """Check that no number is infinite or NaN: JSON has neither, but Python's writes and reads both."""
    hints = get_type_hints(type(config))
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if hints[each.name] is not int and not _is_finite(value):
            raise ValueError(f"{each.name} must be finite, not {value!r}")


def _is_finite(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if not isinstance(value, (int, float)):
        return True
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that is too large for a float
        return False


def _is_of(value: object, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_is_of(value, option) for option in get_args(hint))
    if hint is NoneType:
        return value is None
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_of(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_is_of(item, get_args(hint)[1]) for item in value.values())
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is hint

"""LoRAs distilled to work with few steps: which scheduler, how many steps and which guidance they ask for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
from safetensors import SafetensorError, safe_open

from .lora import Lora

if TYPE_CHECKING:  # importing it makes transformers print
    from diffusers import SchedulerMixin

AUTO, NONE = "auto", "none"
# Keys of a safetensors file's metadata that hold a name: of kohya's sd-scripts, and of Stability AI's ModelSpec
_NAME_KEYS = ("ss_output_name", "modelspec.title")


@dataclass(frozen=True)
class FewSteps:
    """What a distilled LoRA asks for."""

    scheduler: str  # one of diffusers' classes
    num_inference_steps: int
    guidance_scale: float = 1.0  # at 1 there is no guidance
    scheduler_settings: Mapping[str, Any] = field(default_factory=dict)  # where they differ from the model's own

    def make_scheduler(self, own: SchedulerMixin) -> SchedulerMixin:
        """Make the scheduler with the noise schedule of the model's own."""
        scheduler_class = getattr(diffusers, self.scheduler)
        return scheduler_class.from_config(own.config, **self.scheduler_settings)

    def __str__(self) -> str:
        steps = "step" if self.num_inference_steps == 1 else "steps"
        return f"{self.scheduler}, {self.num_inference_steps} {steps}, guidance {self.guidance_scale:g}"


def _hyper_sd(num_inference_steps: int) -> FewSteps:
    return FewSteps("DDIMScheduler", num_inference_steps, scheduler_settings={"timestep_spacing": "trailing"})


FEW_STEPS = {
    # 2 to 8 steps, guidance 1 to 2: https://huggingface.co/latent-consistency/lcm-lora-sdv1-5
    "lcm": FewSteps("LCMScheduler", 4),
    # without guidance, for just this number of steps: https://huggingface.co/ByteDance/Hyper-SD
    "hyper-sd-2steps": _hyper_sd(2),
    "hyper-sd-4steps": _hyper_sd(4),
    "hyper-sd-8steps": _hyper_sd(8),
}
# In names in lower case with "-" between the words: "latent-consistency-lcm-lora-sdv1-5", "hyper-sd15-4steps-lora".
# Not Hyper-SD's LoRAs for guidance ("-CFG-") or for one step, nor TCD, which need settings that are not known here.
_PATTERNS = {
    "lcm": re.compile(r"\blcm\b|\blatent-consistency\b"),
    **{f"hyper-sd-{n}steps": re.compile(rf"\bhyper-sd(?:-?1-?5)?-{n}-?steps?(?:-lora)?$") for n in (2, 4, 8)},
}


def check_few_steps(choice: object) -> str:
    """Check the argument ``few_steps`` of `load_pipeline`.

    Raises
    ------
    TypeError, ValueError
        If it is not "auto", "none" or a key of `FEW_STEPS`.
    """
    if not isinstance(choice, str):
        raise TypeError(f"few_steps must be a str, not {choice!r}")
    if choice not in (AUTO, NONE, *FEW_STEPS):
        known = ", ".join(repr(each) for each in (AUTO, NONE, *FEW_STEPS))
        raise ValueError(f"few_steps must be one of {known}, not {choice!r}")
    return choice


def recognized_kind(name: str) -> str | None:
    """Key in `FEW_STEPS` that the name of a LoRA tells, or None.

    Parameters
    ----------
    name : str
        Of the LoRA on the Hub, of its file without the ending, or of its folder.
    """
    words = re.sub(r"[\W_]+", "-", name.lower())
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(words)), None)


def few_step_loras(loras: Sequence[Lora], choice: str) -> dict[str, str]:
    """Find the LoRAs that are distilled for few steps.

    Parameters
    ----------
    loras : sequence of Lora
    choice : str
        As `check_few_steps` returns it: "auto" goes by the names of the LoRAs with a positive weight, a key of
        `FEW_STEPS` holds for all, "none" for none.

    Returns
    -------
    dict of str to str
        Key in `FEW_STEPS` for the adapter name of each.

    Raises
    ------
    ValueError
        If two ask for different settings.
    """
    if choice == NONE:
        return {}
    kinds: dict[str, str] = {}
    for lora in loras:
        kind = _kind_of(lora) if choice == AUTO else choice
        if kind is not None and lora.weight > 0:
            kinds[lora.name] = kind
    if len(set(kinds.values())) > 1:
        described = " and ".join(f"{name} ({FEW_STEPS[kind]})" for name, kind in kinds.items())
        raise ValueError(f"LoRAs for different schedulers and steps do not go together: {described}: load one of them")
    return kinds


def _kind_of(lora: Lora) -> str | None:
    """Key in `FEW_STEPS` of a LoRA, by its names; the first one that tells."""
    kinds = [recognized_kind(name) for name in (*lora.titles, *_names_in_metadata(lora.path))]
    return next((kind for kind in kinds if kind is not None), None)


def _names_in_metadata(path: Path) -> list[str]:
    if path.suffix != ".safetensors":
        return []
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError:
        return []  # `load_loras` says what is wrong with the file
    return [metadata[key] for key in _NAME_KEYS if key in metadata]

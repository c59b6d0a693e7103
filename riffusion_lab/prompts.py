"""Prompts: a text with seed and settings, weights of its words, and its embeddings."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .deprecation import moved
from .models import Pipeline, execution_device
from .networks import locked
from .values import as_scalar

LONGEST_PROMPT = 4_000  # characters
STRONGER, WEAKER = 1.1, 1 / 1.1  # the weights of plain ( ) and [ ]; see `weighted_parts`
BRACKETS = {")": ("(", STRONGER), "]": ("[", WEAKER)}  # closing bracket: its opening bracket and its weight

_TOKEN = re.compile(
    r"""
    \\ (?P<escaped> [\\()\[\]])         # a bracket or backslash after a backslash is an ordinary character
    | : \s* (?P<weight> \d*\.?\d+) \s* \)  # the end of (words:1.3)
    | [()\[\]]
    | [^\\()\[\]:]+                     # words
    | .                                 # any other character, such as a colon in the text
    """,
    re.VERBOSE | re.DOTALL,
)
_WORD = re.compile(r"\S{1,18}")  # longer ones are cut: 18 characters are at most 72 bytes, and so at most 72 tokens


@dataclass(frozen=True)
class Prompt:
    """A text with its seed, negative prompt and strengths, for `interpolate`, `walk` and live sessions.

    NumPy and torch scalars are converted to Python's own, so that a prompt can be written as JSON.

    Parameters
    ----------
    text : str
        What to hear. An empty text asks for the unconditional model.
    seed : int
        In [0, 2**32 - 1].
    negative_prompt : str, optional
        What not to hear.
    guidance_scale : float, optional
        Default: the model's own.
    strength : float, optional
        How far to move away from a seed clip, in [0, 1]; default: 0.75. Without a seed clip it has no effect.

    Notes
    -----
    Taught in: 04
    """

    text: str
    seed: int = 0
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        for field in fields(Prompt):
            value = as_scalar(getattr(self, field.name))
            object.__setattr__(self, field.name, value)  # the class is frozen


def check_prompt(prompt: object, name: str = "prompt", *, may_be_empty: bool = True) -> str:
    """Return a prompt as a str.

    Parameters
    ----------
    prompt : str
        At most `LONGEST_PROMPT` characters. A text that is too long for the text encoder is encoded in pieces
        (`encode_prompt`).
    name : str
        Name used in error messages.
    may_be_empty : bool
        Whether to accept an empty prompt. It asks for the unconditional model, but an empty text box in a panel is
        likely an oversight.

    Raises
    ------
    TypeError, ValueError
        If it is not a str, is too long, or is empty although `may_be_empty` is False.
    """
    text = as_scalar(prompt)
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str such as 'solo piano, slow', not {prompt!r}")
    if not may_be_empty and not plain_text(text).strip():
        raise ValueError(f"{name} is empty: {text!r}; describe a sound, such as 'solo piano, slow'")
    if len(text) > LONGEST_PROMPT:
        raise ValueError(f"{name} '{text[:40]}...' has {len(text):,} characters: give at most {LONGEST_PROMPT:,}")
    return text


@dataclass
class _Part:
    text: str
    weight: float = 1.0


def weighted_parts(text: str) -> list[tuple[str, float]]:
    r"""Split a prompt into parts, each with a single weight.

    ``(words:1.3)`` gives words the weight 1.3, ``(words)`` 1.1, ``[words]`` 1 / 1.1; the weights of nested brackets
    multiply. An unmatched bracket, or one after a backslash (``\(``), is an ordinary character.

    Returns
    -------
    list of (str, float)
        Neighbouring parts of equal weight are merged; without brackets the only part is the text itself.

    Taught in: 06
    """
    parts: list[_Part] = []
    open_brackets: list[int] = []  # indices of their parts
    for token in _TOKEN.finditer(text):
        opening, weight = _closing_bracket(token)
        if open_brackets and parts[open_brackets[-1]].text == opening:
            first = open_brackets.pop()
            parts[first].text = ""
            for part in parts[first:]:
                part.weight *= weight
            continue
        if token[0] in ("(", "["):
            open_brackets.append(len(parts))
        parts.append(_Part(token["escaped"] or token[0]))
    return _join_equal_weights(parts)


def _closing_bracket(token: re.Match[str]) -> tuple[str, float]:
    """Return the bracket that a token closes (an empty str if it closes none) and the weight it sets."""
    if token["weight"]:
        return "(", float(token["weight"])
    return BRACKETS.get(token[0], ("", 1.0))


def _join_equal_weights(parts: list[_Part]) -> list[tuple[str, float]]:
    joined: list[_Part] = []
    for part in parts:
        if joined and (joined[-1].weight == part.weight or not part.text):
            joined[-1].text += part.text
        elif part.text:
            joined.append(part)
    return [(part.text, part.weight) for part in joined] or [("", 1.0)]


def plain_text(text: str) -> str:
    """Return a prompt without its weights: without the brackets and the numbers in them."""
    return "".join(part for part, _ in weighted_parts(text))


@torch.no_grad()
def encode_prompt(pipe: Pipeline, text: str) -> Tensor:
    """Encode a prompt of any length into the embeddings that the U-Net attends to.

    A text without weights that fits into the text encoder (usually 75 tokens) is encoded by the pipeline itself. A
    longer text is split between words into pieces that fit, and each piece is encoded separately. A weight `w` changes
    a token's embedding `z` to ``z0 + w (z - z0)``, where `z0` is the embedding of the empty prompt at the same
    position.

    Parameters
    ----------
    pipe : StableDiffusionPipeline
    text : str
        Weights as in `weighted_parts`.

    Returns
    -------
    Tensor [shape=(1, 77 * pieces, width)]

    Taught in: 06
    """
    with locked(pipe.text_encoder):
        return torch.cat([_encode_piece(pipe, piece) for piece in _pieces(pipe, text)], dim=1)


def pad_to_same_length(pipe: Pipeline, embeds: list[Tensor]) -> list[Tensor]:
    """Pad shorter prompts with the embeddings of empty pieces, so that all fit into one batch."""
    longest = max(each.shape[1] for each in embeds)
    if all(each.shape[1] == longest for each in embeds):
        return embeds
    empty = encode_prompt(pipe, "")
    padded = []
    for each in embeds:
        n_missing = (longest - each.shape[1]) // empty.shape[1]
        padded.append(torch.cat([each, *[empty] * n_missing], dim=1))
    return padded


def n_tokens(pipe: Pipeline, text: str) -> int:
    """Number of tokens of a text."""
    with locked(pipe.text_encoder):
        return len(pipe.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _pieces(pipe: Pipeline, text: str) -> list[list[tuple[str, float]]]:
    """Pieces of a prompt that each fit into the text encoder; a piece is a list of (words, weight)."""
    parts = weighted_parts(text)
    n_special = 2  # start and end
    limit = min(pipe.tokenizer.model_max_length, pipe.text_encoder.config.max_position_embeddings) - n_special
    if len(parts) == 1 and n_tokens(pipe, parts[0][0]) <= limit:
        return [parts]
    pieces: list[list[tuple[str, float]]] = [[]]
    n_left = limit
    for part, weight in parts:
        for word in _WORD.findall(part):
            length = n_tokens(pipe, word)
            if length > n_left:
                pieces.append([])
                n_left = limit
            pieces[-1].append((word, weight))
            n_left -= length
    return pieces


def _encode_piece(pipe: Pipeline, piece: list[tuple[str, float]]) -> Tensor:
    embeds = _encode_text(pipe, " ".join(words for words, _ in piece))
    weights = [1.0]  # of the start token
    for words, weight in piece:
        weights += [weight] * n_tokens(pipe, words)
    if set(weights) == {1.0}:
        return embeds
    weights += [1.0] * (embeds.shape[1] - len(weights))
    weight_per_token = embeds.new_tensor(weights)[None, :, None]
    empty = _encode_text(pipe, "")
    return empty + weight_per_token * (embeds - empty)


def _encode_text(pipe: Pipeline, text: str) -> Tensor:
    return pipe.encode_prompt(text, execution_device(pipe), 1, do_classifier_free_guidance=False)[0]


__getattr__ = moved(__name__, {"of_one_length": "prompts.pad_to_same_length"})

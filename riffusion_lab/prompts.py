"""Prompts: what to hear, how strongly each word counts, and the vectors that the U-Net is given for it."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .models import Pipeline, execution_device
from .values import as_scalar

STRONGER, WEAKER = 1.1, 1 / 1.1  # what plain ( ) and [ ] do; see `weighted_parts`
_PIECE = re.compile(r"\\[\\()\[\]]|:\s*(\d*\.?\d+)\s*\)|[()\[\]]|[^\\()\[\]:]+|.", re.DOTALL)
_WORD = re.compile(r"\S{1,18}")  # a longer one is cut: 18 characters are at most 72 bytes, and so at most 72 tokens


@dataclass(frozen=True)
class Prompt:
    """A point to walk from or to: words, seed, and how strongly they count.

    ``None`` stands for the model's own default; `strength` says how far to go from a seed clip
    (1: all the way), and counts only where there is one. An empty text asks for the unconditional model. Seeds go from
    0 to 2**32 - 1. Scalars of NumPy and torch are kept as Python's own, so that a prompt fits into JSON.

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


def weighted_parts(text: str) -> list[tuple[str, float]]:
    r"""Cut a prompt into parts of one weight each.

    ``(words:1.3)`` gives words the weight 1.3, ``(words)`` 1.1, ``[words]`` 1 / 1.1; brackets may be nested, and then
    multiply. A bracket without its partner, or after a backslash, ``\(``, is an ordinary character.

    Returns
    -------
    list of (str, float)
        Neighbours of like weight are one part; without brackets there is one part, the text itself.

    Taught in: 06
    """
    parts: list[list] = []  # [text, weight]
    open_brackets: list[tuple[str, int]] = []  # with the part that it is

    def close(weight: float) -> None:
        _, first = open_brackets.pop()
        parts[first][0] = ""
        for part in parts[first:]:
            part[1] *= weight

    for piece in _PIECE.finditer(text):
        found, top = piece[0], open_brackets[-1][0] if open_brackets else ""
        if piece[1] and top == "(":
            close(float(piece[1]))
        elif found == ")" and top == "(":
            close(STRONGER)
        elif found == "]" and top == "[":
            close(WEAKER)
        else:
            if found in "([":
                open_brackets.append((found, len(parts)))
            parts.append([found[1:] if re.fullmatch(r"\\[\\()\[\]]", found) else found, 1.0])
    joined: list[tuple[str, float]] = []
    for part, weight in parts:
        if joined and (joined[-1][1] == weight or not part):
            joined[-1] = (joined[-1][0] + part, joined[-1][1])
        elif part:
            joined.append((part, weight))
    return joined or [("", 1.0)]


def plain_text(text: str) -> str:
    """The words of a prompt without the brackets that weight them."""
    return "".join(part for part, _ in weighted_parts(text))


@torch.no_grad()
def encode_prompt(pipe: Pipeline, text: str) -> Tensor:
    """Turn a prompt of any length into the vectors that the U-Net attends to.

    What fits into the text encoder (75 tokens, as a rule) and has no weights is encoded by the pipeline itself. A
    longer text is cut between words into pieces that fit, which are encoded one by one. A weight `w` moves a token's
    vector `z` along the line from the vector `z0` that the empty prompt has in its place: ``z0 + w (z - z0)``.

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
    return torch.cat([_encode_piece(pipe, words) for words in _pieces(pipe, text)], dim=1)


def of_one_length(pipe: Pipeline, vectors: list[Tensor]) -> list[Tensor]:
    """Fill up shorter prompts with empty pieces, so that all fit into one batch."""
    longest = max(each.shape[1] for each in vectors)
    if all(each.shape[1] == longest for each in vectors):
        return vectors
    empty = encode_prompt(pipe, "")
    missing = [(longest - each.shape[1]) // empty.shape[1] for each in vectors]
    return [torch.cat([each, *[empty] * n], dim=1) for each, n in zip(vectors, missing, strict=True)]


def n_tokens(pipe: Pipeline, text: str) -> int:
    """How many tokens a text is."""
    return len(pipe.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _pieces(pipe: Pipeline, text: str) -> list[list[tuple[str, float]]]:
    """Parts of a prompt that fit into the text encoder together: (words, weight)."""
    parts = weighted_parts(text)
    limit = min(pipe.tokenizer.model_max_length, pipe.text_encoder.config.max_position_embeddings) - 2  # start, end
    if len(parts) == 1 and n_tokens(pipe, parts[0][0]) <= limit:
        return [parts]
    pieces, left = [[]], limit
    for word, weight in ((word, weight) for part, weight in parts for word in _WORD.findall(part)):
        length = n_tokens(pipe, word)
        if length > left:
            pieces.append([])
            left = limit
        pieces[-1].append((word, weight))
        left -= length
    return pieces


def _encode_piece(pipe: Pipeline, words: list[tuple[str, float]]) -> Tensor:
    vectors = _encode_text(pipe, " ".join(word for word, _ in words))
    weights = [1.0] + [weight for word, weight in words for _ in range(n_tokens(pipe, word))]
    if set(weights) == {1.0}:
        return vectors
    weights += [1.0] * (vectors.shape[1] - len(weights))
    empty = _encode_text(pipe, "")
    return empty + torch.tensor(weights, dtype=vectors.dtype, device=vectors.device)[None, :, None] * (vectors - empty)


def _encode_text(pipe: Pipeline, text: str) -> Tensor:
    return pipe.encode_prompt(text, execution_device(pipe), 1, do_classifier_free_guidance=False)[0]

"""The words: a small byte-pair tokenizer, and a text encoder that is first taught what captions tell.

Trained with the denoiser alone, the text encoder learned the name of the class and passed over the rest: "piano" and
"piano, slow" had the same vectors. So it first learns to tell all facts about a clip from its caption.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .captions import caption
from .run import cosine, descend, set_learning_rate, train
from .vocabulary import CLASSES, DRUM_NAMES, DRUMS, EFFECT_NAMES, INSTRUMENTS, MODE_WORDS, TEXTURES, bpm_of, loop_beats

START, END = "<|startoftext|>", "<|endoftext|>"
N_MERGES = 1200
WIDTH = 192
N_TOKENS = 77
BATCH = 128
LEARNING_RATE = 1e-3
EMPTY_CAPTIONS = 0.05
ANCHOR = 6.0  # weight of staying near
# Facts of which one of several values holds; besides these, some of `CLASSES` are heard, side by side.
CHOICES = {
    "texture": TEXTURES,
    "mode": tuple(MODE_WORDS),
    "register": ("low", "middle", "high"),
    "bpm": tuple(bpm_of(n) for n in loop_beats()),
    "metre": (3, 4),
}
UNKNOWN = -100  # `cross_entropy` passes over it


def train_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """A `CLIPTokenizer` whose merges are learned from our captions; it can spell any text.

    The vocabulary is laid out as CLIP's: 256 bytes, 256 bytes that end a word, merges, the two
    specials. Here the specials come first.
    """
    like_clip = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[])._tokenizer
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = like_clip.normalizer, like_clip.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=2 + 512 + N_MERGES,
        special_tokens=[START, END],
        initial_alphabet=bytes_,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    merges = _merges(tokenizer)
    symbols = [START, END, *bytes_, *(b + "</w>" for b in bytes_), *("".join(pair) for pair in merges)]
    vocabulary = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=N_TOKENS)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    import json

    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder: 3 layers, 192 wide."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=N_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]):
    """Token numbers [shape=(n, 77), int64], padded and cut off as the pipeline does."""
    return tokenizer(
        captions, padding="max_length", max_length=N_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


class CaptionReader(nn.Module):
    """Tells the facts about a clip from the mean of its caption's vectors, by one linear layer for each fact."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        sizes = {name: len(values) for name, values in CHOICES.items()} | {"heard": len(CLASSES)}
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, size) for name, size in sizes.items()})

    def forward(self, tokens: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Tokens [shape=(n, length)] → scores (logits) for each fact [shape=(n, values)], and vectors."""
        vectors = self.text_encoder(tokens).last_hidden_state
        return {name: head(vectors.mean(dim=1)) for name, head in self.heads.items()}, vectors


def facts_to_tell(facts: list[dict]) -> dict[str, torch.Tensor]:
    """Right answers: numbers of values for `CHOICES` [shape=(n,)], zeros and ones for "heard" [shape=(n, classes)]."""
    heard = torch.zeros(len(facts), len(CLASSES))
    for row, fact in zip(heard, facts, strict=True):
        names = [fact["label"], *fact.get("styles", ()), fact.get("lead"), fact.get("with")]
        names += [DRUMS] * bool(fact.get("drums"))
        row[[CLASSES.index(name) for name in names if name in CLASSES]] = 1
    answers = {"heard": heard}
    for name, values in CHOICES.items():
        answers[name] = torch.tensor([values.index(f[name]) if f.get(name) in values else UNKNOWN for f in facts])
    return answers


def reading_loss(scores: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy over all facts; what a caption does not tell is learned as how often it holds."""
    loss = 10 * F.binary_cross_entropy_with_logits(scores["heard"], right["heard"])
    for name in CHOICES:
        untold = F.cross_entropy(scores[name], right[name], ignore_index=UNKNOWN, reduction="sum")
        loss = loss + untold / len(right[name])
    return loss


def train_text_encoder(
    facts: list[dict],
    tokenizer: CLIPTokenizer,
    folder: str | Path,
    *,
    anchors: dict[str, torch.Tensor] | None = None,
    minutes: float = 5.0,
) -> CLIPTextModel:
    """Train a new text encoder to tell facts from captions, or go on after a break.

    Parameters
    ----------
    facts : list of dict
        Of the clips to train on.
    tokenizer : CLIPTokenizer
    folder : path
        For the checkpoint.
    anchors : dict of str to Tensor [shape=(width,)], optional
        Vectors, one for each label and one for "", to stay near: those that a U-Net knows from another text encoder. It
        then understands the new one's class names from the first step on.
    minutes : float
        Time budget.
    """
    rng = np.random.default_rng()
    torch.manual_seed(0)
    reader = CaptionReader(new_text_encoder(tokenizer)).train()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=LEARNING_RATE, weight_decay=0.01)

    def step(progress: float) -> torch.Tensor:
        set_learning_rate(optimizer, LEARNING_RATE * cosine(progress))
        chosen = [facts[i] for i in rng.choice(len(facts), BATCH)]
        captions = ["" if rng.random() < EMPTY_CAPTIONS else caption(fact, rng) for fact in chosen]
        scores, vectors = reader(shortened(tokenize(tokenizer, captions)))
        loss = reading_loss(scores, facts_to_tell(chosen))
        if anchors:
            near = torch.stack([_anchor(anchors, fact, words) for fact, words in zip(chosen, captions, strict=True)])
            loss = loss + ANCHOR * F.mse_loss(vectors, near[:, None].expand_as(vectors))
        return descend(optimizer, loss)

    train(step, {"reader": reader, "optimizer": optimizer}, Path(folder) / "text_encoder.pt", minutes=minutes)
    return reader.text_encoder


@torch.no_grad()
def anchors_of(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> dict[str, torch.Tensor]:
    """What a text encoder makes of every label and of the empty caption: the mean of the vectors of all tokens."""
    names = {label: INSTRUMENTS[label].names[0] if label in INSTRUMENTS else label for label in CLASSES}
    names |= {label: names[0] for label, names in EFFECT_NAMES.items()} | {DRUMS: DRUM_NAMES[0], "": ""}
    vectors = text_encoder(tokenize(tokenizer, list(names.values()))).last_hidden_state.mean(dim=1)
    return dict(zip(names, vectors, strict=True))


def _anchor(anchors: dict[str, torch.Tensor], fact: dict, words: str) -> torch.Tensor:
    labels = fact.get("styles", [fact["label"]]) if words else [""]
    return torch.stack([anchors[label] for label in labels]).mean(dim=0)


def shortened(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens without most of the padding that all captions of a batch share: a few are left."""
    longest = int((tokens != tokens[:, -1:]).sum(dim=1).max())
    return tokens[:, : min(N_TOKENS, longest + 8)]

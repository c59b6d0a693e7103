"""Text: a small byte-pair tokenizer, and a text encoder that is first trained to predict what captions say.

Trained with the denoiser alone, the text encoder learned the name of the class and ignored the rest: "piano" and
"piano, slow" had the same embeddings. So it is first trained to predict all facts about a clip from its caption.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .checkpoints import data_id, weights_id
from .config import TextEncoderConfig
from .dataset import Dataset
from .loop import Batch, Task, run_loop, seeded
from .targets import IGNORED, choice_targets
from .vocabulary import CLASSES, DRUM_NAMES, DRUMS, EFFECT_NAMES, INSTRUMENTS, MODE_WORDS, TEXTURES, bpm_of, loop_beats

START, END = "<|startoftext|>", "<|endoftext|>"
N_MERGES = 1200
WIDTH = 192
N_TOKENS = 77
CLASSES_WEIGHT = 10.0  # of the error in which classes are heard, beside that of each other fact
# Facts that have one of several values; besides, some of `CLASSES` are heard, at the same time.
CHOICES: dict[str, tuple[Any, ...]] = {
    "texture": TEXTURES,
    "mode": tuple(MODE_WORDS),
    "register": ("low", "middle", "high"),
    "bpm": tuple(bpm_of(n) for n in loop_beats()),
    "metre": (3, 4),
}


def train_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """Train a `CLIPTokenizer` on captions; bytes are tokens as well, so it can spell any text.

    The vocabulary is laid out as CLIP's: 256 bytes, 256 bytes that end a word, merges, two special tokens. Here the
    special tokens come first.
    """
    clip: Any = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[])._tokenizer
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
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
    pairs: Any = merges  # typed as lines of text, but pairs are what it takes
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=N_TOKENS)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    merges: list[str | list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return [(first, second) for first, second in pairs]


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


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token numbers [shape=(n, 77), int64], padded and truncated as the pipeline does."""
    tokens: Tensor = tokenizer(
        captions, padding="max_length", max_length=N_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return tokens


class FactPredictor(nn.Module):
    """Predicts the facts about a clip from the mean embedding of its caption, with one linear layer for each fact."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        sizes = {name: len(values) for name, values in CHOICES.items()} | {"classes": len(CLASSES)}
        width = text_encoder.config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})

    def forward(self, tokens: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Tokens [shape=(n, length)] → logits for each fact [shape=(n, values)], and embeddings."""
        embeddings = self.text_encoder(tokens).last_hidden_state
        mean = embeddings.mean(dim=1)
        return {name: head(mean) for name, head in self.heads.items()}, embeddings


def fact_targets(facts: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Numbers of values for `CHOICES` [shape=(n,)], and 0 or 1 for each class ("classes") [shape=(n, classes)]."""
    classes = torch.zeros(len(facts), len(CLASSES))
    for row, clip in zip(classes, facts, strict=True):
        names = [clip["label"], *clip.get("styles", ()), clip.get("lead"), clip.get("with")]
        if clip.get("drums"):
            names.append(DRUMS)
        row[[CLASSES.index(name) for name in names if name in CLASSES]] = 1
    return choice_targets(facts, CHOICES) | {"classes": classes}


def fact_loss(logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Cross entropy over all facts; for a fact that a caption omits, its frequencies are learned."""
    loss = CLASSES_WEIGHT * F.binary_cross_entropy_with_logits(logits["classes"], targets["classes"])
    for name in CHOICES:
        total = F.cross_entropy(logits[name], targets[name], ignore_index=IGNORED, reduction="sum")
        loss = loss + total / len(targets[name])
    return loss


class TextEncoderTask(Task):
    """Trains a text encoder as part of a `FactPredictor`, near given embeddings if there are any."""

    name = "text encoder"
    network: FactPredictor

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        dataset: Dataset,
        config: TextEncoderConfig,
        anchors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.tokenizer, self.dataset, self.config, self.anchors = tokenizer, dataset, config, anchors
        self.indices, _ = dataset.split()
        with seeded(config.seed):
            self.network = FactPredictor(new_text_encoder(tokenizer)).train()
        self.data_id = f"{data_id(dataset)}-{weights_id(_Anchors(anchors or {}))}"
        self.optimizer = torch.optim.AdamW(self.network.parameters(), weight_decay=config.weight_decay)

    def draw_batch(self, rng: np.random.Generator, generator: torch.Generator) -> Batch:  # noqa: ARG002 - no noise
        """Captions of random clips, and their facts."""
        indices = rng.choice(self.indices, self.config.batch_size)
        captions = [
            "" if rng.random() < self.config.caption_dropout else self.dataset.caption(int(i), rng) for i in indices
        ]
        facts = [self.dataset.facts[i] for i in indices]
        batch: Batch = {
            "tokens": trim_padding(tokenize(self.tokenizer, captions)),
            "targets": fact_targets(facts),
        }
        if self.anchors:
            near = [mean_anchor(self.anchors, fact, text) for fact, text in zip(facts, captions, strict=True)]
            batch["anchors"] = torch.stack(near)[:, None]  # (n, 1, width)
        return batch

    def loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Error of the facts, and distance from the anchors."""
        logits, embeddings = network(batch["tokens"])
        terms = {"loss": fact_loss(logits, batch["targets"])}
        if self.anchors:
            distance = F.mse_loss(embeddings, batch["anchors"].expand_as(embeddings))
            terms["anchors"] = self.config.anchor_weight * distance
        return terms


class _Anchors(nn.Module):
    """Embeddings by name as a network's buffers, to be hashed like one."""

    def __init__(self, anchors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for number, name in enumerate(sorted(anchors)):
            self.register_buffer(str(number), anchors[name])


def train_text_encoder(
    dataset: Dataset,
    tokenizer: CLIPTokenizer,
    folder: str | Path,
    config: TextEncoderConfig | None = None,
    *,
    anchors: Mapping[str, Tensor] | None = None,
) -> CLIPTextModel:
    """Train a new text encoder to predict facts from captions, or resume an interrupted run.

    Parameters
    ----------
    dataset : Dataset
        With the composer's facts.
    tokenizer : CLIPTokenizer
    folder : path
        See `run_loop`.
    config : TextEncoderConfig, optional
    anchors : dict of str to Tensor [shape=(width,)], optional
        Embeddings to stay near, one for each label and one for "": those of another text encoder, with which a U-Net
        was trained. The U-Net then understands the new one's class names from the first step on.
    """
    config = config or TextEncoderConfig()
    task = TextEncoderTask(tokenizer, dataset, config, anchors)
    run_loop(task, config, folder)
    trained: CLIPTextModel = task.network.text_encoder
    return trained.cpu()


@torch.no_grad()
def label_embeddings(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> dict[str, Tensor]:
    """Mean embedding over all tokens, for the name of every label and for the empty caption."""
    names = {label: INSTRUMENTS[label].names[0] if label in INSTRUMENTS else label for label in CLASSES}
    names |= {label: names[0] for label, names in EFFECT_NAMES.items()} | {DRUMS: DRUM_NAMES[0], "": ""}
    embeddings = text_encoder(tokenize(tokenizer, list(names.values()))).last_hidden_state.mean(dim=1)
    return dict(zip(names, embeddings, strict=True))


def mean_anchor(anchors: Mapping[str, Tensor], fact: Mapping[str, Any], caption: str) -> Tensor:
    """The embedding that a caption's should be near: the mean of its labels', or that of the empty caption."""
    labels = fact.get("styles", [fact["label"]]) if caption else [""]
    return torch.stack([anchors[label] for label in labels]).mean(dim=0)


def trim_padding(tokens: Tensor) -> Tensor:
    """Tokens without most of the padding that all captions of a batch share: some is left."""
    longest = int((tokens != tokens[:, -1:]).sum(dim=1).max())
    return tokens[:, : min(N_TOKENS, longest + 8)]

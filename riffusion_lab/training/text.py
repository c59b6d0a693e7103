"""The words: a small byte-pair tokenizer, and the text encoder that is trained along with the denoiser."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
N_MERGES = 1200
WIDTH = 192
N_TOKENS = 77


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

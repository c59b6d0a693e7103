"""Write CLIP's tokenizer, which Stable Diffusion 1.x has, in the form that transformers reads.

OpenAI published the merges as ``bpe_simple_vocab_16e6.txt.gz`` (https://github.com/openai/CLIP, MIT licence); the
packages ``open_clip_torch`` and ``clip-anytorch`` on PyPI carry the same file.
``python tools/clip_tokenizer.py bpe_simple_vocab_16e6.txt.gz`` writes vocab.json and merges.txt again.
"""

import gzip
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "riffusion_lab" / "stable_diffusion_v1" / "tokenizer"
N_TOKENS = 49_408
END_OF_WORD = "</w>"
SPECIAL_TOKENS = ["<|startoftext|>", "<|endoftext|>"]


def byte_symbols() -> list[str]:
    """Return the character that stands for each of the 256 bytes, in the order of CLIP's vocabulary.

    Bytes that are printable in Latin-1 stand for themselves and come first; the others become characters from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    n_others = 256 - len(printable)
    return [chr(code) for code in (*printable, *range(256, 256 + n_others))]


def build_vocabulary(merges: list[str]) -> dict[str, int]:
    """Return the id of each token: bytes, bytes that end a word, merged pairs, start and end of the text.

    Parameters
    ----------
    merges : list of str
        Pairs of tokens, with a space between the two, in the order in which they are merged.
    """
    symbols = byte_symbols()
    tokens = symbols + [symbol + END_OF_WORD for symbol in symbols]
    tokens += [pair.replace(" ", "") for pair in merges]
    tokens += SPECIAL_TOKENS
    return {token: i for i, token in enumerate(tokens)}


def main(source: str) -> None:
    """Write both files into the package."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        header, *lines = file.read().splitlines()
    # The file holds more merges than the model was trained with
    merges = lines[: N_TOKENS - 2 * 256 - len(SPECIAL_TOKENS)]
    vocabulary = json.dumps(build_vocabulary(merges), ensure_ascii=False, separators=(",", ":"))
    (FOLDER / "vocab.json").write_text(vocabulary + "\n", encoding="utf-8")
    version = "#version: 0.2"
    (FOLDER / "merges.txt").write_text("\n".join([version, *merges]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

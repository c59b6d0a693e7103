"""Weights in prompts, prompts of any length, and the vectors they become."""

import pytest
import torch

from riffusion_lab.prompts import encode_prompt, of_one_length, plain_text, weighted_parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("piano", [("piano", 1.0)]),
        ("(piano:1.3), slow", [("piano", 1.3), (", slow", 1.0)]),
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("a [b]", [("a ", 1.0), ("b", 1 / 1.1)]),
        ("(a (b:2) c:0.5) d", [("a ", 0.5), ("b", 1.0), (" c", 0.5), (" d", 1.0)]),
        ("((x))", [("x", pytest.approx(1.21))]),
        (r"\(live\) (a", [("(live) (a", 1.0)]),
        ("10:30 a) b]", [("10:30 a) b]", 1.0)]),
        ("(jazz:loud)", [("jazz:loud", 1.1)]),
        ("", [("", 1.0)]),
    ],
)
def test_weights(text, parts):
    assert weighted_parts(text) == parts


def test_plain_text_has_no_brackets():
    assert plain_text("(slow:1.2) [piano], (((jazz)))") == "slow piano, jazz"


def test_plain_prompts_are_encoded_by_the_pipeline(pipe):
    assert torch.equal(encode_prompt(pipe, "slow piano"), pipe.encode_prompt("slow piano", "cpu", 1, False)[0])


def test_a_weight_moves_its_own_tokens_away_from_the_empty_prompt(pipe):
    empty, plain, strong, off = (encode_prompt(pipe, text) for text in ("", "ab c", "ab (c:1.5)", "ab (c:0)"))
    # letters are tokens here: start, a, b, c, end
    others = [0, 1, 2, *range(4, 77)]
    assert torch.allclose(strong[:, others], plain[:, others], atol=1e-6)
    assert torch.allclose(strong[:, 3], empty[:, 3] + 1.5 * (plain[:, 3] - empty[:, 3]), atol=1e-6)
    assert torch.allclose(off[:, 3], empty[:, 3], atol=1e-6)
    assert torch.equal(encode_prompt(pipe, "ab (c:1)"), plain)


def test_long_prompts_are_cut_between_words(pipe):
    words = ["piano", "jazz", "slow"] * 12  # 156 letters, and so many tokens
    long = encode_prompt(pipe, " ".join(words))
    assert long.shape == (1, 3 * 77, 16)
    n_first = next(n for n in range(len(words)) if len("".join(words[: n + 1])) > 75)
    assert torch.equal(long[:, :77], encode_prompt(pipe, " ".join(words[:n_first])))
    assert encode_prompt(pipe, "x" * 1_000).shape[1] % 77 == 0  # a word that would not fit is cut too


def test_batches_are_filled_up_with_empty_prompts(pipe):
    short, long = encode_prompt(pipe, "jazz"), encode_prompt(pipe, "jazz " * 30)
    filled, same = of_one_length(pipe, [short, long])
    assert torch.equal(same, long) and torch.equal(filled[:, :77], short)
    assert torch.equal(filled[:, 77:], encode_prompt(pipe, ""))

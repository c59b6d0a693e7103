"""Weights in prompts, prompts of any length, and the vectors they become."""

import time

import pytest
import torch

from riffusion_lab.hints import NOTATIONS, notation_hints
from riffusion_lab.prompts import encode_prompt, pad_to_same_length, plain_text, weighted_parts


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
    filled, same = pad_to_same_length(pipe, [short, long])
    assert torch.equal(same, long) and torch.equal(filled[:, :77], short)
    assert torch.equal(filled[:, 77:], encode_prompt(pipe, ""))


ELSEWHERE = [
    ("[piano:jazz:0.5]", "[piano:jazz:0.5]", "interpolate"),
    ("slow [piano:jazz:10]", "[piano:jazz:10]", "interpolate"),
    ("[piano::.5]", "[piano::.5]", "interpolate"),
    ("[(piano:1.2):jazz:0.5]", "[(piano:1.2):jazz:0.5]", "interpolate"),
    ("[jazz:0.5]", "[jazz:0.5]", "(words:0.5) is a weight"),
    ("[piano|jazz] slow", "[piano|jazz]", "interpolate"),
    ("{piano|jazz} slow", "{piano|jazz}", "list of prompts"),
    ("slow __instrument__", "__instrument__", "list of prompts"),
    ("{{piano}} slow", "{piano}", "(words:1.3)"),
    ("piano AND jazz", "AND", "interpolate"),
    ("PIANO:1.2 AND jazz:0.8", "AND", "interpolate"),
    ("ピアノ AND ジャズ", "AND", "interpolate"),
    ("piano BREAK jazz", "BREAK", "leave it out"),
    ("piano, BREAK, jazz", "BREAK", "leave it out"),
    ("a++", "a++", "(words:1.3)"),
    ("piano+++, slow", "piano+++", "(words:1.3)"),
    ("slow piano--", "piano--", "(words:0.7)"),
    ("(slow piano)++ jazz", "(slow piano)++", "(words:1.3)"),
    ('"slow piano"--', '"slow piano"--', "(words:0.7)"),
    ("piano --no drums", "--no drums", "negative_prompt="),
    ("piano —no drums", "—no drums", "negative_prompt="),
    ("piano --ar 3:2", "--ar 3:2", "duration_s="),
    ("--seed 5 piano", "--seed 5", "seed="),
    ("piano::2 drums", "piano::2", "(words:1.3)"),
    ("piano, drums::-.5", "drums::-.5", "negative_prompt="),
    ("piano, (drums:-1)", "(drums:-1)", "negative_prompt="),
    ("piano, (drums: -0.5 )", "(drums: -0.5 )", "negative_prompt="),
    ("((drums):-1)", "):-1)", "negative_prompt="),
    ("<lora:name:1> piano", "<lora:name:1>", "load_pipeline(lora=...)"),
]


@pytest.mark.parametrize(("text", "found", "advice"), ELSEWHERE)
def test_notation_of_other_tools_gets_one_remark_that_says_what_does_it_here(text, found, advice):
    (remark,) = notation_hints([text, text])
    assert remark.startswith(f"{found!r} ") and "is read as plain words here" in remark
    assert advice in remark.split("plain words here: ")[1]


def test_every_notation_is_tried():
    places = {
        notation.pattern.pattern for notation in NOTATIONS for text, *_ in ELSEWHERE if notation.pattern.search(text)
    }
    assert places == {notation.pattern.pattern for notation in NOTATIONS}


def test_several_notations_are_remarked_once_each():
    texts = ["[a:b:0.5] [c:d:0.5] <lora:x:1> slow++ AND jazz--", "piano --no drums", "jazz++"]
    assert len(notation_hints(texts)) == 5


ORDINARY = [
    "", "piano", "rock and roll", "ROCK AND ROLL", "AND", "Band AND", "brand new, BREAKBEAT", "break beat",
    "BREAK", "R&B", "C++", "C--", "lo-fi - slow", "lo-fi -- slow", "lo-fi--slow", "piano --> jazz",
    "piano-->jazz", "jazz — slow", "drum-and-bass", "drum & bass", "AC/DC", "4/4, 94 bpm", "80s+",
    "A+ G7+ chords", "C# minor", "piano + bass", "a - b", "(piano:1.3), [slow]", "((piano))", "(jazz:loud)",
    "[live]", "[tempo: 120]", "[Verse 1: slow]", "10:30", "live at 10:30-11", r"\[piano|jazz\]",
    r"\[a:b:0.5\]", "piano: slow", "snake_case_words", "don't stop", "<3", "piano | jazz", "1990--95",
]  # fmt: skip


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_prompts_get_no_remark(text):
    assert notation_hints([text]) == []


@pytest.mark.parametrize(
    "piece", ["[", "(", "{", "[a:", "(a:-", "--", "a-", "a", "1", "+", "::", "<lora:", "__a", '"', " "]
)
def test_hostile_prompts_take_no_long_time(piece):
    """As long as a prompt may be: trying all pairs of places takes a second at most, trying all triples takes hours."""
    begin = time.perf_counter()
    notation_hints([(piece * 4_000)[:4_000]])
    assert time.perf_counter() - begin < 2

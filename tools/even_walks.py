"""Measure even walks with riffling, and the distance that they go by: ``python tools/even_walks.py``.

Walks of nine clips between six pairs of unlike prompts, with equal steps of alpha and with even steps: the largest step
divided by the smallest one, how many extra clips it took, and whether the ends are the clips of `text_to_audio`. As a
check by another measure, the ratio also of the pictures' means over squares of 8 × 8 pixels.
"""

import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from riffusion_lab import Clip, Prompt, interpolate, load_pipeline, text_to_audio
from riffusion_lab.spacing import even_clips, picture_distance

PAIRS = (
    ("church bells", "techno"),
    ("piano", "rock"),
    ("jazz", "rain"),
    ("violin", "chiptune"),
    ("ocean waves", "drums"),
    ("harp", "reggae"),
)
NUM_CLIPS = 9
MAX_EXTRA_CLIPS = NUM_CLIPS  # as by default
STEPS_OF_ALPHA = (1 / 64, 1 / 16, 1 / 4)


def walk_between(pipe, start: Prompt, end: Prompt) -> Callable[[list[float]], list[Clip]]:
    """Return a function from alphas to the clips there, each generated once."""
    known: dict[float, Clip] = {}

    def generate(alphas: list[float]) -> list[Clip]:
        for alpha in alphas:
            if alpha not in known:
                known[alpha] = next(interpolate(pipe, start, end, num_clips=1, curve=lambda _, alpha=alpha: alpha))
        return [known[alpha] for alpha in alphas]

    return generate


def blurred_distance(a: Clip, b: Clip) -> float:
    """Mean absolute difference of the pictures' means over squares of 8 x 8 pixels."""
    means = [np.asarray(clip.image.convert("L").reduce(8), float) for clip in (a, b)]
    return float(np.abs(means[0] - means[1]).mean())


def ratio(clips: list[Clip], distance: Callable[[Clip, Clip], float]) -> float:
    """Largest step from clip to clip divided by the smallest one."""
    steps = [distance(*pair) for pair in pairwise(clips)]
    return max(steps) / min(steps)


def check_distance(generate: Callable[[list[float]], list[Clip]], other_seed: Clip) -> list[bool]:
    """Whether the distance puts clips of known difference in the right order: identical, small steps, larger steps."""
    (start,) = generate([0.0])
    seed = picture_distance(start, other_seed)
    right = []
    for begin in (0.0, 0.5):
        here, *others = generate([begin, *(begin + step for step in STEPS_OF_ALPHA)])
        away = [picture_distance(here, here), *(picture_distance(here, other) for other in others)]
        right += [nearer < farther for nearer, farther in pairwise(away)]
        if begin == 0.0:
            right += [step < seed for step in away[1:3]]  # below a quarter of the walk
    return right


def main(seeds: tuple[int, int]) -> None:
    """Print a row for each pair; its prompts have these two seeds."""
    pipe = load_pipeline()
    print("| from | to | equal steps of alpha | even steps | extra clips | even, blurred (before) | ends | order |")
    print("|---|---|---|---|---|---|---|---|")
    for texts in PAIRS:
        start, end = (Prompt(text, seed=seed) for text, seed in zip(texts, seeds, strict=True))
        generate = walk_between(pipe, start, end)
        linear = generate([i / (NUM_CLIPS - 1) for i in range(NUM_CLIPS)])
        even = even_clips(generate, NUM_CLIPS, max_extra_clips=MAX_EXTRA_CLIPS)
        ends = [text_to_audio(pipe, prompt.text, seed=prompt.seed) for prompt in (start, end)]
        same = [a.image.tobytes() == b.image.tobytes() for a, b in zip(ends, even.clips[:: NUM_CLIPS - 1], strict=True)]
        right = check_distance(generate, text_to_audio(pipe, start.text, seed=start.seed + 2))
        blurred = f"{ratio(even.clips, blurred_distance):.2f} ({ratio(linear, blurred_distance):.2f})"
        columns = [
            *texts,
            f"{ratio(linear, picture_distance):.2f}",
            f"{even.ratio:.2f}",
            str(even.n_extra),
            blurred,
            "same" if all(same) else "differ",
            f"{sum(right)} of {len(right)}",
        ]
        print(f"| {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    first, second = (int(seed) for seed in sys.argv[1:]) if len(sys.argv) > 1 else (1, 2)
    main((first, second))

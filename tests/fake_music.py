"""Sessions that make tones instead of clips, for kernels of the browser tests: ``import fake_music``."""

import time

from conftest import N_SAMPLES, RATE, tone
from riffusion_lab import Clip, live

CLIP_S = 2.56
delay_s = 0.0
error = None


def generate_point(_pipe, point, _options):
    """A tone for each place between two prompts, made at once, or after `delay_s` seconds, or not at all."""
    time.sleep(delay_s)
    if error:
        raise error
    frequency_hz = round((200 + 110 * point.end.seed + 300 * point.alpha) * CLIP_S) / CLIP_S
    return Clip.from_audio(tone(frequency_hz, N_SAMPLES // 2, amplitude=0.3), RATE, loop=True)


live.generate_point = generate_point

"""How models are judged: the measures on inputs of known answer, the classifier, and a whole evaluation."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageChops

from riffusion_lab import Clip, SpectrogramParams
from riffusion_lab.seed_clips import seed_clip
from riffusion_lab.training import evaluation, metrics, reference
from riffusion_lab.training.classifier import (
    COMPOSER_CHOICES,
    Classifier,
    answers,
    class_scores,
    classify,
    clip_distance,
    dataset_choices,
    load_classifier,
)
from riffusion_lab.training.evaluation_page import confusion_matrix, save_report
from riffusion_lab.training.kept_clips import KeptClips
from riffusion_lab.training.targets import IGNORED
from riffusion_lab.training.vocabulary import CLASSES, CLIP_SECONDS
from tiny import tiny_pipeline

# Measures


def gaussians(n=200_000, *, mean=0.0, scale=1.0, seed=0):
    return mean + scale * np.random.default_rng(seed).standard_normal((n, 3))


def test_frechet_distance_of_known_gaussians():
    assert metrics.frechet_distance(gaussians(), gaussians()) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet_distance(gaussians(), gaussians(mean=2, seed=1)) == pytest.approx(12, rel=0.02)
    assert metrics.frechet_distance(gaussians(), gaussians(scale=3, seed=1)) == pytest.approx(12, rel=0.02)
    assert metrics.distance_of_means(gaussians(), gaussians(mean=2, scale=3, seed=1)) == pytest.approx(12, rel=0.02)


def test_diversity_is_the_mean_distance_within_labels():
    embeddings = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0], [1.0, 1.0], [9.0, 9.0]])
    assert metrics.diversity(embeddings, ["a", "a", "b", "b", "alone"]) == pytest.approx(2.5)
    with pytest.raises(ValueError, match="two clips of one label; all 5"):
        metrics.diversity(embeddings, list("abcde"))


@pytest.mark.parametrize("n_beats", [8, 11, 12, 16])
def test_tempo_of_a_picture_with_beats(n_beats):
    loudness = np.zeros(512)
    for beat in range(n_beats):
        loudness[(round(beat * 512 / n_beats) + np.arange(8)) % 512] = np.linspace(1, 0, 8)
    picture = torch.from_numpy(np.broadcast_to(1 - 2 * loudness, (1, 1, 512, 512)).copy()).float()
    estimated, bpm = metrics.estimate_tempo(picture), 60 * n_beats / CLIP_SECONDS
    assert metrics.is_tempo(estimated, bpm)
    assert metrics.is_tempo(estimated, 2 * bpm)  # an octave
    assert not metrics.is_tempo(estimated, 1.1 * bpm)


def test_a_step_over_the_seam_is_measured():
    wave = torch.sin(2 * torch.pi * torch.arange(512) / 512).expand(1, 1, 512, 512)
    assert metrics.column_steps(wave)[0] == pytest.approx(2 * np.pi / 512, rel=0.01)  # it is steepest there
    assert metrics.column_steps(wave.roll(128, dims=-1))[0] < 0.0002
    assert metrics.column_steps(torch.linspace(-1, 1, 512).expand(1, 1, 512, 512))[0] == pytest.approx(2)


def test_the_nearest_clip_is_found_at_any_shift():
    pictures = torch.rand(6, 1, 1, 512, 512, generator=torch.Generator().manual_seed(0))
    small = metrics.thumbnails(pictures)
    assert small.shape == (6, 64, 64)
    again = metrics.thumbnails([0.5 * pictures[4].roll(8 * 13, dims=-1) + 0.2])
    assert metrics.nearest_correlation(again, small).tolist() == pytest.approx([1], abs=1e-4)
    assert metrics.nearest_correlation(small[:2], small[2:]).max() < 0.2


# Classifier


def noise(n, seed=0):
    return torch.rand(n, 1, 512, 512, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_classifier_keeps_its_labels_in_its_file(tmp_path):
    torch.manual_seed(0)
    model = Classifier({"class": ("reggae", "tango")}).eval()
    model.save(tmp_path / "classifier.safetensors")
    again = load_classifier(tmp_path / "classifier.safetensors")
    assert again.choices == {"class": ("reggae", "tango")}
    assert again.sha256() == model.sha256()
    scores = class_scores(Image.new("RGB", (512, 512), "grey"), again)
    assert set(scores) == {"reggae", "tango"} and sum(scores.values()) == pytest.approx(1)


def test_the_shipped_classifier_knows_the_composers_labels():
    assert load_classifier().choices == COMPOSER_CHOICES
    assert load_classifier() is load_classifier()
    assert load_classifier().sha256() == reference.shipped_reference().classifier_sha256


def test_the_distance_of_clips_puts_known_differences_in_order():
    sounds = {name: seed_clip(name) for name in ("beat", "groove", "chords")}
    assert clip_distance(sounds["beat"], sounds["beat"]) == 0
    quieter = sounds["beat"].with_waveform(0.5 * sounds["beat"].waveform, loop=True)
    turned = Clip.from_image(ImageChops.offset(sounds["beat"].image, 200, 0), loop=True)
    same = max(clip_distance(sounds["beat"], other) for other in (quieter, turned))
    band, melody = (clip_distance(sounds["beat"], sounds[name]) for name in ("groove", "chords"))
    assert same < 5 < 15 < band < melody
    assert clip_distance(sounds["chords"], sounds["beat"]) == pytest.approx(melody)
    assert clip_distance(sounds["beat"][:2.56], sounds["beat"]) < band  # lengths may differ


def test_the_distance_refuses_pictures_that_the_classifier_cannot_see():
    clip = seed_clip("beat")
    small = Clip.from_image(clip.image.resize((512, 256)), params=SpectrogramParams(num_frequencies=256))
    with pytest.raises(ValueError, match="512 pixels wide and 256 high: the classifier takes a height of 512"):
        clip_distance(clip, small)
    with pytest.raises(ValueError, match="30 pixels wide and 512 high.*at least 32"):
        clip_distance(clip[:0.3], clip)


def test_no_classifier_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no classifier at .*nowhere.*stage `classifier`"):
        load_classifier(tmp_path / "nowhere.safetensors")
    model = Classifier({"class": ("a", "b")})
    model.choices = {"class": ("a", "b", "c")}
    model.save(tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match="wrong.safetensors holds no classifier"):
        load_classifier(tmp_path / "wrong.safetensors")


def test_a_clip_without_an_answer_is_ignored():
    data = Pictures(labels=("rain", "piano"))
    data.facts[1] |= {"texture": "chords", "mode": "minor"}
    right = answers(data, [0, 1], COMPOSER_CHOICES)
    assert right["class"].tolist() == [CLASSES.index("rain"), CLASSES.index("piano")]
    assert right["texture"].tolist() == [IGNORED, 1]
    assert right["mode"].tolist() == [IGNORED, 1]


def test_a_data_set_s_own_labels_are_the_choices():
    assert dataset_choices(Pictures(labels=("waltz", "polka"))) == {"class": ("polka", "waltz")}
    assert dataset_choices(Pictures(labels=("rain", "fusion"))) == COMPOSER_CHOICES
    with pytest.raises(ValueError, match="two or more labels, these have 1"):
        dataset_choices(Pictures(labels=("waltz",)))
    with pytest.raises(ValueError, match="two or more labels, these have 0"):
        dataset_choices(Pictures(labels=()))


def test_classify_takes_batches_of_any_size():
    model = load_classifier()
    pictures = noise(3)
    embeddings, answers = classify(model, [pictures[:2], pictures[2:]])
    assert embeddings.shape == (3, 64)
    with torch.no_grad():
        expected = {name: logits.argmax(dim=1).tolist() for name, logits in model(pictures).items()}
    assert {name: numbers.tolist() for name, numbers in answers.items()} == expected


# Reference clips


def test_the_shipped_reference_has_every_class_in_both_halves():
    shipped = reference.shipped_reference()
    for half in (0, 1):
        rows = shipped.rows(half, len(shipped))
        assert {shipped.facts[row]["class"] for row in rows} == set(CLASSES)
        assert len(shipped.rows(half, 512)) == 512
        assert len(shipped.rows(half, 10)) == 10
    assert not set(shipped.indices[shipped.halves == 0]) & set(shipped.indices[shipped.halves == 1])
    correct = [shipped.choices["class"][n] for n in shipped.answers["class"]]
    assert np.mean([fact["class"] == name for fact, name in zip(shipped.facts, correct, strict=True)]) > 0.97


def test_a_reference_is_saved_whole(tmp_path):
    shipped = reference.shipped_reference()
    shipped.save(tmp_path / "again.safetensors")
    again = reference.Reference.load(tmp_path / "again.safetensors")
    assert (again.prompts, again.facts, again.choices) == (shipped.prompts, shipped.facts, shipped.choices)
    assert np.array_equal(again.embeddings, shipped.embeddings)
    assert np.array_equal(again.answers["mode"], shipped.answers["mode"])
    load_classifier().save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors holds no reference clips: prompts"):
        reference.Reference.load(tmp_path / "other.safetensors")


class Pictures:
    """A data set of random pictures, half of them held out."""

    def __init__(self, n=40, labels=("rain", "waves"), held_out=20):
        self.facts = [{"kind": "effect", "label": labels[i % len(labels)]} for i in range(n)] if labels else [{}] * n
        self.held_out = held_out

    def __len__(self):
        return len(self.facts)

    def pictures(self, indices):
        return torch.cat([noise(1, seed=int(i)) for i in indices])

    def caption(self, i, _rng, **_options):
        return f"clip {i}"

    def label(self, i):
        return self.facts[i].get("label")

    def columns_per_bar(self, _i):
        return 1

    def split(self):
        return np.arange(self.held_out, len(self)), np.arange(self.held_out)


def test_a_reference_of_a_data_set():
    made = reference.make_reference(Pictures(), load_classifier())
    assert len(made) == 20
    for half in (0, 1):
        rows = made.rows(half, 20)
        assert sorted({made.facts[row]["class"] for row in rows}) == ["rain", "waves"]
        assert len(rows) == 10
    assert made.prompts == [f"clip {i}" for i in made.indices]
    unlabelled = reference.make_reference(Pictures(labels=()), load_classifier())
    assert [fact["class"] for fact in unlabelled.facts] == [None] * 20


def test_what_cannot_be_a_reference():
    with pytest.raises(ValueError, match=r"knows none of the labels of this data set \(polka, waltz\).*`classifier`"):
        reference.make_reference(Pictures(labels=("polka", "waltz")), load_classifier())
    with pytest.raises(ValueError, match="at least four held-out clips, this data set has 3"):
        reference.make_reference(Pictures(held_out=3), load_classifier())


# The whole evaluation


def solo_facts(**other):
    return {"kind": "solo", "label": "violin", "mode": "minor", "bpm": 94, "texture": "bass line"} | other


def test_what_a_caption_names():
    for name in ("texture", "mode", "bpm"):
        assert evaluation.is_named("gloomy violin bass line, 94 bpm", solo_facts(), name)
        assert not evaluation.is_named("happy violin melody, 194 beats", solo_facts(), name)
    assert not evaluation.is_named("rain", {"label": "rain"}, "texture")


@pytest.fixture
def small_reference():
    return reference.make_reference(Pictures(), load_classifier())


@pytest.fixture
def plays_the_reference(monkeypatch):
    """Instead of generated clips come the held-out ones themselves."""
    data = Pictures()
    made = reference.make_reference(data, load_classifier())
    indices = dict(zip(made.prompts, made.indices.tolist(), strict=True))
    asked = []

    def text_to_audio(_pipe, prompts, *, seed, **options):
        asked.append((list(prompts), list(seed), options))
        pictures = [data.pictures([indices[prompt]])[0, 0] for prompt in prompts]
        return [SimpleNamespace(image=Image.fromarray(as_pixels(picture))) for picture in pictures]

    monkeypatch.setattr(evaluation, "text_to_audio", text_to_audio)
    return asked


def as_pixels(picture):
    return ((picture.numpy() + 1) * 127.5).round().astype(np.uint8)


@pytest.mark.slow
def test_a_model_that_plays_the_held_out_clips_is_perfect(pipe, plays_the_reference):
    data = Pictures()
    report = evaluation.evaluate(pipe, data, halves=(0, 1), seeds=(0, 3), guidance_scale=1.2)
    assert report["settings"]["guidance_scale"] == 1.2
    assert [(run["half"], run["seed"]) for run in report["runs"]] == [(0, 0), (0, 3), (1, 0), (1, 3)]
    for run in (report, *report["runs"]):
        assert run["groups"]["effects"]["adherence"] == pytest.approx(1)
        assert run["frechet"] == pytest.approx(0, abs=0.01)
        assert [run[name] for name in ("diversity", "seam", "steps")] == pytest.approx([1, 1, 1], abs=1e-3)
        assert run["frechet_real_real"] > 1
        assert run["memorization"]["generated"] == pytest.approx(run["memorization"]["held_out"], abs=1e-3)
    assert report["spread"]["frechet_real_real"] < report["frechet_real_real"]
    assert report["autoencoder"]["frechet"] > 0.1 and report["autoencoder"]["psnr"] < 20  # it is a random one
    seeds = [seed for _, batch, _ in plays_the_reference for seed in batch]
    assert len(set(seeds)) == 20 and {options["guidance_scale"] for *_, options in plays_the_reference} == {1.2}


@pytest.mark.usefixtures("plays_the_reference")
def test_the_report_is_a_page_and_json(pipe, tmp_path):
    report = evaluation.evaluate(pipe, Pictures(), halves=(0, 1))
    save_report(report, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text(encoding="utf-8")) == report
    page = (tmp_path / "new" / "evaluation.html").read_text(encoding="utf-8")
    labels, counts = confusion_matrix([request for run in report["runs"] for request in run["prompts"]])
    assert counts.sum() == 20 and set(labels) >= {"rain", "waves"}
    assert f"{np.trace(counts)} of 20 clips are heard as what was asked for" in page
    assert f"{report['frechet_real_real']:.3f} ± {report['spread']['frechet_real_real']:.3f}" in page


@pytest.mark.usefixtures("plays_the_reference")
@pytest.mark.parametrize("kind", ["half precision", "AutoencoderKL"])
def test_any_autoencoder_is_measured(kind):
    model = tiny_pipeline()
    if kind == "AutoencoderKL":
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        model.vae = AutoencoderKL(block_out_channels=(4,) * 4, norm_num_groups=1, **blocks).eval()
    else:
        model.vae.to(torch.bfloat16)
    report = evaluation.evaluate(model, Pictures(held_out=4), n_clips=2)
    assert np.isfinite(report["autoencoder"]["psnr"])


def interrupt_after(n_batches, monkeypatch):
    """Press Ctrl-C in the middle of a batch."""
    generate, n_generated = evaluation.text_to_audio, 0

    def interrupted(*arguments, **options):
        nonlocal n_generated
        if n_generated == n_batches:
            raise KeyboardInterrupt
        n_generated += 1
        return generate(*arguments, **options)

    monkeypatch.setattr(evaluation, "text_to_audio", interrupted)


def test_an_interrupted_evaluation_goes_on_with_the_clips_that_are_missing(
    pipe, small_reference, plays_the_reference, tmp_path, monkeypatch
):
    whole = evaluation.evaluate(pipe, small_reference, seeds=(0, 1))
    n_asked = len(plays_the_reference)
    assert n_asked == 6  # two runs of ten clips, four at a time
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(4, patch)
        evaluation.evaluate(pipe, small_reference, seeds=(0, 1), folder=tmp_path)
    kept = sorted((tmp_path / "evaluation_clips").iterdir())
    assert len(kept) == 14 and {file.suffix for file in kept} == {".png"}
    kept[0].write_bytes(kept[0].read_bytes()[:300])  # a power cut
    del plays_the_reference[:]
    again = evaluation.evaluate(pipe, small_reference, seeds=(0, 1), folder=tmp_path)
    assert again == whole
    assert len(plays_the_reference) == 3  # of six: two that were missing, and the one with the torn clip
    assert sorted(file.name for file in tmp_path.iterdir()) == ["evaluation.html", "evaluation.json"]
    assert json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8")) == whole
    assert "generated on cpu in float32." in (tmp_path / "evaluation.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("plays_the_reference")
def test_clips_are_kept_until_the_report_is_written(pipe, small_reference, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        patch.setattr(evaluation, "save_report", broken)
        evaluation.evaluate(pipe, small_reference, folder=tmp_path)
    assert len(list((tmp_path / "evaluation_clips").iterdir())) == 10
    # Those of other settings are not taken for these, and stay
    evaluation.evaluate(pipe, small_reference, folder=tmp_path, guidance_scale=2.0)
    assert len(list((tmp_path / "evaluation_clips").iterdir())) == 10


def test_a_file_in_place_of_the_folder_is_named_before_the_work(pipe, small_reference, plays_the_reference, tmp_path):
    (tmp_path / "report").write_text("a file")
    with pytest.raises(OSError, match="report"):
        evaluation.evaluate(pipe, small_reference, folder=tmp_path / "report")
    assert not plays_the_reference


def test_a_kept_clip_belongs_to_all_that_decides_it(tmp_path):
    origin = {"weights_sha256": "a", "settings": {"guidance_scale": 1.5}, "device": "cpu", "dtype": "float32"}
    kept = KeptClips(tmp_path, origin)
    picture = Image.fromarray(np.arange(512, dtype=np.uint16).astype(np.uint8)[None].repeat(512, axis=0))
    kept.write("rain", 3, picture.convert("RGB"))
    assert kept.read("rain", 3).tobytes() == picture.convert("RGB").tobytes()
    assert KeptClips(tmp_path, dict(reversed(origin.items()))).read("rain", 3) is not None
    assert kept.read("rain", 4) is None and kept.read("waves", 3) is None
    for name in origin:
        assert KeptClips(tmp_path, origin | {name: "other"}).read("rain", 3) is None
    assert KeptClips(tmp_path, origin | {"settings": {"guidance_scale": 1.6}}).read("rain", 3) is None
    KeptClips(tmp_path, origin).remove()  # it has neither read nor written any
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_a_model_s_own_clips_are_the_same_after_an_interruption(pipe, small_reference, tmp_path, monkeypatch):
    options = {"n_clips": 4, "batch_size": 2, "num_inference_steps": 1}
    whole = evaluation.evaluate(pipe, small_reference, **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(1, patch)
        evaluation.evaluate(pipe, small_reference, folder=tmp_path, **options)
    assert evaluation.evaluate(pipe, small_reference, folder=tmp_path, **options) == whole


def test_a_path_is_no_reference(pipe):
    with pytest.raises(TypeError, match=r"reference is the path 'clips': pass Dataset\.load\('clips'\)"):
        evaluation.evaluate(pipe, "clips")


@pytest.mark.usefixtures("plays_the_reference")
def test_memorized_clips_are_found(pipe):
    data, more = Pictures(), Pictures()
    report = evaluation.evaluate(pipe, data, known_clips=[more])
    assert report["memorization"]["generated"] == pytest.approx(1, abs=1e-3)


@pytest.mark.usefixtures("plays_the_reference")
def test_without_a_data_set_the_reference_clips_do(pipe, small_reference):
    report = evaluation.evaluate(pipe, small_reference, n_clips=4)
    assert report["n_clips"] == len(report["prompts"]) == 4
    assert "runs" not in report and "memorization" not in report and "autoencoder" not in report
    assert report["groups"]["effects"]["n"] == 4
    right = [request["right"] for request in report["prompts"]]
    assert [set(each) for each in right] == [{"effects"}] * 4
    assert np.mean([each["effects"] for each in right]) == report["groups"]["effects"]["generated"]


@pytest.mark.usefixtures("plays_the_reference")
def test_a_model_that_plays_something_else_is_not(pipe, small_reference, monkeypatch):
    def text_to_audio(_pipe, prompts, **_options):
        return [SimpleNamespace(image=Image.new("RGB", (512, 512), "white")) for _ in prompts]

    monkeypatch.setattr(evaluation, "text_to_audio", text_to_audio)
    report = evaluation.evaluate(pipe, small_reference)
    assert report["frechet"] > 10 and report["diversity"] == pytest.approx(0) and report["seam"] == 0


@pytest.mark.usefixtures("plays_the_reference")
def test_one_s_own_labels_need_one_s_own_classifier(pipe, small_reference):
    own = Classifier({"class": ("polka", "waltz")}).eval()
    data = Pictures(labels=("polka", "waltz"))
    report = evaluation.evaluate(pipe, data, classifier=own)
    assert {"all", "polka", "waltz"} >= set(report["groups"]) and report["groups"]["all"]["n"] == 10
    with pytest.raises(ValueError, match="judged by another classifier"):
        evaluation.evaluate(pipe, small_reference, classifier=own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clips": 1}, "n_clips must be at least 2, not 1"),
        ({"halves": (2,)}, r"halves must be .* not \(2,\)"),
        ({"halves": ()}, "halves must be"),
        ({"seeds": (-1,)}, "seeds must be numbers from 0 on"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, not 2.5"),
        ({"n_clips": float("inf")}, "n_clips must be a whole number, not inf"),
    ],
)
def test_what_cannot_be_evaluated(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        evaluation.evaluate(None, **options)

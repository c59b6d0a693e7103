"""The training loop: the same weights however a run is interrupted or divided, and checkpoints that survive."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from riffusion_lab.training import checkpoints, loop
from riffusion_lab.training.checkpoints import load_checkpoint, save_checkpoint
from riffusion_lab.training.config import LoopConfig
from riffusion_lab.training.loop import generators, part_of_batch, run_loop
from riffusion_lab.training.progress import Snapshot, read_metrics, read_snapshots
from toy_task import CONFIG, ToyTask

TOY = Path(__file__).with_name("toy_task.py")
ROOT = Path(__file__).parents[1]


def trained(folder: Path, config: LoopConfig = CONFIG, **options) -> dict[str, torch.Tensor]:
    task = ToyTask(config, **options)
    run_loop(task, config, folder)
    return task.network.state_dict()


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(first[name], second[name]) for name in first)


class Broken(Exception):
    """What breaks a run off."""


def break_off_at(step: int, monkeypatch) -> None:
    """Let the toy's batches fail at one step, once."""
    draw = ToyTask.draw_batch
    n_drawn = 0

    def failing(self, rng, generator):
        nonlocal n_drawn
        n_drawn += 1
        if n_drawn == step + 1:
            raise Broken
        return draw(self, rng, generator)

    monkeypatch.setattr(ToyTask, "draw_batch", failing)


@pytest.mark.parametrize("step", [1, 5, 11])
def test_an_interrupted_run_gives_the_same_weights_to_the_bit(tmp_path, monkeypatch, step):
    config = CONFIG.override(["save_every_s=0", "sample_every=4"])
    whole = trained(tmp_path / "whole", config, dropout=0.2)
    with monkeypatch.context() as patch, pytest.raises(Broken):
        break_off_at(step, patch)
        trained(tmp_path / "broken", config, dropout=0.2)
    torch.randn(7)  # the process's own generator makes no difference
    assert_same(trained(tmp_path / "broken", config, dropout=0.2), whole)
    losses = [[record["loss"] for record in read_metrics(tmp_path / name)] for name in ("whole", "broken")]
    assert losses[0] == losses[1] and len(losses[0]) == 12


def test_steps_after_the_last_checkpoint_are_done_again_and_written_once(tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Broken):  # no checkpoint before the end: all is done again
        break_off_at(6, patch)
        trained(tmp_path / "broken")
    metrics = tmp_path / "broken" / "metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == 6
    metrics.write_text(metrics.read_text() + '{"step": 7, "los')  # killed while it wrote a line
    assert_same(trained(tmp_path / "broken"), whole)
    assert [record["step"] for record in read_metrics(tmp_path / "broken")] == list(range(1, 13))


def test_seed_changes_weights_and_the_loss_falls(tmp_path):
    config = CONFIG.override(["steps=60"])
    first = trained(tmp_path / "0", config)
    other = trained(tmp_path / "1", config.override(["seed=1"]))
    assert not torch.equal(first["0.weight"], other["0.weight"])
    losses = [record["loss"] for record in read_metrics(tmp_path / "0")]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_random_numbers_of_a_step_depend_on_seed_stage_and_step_only():
    def drawn(*key):
        rng, generator = generators(*key)
        return rng.random(), torch.rand(1, generator=generator).item()

    assert drawn(0, "denoiser", 5) == drawn(0, "denoiser", 5)
    assert len({drawn(0, "denoiser", 5), drawn(0, "denoiser", 6), drawn(1, "denoiser", 5), drawn(0, "decoder", 5)}) == 4


def test_the_processs_generator_is_left_as_it_was(tmp_path):
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    trained(tmp_path, dropout=0.2)
    assert torch.equal(torch.randn(4), expected)


def test_parts_of_a_batch_are_its_rows():
    batch = {"x": torch.arange(8), "more": {"y": torch.arange(16).view(8, 2)}, "flag": True}
    parts = [part_of_batch(batch, k, 4) for k in range(4)]
    assert torch.equal(torch.cat([part["x"] for part in parts]), batch["x"])
    assert torch.equal(torch.cat([part["more"]["y"] for part in parts]), batch["more"]["y"])
    assert all(part["flag"] is True for part in parts)


def assert_close(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], start: dict[str, torch.Tensor]
) -> None:
    """Sums in another order differ by float32's rounding, 1e-7, which 12 small steps enlarge by some ten times."""
    moved = sum((first[name] - start[name]).square().sum() for name in first).sqrt()
    apart = sum((first[name] - second[name]).square().sum() for name in first).sqrt()
    assert apart < 1e-4 * moved


def test_accumulated_parts_give_the_whole_batchs_gradient(tmp_path):
    start = {name: value.clone() for name, value in ToyTask(CONFIG).network.state_dict().items()}
    whole = trained(tmp_path / "whole")
    assert_close(whole, trained(tmp_path / "parts", CONFIG.override(["accumulation=4"])), start)


def run_toy(folder: Path, *settings: str, launch: tuple[str, ...] = (), **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, str(TOY), str(folder), *settings]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


@pytest.mark.slow
def test_two_processes_give_the_whole_batchs_gradient(tmp_path):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    process = run_toy(tmp_path / "two", launch=launch)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("processes: 2") == 2  # `accelerate launch --cpu` starts one only
    start = {name: value.clone() for name, value in ToyTask(CONFIG).network.state_dict().items()}
    one = trained(tmp_path / "one")
    two = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)["parts"]["network"]
    assert_close(one, two, start)
    losses = [[record["loss"] for record in read_metrics(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # the reported loss is the whole batch's, too


@pytest.mark.slow
def test_a_killed_process_leaves_a_whole_checkpoint_to_resume_from(tmp_path):
    settings = ("steps=200", "save_every_s=0")  # it saves after each step: the kill often comes while it writes
    file = tmp_path / "killed" / "checkpoint.pt"
    process = run_toy(tmp_path / "killed", *settings)
    deadline = time.monotonic() + 120
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.kill()
    process.communicate()
    config = CONFIG.override(list(settings))
    saved = load_checkpoint(file, config, ToyTask.data_id)
    assert saved is not None and 0 < saved["step"] < 200
    whole = trained(tmp_path / "whole", config)
    assert_same(trained(tmp_path / "killed", config), whole)


@pytest.mark.slow
def test_a_stop_request_saves_the_step(tmp_path):
    process = run_toy(tmp_path, "steps=100000")
    deadline = time.monotonic() + 120
    while len(read_metrics(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert "stopped and saved after step" in output
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == len(read_metrics(tmp_path)) > 0


def test_only_long_runs_are_compiled(monkeypatch):
    """Compiling takes minutes, which count: a run of 0.7 minutes took a single step."""
    monkeypatch.setattr(loop.shutil, "which", lambda _: "/usr/bin/c++")
    half = SimpleNamespace(device=torch.device("cpu"), mixed_precision="bf16")

    def is_compiled(accelerator=half, **settings):
        return loop._is_compiled(LoopConfig(**{"compile_network": None, "steps": 1000} | settings), accelerator)

    assert is_compiled() and is_compiled(minutes=60.0) and is_compiled(minutes=0.7, compile_network=True)
    assert not is_compiled(minutes=0.7)
    assert not is_compiled(steps=999)
    assert not is_compiled(SimpleNamespace(device=torch.device("cpu"), mixed_precision="no"))


def test_a_stop_request_in_the_last_snapshot_stops_too(tmp_path, monkeypatch):
    """Else the next stage would begin."""
    config = CONFIG.override(["sample_every=12"])
    task = ToyTask(config)
    shown = []

    def snapshot():
        shown.append(1)
        if len(shown) == 2:
            signal.raise_signal(signal.SIGINT)
        return Snapshot()

    monkeypatch.setattr(task, "snapshot", snapshot)
    with pytest.raises(KeyboardInterrupt, match="stopped after the last step, 12, which is saved"):
        run_loop(task, config, tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 12


@pytest.mark.slow
def test_a_stop_request_to_one_of_two_processes_stops_both_and_saves(tmp_path):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    process = run_toy(tmp_path, "steps=100000", launch=launch)
    deadline = time.monotonic() + 120
    while len(read_metrics(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert output.count("stopped and saved after step") >= 2, output
    assert output.count("SIGTERM: stopping after this step") <= 1, output  # the launcher passes the signal on
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == len(read_metrics(tmp_path)) > 0


def test_what_a_checkpoint_restores_is_moved_to_the_device_afterwards(tmp_path, monkeypatch):
    trained(tmp_path, CONFIG.override(["steps=3"]))
    events = []
    restore = loop.restore
    monkeypatch.setattr(loop, "restore", lambda *parts: events.append("restored") or restore(*parts))
    monkeypatch.setattr(ToyTask, "to", lambda *_: events.append("moved"))
    trained(tmp_path, CONFIG.override(["steps=3"]))
    assert events == ["restored", "moved"]  # a checkpoint's tensors are on the CPU


def pressing(draw):
    """A task's `draw_batch` during whose first call someone presses Ctrl-C."""

    def press(self, rng, generator):
        if not hasattr(self, "pressed"):
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)
        return draw(self, rng, generator)

    return press


def test_interrupt_in_a_notebook_or_terminal(tmp_path, monkeypatch):
    interrupted = CONFIG.override(["steps=50"])
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(ToyTask, "draw_batch", pressing(ToyTask.draw_batch))
    with pytest.raises(KeyboardInterrupt, match="saved after step 1 of 50"):
        trained(tmp_path, interrupted)
    assert signal.getsignal(signal.SIGINT) is handler
    assert load_checkpoint(tmp_path / "checkpoint.pt", interrupted, ToyTask.data_id)["step"] == 1


@pytest.mark.slow
def test_two_runs_in_one_folder_at_once_are_refused(tmp_path):
    process = run_toy(tmp_path, "steps=100000")
    deadline = time.monotonic() + 120
    while len(read_metrics(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(OSError, match="another process is training in"):
        trained(tmp_path)
    n_steps = len(read_metrics(tmp_path))
    time.sleep(0.5)
    assert len(read_metrics(tmp_path)) > n_steps  # the first one goes on
    process.kill()
    process.communicate()
    trained(tmp_path / "other")
    trained(tmp_path)  # a killed process keeps no lock


def test_training_works_in_another_thread(tmp_path):
    thread = threading.Thread(target=trained, args=(tmp_path,))
    thread.start()
    thread.join()
    assert len(read_metrics(tmp_path)) == 12


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    file = tmp_path / "checkpoint.pt"
    save_checkpoint(file, {"step": 1, "weights": torch.zeros(10)})
    before = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # like a disk with 100 kB left
    try:
        with pytest.raises(OSError, match=r"checkpoint of step 2 cannot be written.*the last one.*is kept.*Free some"):
            save_checkpoint(file, {"step": 2, "weights": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_appears_only_when_it_is_complete(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint.pt"
    save_checkpoint(file, {"step": 1})

    def cut_off(_content, stream):
        stream.write(b"half a checkpoint")
        raise Broken

    monkeypatch.setattr(checkpoints.torch, "save", cut_off)
    with pytest.raises(Broken):
        save_checkpoint(file, {"step": 2})
    assert torch.load(file, weights_only=True) == {"step": 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_the_weights_change(tmp_path, monkeypatch, value):
    config = CONFIG.override(["save_every_s=0"])
    loss = ToyTask.loss

    def diverging(self, network, batch):
        terms = loss(self, network, batch)
        self.n_losses = getattr(self, "n_losses", 0) + 1
        return {"loss": terms["loss"] * (value if self.n_losses == 4 else 1)}

    monkeypatch.setattr(ToyTask, "loss", diverging)
    task = ToyTask(config)
    with pytest.raises(
        FloatingPointError,
        match=r"the loss is (nan|inf) at step 3; the last good checkpoint is .*of step 3.*learning_rate",
    ):
        run_loop(task, config, tmp_path)
    saved = load_checkpoint(tmp_path / "checkpoint.pt", config, ToyTask.data_id)
    assert saved["step"] == 3
    assert all(torch.equal(saved["parts"]["network"][n], v) for n, v in task.network.state_dict().items())
    assert all(torch.isfinite(v).all() for v in task.network.state_dict().values())


def test_a_gradient_that_is_no_number_stops_before_the_weights_change(tmp_path, monkeypatch):
    def root_of_zero(_task, network, batch):  # a finite loss whose gradient is infinite
        return {"loss": (0 * network(batch["x"]).square().sum()).sqrt()}

    monkeypatch.setattr(ToyTask, "loss", root_of_zero)
    task = ToyTask(CONFIG)
    with pytest.raises(FloatingPointError, match="the gradient is nan at step 0; there is no checkpoint yet"):
        run_loop(task, CONFIG, tmp_path)
    assert all(torch.isfinite(v).all() for v in task.network.state_dict().values())


def test_other_settings_or_data_are_refused_by_name(tmp_path, monkeypatch):
    trained(tmp_path)
    with pytest.raises(ValueError, match=r"learning_rate is 0.02 but was 0.05; seed is 1 but was 0"):
        trained(tmp_path, CONFIG.override(["seed=1", "learning_rate=0.02"]))
    trained(tmp_path, CONFIG.override(["save_every_s=1", "sample_every=5", "accumulation=2"]))  # these may change
    monkeypatch.setattr(ToyTask, "data_id", "other data")
    with pytest.raises(ValueError, match="was trained on other data"):
        trained(tmp_path)


def test_more_steps_go_on_from_the_checkpoint_and_say_so(tmp_path, capsys):
    short = {name: value.clone() for name, value in trained(tmp_path).items()}
    longer = trained(tmp_path, CONFIG.override(["steps=20"]))
    assert "steps changed from 12 to 20 at step 12" in capsys.readouterr().out
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(1, 21))
    assert not torch.equal(short["0.weight"], longer["0.weight"])


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint.pt is no checkpoint, or is damaged: delete it"):
        trained(tmp_path)
    torch.save({"spent": 3.0, "n_steps": 5}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="written by another version"):
        trained(tmp_path)


def test_minutes_end_a_run_and_lower_the_learning_rate(tmp_path):
    config = CONFIG.override(["steps=1000000", "minutes=0.02"])
    task = ToyTask(config)
    task.pause_s = 0.02
    run_loop(task, config, tmp_path)
    metrics = read_metrics(tmp_path)
    assert 1.2 <= metrics[-1]["spent_s"] < 5
    assert metrics[-1]["learning_rate"] < 0.05 * CONFIG.learning_rate
    spent = metrics[-1]["spent_s"]
    run_loop(ToyTask(config), config, tmp_path)  # the time is spent
    assert read_metrics(tmp_path)[-1]["spent_s"] == spent


def test_an_interrupted_run_with_a_time_limit_does_not_promise_a_number_of_steps(tmp_path, monkeypatch):
    config = CONFIG.override(["steps=1000000", "minutes=30"])
    monkeypatch.setattr(ToyTask, "draw_batch", pressing(ToyTask.draw_batch))
    with pytest.raises(KeyboardInterrupt, match=r"saved after step 1 \(1,000,000 at most\), 0.0 of 30 minutes"):
        trained(tmp_path, config)


def test_batches_that_cannot_be_divided_are_refused():
    with pytest.raises(ValueError, match=r"batch_size 8 cannot be divided into accumulation = 3"):
        CONFIG.override(["accumulation=3"])
    with pytest.raises(ValueError, match=r"batch_size 8 cannot be divided into 16 equal parts .*2 × 8 processes"):
        loop._check_batch(CONFIG.override(["accumulation=2"]), 8)


def test_precision_and_device_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="precision fp16 needs device cuda"):
        loop.new_accelerator(CONFIG.override(["precision=fp16"]))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device cuda is not available"):
            loop.new_accelerator(CONFIG.override(["device=cuda"]))


def test_two_runs_in_one_process_may_differ_in_precision(tmp_path):
    full = trained(tmp_path / "fp32")
    half = trained(tmp_path / "bf16", CONFIG.override(["precision=bf16"]))
    again = trained(tmp_path / "again")
    assert_same(full, again)
    assert not torch.equal(full["0.weight"], half["0.weight"])
    assert all(value.dtype == torch.float32 for value in half.values())


@pytest.mark.slow
def test_snapshots_and_report_grow_with_the_run(tmp_path):
    trained(tmp_path, CONFIG.override(["sample_every=5"]))
    assert [snapshot["step"] for snapshot in read_snapshots(tmp_path)] == [0, 5, 10, 12]
    page = (tmp_path / "report.html").read_text()
    assert "Step 12 of 12" in page and "first weight" in page
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG.override(["sample_every=5"]).to_dict()
    plain = trained(tmp_path / "without")
    assert_same(plain, trained(tmp_path / "with", CONFIG.override(["sample_every=1"])))  # looking changes nothing


def test_compiling_does_not_count_as_training():
    compiled = loop.StepTimer(is_compiled=True)
    assert [compiled.counted_s(seconds) for seconds in (120, 3, 2, 90, 4)] == [0, 3, 2, 10, 4]
    plain = loop.StepTimer(is_compiled=False)
    assert [plain.counted_s(seconds) for seconds in (120, 3, 90)] == [120, 3, 90]


def test_a_run_by_the_clock_uses_the_timer(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_is_compiled", lambda *_: True)
    monkeypatch.setattr(torch, "compile", lambda network: network)
    config = CONFIG.override(["steps=3", "minutes=5"])
    trained(tmp_path, config)
    spent = [record["spent_s"] for record in read_metrics(tmp_path)]
    assert spent[0] == 0 and spent[1] > 0

"""The training loop that all stages share: its budget is a number of steps, and it can be resumed to the bit.

Everything random in a step is drawn from generators whose seeds are the run's seed, the stage and the number of the
step. So no state of a generator needs saving, and each of several processes draws the same batch and computes its own
part of it. Averaged over processes and over the parts of an accumulated batch, gradients are those of the whole batch.
Batch normalization (in the autoencoder and the classifier) sees only one part at a time: there the result does depend
on the number of processes and parts.
"""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from ..files import locked_folder
from ..models import keep_freed_memory
from .checkpoints import FORMAT, HasState, load_checkpoint, restore, save_checkpoint, state_of
from .config import LoopConfig
from .optimizers import cosine_schedule, fastest_dtype, optimizer_step, set_learning_rate
from .processes import printed_once
from .progress import Monitor, Snapshot
from .report import budget_text

CHECKPOINT = "checkpoint.pt"
Batch = dict[str, Any]  # tensors with one row for each example, and values that hold for the whole batch
WORTH_COMPILING = 1000  # steps: compiling takes two minutes or three,
WORTH_COMPILING_MINUTES = 20  # which count as spent: in a shorter run few steps would be left
HELD_UP = 5  # times the shortest step: a longer one was compiled again
PRECISION_OF = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "no"}


class Task:
    """What a stage trains: its network, its batches and its loss."""

    name: str  # of the stage
    data_id: str  # of what it is trained on, and from: a checkpoint belongs to it
    network: nn.Module  # computes the loss's terms; only used in training
    optimizer: torch.optim.Optimizer

    def draw_batch(self, rng: np.random.Generator, generator: torch.Generator) -> Batch:
        """Draw the whole batch, on the CPU."""
        raise NotImplementedError

    def loss(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Terms of the mean loss of the examples in a part of a batch, by name; the main one is "loss".

        The gradient is that of their sum. Call `network`, which is `self.network`, but in the run's precision.
        """
        raise NotImplementedError

    def state(self) -> Mapping[str, HasState]:
        """What a checkpoint holds beside the optimizer."""
        return {"network": self.network}

    def clipped_parameters(self) -> list[nn.Parameter]:
        """Parameters by whose gradient's length the gradient is clipped."""
        return [weights for group in self.optimizer.param_groups for weights in group["params"]]

    def to(self, device: torch.device) -> None:
        """Move what `loss` needs beside the network to a device."""

    def after_step(self) -> None:
        """Called after each step of the optimizer."""

    def snapshot(self) -> Snapshot:
        """What to show of the network as it is now. Must not change it."""
        return Snapshot()


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    spent_s: float = 0.0
    mean_loss: float = math.nan  # running mean over about a hundred steps

    def share(self, config: LoopConfig) -> float:
        """Share of the budget that is used: the larger one of steps and time."""
        of_steps = self.step / config.steps if config.steps else 1.0
        of_time = self.spent_s / (60 * config.minutes) if config.minutes else 0.0
        return min(1.0, max(of_steps, of_time))

    def count(self, loss: float, seconds: float) -> None:
        """Count one more step."""
        weight = max(0.01, 1 / (self.step + 1))
        self.mean_loss = loss if self.step == 0 else self.mean_loss + (loss - self.mean_loss) * weight
        self.step += 1
        self.spent_s += seconds


class StepTimer:
    """How long steps take, without the minutes for which `torch.compile` holds some of them up.

    These are no training: if they counted, the learning rate would fall before it had risen.
    """

    def __init__(self, *, is_compiled: bool) -> None:
        self.is_compiled = is_compiled
        self.shortest_s: float | None = None

    def counted_s(self, seconds: float) -> float:
        """Seconds of a step that count. Of a compiled network the first step does not, others up to `HELD_UP`."""
        if not self.is_compiled:
            return seconds
        if self.shortest_s is None:
            self.shortest_s = seconds
            return 0.0
        self.shortest_s = min(self.shortest_s, seconds)
        return min(seconds, HELD_UP * self.shortest_s)


def run_loop(task: Task, config: LoopConfig, folder: str | Path, *, accelerator: Accelerator | None = None) -> None:
    """Train, or resume an interrupted run; when it returns, the whole budget is used.

    Parameters
    ----------
    task : Task
        With fresh networks; a checkpoint's weights are loaded into them.
    config : LoopConfig
    folder : path
        For ``checkpoint.pt``, ``config.json``, ``metrics.jsonl`` (one line for each step), ``report.html`` and
        ``samples/``.
    accelerator : Accelerator, optional
        Default: a new one for the configuration's precision and device.

    Raises
    ------
    ValueError
        If there is a checkpoint of other settings or other data, or the batch cannot be divided among the processes.
    FloatingPointError
        If loss or gradient is not finite; before weights are changed, so the last checkpoint is good.
    KeyboardInterrupt
        After Ctrl-C or SIGTERM, when the current step is done and saved. A second one stops at once.
    OSError
        If a file cannot be written. The last checkpoint is kept. Or if another process is training in the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = accelerator or new_accelerator(config)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    _check_batch(config, accelerator.num_processes)
    with printed_once(), ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(only_run_in(folder))
        stack.enter_context(random_state_kept())
        stop = stack.enter_context(stop_requests())
        loop = _Loop(task, config, folder, accelerator)
        stack.callback(loop.close)
        loop.run(stop)


class _Loop:
    """One run, from its checkpoint on."""

    def __init__(self, task: Task, config: LoopConfig, folder: Path, accelerator: Accelerator) -> None:
        self.task, self.config, self.accelerator = task, config, accelerator
        self.file = folder / CHECKPOINT
        self.progress = Progress()
        self.saved_step: int | None = None  # of the checkpoint on the disk
        self.term_names: tuple[str, ...] = ()  # of the loss
        is_compiled = _is_compiled(config, accelerator)
        self.timer = StepTimer(is_compiled=is_compiled)
        network = torch.compile(task.network) if is_compiled else task.network
        self.network, self.optimizer = accelerator.prepare(network, task.optimizer)
        task.network.zero_grad()
        self._resume()
        task.to(accelerator.device)  # after the checkpoint, which is on the CPU
        self.monitor: Monitor | None = None
        if accelerator.is_main_process:
            config.to_json(folder / "config.json")
            self.monitor = Monitor(folder, task.name, config, self.progress.step)

    def close(self) -> None:
        """Undo what accelerate has changed in the network, and end the display."""
        self.accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)
        if self.monitor:
            self.monitor.close()

    def run(self, stop: threading.Event) -> None:
        """Train until the budget is used, or until a stop is requested."""
        last_save = time.monotonic()
        while self.progress.share(self.config) < 1:
            if self._is_due():
                self._show()
            self._step()
            if self._is_stopped(stop):
                self._save()
                self.accelerator.wait_for_everyone()  # a launcher may kill the others when the first one ends
                raise KeyboardInterrupt(f"stopped and saved after {self._where()}")
            if time.monotonic() - last_save > self.config.save_every_s:
                self._save()
                last_save = time.monotonic()
        if self.saved_step != self.progress.step:
            self._save()
        self._show()
        if stop.is_set():
            raise KeyboardInterrupt(f"stopped after the last step, {self.progress.step}, which is saved")

    def _where(self) -> str:
        return budget_text(self.progress.step, self.progress.spent_s, self.config.to_dict())

    def _is_stopped(self, stop: threading.Event) -> bool:
        """Whether any process has been asked to stop: all of them then stop after the same step."""
        if self.accelerator.num_processes == 1:
            return stop.is_set()
        is_asked = torch.tensor(float(stop.is_set()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(is_asked, "sum") > 0)

    def _is_due(self) -> bool:
        return self.config.sample_every > 0 and self.progress.step % self.config.sample_every == 0

    def _show(self) -> None:
        if self.monitor:
            self.monitor.show(self.progress.step, self.task.snapshot() if self.config.sample_every else Snapshot())

    def _step(self) -> None:
        started = time.monotonic()
        learning_rate = self.config.learning_rate * cosine_schedule(
            self.progress.share(self.config), warmup=self.config.warmup
        )
        set_learning_rate(self.optimizer, learning_rate)
        rng, generator = generators(self.config.seed, self.task.name, self.progress.step)
        torch.manual_seed(generator.initial_seed() + self.accelerator.process_index)  # of dropout
        terms = self._backward(self.task.draw_batch(rng, generator))
        try:
            if not all(map(math.isfinite, terms.values())):
                raise FloatingPointError(f"the loss is {sum(terms.values())}")
            optimizer_step(self.accelerator, self.optimizer, self.task.clipped_parameters(), self.config.max_grad_norm)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} at step {self.progress.step}; {self._last_good()}") from error
        self.task.after_step()
        self.progress.count(terms["loss"], self.timer.counted_s(self._seconds_since(started)))
        if self.monitor:
            self.monitor.log(asdict(self.progress) | terms | {"learning_rate": learning_rate})

    def _backward(self, batch: Batch) -> dict[str, float]:
        """Add up the gradients of this process's parts of a batch; return the terms of the whole batch's mean loss."""
        parts = []
        for number in range(self.config.accumulation):
            is_last = number == self.config.accumulation - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.network):
                parts.append(self._backward_part(batch, number))
        mean = torch.stack(parts).mean(dim=0)  # (terms,)
        mean = self.accelerator.reduce(mean, "mean")
        return dict(zip(self.term_names, mean.tolist(), strict=True))

    def _backward_part(self, batch: Batch, number: int) -> Tensor:
        """Add the gradient of one part of a batch; return the terms of its loss [shape=(terms,)]."""
        n_parts = self.config.accumulation
        first = self.accelerator.process_index * n_parts
        rows = part_of_batch(batch, first + number, self.accelerator.num_processes * n_parts)
        terms = self.task.loss(self.network, on_device(rows, self.accelerator.device))
        self.term_names = tuple(terms)
        self.accelerator.backward(sum(terms.values()) / n_parts)
        return torch.stack([term.detach().float() for term in terms.values()])

    def _seconds_since(self, started: float) -> float:
        """Seconds that a step took, by the first process's clock: the learning rate may depend on it."""
        seconds = [time.monotonic() - started]
        if self.config.minutes and self.accelerator.num_processes > 1:
            broadcast_object_list(seconds)
        return seconds[0]

    def _last_good(self) -> str:
        if self.saved_step is None:
            kept = "there is no checkpoint yet"
        else:
            kept = f"the last good checkpoint is {self.file}, of step {self.saved_step}"
        advice = f"lower learning_rate (now {self.config.learning_rate}), or set precision to fp32"
        return f"{kept}. To go on, {advice}, in another folder"

    def _parts(self) -> dict[str, HasState]:
        parts = dict(self.task.state())
        parts["optimizer"] = self.task.optimizer
        if self.accelerator.scaler is not None:
            parts["scaler"] = self.accelerator.scaler
        return parts

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            content = {"format": FORMAT, "config": self.config.fixed(), "data_id": self.task.data_id}
            content |= asdict(self.progress) | {"steps": self.config.steps, "parts": state_of(self._parts())}
            save_checkpoint(self.file, content)
        self.saved_step = self.progress.step

    def _resume(self) -> None:
        content = load_checkpoint(self.file, self.config, self.task.data_id)
        if content is None:
            return
        restore(self._parts(), content["parts"])
        self.progress = Progress(**{name: content[name] for name in ("step", "spent_s", "mean_loss")})
        self.saved_step = self.progress.step
        if content["steps"] != self.config.steps and self.accelerator.is_main_process:
            print(
                f"{self.task.name}: steps changed from {content['steps']} to {self.config.steps} at step "
                f"{self.progress.step}. From here on the learning rate follows the new number, so the weights will "
                "differ from those of a run that had it from the beginning"
            )


def generators(seed: int, name: str, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The generators of a step of a stage, on the CPU: of indices and captions, and of noise."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), step])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


def part_of_batch(batch: Batch, number: int, n_parts: int) -> Batch:
    """Part `number` of a batch in `n_parts` equal ones: rows of tensors; other values are the same in each part."""

    def rows(tensor: Tensor) -> Tensor:
        size = len(tensor) // n_parts
        return tensor[number * size : (number + 1) * size]

    return _map_tensors(rows, batch)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on a device."""
    return _map_tensors(lambda tensor: tensor.to(device), batch)


def _map_tensors(change: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    changed: Batch = {}
    for name, value in batch.items():
        if isinstance(value, dict):
            changed[name] = _map_tensors(change, value)
        else:
            changed[name] = change(value) if isinstance(value, Tensor) else value
    return changed


def _check_batch(config: LoopConfig, n_processes: int) -> None:
    n_parts = config.accumulation * n_processes
    if config.batch_size % n_parts:
        raise ValueError(
            f"batch_size {config.batch_size} cannot be divided into {n_parts} equal parts (accumulation "
            f"{config.accumulation} × {n_processes} processes): use a multiple of {n_parts}"
        )


def _is_compiled(config: LoopConfig, accelerator: Accelerator) -> bool:
    """Whether to compile the network. In single precision on a CPU that made a step half as slow again."""
    if config.compile_network is not None:
        return config.compile_network
    has_compiler = accelerator.device.type == "cuda" or any(map(shutil.which, ("c++", "g++", "clang++")))
    is_long = config.steps >= WORTH_COMPILING and (config.minutes or WORTH_COMPILING_MINUTES) >= WORTH_COMPILING_MINUTES
    return has_compiler and accelerator.mixed_precision != "no" and is_long


def new_accelerator(config: LoopConfig) -> Accelerator:
    """An `Accelerator` with the configuration's device and precision.

    accelerate keeps the first one's choice for the whole process; a notebook may train twice, with different ones.
    """
    use_cpu = config.device == "cpu" or not torch.cuda.is_available()
    if config.device == "cuda" and use_cpu:
        raise ValueError("device cuda is not available here: use cpu, or auto")
    precision = config.precision
    if precision == "fastest":
        precision = PRECISION_OF[fastest_dtype("cpu" if use_cpu else "cuda")]
    elif precision == "fp32":
        precision = "no"
    if precision == "fp16" and use_cpu:
        raise ValueError("precision fp16 needs device cuda; use bf16 or fp32 on the CPU")
    has_other_device = PartialState._shared_state and (PartialState().device.type == "cpu") != use_cpu
    AcceleratorState._reset_state(reset_partial_state=bool(has_other_device))
    return Accelerator(cpu=use_cpu, mixed_precision=precision)


def is_main_process() -> bool:
    """Whether this is the first of the processes of a run, which writes the files."""
    is_main: bool = PartialState().is_main_process
    return is_main


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder. The lock is released even if this one is killed.

    Raises
    ------
    OSError
        If one does already: they would overwrite each other's checkpoints.
    """
    with locked_folder(folder, f"another process is training in {folder}: wait for it, or use another folder"):
        yield


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave torch's global generators as they were before."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw first weights with a seed; torch's global generators are left as they were before."""
    with random_state_kept():
        torch.manual_seed(seed)
        yield


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that is set by Ctrl-C (a notebook's interrupt) or SIGTERM; a second signal raises KeyboardInterrupt.

    Python handles signals in its main thread only; in another one they keep their usual effect.
    """
    event = threading.Event()

    def request(number: int, _frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt("stopped at once; the last checkpoint is kept")
        event.set()
        print(f"{signal.Signals(number).name}: stopping after this step; once more stops at once", flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, request) for number in numbers}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

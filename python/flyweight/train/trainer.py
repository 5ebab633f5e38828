"""The training loop, from a folder of shards to a checkpoint."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flyweight.model.attention import require_gradients
from flyweight.model.checkpoint import save_model
from flyweight.model.config import ModelConfig
from flyweight.quant.config import QuantConfig
from flyweight.train.averaging import no_snapshot
from flyweight.train.config import TrainConfig
from flyweight.train.data import TokenStream, ending_with
from flyweight.train.diagnose import memory_explained, model_memory_explained, why_not_finite
from flyweight.train.distributed import World, pick_device
from flyweight.train.folder import LOG, MODEL, STATE, resume
from flyweight.train.gradients import passes, reduce_and_clip
from flyweight.train.interrupt import stop_noted
from flyweight.train.losses import Losses, LossFunction, add_gradient
from flyweight.train.monitor import Monitor, StepRecord
from flyweight.train.optim import set_schedule
from flyweight.train.prefetch import Prefetcher
from flyweight.train.schedule import (
    budget_spent,
    learning_rate_scale,
    linear_ramp,
    short_of_warmdown,
    steps_left,
)
from flyweight.train.speed import Speedometer, tokens_per_second
from flyweight.train.state import TrainState, new_state, save_state, settings_of

__all__ = ["TrainResult", "train"]

_SETTLED_STEPS = 20
"""After as many the mean duration of a step is known well enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training run did."""

    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens trained on."""
    seconds: float
    """Training clock, over all lives of the run."""
    compile_seconds: float
    """Time spent compiling in this life, outside the clock."""
    stall_seconds: float
    """What steps of this life have waited for their batches, inside of the clock."""
    recompilations: int
    """Graphs compiled inside the clock in this life; there should be none."""
    final_loss: float
    """Loss of the last step, nats per token."""
    tokens_per_second: float
    """``tokens / seconds``."""
    exported: str
    """What the exported weights are: ``ema``, ``swa``, ``hma``, or ``last`` where nothing was
    averaged, be it that ``swa`` took no snapshot."""
    device: str
    """``cpu`` or ``cuda``."""
    processes: int
    """Processes that trained together in this life."""
    model_path: Path
    """The averaged weights."""
    state_path: Path
    """What :func:`train` resumes from."""
    log_path: Path
    """JSON lines."""


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    data_folder: str | os.PathLike[str],
    out_folder: str | os.PathLike[str],
    *,
    seed: int,
    quantize: QuantConfig | None = None,
    max_steps: int | None = None,
    max_seconds: float | None = None,
    progress: bool = True,
    world: World | None = None,
) -> TrainResult:
    """Train until the budget is spent, going on from where an earlier call stopped.

    What a call with other arguments left in the folder is moved to a subfolder ``aside-...`` of
    it, from where a call with those goes on.

    Parameters
    ----------
    data_folder : holds ``fineweb_train_*.bin``
    out_folder : gets ``model.safetensors``, ``log.jsonl`` and ``state.safetensors``
    seed : draws the initial weights, and the order of the data if that is shuffled
    quantize : what the export will do with the weights, for ``config.qat``
    max_steps, max_seconds : replace the budget of the config where they are given
    progress : say on stderr when it compiles and what it moves, and show a bar
    world : the processes that :func:`~flyweight.train.distributed.join` found, each of which calls
        this with the same arguments; the first one writes and shows. None is this process alone

    Raises
    ------
    DataError
        Shards are missing, do not fit the vocabulary or end before the first step; the state is
        damaged; the loss is not finite any more.
    InvalidArgumentError
        ``config.qat`` is set, and ``quantize`` is missing or not for it; the batch does not divide
        by the processes; the attention kernel asked for cannot train here.
    RecipeError
        There is not enough memory; it says which number to lower.
    KeyboardInterrupt
        After SIGINT or SIGTERM, once the state is saved; it says where.
    PeerError
        Another process ended.

    Notes
    -----
    On the CPU and with a step budget alone, equal arguments, PyTorch version and number of threads
    give equal bytes in ``model.safetensors``, however often the run was killed and resumed. With
    another number of processes, sums have another order, and nothing else changes.
    """
    if world is None:
        world = World(device=pick_device(config.device))
    require_gradients(world.device.type)
    config = config.with_budget(max_steps, max_seconds)
    out = Path(out_folder)
    out.mkdir(parents=True, exist_ok=True)
    stream = TokenStream(
        data_folder,
        batch_sequences=config.batch_sequences,
        seq_len=model_config.seq_len,
        vocab_size=model_config.vocab_size,
        shuffle_seed=seed if config.shuffle else None,
        at_documents=config.at_documents,
    )
    with model_memory_explained(model_config, world.device):
        state = new_state(model_config, config, seed=seed, world=world)
    if config.data_end == "stop":
        config = ending_with(stream, config)
    settings = settings_of(model_config, config, quantize, seed=seed, data=stream.shards())

    def say(line: str) -> None:
        if progress and world.is_first:
            print(f"train: {line}", file=sys.stderr, flush=True)

    resume(out, state, settings=settings, world=world, say=say)
    losses = Losses(state.model, config, quantize)
    parts = passes(config.batch_sequences, config.accumulation_steps, world)
    job = _Job(
        config=config, losses=losses, parts=parts, world=world, folder=out, settings=settings
    )
    compile_seconds = 0.0
    if config.compile and _spent(state, config) < 1:
        say("compiling, before the clock starts")
        with memory_explained(model_config, config, parts, world):
            compile_seconds = _compile(state, job)
    losses.start_counting()
    world.agree(0.0)  # the clock starts when all are ready
    speedometer = Speedometer.of(model_config, data_folder, world)

    def explain(step: int) -> str:
        batch = torch.from_numpy(stream.batch(step - 1))  # the rows of all processes
        with losses.rounding():
            return why_not_finite(state.model, batch.to(world.device), losses.plain())

    with (
        _monitor(state, job, speedometer, explain, progress=progress) as monitor,
        Prefetcher(
            stream,
            first_step=state.step,
            share=lambda batch: batch[world.share(len(batch))],
            pin=world.device.type == "cuda",
        ) as batches,
        memory_explained(model_config, config, parts, world),
    ):
        _loop(state, job, batches, monitor)
        if monitor is not None and config.data_end == "stop" and state.step == stream.num_batches:
            monitor.say(f"the data ended: {stream.num_tokens:,} tokens")
        if monitor is not None and config.average == "swa" and state.average.source() == "last":
            monitor.say(no_snapshot(config))
    if world.is_first:
        save_model(out / MODEL, model_config, state.average.weights())
    return _result(state, job, compile_seconds, batches.stall_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What stays the same through a run."""

    config: TrainConfig
    losses: Losses
    parts: int
    """Forward and backward passes of this process in a step."""
    world: World
    folder: Path
    """Gets all files of the run."""
    settings: str
    """What the state is of."""

    def checkpoint(self, state: TrainState) -> str:
        """What the state file holds, in words."""
        return f"{self.folder / STATE} holds step {state.step}"

    def interruption(self, state: TrainState) -> KeyboardInterrupt:
        """What a run is ended with once its state is saved."""
        return KeyboardInterrupt(f"{self.checkpoint(state)}; the same command goes on")


def _loop(state: TrainState, job: _Job, batches: Prefetcher, monitor: Monitor | None) -> None:
    """Steps until the budget is spent; the state is saved on the way and at the end."""
    config, losses, batch_tokens = job.config, job.losses, _batch_tokens(state, job.config)
    seconds_before, started = state.seconds, time.perf_counter()
    saved = started
    with stop_noted(is_alone=job.world.size == 1) as interrupted:
        while (spent := _spent(state, config)) < 1:
            scale = _set_learning_rates(state, config, spent)
            batch = batches.take(state.step)
            metrics = _step(state, job, batch, losses.pick(spent), scale)
            if monitor is not None:
                monitor.look()  # waits for the step before: the device has this one to go on with
            now = time.perf_counter()
            state.step += 1
            # The first process decides for all, or they would wait for each other.
            state.seconds, is_interrupted, is_due = job.world.agree(
                seconds_before + now - started,
                interrupted.is_set(),
                now - saved >= config.checkpoint_seconds,
            )
            if monitor is not None:
                steps = state.step + _left(state, config)
                settled = _SETTLED_STEPS if config.max_seconds else 1
                if state.step == settled and steps < config.warmdown_steps:
                    monitor.say(short_of_warmdown(steps, config.warmdown_steps))
                monitor.record(
                    StepRecord(
                        step=state.step,
                        metrics=metrics,
                        lr=config.optim.matrix_lr * scale,
                        tokens=state.step * batch_tokens,
                        seconds=state.seconds,
                        spent=_spent(state, config),
                        batch_tokens=batch_tokens,
                        phase=losses.phase,
                        recompilations=losses.recompilations,
                        qat=losses.hardness,
                        stall_seconds=batches.stall_seconds,
                    )
                )
            if is_interrupted:
                _save(state, job, monitor)
                raise job.interruption(state)
            if is_due:
                _save(state, job, monitor)
                saved = now
        if monitor is not None:
            monitor.look()
        state.seconds = seconds_before + time.perf_counter() - started
        _save(state, job, monitor)
        if any(job.world.agree(interrupted.is_set())):
            raise job.interruption(state)


def _save(state: TrainState, job: _Job, monitor: Monitor | None) -> None:
    if monitor is not None:
        monitor.look()  # never save what diverged
        state.loss = monitor.loss
    save_state(job.folder / STATE, state, settings=job.settings, world=job.world)
    if monitor is not None:
        monitor.last_checkpoint = job.checkpoint(state)


def _step(
    state: TrainState, job: _Job, batch: Tensor, loss_function: LossFunction, lr_scale: float
) -> Tensor:
    """One optimizer step; returns mean loss and gradient norm, still on the device."""
    device = job.world.device
    total = torch.zeros((), device=device)
    with job.losses.rounding():
        for tokens in batch.to(device, non_blocking=True).chunk(job.parts):
            total += add_gradient(loss_function, tokens, state.model.parameters(), 1 / job.parts)
    metrics = reduce_and_clip(
        state.muon, state.adamw, total, max_norm=job.config.grad_clip, world=job.world
    )
    state.muon.advance()
    state.adamw.step()  # while the directions are on their way
    state.adamw.zero_grad()
    state.muon.apply()
    state.average.update(step=state.step + 1, lr_scale=lr_scale)
    return metrics


def _compile(state: TrainState, job: _Job) -> float:
    """Compile the loss functions on random tokens; seconds it took."""
    started = time.perf_counter()
    rows = job.world.rows(job.config.batch_sequences) // job.parts
    job.losses.warm_up(_spent(state, job.config), rows)
    if job.world.device.type == "cuda":  # elsewhere its matrix products are all that takes time
        state.muon.compile()
    state.model.zero_grad()  # weights and optimizers were not touched
    return time.perf_counter() - started


@contextmanager
def _monitor(
    state: TrainState,
    job: _Job,
    speedometer: Speedometer,
    explain: Callable[[int], str],
    *,
    progress: bool,
) -> Iterator[Monitor | None]:
    """What shows the run, in the first process alone."""
    if not job.world.is_first:
        yield None
        return
    with Monitor(
        job.folder / LOG,
        state=state,
        spent=_spent(state, job.config),
        log_steps=job.config.log_steps,
        speedometer=speedometer,
        explain=explain,
        progress=progress,
    ) as monitor:
        if state.step:
            monitor.last_checkpoint = job.checkpoint(state)
        yield monitor


def _spent(state: TrainState, config: TrainConfig) -> float:
    return budget_spent(
        state.step, state.seconds, max_steps=config.max_steps, max_seconds=config.max_seconds
    )


def _left(state: TrainState, config: TrainConfig) -> float:
    return steps_left(
        state.step, state.seconds, max_steps=config.max_steps, max_seconds=config.max_seconds
    )


def _batch_tokens(state: TrainState, config: TrainConfig) -> int:
    return config.batch_sequences * state.model.config.seq_len


def _set_learning_rates(state: TrainState, config: TrainConfig, spent: float) -> float:
    scale = learning_rate_scale(
        state.step,
        spent,
        _left(state, config),
        warmup_steps=config.warmup_steps,
        warmdown_fraction=config.warmdown_fraction,
        warmdown_steps=config.warmdown_steps,
        floor=config.lr_floor,
    )
    momentum = linear_ramp(
        state.step,
        steps=config.optim.momentum_warmup_steps,
        start=config.optim.momentum_start,
        end=config.optim.momentum,
    )
    set_schedule((state.muon, state.adamw), scale=scale, momentum=momentum)
    return scale


def _result(
    state: TrainState, job: _Job, compile_seconds: float, stall_seconds: float
) -> TrainResult:
    tokens = state.step * _batch_tokens(state, job.config)
    return TrainResult(
        steps=state.step,
        tokens=tokens,
        seconds=state.seconds,
        compile_seconds=compile_seconds,
        stall_seconds=stall_seconds,
        recompilations=job.losses.recompilations,
        final_loss=state.loss,
        tokens_per_second=tokens_per_second(tokens, state.seconds),
        exported=state.average.source(),
        device=job.world.device.type,
        processes=job.world.size,
        model_path=job.folder / MODEL,
        state_path=job.folder / STATE,
        log_path=job.folder / LOG,
    )

"""The training loop, from a folder of shards to a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from flyweight.errors import InvalidArgumentError
from flyweight.model.checkpoint import save_model
from flyweight.model.config import ModelConfig
from flyweight.quant.config import QuantConfig
from flyweight.train.config import TrainConfig
from flyweight.train.data import TokenStream
from flyweight.train.losses import Losses, LossFunction
from flyweight.train.monitor import Monitor, StepRecord
from flyweight.train.optim import set_schedule
from flyweight.train.schedule import budget_spent, learning_rate_scale, linear_ramp, steps_left
from flyweight.train.state import TrainState, load_state, new_state, save_state

__all__ = ["TrainResult", "pick_device", "train"]

_FREE_TO_CHANGE = frozenset(
    ("max_steps", "max_seconds", "device", "compile", "log_steps", "checkpoint_seconds")
)
"""Fields of TrainConfig that a resumed run may have other values for."""


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
    final_loss: float
    """Loss of the last step, nats per token."""
    tokens_per_second: float
    """``tokens / seconds``."""
    device: str
    """``cpu`` or ``cuda``."""
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
) -> TrainResult:
    """Train until the budget is spent, going on from where an earlier call stopped.

    Parameters
    ----------
    data_folder : holds ``fineweb_train_*.bin``
    out_folder : gets ``model.safetensors``, ``log.jsonl`` and ``state.safetensors``
    seed : draws the initial weights, and the order of the data if that is shuffled
    quantize : what the export will do with the weights, for ``config.qat``
    max_steps, max_seconds : replace the budget of the config where they are given
    progress : show a bar on stderr

    Raises
    ------
    DataError
        Shards are missing or do not fit the vocabulary; a state file belongs to another run; the
        loss is not finite any more.
    InvalidArgumentError
        ``config.qat`` is set, and ``quantize`` is missing or not for it.
    KeyboardInterrupt
        After SIGINT, once the state is saved.

    Notes
    -----
    On the CPU and with a step budget alone, equal arguments, PyTorch version and number of threads
    give equal bytes in ``model.safetensors``, however often the run was killed and resumed.
    """
    config = _with_budget(config, max_steps, max_seconds)
    out = Path(out_folder)
    out.mkdir(parents=True, exist_ok=True)
    state_path = out / "state.safetensors"
    stream = TokenStream(
        data_folder,
        batch_sequences=config.batch_sequences,
        seq_len=model_config.seq_len,
        vocab_size=model_config.vocab_size,
        shuffle_seed=seed if config.shuffle else None,
    )
    state = new_state(model_config, config, device=pick_device(config.device), seed=seed)
    settings = _settings(model_config, config, quantize, seed=seed, num_tokens=stream.num_tokens)
    if state_path.exists():
        load_state(state_path, state, settings=settings)
    losses = Losses(state.model, config.qat, quantize)
    compile_seconds = _prepare(state, config, losses)
    with Monitor(
        out / "log.jsonl",
        start_step=state.step,
        start_loss=state.loss,
        log_steps=config.log_steps,
        progress=progress,
    ) as monitor:

        def save() -> None:
            monitor.look()  # never save what diverged
            state.loss = monitor.loss
            save_state(state_path, state, settings=settings)
            monitor.last_checkpoint = f"{state_path} holds step {state.step}"

        _loop(state, config, stream, losses, monitor, save)
    save_model(out / "model.safetensors", model_config, state.average.weights())
    return _result(state, config, out, compile_seconds)


def _loop(
    state: TrainState,
    config: TrainConfig,
    stream: TokenStream,
    losses: Losses,
    monitor: Monitor,
    save: Callable[[], None],
) -> None:
    """Steps until the budget is spent; the state is saved on the way and at the end."""
    seconds_before, started = state.seconds, time.perf_counter()
    saved = started
    with _sigint_noted() as interrupted:
        while (spent := _spent(state, config)) < 1:
            scale = _set_learning_rates(state, config, spent)
            metrics = _step(state, config, stream, losses.pick(spent), scale)
            monitor.look()  # waits for the step before: the device has this one to go on with
            now = time.perf_counter()
            state.step += 1
            state.seconds = seconds_before + now - started
            monitor.record(
                StepRecord(
                    step=state.step,
                    metrics=metrics,
                    lr=config.optim.matrix_lr * scale,
                    tokens=_tokens(state, config),
                    seconds=state.seconds,
                    spent=_spent(state, config),
                    qat=losses.hardness,
                )
            )
            if interrupted.is_set():
                save()
                raise KeyboardInterrupt
            if now - saved >= config.checkpoint_seconds:
                save()
                saved = now
        monitor.look()
        state.seconds = seconds_before + time.perf_counter() - started
        save()


def _step(
    state: TrainState,
    config: TrainConfig,
    stream: TokenStream,
    loss_function: LossFunction,
    lr_scale: float,
) -> Tensor:
    """One optimizer step; returns mean loss and gradient norm, still on the device."""
    device = state.model.tok_emb.weight.device
    batch = torch.from_numpy(stream.batch(state.step))
    if device.type == "cuda":
        batch = batch.pin_memory()
    total = torch.zeros((), device=device)
    for tokens in batch.to(device, non_blocking=True).chunk(config.accumulation_steps):
        total += _backward(loss_function, tokens, config.accumulation_steps)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip)
    for optimizer in (state.muon, state.adamw):
        optimizer.step()
        optimizer.zero_grad()
    state.average.update(step=state.step + 1, lr_scale=lr_scale)
    return torch.stack((total, norm))


def _backward(loss_function: LossFunction, tokens: Tensor, share: int) -> Tensor:
    """Add the gradient of one part of a batch; its loss is the mean over it, divided by shares."""
    is_cuda = tokens.device.type == "cuda"
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=is_cuda):
        loss = loss_function(tokens[:, :-1], tokens[:, 1:]) / share
    torch.autograd.backward(loss)
    return loss.detach()


def _prepare(state: TrainState, config: TrainConfig, losses: Losses) -> float:
    """Compile the loss functions on random tokens if that is wanted; seconds it took."""
    if not config.compile:
        return 0.0
    started = time.perf_counter()
    model = state.model.config
    shape = (config.batch_sequences // config.accumulation_steps, model.seq_len + 1)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.vocab_size, shape, generator=generator)
    tokens = tokens.to(state.model.tok_emb.weight.device)
    for loss_function in losses.compile(_spent(state, config)):
        float(_backward(loss_function, tokens, 1))  # waits for the device
    if tokens.is_cuda:  # elsewhere its matrix products are all that takes time
        state.muon.compile()
    state.model.zero_grad()  # weights and optimizers were not touched
    return time.perf_counter() - started


def _spent(state: TrainState, config: TrainConfig) -> float:
    return budget_spent(
        state.step, state.seconds, max_steps=config.max_steps, max_seconds=config.max_seconds
    )


def _tokens(state: TrainState, config: TrainConfig) -> int:
    return state.step * config.batch_sequences * state.model.config.seq_len


def _set_learning_rates(state: TrainState, config: TrainConfig, spent: float) -> float:
    left = steps_left(
        state.step, state.seconds, max_steps=config.max_steps, max_seconds=config.max_seconds
    )
    scale = learning_rate_scale(
        state.step,
        spent,
        left,
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


def pick_device(name: str) -> torch.device:
    """The device that a config names.

    Parameters
    ----------
    name : ``auto`` takes CUDA where there is one; ``cpu``; ``cuda``

    Raises
    ------
    InvalidArgumentError
        CUDA is asked for, and PyTorch has none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidArgumentError("device='cuda', but PyTorch finds no CUDA device; use 'auto'")
    return torch.device(name)


def _with_budget(
    config: TrainConfig, max_steps: int | None, max_seconds: float | None
) -> TrainConfig:
    return dataclasses.replace(
        config,
        max_steps=config.max_steps if max_steps is None else max_steps,
        max_seconds=config.max_seconds if max_seconds is None else max_seconds,
    )


def _result(
    state: TrainState, config: TrainConfig, out: Path, compile_seconds: float
) -> TrainResult:
    tokens = _tokens(state, config)
    return TrainResult(
        steps=state.step,
        tokens=tokens,
        seconds=state.seconds,
        compile_seconds=compile_seconds,
        final_loss=state.loss,
        tokens_per_second=tokens / state.seconds if state.seconds else 0.0,
        device=state.model.tok_emb.weight.device.type,
        model_path=out / "model.safetensors",
        state_path=out / "state.safetensors",
        log_path=out / "log.jsonl",
    )


def _settings(
    model: ModelConfig,
    config: TrainConfig,
    quantize: QuantConfig | None,
    *,
    seed: int,
    num_tokens: int,
) -> str:
    """What must be equal for a run to be the same run."""
    fields = dataclasses.asdict(config)
    training = {name: value for name, value in fields.items() if name not in _FREE_TO_CHANGE}
    whole = {
        "model": dataclasses.asdict(model),
        "train": training,
        "seed": seed,
        "train_tokens": num_tokens,
    }
    if config.qat is not None and quantize is not None:
        whole["quantize"] = quantize.grid_settings()
    return json.dumps(whole, sort_keys=True)


@contextmanager
def _sigint_noted() -> Iterator[threading.Event]:
    """Note the first SIGINT instead of raising in the middle of a step; a second one raises."""
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted  # only the main thread may handle signals
        return
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        noted.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, previous)

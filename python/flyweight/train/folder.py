"""The folder of a training run: its files, and how those of another run make way for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from flyweight.errors import DataError
from flyweight.interop import read_metadata
from flyweight.train.distributed import World
from flyweight.train.state import TrainState, load_state

__all__ = ["LOG", "MODEL", "STATE", "resume", "take_up_or_set_aside"]

MODEL, STATE, LOG = "model.safetensors", "state.safetensors", "log.jsonl"
_FILES = (MODEL, LOG, "loss.svg", "tensorboard/*", STATE)
"""All that a run leaves, as patterns. The state is moved last: what was not moved when a call was
killed is moved by the next one."""


def resume(
    folder: Path, state: TrainState, *, settings: str, world: World, say: Callable[[str], None]
) -> None:
    """Replace a new state by the one that this run left in its folder, if it did.

    Parameters
    ----------
    folder, settings, say : as for :func:`take_up_or_set_aside`
    world : all processes must call this at the same time; the first one moves what is in the way

    Raises
    ------
    DataError
        The state is damaged.
    """
    try:
        if world.is_first:
            take_up_or_set_aside(folder, settings=settings, say=say)
        world.agree(0.0)  # the others look when that is done
        if (folder / STATE).exists():
            load_state(folder / STATE, state, settings=settings)
    except DataError as error:
        raise DataError(f"{error}; without that file the run begins again") from error


def take_up_or_set_aside(folder: Path, *, settings: str, say: Callable[[str], None]) -> None:
    """Leave the state of this run in the folder, or none; what is of another one is kept beside.

    Parameters
    ----------
    folder : of the run
    settings : what the run is, as its state says it
    say : told one line for each move: what was moved, and where it is

    Raises
    ------
    DataError
        The state is not a readable safetensors file.

    Notes
    -----
    Another run's files move to a subfolder named after its settings, and come back when
    a run has these again. So nothing that was trained is lost by a changed flag.
    """
    state = folder / STATE
    if state.exists():
        metadata = read_metadata(state)
        found = metadata.get("settings", "")
        if found == settings:
            return
        aside = _aside(folder, found)
        _move(folder, aside)
        say(
            f"step {metadata.get('step', '?')} of a run with another recipe, budget, seed or data "
            f"is kept in {aside}; the arguments that it had go on from there"
        )
    aside = _aside(folder, settings)
    if (aside / STATE).exists():
        _move(aside, folder)
        for emptied in (aside / "tensorboard", aside):
            if emptied.exists() and not any(emptied.iterdir()):
                emptied.rmdir()
        say(f"going on from what was kept in {aside}")


def _aside(folder: Path, settings: str) -> Path:
    return folder / f"aside-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"


def _move(source: Path, target: Path) -> None:
    for pattern in _FILES:
        for path in sorted(source.glob(pattern)):
            moved = target / path.relative_to(source)
            moved.parent.mkdir(parents=True, exist_ok=True)
            path.replace(moved)

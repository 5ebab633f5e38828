"""The loss of a run as a picture, and as TensorBoard event files where TensorBoard is installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flyweight.interop import atomic_write

__all__ = ["open_events", "write_curve"]

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 30, 40
MAX_POINTS = 1000


def open_events(folder: Path, start_step: int) -> Any | None:
    """A writer of event files that takes up a run behind a step; None without TensorBoard.

    Parameters
    ----------
    folder : gets the event files
    start_step : steps already done; events behind it are from a life that ended before its next
        checkpoint, and TensorBoard drops them
    """
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start_step + 1)


def write_curve(log: Path, path: Path) -> None:
    """Draw the losses of a log, nats per token over steps, as an SVG file."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    if len(lines) < 2:
        return
    lines = lines[:: -(-len(lines) // MAX_POINTS)]
    steps = [float(line["step"]) for line in lines]
    losses = [float(line["loss"]) for line in lines]
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0

    def across(step: float) -> float:
        return LEFT + (step - steps[0]) / (steps[-1] - steps[0]) * (WIDTH - LEFT - RIGHT)

    def down(loss: float) -> float:
        return TOP + (high - loss) / span * (HEIGHT - TOP - BOTTOM)

    pairs = zip(steps, losses, strict=True)
    points = " ".join(f"{across(step):.1f},{down(loss):.1f}" for step, loss in pairs)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, TOP - 12, "training loss, nats per token", "start"),
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="black"/>',
        f'<polyline points="{points}" fill="none" stroke="#1f6feb"/>',
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        loss, step = low + share * span, steps[0] + share * (steps[-1] - steps[0])
        parts.append(_text(LEFT - 6, down(loss) + 4, f"{loss:.2f}", "end"))
        parts.append(_text(across(step), HEIGHT - BOTTOM + 18, f"{step:,.0f}", "middle"))
    atomic_write(path, "\n".join([*parts, "</svg>", ""]).encode())


def _text(x: float, y: float, text: str, anchor: str) -> str:
    style = f'font-family="sans-serif" font-size="12" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{text}</text>'

"""Published training scripts of openai/parameter-golf, run as they are, one process each.

A script is started with its own environment variables, and ended as soon as it has reported what is
asked for: its last step and its peak memory, or the score of its export.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SETTINGS: dict[str, dict[str, str]] = {
    "pr578": {},
    "pr585": {},
    "pr1539": {"BIGRAM_VOCAB_SIZE": "0"},
    "pr1683": {"NUM_LAYERS": "13", "VARLEN": "0", "QAT_START_FRAC": "1.0"},
}
"""What the published runs set besides the defaults of their scripts, for training; no late QAT."""
_STEP = re.compile(r"step:(\d+)/\d+ train_loss:([\d.]+) train_time:(\d+)ms")
_PEAK = re.compile(r"peak memory allocated: (\d+) MiB")
_BYTES = re.compile(r"Total submission size\D.*: (\d+) bytes")
_FLOAT = re.compile(r"best_averaging:\w+ val_bpb:([\d.]+)")
_SLIDING = re.compile(r"final_int6_sliding_window_exact val_loss:[\d.]+ val_bpb:([\d.]+)")
_SHIM = '''"""FlashAttention-3's function by torch's own attention."""
from torch.nn.functional import scaled_dot_product_attention


def flash_attn_func(q, k, v, causal=False, **rest):
    heads = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[2] != k.shape[2]
    y = scaled_dot_product_attention(*heads, is_causal=causal, enable_gqa=grouped)
    return y.transpose(1, 2)
'''


@dataclass(slots=True)
class PeerRun:
    """What a script reported."""

    losses: dict[int, float] = field(default_factory=dict)
    """Step to training loss, nats per token."""
    milliseconds: dict[int, float] = field(default_factory=dict)
    """Step to its training clock."""
    peak_bytes: int | None = None
    start_seconds: float = 0.0
    """Until its first step was reported."""
    float_bpb: float | None = None
    """Of its weights before the export, in plain blocks."""
    artifact_bytes: int | None = None
    """Its model and its code."""
    sliding_bpb: float | None = None
    """Of what it exported, in sliding windows without further training."""
    tail: list[str] = field(default_factory=list)
    """Last lines, for a run that failed."""


def run_script(
    script: Path,
    folder: Path,
    *,
    data: Path,
    tokenizer: Path,
    settings: Mapping[str, str],
    max_seconds: float,
    exports: bool = False,
) -> PeerRun:
    """Train with a script; FlashAttention-3 is replaced by torch's attention.

    Parameters
    ----------
    folder : gets its files
    settings : environment variables, the script's own among them
    exports : go on until what it exported is scored
    max_seconds : it is ended after that long, whatever it has done

    Notes
    -----
    What it says goes to stderr, its steps excepted.
    """
    shim = folder / "shim"
    shim.mkdir(parents=True, exist_ok=True)
    (shim / "flash_attn_interface.py").write_text(_SHIM)
    environment = {
        **settings,
        "PYTHONPATH": str(shim),
        "PYTHONUNBUFFERED": "1",
        "DATA_PATH": str(data.absolute()),
        "TOKENIZER_PATH": str(tokenizer.absolute()),
        "VAL_LOSS_EVERY": "0",
        "TRAIN_LOG_EVERY": "1",
    }
    found, started = PeerRun(), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(script.absolute())],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    end = threading.Timer(max_seconds, os.killpg, (process.pid, signal.SIGKILL))
    end.start()
    try:
        for line in process.stdout or ():
            found.tail = [*found.tail[-19:], line.rstrip()]
            if not _STEP.search(line):
                print(
                    f"{script.stem} {time.perf_counter() - started:.0f} s: {line}",
                    end="",
                    file=sys.stderr,
                )
            if match := _STEP.search(line):
                found.start_seconds = found.start_seconds or time.perf_counter() - started
                found.losses[int(match[1])] = float(match[2])
                found.milliseconds[int(match[1])] = float(match[3])
            if match := _PEAK.search(line):
                found.peak_bytes = int(match[1]) << 20
            if match := _FLOAT.search(line):
                found.float_bpb = float(match[1])
            if match := _BYTES.search(line):
                found.artifact_bytes = int(match[1])
            if match := _SLIDING.search(line):
                found.sliding_bpb = float(match[1])
            if (found.sliding_bpb if exports else found.peak_bytes) is not None:
                break
    finally:
        end.cancel()
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return found

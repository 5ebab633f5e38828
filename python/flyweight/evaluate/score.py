"""One protocol over the validation shards of a data folder, from model to facts on disk."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from flyweight.data.byte_counts import ByteSidecar, ByteTable
from flyweight.data.facts import DataInfo
from flyweight.data.info import check_hashes
from flyweight.data.shards import read_validation
from flyweight.data.sidecar import validation_counter
from flyweight.errors import DataError, InvalidArgumentError
from flyweight.evaluate.bpb import score_targets
from flyweight.evaluate.config import ScoreConfig
from flyweight.evaluate.engine import ScoredChunk
from flyweight.evaluate.ledger import Entries, Ledger, ledger_binding
from flyweight.evaluate.sharded import Together, check_agreement, open_shared_ledger
from flyweight.evaluate.stream import StreamResult, score_binding
from flyweight.evaluate.ttt import score_stream
from flyweight.train.config import CONTAMINATED

__all__ = ["check_totals", "score_data"]


def check_totals(
    data: DataInfo, tokens: NDArray[np.uint16], counter: ByteTable | ByteSidecar
) -> None:
    """Hold targets, bytes and hashes to the stored facts, before anything is scored.

    Parameters
    ----------
    data : the facts
    tokens : (tokens,) uint16, the validation stream
    counter : from :func:`~flyweight.data.sidecar.validation_counter`

    Raises
    ------
    DataError
        A total or the hash of a file is another one, or a token is not in the tokenizer's
        vocabulary.
    """
    try:
        text_bytes = counter.total(np.array_split(tokens, 1 + tokens.size // (1 << 20)))
    except InvalidArgumentError as error:
        raise DataError(
            f"{data.folder}: tokenizer or sidecar and shards do not match: {error}"
        ) from error
    counted = {"scored_targets": tokens.size - 1, "scored_bytes": text_bytes}
    for name, found in counted.items():
        if getattr(data.val, name) not in (None, found):
            raise DataError(
                f"{data.folder}: val {name} is {found}, data.json says {getattr(data.val, name)}; "
                "the shards, sidecars or the tokenizer were changed"
            )
    check_hashes(data.folder, data.val.shards + data.val.byte_counts)


def score_data(
    model: nn.Module,
    data: DataInfo,
    config: ScoreConfig,
    *,
    name: str,
    model_sha256: str,
    folder: Path,
    contaminated: bool = False,
    deadline: float | None = None,
    peers: Together | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Score every validation target once and say what it came to.

    Parameters
    ----------
    model : maps tokens (B, T) to logits (B, T, V); its weights are left as they are
    data : checked data folder
    config : the protocol
    name : of the ledger, ``folder/name.ledger``; an unfinished one of the same model, config and
        text is continued, any other set aside as ``folder/name-<what it is of>.ledger``
    model_sha256 : hash of the file that the weights came from
    folder : where ledgers lie
    contaminated : the model was trained on this text; the result then says so
    deadline : seconds that scoring may take, those of killed runs included and compilation apart;
        None is no end
    peers : the processes that share the work and make the same call; the first one writes
    show_progress : a bar with the nats per token of the newest chunk on stderr

    Returns
    -------
    ``bpb`` with its numerator (``nats``, ``bits``) and denominator (``bytes``), ``targets``,
    ``seconds`` (if ``was_resumed``, those of killed runs included; ``phases`` are of the last run
    alone), ``coverage``, how many
    ``chunks`` there are, were adapted to and had to be scored in plain blocks, ``processes``,
    ``chain`` of the ledger, the ``config`` and its ``method``, and a line of ``text``

    Raises
    ------
    DataError
        Targets or bytes differ from the stored facts of the data, which is seen before the model
        runs; or a token has no finite score.
    KeyboardInterrupt
        With a message that says what the ledger holds.
    """
    tokens = read_validation(data.folder)
    counter = validation_counter(data)
    check_totals(data, tokens, counter)
    binding = score_binding(tokens, config, model_sha256=model_sha256)
    shows = show_progress and (peers is None or peers.world.is_first)
    label = f"{CONTAMINATED}: " if contaminated else ""
    started = time.perf_counter()
    with (
        _open_ledger(folder / f"{name}.ledger", tokens.size - 1, binding, peers) as ledger,
        tqdm(total=tokens.size - 1, desc=label + name, unit="tok", disable=not shows) as bar,
    ):

        def advance(chunk: ScoredChunk) -> None:
            bar.update(chunk.stop - chunk.start)
            bar.set_postfix_str(f"{chunk.nats.mean():.4f} nats per token")

        try:
            result = score_stream(
                model, tokens, ledger, config, deadline=deadline, progress=advance, peers=peers
            )
        except KeyboardInterrupt as error:
            kept = f"{ledger.path} holds {ledger.scored:,} of {ledger.targets:,} scores"
            words = error.args or (f"{kept}; the same command goes on",)
            raise KeyboardInterrupt(*words) from None
        coverage = ledger.scored / ledger.targets
        if peers is not None:
            check_agreement(ledger, peers.world)
    seconds = time.perf_counter() - started + result.former_seconds
    score = score_targets(result.nats, tokens, counter)
    return {
        "protocol": config.protocol,
        "method": config.method,
        "contaminated": contaminated,
        "bpb": score.bpb,
        "bits": score.bits,
        "nats": score.nats,
        "bytes": score.text_bytes,
        "targets": score.targets,
        "nats_per_token": score.nats_per_token,
        "seconds": seconds,
        "was_resumed": result.recorded_chunks > 0,
        "processes": 1 if peers is None else peers.world.size,
        "chain": result.chain,
        "config": json.loads(json.dumps(asdict(config))),
        "coverage": coverage,
        "chunks": result.new_chunks + result.recorded_chunks,
        "adapted_chunks": result.adapted_chunks,
        "plain_chunks": result.plain_chunks,
        "phases": result.seconds,
        "recompilations": result.recompilations,
        "deadline": deadline,
        "text": f"{label}{score}, coverage {coverage:.2%}{_fallback_text(result, deadline)}"
        + (f", {result.recompilations} recompilations" if config.compile else ""),
    }


def _fallback_text(result: StreamResult, deadline: float | None) -> str:
    """What the deadline cost, for people."""
    if deadline is None:
        return ""
    chunks = result.new_chunks + result.recorded_chunks
    return (
        f", deadline {deadline:g} s: {result.adapted_chunks} of {chunks} chunks adapted to, "
        f"{result.plain_chunks} scored in plain blocks"
    )


def _open_ledger(
    path: Path, targets: int, binding: bytes, peers: Together | None
) -> AbstractContextManager[Entries]:
    """The ledger of this model, config and text; one of anything else is set aside."""
    if peers is None or peers.world.is_first:
        path.parent.mkdir(parents=True, exist_ok=True)
        _take_up(path, binding)
    if peers is None:
        return Ledger(path, targets=targets, binding=binding)
    return open_shared_ledger(path, targets=targets, binding=binding, world=peers.world)


def _take_up(path: Path, binding: bytes) -> None:
    """Set aside a ledger of anything else, and take up again one that was set aside before."""
    held = ledger_binding(path) if path.exists() else None
    if held == binding:
        return
    if held is None:
        path.unlink(missing_ok=True)  # it was cut off in its header
    else:
        _move(path, _aside(path, held))
    _move(_aside(path, binding), path)


def _aside(path: Path, binding: bytes) -> Path:
    return path.with_name(f"{path.stem}-{binding.hex()[:16]}{path.suffix}")


def _move(source: Path, target: Path) -> None:
    """A ledger, and its journal before it: one that is left alone is still found by the ledger."""
    for end in (".journal", ""):
        file = Path(f"{source}{end}")
        if file.exists():
            file.replace(f"{target}{end}")

"""What a submitted ``train_gpt.py`` does: decode the model beside it and score a shard folder.

`flyweight.submission.script` puts this module behind the ones it imports and adds a `Claim`, so all
that is used here is torch, NumPy, the standard library, and modules that are shipped too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flyweight.data.byte_counts import ByteSidecar, ByteTable
from flyweight.errors import DataError, FlyweightError
from flyweight.evaluate.bpb import score_targets
from flyweight.evaluate.config import ScoreConfig
from flyweight.evaluate.engine import ScoredChunk, ScoringEngine
from flyweight.evaluate.ledger import Ledger
from flyweight.evaluate.stream import run_engine, score_binding
from flyweight.model.config import ModelConfig
from flyweight.model.transformer import Transformer
from flyweight.submission.claim import ARTIFACT_FILE, Claim, read_byte_codes
from flyweight.submission.decode_streams import FlyError
from flyweight.submission.decoder import decode_fly
from flyweight.submission.digest import weights_sha256

__all__ = ["main", "score_folder"]

_SHARD_HEAD = (20240520, 1)
_SHARD_HEADER_BYTES = 1024
_PROGRESS_SECONDS = 10.0


Engines = Mapping[str, type[ScoringEngine]]
"""Method of a `ScoreConfig` to what carries it out, for the protocols of a claim."""


def main(
    claim: Claim, engines: Engines, folder: Path, arguments: Sequence[str] | None = None
) -> int:
    """Score the artifact of a submission folder; the exit code."""
    parser = argparse.ArgumentParser(description=f"Score {ARTIFACT_FILE} on validation shards.")
    parser.add_argument("--data", type=Path, required=True, help="holds fineweb_val_*.bin")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--protocol", default="headline", choices=["headline", *claim.protocols])
    parser.add_argument("--deadline", type=float, help="seconds; falls back to plain blocks")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options = parser.parse_args(arguments)
    protocol = claim.headline if options.protocol == "headline" else options.protocol
    try:
        facts = score_folder(
            claim,
            engines,
            folder,
            options.data,
            protocol=protocol,
            device=options.device,
            deadline=options.deadline,
        )
        if options.out is not None:
            options.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except (FlyError, FlyweightError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(describe_facts(facts))
    return 0


def score_folder(
    claim: Claim,
    engines: Engines,
    folder: Path,
    data: Path,
    *,
    protocol: str,
    device: str,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Decode, check, score.

    Returns
    -------
    What ``--out`` writes: hashes, sizes, seconds, the score with numerator and denominator.

    Raises
    ------
    DataError
        The weights are not the ones claimed, or the data is of another tokenizer or damaged.
    FlyError
        The artifact is damaged.
    """
    artifact = (folder / ARTIFACT_FILE).read_bytes()
    started = time.perf_counter()
    tensors, fields = decode_fly(artifact)
    decode_seconds = time.perf_counter() - started
    weights = weights_sha256(tensors)
    if weights != claim.weights_sha256:
        raise DataError(
            f"{ARTIFACT_FILE}: decodes to weights {weights}, this script is for "
            f"{claim.weights_sha256}"
        )
    tokens = read_val_tokens(data)
    check_tokenizer(data, claim.tokenizer_sha256)
    model = build_model(tensors, fields)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    artifact_sha256 = hashlib.sha256(artifact).hexdigest()
    score = score_tokens(
        model.to(device),
        tokens,
        read_counter(claim, data),
        claim.protocols[protocol],
        engines,
        model_sha256=artifact_sha256,
        deadline=deadline,
    )
    return {
        "schema": 1,
        "artifact": {"sha256": artifact_sha256, "bytes": len(artifact)},
        "weights_sha256": weights,
        "decode_seconds": decode_seconds,
        "contaminated": claim.contaminated,
        "protocol": protocol,
        **score,
        "device": device,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def build_model(tensors: Mapping[str, NDArray[Any]], fields: Mapping[int, object]) -> Transformer:
    """The model that an artifact holds, on the CPU.

    Raises
    ------
    DataError
        Names or shapes of the tensors are not those of the config.
    """
    model = Transformer(ModelConfig.from_fields(fields))
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: array.shape for name, array in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise DataError(
                f"tensor {name!r} has shape {found.get(name)}, the model's config wants "
                f"{expected.get(name)}"
            )
    arrays = {name: np.array(array, dtype=np.float32) for name, array in tensors.items()}
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return model


def score_tokens(
    model: Transformer,
    tokens: NDArray[np.uint16],
    counter: ByteTable | ByteSidecar,
    config: ScoreConfig,
    engines: Engines,
    *,
    model_sha256: str,
    deadline: float | None,
) -> dict[str, Any]:
    """Score and coverage of a stream, through a ledger in a temporary folder."""
    counter.total([tokens])  # what does not fit the tokens is found before hours of scoring
    binding = score_binding(tokens, config, model_sha256=model_sha256)
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as scratch,
        Ledger(Path(scratch, "ledger"), targets=tokens.size - 1, binding=binding) as ledger,
    ):
        progress = chunk_progress(tokens.size - 1)
        engine = engines[config.method](model, tokens, ledger, config)
        result = run_engine(engine, deadline=deadline, progress=progress)
        coverage = ledger.scored / ledger.targets
    seconds = time.perf_counter() - started
    score = score_targets(result.nats, tokens, counter)
    return {
        "score": {
            "bpb": score.bpb,
            "bits": score.bits,
            "nats": score.nats,
            "nats_per_token": score.nats_per_token,
            "targets": score.targets,
            "bytes": score.text_bytes,
            "seconds": seconds,
        },
        "coverage": coverage,
        "adapted_chunks": result.adapted_chunks,
        "plain_chunks": result.plain_chunks,
        "phases": result.seconds,
        "ledger_chain": result.chain,
    }


def chunk_progress(targets: int) -> Callable[[ScoredChunk], None]:
    """A callback that writes a line to stderr every few seconds."""
    last = time.monotonic()

    def report(chunk: ScoredChunk) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_SECONDS:
            last = time.monotonic()
            print(f"scored {chunk.stop:,} of {targets:,} targets", file=sys.stderr)

    return report


def read_counter(claim: Claim, folder: Path) -> ByteTable | ByteSidecar:
    """What says how many bytes the tokens stand for: the claim, or sidecars where it has none."""
    if claim.byte_codes:
        return ByteTable.from_codes(read_byte_codes(claim.byte_codes))
    return ByteSidecar(counts=read_val_tokens(folder, "fineweb_val_bytes"))


def read_val_tokens(folder: Path, prefix: str = "fineweb_val") -> NDArray[np.uint16]:
    """All validation tokens of a folder, ``(tokens,)``, shards in order; or all their byte counts.

    Raises
    ------
    DataError
        There is none, or one has another magic, version or size; the message names it.
    """
    paths = sorted(folder.glob(f"{prefix}_{6 * '[0-9]'}.bin"))
    if not paths:
        raise DataError(f"{folder}: no {prefix}_000000.bin or further ones here")
    return np.concatenate([read_val_shard(path) for path in paths])


def read_val_shard(path: Path) -> NDArray[np.uint16]:
    """Tokens of one shard: 256 int32 of header, then uint16 ids, little-endian."""
    data = path.read_bytes()
    if len(data) < _SHARD_HEADER_BYTES:
        raise DataError(f"{path}: {len(data)} bytes are too few for a shard")
    magic, version, count = np.frombuffer(data, dtype="<i4", count=3).tolist()
    if (magic, version) != _SHARD_HEAD:
        raise DataError(f"{path}: magic and version {magic}, {version}, expected {_SHARD_HEAD}")
    if count < 1 or len(data) != _SHARD_HEADER_BYTES + 2 * count:
        raise DataError(f"{path}: {len(data)} bytes, its header counts {count} tokens")
    return np.frombuffer(data, dtype="<u2", offset=_SHARD_HEADER_BYTES)


def check_tokenizer(folder: Path, expected: str) -> None:
    """Compare the tokenizer that the folder names, if it names one.

    Raises
    ------
    DataError
        It is another one, so that the byte counts would be wrong.
    """
    found = None
    if (folder / "data.json").exists():
        try:
            found = json.loads((folder / "data.json").read_bytes())["tokenizer_sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / 'data.json'}: names no tokenizer: {error!r}") from error
    elif (folder / "tokenizer.model").exists():
        found = hashlib.sha256((folder / "tokenizer.model").read_bytes()).hexdigest()
    if found is None:
        print(f"{folder} does not say which tokenizer made it: not checked", file=sys.stderr)
    elif found != expected:
        raise DataError(f"{folder}: made by tokenizer {found}, this submission is for {expected}")


def describe_facts(facts: Mapping[str, Any]) -> str:
    """The result for people."""
    score, artifact = facts["score"], facts["artifact"]
    label = "contaminated: trained on the scored text; " if facts["contaminated"] else ""
    conditions = f"{label}{facts['protocol']}, {facts['device']}, {score['seconds']:.1f} s"
    lines = [
        f"artifact  {artifact['bytes']} bytes, sha256 {artifact['sha256']}",
        f"weights   sha256 {facts['weights_sha256']}, decoded in {facts['decode_seconds']:.2f} s",
        f"score     {score['bpb']:.8f} bpb = {score['bits']:.3f} bits / {score['bytes']} bytes",
        f"          ({conditions})",
        f"coverage  {facts['coverage']:.4%} of {score['targets']} targets, each scored once",
    ]
    return "\n".join(lines)

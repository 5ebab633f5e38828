"""``flyweight data``: text to token shards, published shards, and checks of both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from flyweight.cli.output import emit, json_option
from flyweight.data.build import build_data
from flyweight.data.embedded import EmbeddedCorpus
from flyweight.data.facts import DataInfo, SplitInfo
from flyweight.data.fetch import VARIANTS, fetch_data
from flyweight.data.info import Progress, load_data_info, verify_data
from flyweight.data.overlap import overlapping_documents
from flyweight.data.shards import SHARD_TOKENS
from flyweight.data.text import HELD_OUT_BYTES, FileCorpus, expand_sources, iter_documents
from flyweight.data.tokenizer import Tokenizer, import_tokenizer, train_tokenizer

__all__ = ["command"]

_PATH = click.Path(path_type=Path)
_SOURCES = click.argument("sources", nargs=-1, type=_PATH)
_OUT = click.option(
    "--out", "-o", type=_PATH, required=True, metavar="DIR", help="Data folder to make."
)


@click.group(
    epilog="\b\nExample: flyweight data build text.jsonl --vocab-size 1024 --out data",
)
def command() -> None:
    """Make, get and check token shards and their tokenizer."""


@command.command(
    epilog="\b\nExample: flyweight data tokenizer text.jsonl --vocab-size 1024 --out my.model",
)
@_SOURCES
@click.option("--vocab-size", type=int, help="Train this many ids on SOURCES.")
@click.option("--import", "model", type=_PATH, metavar="MODEL", help="Check and copy this one.")
@click.option("--out", "-o", type=_PATH, required=True, metavar="FILE", help=".model to write.")
@json_option
def tokenizer(
    sources: tuple[Path, ...],
    vocab_size: int | None,
    model: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Train a SentencePiece tokenizer on text, or import one."""
    if (vocab_size is None) == (model is None) or bool(sources) == (vocab_size is None):
        raise click.UsageError("give either SOURCES with --vocab-size, or --import")
    if model is not None:
        made = import_tokenizer(model, out)
    else:
        assert vocab_size is not None
        made = _train(sources, out, vocab_size)
    facts = {"path": str(out), "vocab_size": made.vocab_size, "sha256": made.sha256}
    lines = [f"{out}: {made.vocab_size} ids, sha256 {made.sha256}"]
    emit(facts, "\n".join(lines), as_json=as_json)


@command.command(
    epilog="\b\nExample: flyweight data build text.jsonl --vocab-size 1024 --out data",
)
@_SOURCES
@click.option("--embedded", is_flag=True, help="Use the prose that this Python carries.")
@click.option("--val", type=_PATH, multiple=True, metavar="FILE", help="Validation text.")
@click.option(
    "--val-bytes",
    type=click.IntRange(min=1),
    default=HELD_OUT_BYTES,
    show_default=True,
    help="Without --val: hold out the last documents of SOURCES up to this size.",
)
@click.option("--tokenizer", type=_PATH, metavar="MODEL", help="SentencePiece model to use.")
@click.option("--vocab-size", type=int, help="Train a tokenizer of this many ids instead.")
@click.option(
    "--shard-tokens",
    type=click.IntRange(1, 2**31 - 1),
    default=SHARD_TOKENS,
    show_default=True,
    help="Most tokens in one shard.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Tokenizer threads.")
@_OUT
@json_option
def build(
    sources: tuple[Path, ...],
    embedded: bool,
    val: tuple[Path, ...],
    val_bytes: int,
    tokenizer: Path | None,
    vocab_size: int | None,
    shard_tokens: int,
    threads: int | None,
    out: Path,
    as_json: bool,
) -> None:
    """Tokenize .txt, .jsonl and .jsonl.zst files or folders into shards."""
    if embedded == bool(sources) or (embedded and val):
        raise click.UsageError("give either SOURCES (and --val), or --embedded")
    if (tokenizer is None) == (vocab_size is None):
        raise click.UsageError("give either --tokenizer or --vocab-size")
    corpus = EmbeddedCorpus() if embedded else FileCorpus(sources, val, val_bytes=val_bytes)
    with _progress("tokenize", "B") as progress:
        info = build_data(
            corpus,
            out,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            shard_tokens=shard_tokens,
            threads=threads,
            progress=progress,
        )
    _report_info(info, {}, as_json=as_json)


@command.command(
    epilog="\b\nExample: flyweight data fetch sp1024 --train-shards 1 --out data",
)
@click.argument("variant", type=click.Choice(sorted(VARIANTS)))
@click.option(
    "--train-shards",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="How many, of 200 MB each.",
)
@click.option("--cache-dir", type=_PATH, metavar="DIR", help="Cache of the hub.")
@click.option("--offline", is_flag=True, help="Take all from the cache.")
@_OUT
@json_option
def fetch(
    variant: str,
    train_shards: int,
    cache_dir: Path | None,
    offline: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Download the challenge's published shards; goes on where it stopped."""
    with _progress("check", " tokens") as progress:
        info = fetch_data(
            variant,
            out,
            train_shards=train_shards,
            cache_dir=cache_dir,
            offline=offline,
            progress=progress,
        )
    _report_info(info, {}, as_json=as_json)


@command.command(epilog="\b\nExample: flyweight data info data --verify")
@click.argument("folder", type=_PATH)
@click.option("--tokenizer", type=_PATH, metavar="MODEL", help="For shards without one.")
@click.option("--verify", is_flag=True, help="Read every token: hashes, ids, counts, overlap.")
@json_option
def info(folder: Path, tokenizer: Path | None, verify: bool, as_json: bool) -> None:
    """Check a data folder and say what it holds."""
    facts = load_data_info(folder, tokenizer)
    verified: dict[str, Any] = {"verified": verify, "shared_documents": None}
    if verify:
        with _progress("verify", " tokens") as progress:
            facts = verify_data(facts, progress=progress)
            if facts.train.shards:
                overlap = overlapping_documents(folder, folder, progress=progress)
                verified["shared_documents"] = overlap.shared_train
    _report_info(facts, verified, as_json=as_json)


def _train(sources: tuple[Path, ...], out: Path, vocab_size: int) -> Tokenizer:
    with _progress("read", "B") as progress:

        def texts() -> Iterator[str]:
            for document in iter_documents(expand_sources(sources)):
                progress(len(document.text.encode()))
                yield document.text

        return train_tokenizer(texts(), out, vocab_size=vocab_size)


def _report_info(info: DataInfo, more: dict[str, Any], *, as_json: bool) -> None:
    facts = {"folder": str(info.folder), **info.to_json(), **more}
    asked = info.source.get("tokenizer", {}).get("vocab_size", info.vocab_size)
    fewer = "" if asked == info.vocab_size else f" ({asked} asked for: the text has no more pieces)"
    lines = [
        f"{info.folder}: {info.vocab_size} ids{fewer}, source {info.source.get('kind')!r}",
        _describe("train", info.train),
        _describe("val", info.val),
    ]
    if more.get("verified"):
        lines.append(f"verified; documents in both splits: {more['shared_documents']}")
    emit(facts, "\n".join(lines), as_json=as_json)


def _describe(name: str, split: SplitInfo) -> str:
    def count(value: int | None) -> str:
        return "uncounted" if value is None else f"{value:,}"

    by = " (byte sidecars)" if split.byte_counts else ""
    if split.text_bytes not in (None, split.scored_bytes):
        by += f" of {split.text_bytes:,} in the source"
    return (
        f"{name:>5}: {split.tokens:,} tokens, {count(split.documents)} documents, "
        f"{count(split.scored_bytes)} scored bytes{by}, shard files: {len(split.shards)}"
    )


@contextmanager
def _progress(what: str, unit: str) -> Iterator[Progress]:
    with tqdm(desc=what, unit=unit, unit_scale=True, disable=None) as bar:
        yield bar.update

"""Checks of a data folder: cheap ones whenever it is opened, and of every token on request."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from hashlib import file_digest
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np

from flyweight.data.byte_counts import ByteSidecar, ByteTable
from flyweight.data.facts import (
    DATA_FILE,
    TOKENIZER_FILE,
    UNFINISHED_FILE,
    DataInfo,
    ShardInfo,
    SplitInfo,
)
from flyweight.data.shards import (
    BOS_ID,
    Split,
    Tokens,
    iter_chunks,
    iter_token_documents,
    list_shards,
    read_shard,
)
from flyweight.data.sidecar import check_sidecars, describe_sidecars, read_sidecar
from flyweight.data.tokenizer import Tokenizer
from flyweight.errors import DataError

__all__ = [
    "Progress",
    "check_hashes",
    "check_ids",
    "load_data_info",
    "scan_split",
    "verify_data",
]

Progress: TypeAlias = Callable[[int], None]

_EDGE_TOKENS = 1 << 16
_BATCH_DOCUMENTS = 1024
_REENCODED_DOCUMENTS = 32
_REENCODED_SHARE = 0.9


def load_data_info(
    folder: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | None = None
) -> DataInfo:
    """Facts about a data folder after the checks that cost no reading of whole shards.

    Parameters
    ----------
    folder : made by `build_data` or `fetch_data`, or published shards without a ``data.json``
    tokenizer : a ``.model`` file for published shards; without one, ``tokenizer.model`` in the
        folder or its place in the challenge's own tree is taken

    Returns
    -------
    Facts; for published shards the train split is known by its headers only.

    Raises
    ------
    DataError
        A file is missing, surplus, of another size than stated or of a wrong format, an id at
        the edges of a shard is outside the vocabulary, the tokenizer is not the one that made
        the shards, or byte sidecars are not of the validation shards.
    """
    folder = Path(folder)
    if (folder / UNFINISHED_FILE).exists():
        raise DataError(f"{folder}: a download did not end; run `flyweight data fetch` again")
    if not (folder / DATA_FILE).exists():
        return _describe_published(folder, tokenizer)
    info = DataInfo.read(folder)
    if tokenizer is not None:
        info = replace(info, tokenizer_path=Path(tokenizer))
    found = Tokenizer(info.tokenizer_path)
    if (found.sha256, found.vocab_size) != (info.tokenizer_sha256, info.vocab_size):
        raise DataError(
            f"{info.tokenizer_path}: tokenizer does not match the shards: sha256 {found.sha256}, "
            f"{folder / DATA_FILE} names {info.tokenizer_sha256}; put the right one there or "
            "build the data again"
        )
    _check_edges(folder, "train", info.train.shards, info.vocab_size)
    _check_edges(folder, "val", info.val.shards, info.vocab_size)
    check_sidecars(folder, info.val.shards, info.val.byte_counts)
    return info


def verify_data(info: DataInfo, *, progress: Progress | None = None) -> DataInfo:
    """Read every token and prove the facts: hashes, ids and counts.

    Without sidecars the validation documents are decoded too, and the bytes of their text must be
    those that the tokenizer's table counts.

    Parameters
    ----------
    info : from `load_data_info`
    progress : told the number of tokens read since it was last told

    Returns
    -------
    The same facts with nothing left uncounted.

    Raises
    ------
    DataError
        A fact is wrong; the message names the file or the split.
    """
    tokenizer = Tokenizer(info.tokenizer_path)
    train = _verify_split(info.folder, "train", info.train, tokenizer.byte_table, progress)
    val = _verify_split(info.folder, "val", info.val, tokenizer.byte_table, progress)
    if not val.byte_counts:
        _check_decoded(info.folder, val, tokenizer)
    return replace(info, train=train, val=val)


def check_hashes(folder: Path, shards: Iterable[ShardInfo]) -> None:
    """Hold files to their stored hashes; one without a hash is not read.

    Raises
    ------
    DataError
        A file is another one; the message names it.
    """
    for stated in shards:
        if stated.sha256 is not None:
            with (folder / stated.name).open("rb") as file:
                _check_hash(folder, stated, file_digest(file, "sha256").hexdigest())


def scan_split(
    paths: Iterable[Path],
    table: ByteTable,
    *,
    sidecar: ByteSidecar | None = None,
    text_bytes: int | None = None,
    progress: Progress | None = None,
) -> SplitInfo:
    """Count what the shards of a split hold, reading all of them.

    Parameters
    ----------
    paths : the shards, in order
    table : of the tokenizer that made them
    sidecar : what counts bytes instead of the table
    text_bytes : of the source documents, where that is known
    progress : told the number of tokens read since it was last told

    Raises
    ------
    DataError
        A shard is malformed or has an id outside the vocabulary; the message names it.
    """
    shards: list[ShardInfo] = []
    documents = 0

    def checked() -> Iterator[Tokens]:
        nonlocal documents
        for path in paths:
            shards.append(ShardInfo.of(path))
            for chunk in iter_chunks([path]):
                check_ids(path, chunk, table.base.size)
                documents += int(np.count_nonzero(chunk == BOS_ID))
                yield chunk
                if progress is not None:
                    progress(chunk.size)

    scored_bytes = (table if sidecar is None else sidecar).total(checked())
    return SplitInfo(
        documents=documents,
        tokens=sum(shard.tokens for shard in shards),
        scored_bytes=scored_bytes,
        text_bytes=text_bytes,
        shards=tuple(shards),
    )


def _describe_published(folder: Path, tokenizer: str | os.PathLike[str] | None) -> DataInfo:
    val = list_shards(folder, "val")
    found = Tokenizer(tokenizer or _published_tokenizer(folder))
    train = tuple(
        ShardInfo(name=path.name, tokens=read_shard(path).size, sha256=None)
        for path in _shards_or_none(folder, "train")
    )
    _check_edges(folder, "train", train, found.vocab_size)
    _check_reencoding(folder, val, found)
    scanned = _scan_validation(folder, val, found.byte_table)
    return DataInfo(
        folder=folder,
        tokenizer_path=found.path,
        tokenizer_sha256=found.sha256,
        vocab_size=found.vocab_size,
        source={"kind": "shards"},
        train=SplitInfo(
            documents=None,
            tokens=sum(shard.tokens for shard in train),
            scored_bytes=None,
            text_bytes=None,
            shards=train,
        ),
        val=scanned,
    )


def _check_reencoding(folder: Path, paths: list[Path], tokenizer: Tokenizer) -> None:
    """Nothing says which tokenizer made the shards; the right one gives their ids again.

    Another one of as many ids decodes them to other text without complaint, and counts its bytes.
    """
    tokens = read_shard(paths[0])
    edge = tokens[:_EDGE_TOKENS]
    check_ids(paths[0], edge, tokenizer.vocab_size)
    documents = list(islice(iter_token_documents([edge]), _REENCODED_DOCUMENTS))
    if edge.size < tokens.size and len(documents) < _REENCODED_DOCUMENTS:
        documents.pop()  # cut by the edge
    again = tokenizer.encode(tokenizer.decode(documents))
    same = sum(np.array_equal(a, b) for a, b in zip(documents, again, strict=True))
    if same < _REENCODED_SHARE * len(documents):
        raise DataError(
            f"{tokenizer.path}: tokenizer does not match the shards: of the first "
            f"{len(documents)} documents of {paths[0]} it encodes {same} to the same ids, expected "
            "nearly all; name the tokenizer that made them"
        )


def _scan_validation(folder: Path, paths: list[Path], table: ByteTable) -> SplitInfo:
    shards = [
        ShardInfo(name=path.name, tokens=read_shard(path).size, sha256=None) for path in paths
    ]
    sidecars = describe_sidecars(folder, shards)
    sidecar = read_sidecar(folder, shards) if sidecars else None
    return replace(scan_split(paths, table, sidecar=sidecar), byte_counts=sidecars)


def _published_tokenizer(folder: Path) -> Path:
    """In the folder, or where the challenge's script puts it: beside ``datasets/``."""
    beside = folder / TOKENIZER_FILE
    variant = re.fullmatch(r"fineweb10B_sp([0-9]+)", folder.resolve().name)
    if beside.exists() or variant is None:
        return beside
    return folder.resolve().parents[1] / "tokenizers" / f"fineweb_{variant[1]}_bpe.model"


def _shards_or_none(folder: Path, split: Split) -> list[Path]:
    return list_shards(folder, split) if any(folder.glob(f"fineweb_{split}_*.bin")) else []


def _check_edges(
    folder: Path, split: Split, stated: tuple[ShardInfo, ...], vocab_size: int
) -> None:
    found = {path.name for path in _shards_or_none(folder, split)}
    if odd := found ^ {shard.name for shard in stated}:
        state = "is not in data.json" if min(odd) in found else "is missing"
        raise DataError(f"{folder / min(odd)}: this shard {state}; build or fetch the data again")
    for shard in stated:
        path = folder / shard.name
        tokens = read_shard(path)
        if tokens.size != shard.tokens:
            raise DataError(
                f"{path}: {tokens.size} tokens, data.json names {shard.tokens}; build or fetch "
                "the data again"
            )
        for edge in (tokens[:_EDGE_TOKENS], tokens[-_EDGE_TOKENS:]):
            check_ids(path, edge, vocab_size)


def check_ids(path: Path, tokens: Tokens, vocab_size: int) -> None:
    """Refuse ids that the tokenizer does not have.

    Raises
    ------
    DataError
        An id is ``vocab_size`` or more; the message names the path.
    """
    if int(tokens.max()) >= vocab_size:
        raise DataError(
            f"{path}: tokenizer does not match the shards: token id {tokens.max()}, the tokenizer "
            f"has {vocab_size}; name the tokenizer that made this shard"
        )


def _verify_split(
    folder: Path, split: Split, stated: SplitInfo, table: ByteTable, progress: Progress | None
) -> SplitInfo:
    paths = [folder / shard.name for shard in stated.shards]
    sidecar = read_sidecar(folder, stated.shards) if stated.byte_counts else None
    found = scan_split(
        paths, table, sidecar=sidecar, text_bytes=stated.text_bytes, progress=progress
    )
    found = replace(found, byte_counts=describe_sidecars(folder, found.shards) if sidecar else ())
    before_all, after_all = (each.shards + each.byte_counts for each in (stated, found))
    for before, after in zip(before_all, after_all, strict=True):
        _check_hash(folder, before, after.sha256)
    for name in ("documents", "tokens", "scored_bytes"):
        expected, counted = getattr(stated, name), getattr(found, name)
        if expected not in (None, counted):
            raise DataError(
                f"{folder / DATA_FILE}: {split} {name} is {expected}, the shards have {counted}; "
                "build the data again"
            )
    return found


def _check_hash(folder: Path, stated: ShardInfo, found: str | None) -> None:
    if stated.sha256 not in (None, found):
        raise DataError(
            f"{folder / stated.name}: sha256 {found}, expected {stated.sha256}; "
            "build or fetch it again"
        )


def _check_decoded(folder: Path, val: SplitInfo, tokenizer: Tokenizer) -> None:
    """Prove that the table counts the bytes of the decoded text, document by document."""
    paths = [folder / shard.name for shard in val.shards]
    documents = (d for d in iter_token_documents(iter_chunks(paths)) if d[0] == BOS_ID)
    while batch := list(islice(documents, _BATCH_DOCUMENTS)):
        tokenizer.document_bytes(batch, threads=os.cpu_count() or 1)

"""The facts of a data folder and their file, ``data.json``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any, Self

from flyweight.data.shards import read_shard
from flyweight.errors import DataError
from flyweight.interop import atomic_write

__all__ = [
    "DATA_FILE",
    "TOKENIZER_FILE",
    "UNFINISHED_FILE",
    "DataInfo",
    "ShardInfo",
    "SplitInfo",
]

DATA_FILE = "data.json"
TOKENIZER_FILE = "tokenizer.model"
UNFINISHED_FILE = ".unfinished"
"""Lies in a folder while a download into it has not ended."""

_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardInfo:
    """One shard file, or one sidecar of byte counts, which has the same layout."""

    name: str
    """Of the file, without its folder."""
    tokens: int
    """As its header says."""
    sha256: str | None
    """Of the file, in hex; None where nobody has read all of it."""

    @classmethod
    def of(cls, path: Path) -> Self:
        """The facts of a file, all of which is read.

        Raises
        ------
        DataError
            It is missing or no shard; see `flyweight.data.shards.read_shard`.
        """
        tokens = read_shard(path).size
        with path.open("rb") as file:
            return cls(
                name=path.name, tokens=tokens, sha256=file_digest(file, "sha256").hexdigest()
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitInfo:
    """One split. Counts that need the whole text are None where only the headers were read."""

    documents: int | None
    """Documents, each of which ``BOS_ID`` opens."""
    tokens: int
    """Tokens in all shards."""
    scored_bytes: int | None
    """UTF-8 bytes of all scored targets, the denominator of bits per byte."""
    text_bytes: int | None
    """UTF-8 bytes of the source documents, before the tokenizer normalised them."""
    shards: tuple[ShardInfo, ...]
    """In reading order."""
    byte_counts: tuple[ShardInfo, ...] = ()
    """Sidecars that count the bytes of each token, one for each shard, where there are any; then
    they and not the tokenizer say what ``scored_bytes`` is."""

    @property
    def scored_targets(self) -> int:
        """All tokens but the first of the stream."""
        return max(self.tokens - 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataInfo:
    """A checked data folder."""

    folder: Path
    """Where the shards are."""
    tokenizer_path: Path
    """A ``.model`` file, in the folder or elsewhere."""
    tokenizer_sha256: str
    """Of that file, in hex."""
    vocab_size: int
    """Token ids that it has; those in the shards are below it."""
    source: dict[str, Any]
    """What the shards were made of and how; equal sources mean equal shards."""
    train: SplitInfo
    """What is trained on."""
    val: SplitInfo
    """What is scored."""

    def to_json(self) -> dict[str, Any]:
        """The facts of ``data.json``, without the paths of this machine."""
        return {
            "schema": _SCHEMA,
            "vocab_size": self.vocab_size,
            "tokenizer_sha256": self.tokenizer_sha256,
            "train": _split_to_json(self.train),
            "val": _split_to_json(self.val),
            "source": self.source,
        }

    @classmethod
    def from_json(cls, facts: dict[str, Any], folder: Path) -> Self:
        """The inverse of `to_json`, with the folder that the facts are about.

        Raises
        ------
        KeyError, TypeError, ValueError
            A fact is missing or of the wrong kind.
        """
        return cls(
            folder=folder,
            tokenizer_path=folder / TOKENIZER_FILE,
            tokenizer_sha256=_typed(facts, "tokenizer_sha256", str),
            vocab_size=_typed(facts, "vocab_size", int),
            source=_typed(facts, "source", dict),
            train=_split_from_json(_typed(facts, "train", dict)),
            val=_split_from_json(_typed(facts, "val", dict)),
        )

    def write(self) -> None:
        """Write ``data.json``, which makes the folder complete."""
        text = json.dumps(self.to_json(), indent=2) + "\n"
        atomic_write(self.folder / DATA_FILE, text.encode())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Facts of ``data.json``, believed as they stand.

        Raises
        ------
        DataError
            The file cannot be read, is not such a file, or is of another schema.
        """
        path = folder / DATA_FILE
        try:
            facts = json.loads(path.read_bytes())
            if facts["schema"] == _SCHEMA:
                return cls.from_json(facts, folder)
        except OSError as error:
            raise DataError(f"{path}: cannot read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}: not a description of token shards ({error!r}); build the data again"
            ) from error
        raise DataError(f"{path}: schema {facts['schema']!r}, only {_SCHEMA} is known")


def _split_to_json(split: SplitInfo) -> dict[str, Any]:
    return {**asdict(split), "scored_targets": split.scored_targets}


def _split_from_json(facts: dict[str, Any]) -> SplitInfo:
    shards = tuple(_shard_from_json(shard) for shard in _typed(facts, "shards", list))
    sidecars = [_shard_from_json(each) for each in facts.get("byte_counts", [])]
    if sum(shard.tokens for shard in shards) != facts["tokens"]:
        raise ValueError(f"the shards do not add up to {facts['tokens']!r} tokens")
    return SplitInfo(
        documents=_typed(facts, "documents", int, type(None)),
        tokens=_typed(facts, "tokens", int),
        scored_bytes=_typed(facts, "scored_bytes", int, type(None)),
        text_bytes=_typed(facts, "text_bytes", int, type(None)),
        shards=shards,
        byte_counts=tuple(sidecars),
    )


def _shard_from_json(facts: dict[str, Any]) -> ShardInfo:
    name = _typed(facts, "name", str)
    if not re.fullmatch(r"fineweb_(train|val|val_bytes)_[0-9]{6}\.bin", name):
        raise ValueError(f"{name!r} is not the name of a shard")
    return ShardInfo(
        name=name,
        tokens=_typed(facts, "tokens", int),
        sha256=_typed(facts, "sha256", str, type(None)),
    )


def _typed(facts: dict[str, Any], key: str, *kinds: type) -> Any:
    value = facts[key]
    if type(value) not in kinds:  # a bool is no count
        raise TypeError(f"{key} is {value!r}")
    return value

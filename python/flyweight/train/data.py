"""Training batches: which tokens they hold is a function of the step alone."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flyweight.data.facts import DATA_FILE, DataInfo
from flyweight.data.shards import BOS_ID, list_shards, read_shard
from flyweight.errors import DataError, RecipeError
from flyweight.train.config import TrainConfig

__all__ = ["TokenStream", "ending_with"]


class TokenStream:
    """The shards of one folder as an endless ring of tokens.

    Parameters
    ----------
    folder : holds ``fineweb_train_*.bin``
    batch_sequences : rows of a batch
    seq_len : tokens a row predicts; it holds one more
    vocab_size : every id must be below it
    shuffle_seed : None takes the rows in the order of the shards, seamlessly round the ring. A
        number cuts each epoch into rows at a random offset and shuffles them.
    at_documents : a row whose tokens have the beginning of a document among them starts there

    Attributes
    ----------
    folder : as it was given

    Raises
    ------
    DataError
        No shards, or fewer tokens than one row needs.

    Notes
    -----
    Rows overlap by one token, so that every token is a target; those that start at documents
    overlap by more or leave a gap. Documents of a row are kept apart by the model, if at all.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        batch_sequences: int,
        seq_len: int,
        vocab_size: int,
        shuffle_seed: int | None = None,
        at_documents: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self._paths = list_shards(folder, "train")
        self._shards = [read_shard(path) for path in self._paths]
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        self._batch_sequences = batch_sequences
        self._seq_len = seq_len
        self._vocab_size = vocab_size
        self._shuffle_seed = shuffle_seed
        self._epoch: tuple[int, NDArray[np.int64]] | None = None
        self._documents = self._find_documents() if at_documents else np.empty(0, dtype=np.int64)
        if self.num_tokens <= seq_len:
            raise DataError(
                f"{folder}: {self.num_tokens} training tokens, expected more than seq_len={seq_len}"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens in all shards together."""
        return int(self._ends[-1])

    @property
    def num_batches(self) -> int:
        """Batches until the ring begins again."""
        return (self.num_tokens - 1) // (self._seq_len * self._batch_sequences)

    def shards(self) -> list[str | int]:
        """What tells each shard from others: its SHA-256 where ``data.json`` has it, or its tokens.

        Raises
        ------
        DataError
            ``data.json`` is damaged.
        """
        known: dict[str, str | None] = {}
        if (self.folder / DATA_FILE).exists():
            known = {s.name: s.sha256 for s in DataInfo.read(self.folder).train.shards}
        pairs = zip(self._paths, self._shards, strict=True)
        return [known.get(path.name) or len(shard) for path, shard in pairs]

    def batch(self, step: int) -> NDArray[np.int64]:
        """Token ids of the batch of a step, counted from 0.

        Returns
        -------
        (batch_sequences, seq_len + 1) int64; inputs are all columns but the last, targets all but
        the first

        Raises
        ------
        DataError
            A token is not in the vocabulary.
        RecipeError
            The memory of this machine, not that of the device, is too small for a batch.
        """
        first = step * self._batch_sequences
        try:
            rows = np.empty((self._batch_sequences, self._seq_len + 1), dtype=np.int64)
        except (MemoryError, ValueError) as error:  # ValueError: no address space holds it
            raise RecipeError(
                f"no memory on this machine for a batch of {self._batch_sequences:,} sequences of "
                f"{self._seq_len:,} tokens, {8 * self._batch_sequences * (self._seq_len + 1):,} "
                f"bytes: lower batch_sequences={self._batch_sequences} ({error})"
            ) from error
        for i in range(self._batch_sequences):
            rows[i] = self._read(self._aligned(self._row(first + i)), self._seq_len + 1)
        return rows

    def _row(self, index: int) -> int:
        """Ring position of the first token of a row."""
        if self._shuffle_seed is None:
            return index * self._seq_len
        epoch, place = divmod(index, self.num_tokens // self._seq_len)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._shuffled_rows(epoch, self._shuffle_seed)
        return int(self._epoch[1][place])

    def _find_documents(self) -> NDArray[np.int64]:
        """Ring positions where documents begin."""
        begins = self._ends - [len(shard) for shard in self._shards]
        found = [np.flatnonzero(shard == BOS_ID) for shard in self._shards]
        return np.concatenate([a + begin for a, begin in zip(found, begins, strict=True)])

    def _aligned(self, start: int) -> int:
        """The first beginning of a document in the row at a ring position, or that position."""
        if not self._documents.size:
            return start
        start %= self.num_tokens
        place = int(np.searchsorted(self._documents, start))
        turns, place = divmod(place, self._documents.size)
        ahead = int(self._documents[place]) + turns * self.num_tokens - start
        return start + ahead if ahead < self._seq_len else start

    def _shuffled_rows(self, epoch: int, seed: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([seed, epoch])
        rows = rng.permutation(self.num_tokens // self._seq_len)
        return np.asarray(rng.integers(self.num_tokens) + rows * self._seq_len, dtype=np.int64)

    def _read(self, start: int, count: int) -> NDArray[np.int64]:
        parts = []
        while count:
            start %= self.num_tokens
            shard = int(np.searchsorted(self._ends, start, side="right"))
            begin = start - (int(self._ends[shard]) - len(self._shards[shard]))
            part = self._shards[shard][begin : begin + count]
            self._check(part, shard, begin)
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts).astype(np.int64)

    def _check(self, part: NDArray[np.uint16], shard: int, begin: int) -> None:
        if part.max() >= self._vocab_size:
            place = int(np.argmax(part >= self._vocab_size))
            raise DataError(
                f"{self._paths[shard]}: token {begin + place} is {part[place]}, the model's "
                f"vocabulary ends at {self._vocab_size - 1}; were the shards made with another "
                "tokenizer?"
            )


def ending_with(stream: TokenStream, config: TrainConfig) -> TrainConfig:
    """A config whose steps end with the data at the latest.

    Raises
    ------
    DataError
        There is not a single batch.
    """
    steps = stream.num_batches
    if not steps:
        raise DataError(
            f"{stream.folder}: {stream.num_tokens:,} training tokens end before the first step of "
            f"batch_sequences={config.batch_sequences}: lower it, or let data_end be 'wrap'"
        )
    return dataclasses.replace(config, max_steps=min(config.max_steps or steps, steps))

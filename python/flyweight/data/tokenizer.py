"""SentencePiece tokenizers of the challenge's kind, and the bytes that each token stands for."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyweight.data.byte_counts import ByteTable
from flyweight.data.shards import BOS_ID, Tokens
from flyweight.errors import DataError, InvalidArgumentError, MissingDependencyError
from flyweight.interop import atomic_write

__all__ = [
    "TOKENIZER_TRAIN_BYTES",
    "Tokenizer",
    "byte_table",
    "import_tokenizer",
    "train_tokenizer",
]

TOKENIZER_TRAIN_BYTES = 64_000_000
"""A tokenizer learns from the first documents up to this many bytes; SentencePiece holds them."""

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_MAX_VOCAB = 1 << 16
_MIN_VOCAB = 4 + 256


class Tokenizer:
    """A SentencePiece model checked for what token shards and byte accounting need.

    Parameters
    ----------
    path : a ``.model`` file

    Attributes
    ----------
    path : the file it was read from
    sha256 : of that file, in hex
    vocab_size : number of token ids
    byte_table : bytes per token

    Raises
    ------
    DataError
        The file is missing or is no SentencePiece model, has more than 65,536 ids or a piece that
        is not UTF-8, does not open documents with id 1, or has no piece for the space mark alone.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        data = _read_model(self.path)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._processor = _load_processor(self.path, data)
        self.vocab_size = int(self._processor.vocab_size())
        try:
            self.byte_table = byte_table(self._processor)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: a piece is not UTF-8: {error}") from error

    def encode(self, texts: Sequence[str], *, threads: int = 1) -> list[Tokens]:
        """Ids of each text, ``BOS_ID`` first."""
        ids = self._processor.encode(list(texts), out_type=int, num_threads=threads)
        return [np.array([BOS_ID, *each], dtype=np.uint16) for each in ids]

    def decode(self, documents: Sequence[Tokens], *, threads: int = 1) -> list[str]:
        """Text of each document as the tokenizer normalised it; control tokens say nothing."""
        ids = [document.tolist() for document in documents]
        return list(self._processor.decode(ids, num_threads=threads))

    def pieces(self) -> list[bytes]:
        """UTF-8 of each id, a space for its mark; of an id that is control or unknown nothing."""
        found = []
        for token in range(self.vocab_size):
            piece = self._processor.id_to_piece(token)
            if self.byte_table.is_boundary[token]:
                found.append(b"")
            elif self._processor.is_byte(token):
                found.append(bytes([int(piece[1:-1], 16)]))
            else:
                found.append(piece.replace(_SPACE, " ").encode())
        return found

    def document_bytes(self, documents: Sequence[Tokens], *, threads: int = 1) -> NDArray[np.int64]:
        """Bytes of each document by the table, proved equal to its decoded text.

        Parameters
        ----------
        documents : ids as `encode` returns them, each with at least its ``BOS_ID``

        Returns
        -------
        (documents,) int64, UTF-8 bytes

        Raises
        ------
        DataError
            Table and decoded text differ: scores with this tokenizer would be wrong.
        """
        table = np.array(
            [self.byte_table.count(ids[:-1], ids[1:]).sum() for ids in documents], dtype=np.int64
        )
        for index, text in enumerate(self.decode(documents, threads=threads)):
            decoded = len(text.encode())
            if table[index] != decoded:
                raise DataError(
                    f"{self.path}: the byte table counts {table[index]} bytes for the document "
                    f"that starts with {text[:40]!r}, its decoded text has {decoded}; use a "
                    "tokenizer with byte_fallback and without runs of spaces as pieces"
                )
        return table


def byte_table(processor: Any) -> ByteTable:
    """Bytes per token of a ``sentencepiece.SentencePieceProcessor``.

    References
    ----------
    ``build_sentencepiece_luts`` of the challenge's root script.
    """
    size = int(processor.vocab_size())
    base = np.zeros(size, dtype=np.int64)
    has_space = np.zeros(size, dtype=np.bool_)
    is_boundary = np.ones(size, dtype=np.bool_)
    for token in range(size):
        if any(
            is_kind(token)
            for is_kind in (processor.is_control, processor.is_unknown, processor.is_unused)
        ):
            continue
        is_boundary[token] = False
        if processor.is_byte(token):
            base[token] = 1
            continue
        piece = processor.id_to_piece(token)
        has_space[token] = piece.startswith(_SPACE)
        base[token] = len(piece.removeprefix(_SPACE).encode())
    return ByteTable(base=base, has_space=has_space, is_boundary=is_boundary)


def train_tokenizer(
    documents: Iterable[str],
    path: str | os.PathLike[str],
    *,
    vocab_size: int,
    max_bytes: int = TOKENIZER_TRAIN_BYTES,
) -> Tokenizer:
    """Learn a byte-pair tokenizer with the challenge's options; same documents, same bytes.

    Parameters
    ----------
    documents : texts in a fixed order; those after the first ``max_bytes`` are not read
    path : the ``.model`` file to write
    vocab_size : ids wanted, 260 to 65,536; too little text can give fewer
    max_bytes : UTF-8 bytes of text to learn from

    Raises
    ------
    InvalidArgumentError
        ``vocab_size`` is out of range.
    DataError
        There is no text, or more different characters than ``vocab_size`` has room for.

    Notes
    -----
    Unlike the challenge's own run, documents over 4,192 bytes are not left out.
    """
    if not _MIN_VOCAB <= vocab_size <= _MAX_VOCAB:
        raise InvalidArgumentError(
            f"vocab_size must be {_MIN_VOCAB} (4 special ids and 256 bytes) to {_MAX_VOCAB} "
            f"(uint16), got {vocab_size}"
        )
    sentences = _first_bytes(documents, max_bytes)
    first = next(sentences, None)
    if first is None:
        raise DataError("no text to train a tokenizer on; name at least one document with words")
    model = io.BytesIO()
    try:
        _sentencepiece().SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=0.999,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="nmt_nfkc",
            add_dummy_prefix=False,
            pad_id=0,
            bos_id=BOS_ID,
            eos_id=2,
            unk_id=3,
            num_threads=1,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            max_sentence_length=1 << 30,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(f"cannot train a tokenizer of {vocab_size} ids: {error}") from error
    atomic_write(path, model.getvalue())
    return Tokenizer(path)


def import_tokenizer(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> Tokenizer:
    """Copy a ``.model`` file that passes the checks of `Tokenizer`."""
    Tokenizer(source)
    atomic_write(path, _read_model(Path(source)))
    return Tokenizer(path)


def _first_bytes(documents: Iterable[str], max_bytes: int) -> Iterator[str]:
    room = max_bytes
    for document in documents:
        # A sentence is a line to the trainer; the normaliser makes spaces of breaks anyway.
        if text := " ".join(document.split()):
            yield text
            room -= len(text.encode())
        if room <= 0:
            return


def _read_model(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the tokenizer: {error.strerror}") from error


def _load_processor(path: Path, data: bytes) -> Any:
    try:
        processor = _sentencepiece().SentencePieceProcessor()
        processor.LoadFromSerializedProto(data)
    except (RuntimeError, UnicodeDecodeError) as error:  # its own message may quote raw bytes
        raise DataError(f"{path}: not a SentencePiece model; expected a .model file") from error
    if processor.vocab_size() > _MAX_VOCAB:
        raise DataError(f"{path}: {processor.vocab_size()} ids, shards hold at most {_MAX_VOCAB}")
    if processor.bos_id() != BOS_ID:
        raise DataError(
            f"{path}: documents must open with id {BOS_ID}, this tokenizer has bos_id="
            f"{processor.bos_id()}; train one with `flyweight data tokenizer`"
        )
    if processor.piece_to_id(_SPACE) == processor.unk_id():
        raise DataError(
            f"{path}: the space mark {_SPACE!r} is not a piece of its own, so a single space would "
            "count as three bytes; train one with `flyweight data tokenizer`"
        )
    return processor


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise MissingDependencyError(
            "tokenizers need the package sentencepiece; install it with "
            "`pip install 'flyweight[train]'`"
        ) from None
    return sentencepiece

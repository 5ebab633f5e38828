"""Text to a data folder: official token shards, their tokenizer, and the facts about both."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from flyweight.data.facts import DATA_FILE, TOKENIZER_FILE, DataInfo, ShardInfo, SplitInfo
from flyweight.data.info import Progress, load_data_info
from flyweight.data.shards import SHARD_TOKENS, ShardWriter, Split, Tokens
from flyweight.data.text import Corpus, Document
from flyweight.data.tokenizer import Tokenizer, import_tokenizer, train_tokenizer
from flyweight.errors import DataError, InvalidArgumentError

__all__ = ["build_data"]

_BATCH_DOCUMENTS = 1024
_BATCH_CHARACTERS = 1 << 21


def build_data(
    corpus: Corpus,
    out: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    vocab_size: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    threads: int | None = None,
    progress: Progress | None = None,
) -> DataInfo:
    """Tokenize a corpus into a new data folder.

    The folder appears under its name when it is complete. One that already holds the same corpus
    with the same tokenizer and options is checked and left as it is.

    Parameters
    ----------
    corpus : training and validation documents
    out : folder to make; an empty one is fine
    tokenizer : a ``.model`` file to use, or None to train one on the training documents
    vocab_size : ids of the tokenizer to train; give this or ``tokenizer``
    shard_tokens : most tokens in one shard
    threads : of the tokenizer, all cores (at most 8) by default; the result does not depend on it
    progress : told the UTF-8 bytes of text tokenized since it was last told

    Raises
    ------
    DataError
        The folder holds something else, a source is malformed, a split has no document, a
        document is in both splits, byte table and text differ, or the disk is full.
    InvalidArgumentError
        Not exactly one of ``tokenizer`` and ``vocab_size`` is given, or a value is out of range.
    """
    if (tokenizer is None) == (vocab_size is None):
        raise InvalidArgumentError("give either tokenizer or vocab_size")
    recipe = {"vocab_size": vocab_size} if tokenizer is None else _model_recipe(tokenizer)
    source = {**corpus.describe(), "tokenizer": recipe, "shard_tokens": shard_tokens}
    target = Path(out).resolve()
    if _is_filled(target):
        return _same_or_refuse(Path(out), source)
    with _appearing(target) as folder:
        model = folder / TOKENIZER_FILE
        if tokenizer is not None:
            made = import_tokenizer(tokenizer, model)
        else:
            assert vocab_size is not None
            texts = (document.text for document in corpus.documents("train"))
            made = train_tokenizer(texts, model, vocab_size=vocab_size)
        writer = _SplitBuilder(corpus, folder, made, shard_tokens, threads, progress)
        val = writer.build("val")
        train = writer.build("train")
        DataInfo(
            folder=folder,
            tokenizer_path=model,
            tokenizer_sha256=made.sha256,
            vocab_size=made.vocab_size,
            source=source,
            train=train,
            val=val,
        ).write()
    return load_data_info(out)


class _SplitBuilder:
    """Writes the splits one after the other, validation first, so that overlap is seen."""

    def __init__(
        self,
        corpus: Corpus,
        folder: Path,
        tokenizer: Tokenizer,
        shard_tokens: int,
        threads: int | None,
        progress: Progress | None,
    ) -> None:
        self._corpus = corpus
        self._folder = folder
        self._tokenizer = tokenizer
        self._shard_tokens = shard_tokens
        self._threads = threads or min(os.cpu_count() or 1, 8)
        self._progress = progress
        self._val_places: dict[bytes, str] = {}

    def build(self, split: Split) -> SplitInfo:
        documents = tokens = scored_bytes = text_bytes = 0
        with ShardWriter(self._folder, split, shard_tokens=self._shard_tokens) as writer:
            for document, ids, size in self._encoded(split):
                writer.append(ids)
                documents += 1
                tokens += ids.size
                scored_bytes += size
                text_bytes += len(document.text.encode())
        if not documents:
            raise DataError(f"no document is left for the {split} split; name further sources")
        return SplitInfo(
            documents=documents,
            tokens=tokens,
            scored_bytes=scored_bytes,
            text_bytes=text_bytes,
            shards=tuple(ShardInfo.of(path) for path in writer.paths),
        )

    def _encoded(self, split: Split) -> Iterator[tuple[Document, Tokens, int]]:
        """Documents with their ids and scored bytes, training documents only if separate."""
        for batch in _batches(self._corpus.documents(split)):
            encoded = self._tokenizer.encode([d.text for d in batch], threads=self._threads)
            sizes = self._tokenizer.document_bytes(encoded, threads=self._threads)
            for document, ids, size in zip(batch, encoded, sizes.tolist(), strict=True):
                if ids.size > 1 and self._is_separate(document, ids, split):
                    yield document, ids, size
            if self._progress is not None:
                self._progress(sum(len(document.text.encode()) for document in batch))

    def _is_separate(self, document: Document, ids: Tokens, split: Split) -> bool:
        # Ids, not characters: what differs in spaces only is the same to the model.
        digest = sha256(ids.tobytes()).digest()
        if split == "val":
            self._val_places[digest] = document.place
        elif digest in self._val_places:
            if self._corpus.drops_overlap:
                return False
            raise DataError(
                f"{document.place}: this training document is a validation document too "
                f"({self._val_places[digest]}); take it out of one of them"
            )
        return True


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _model_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    return {"sha256": Tokenizer(path).sha256}


def _is_filled(folder: Path) -> bool:
    try:
        return folder.exists() and any(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot use as a data folder: {error.strerror}") from error


def _same_or_refuse(folder: Path, source: dict[str, Any]) -> DataInfo:
    if (folder / DATA_FILE).exists() and DataInfo.read(folder).source == source:
        return load_data_info(folder)
    raise DataError(
        f"{folder}: this folder holds something else than what was asked for; name another one or "
        "remove it first"
    )


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target that takes its name at the end of an errorless block."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(
            tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
        )
        try:
            yield folder
            folder.chmod(0o755)
            folder.replace(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{target}: cannot write the data: {error.strerror}") from error

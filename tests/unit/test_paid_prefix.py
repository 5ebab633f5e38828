"""Validation text is found in a file wherever it begins, and other text is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sentencepiece", reason="tokenizers are in the extra [train]")

from data_samples import write_model, write_texts
from flyweight.data.build import build_data
from flyweight.data.facts import DataInfo
from flyweight.data.shards import read_validation
from flyweight.data.text import FileCorpus
from flyweight.data.tokenizer import Tokenizer
from flyweight.submission import paid_prefix
from flyweight.submission.paid_prefix import PieceIndex, index_validation

RNG = np.random.default_rng(3)
WORDS = ["the", "sea", "café", "a", "horse", "of 1865", "and", "wind", "over", "many", "hills"]
NOTICE = "By continuing you agree to our terms of use, privacy policy and cookies. " * 13
TRAIN = [" ".join(RNG.choice(WORDS, 300))]
VAL = [" ".join(RNG.choice(WORDS, 900)), f"{NOTICE[:900]}{'-' * 5000} {'ab ' * 2000}"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataInfo:
    folder = tmp_path_factory.mktemp("prefix")
    train, val = write_texts(folder, TRAIN, "train"), write_texts(folder, VAL, "val")
    corpus = FileCorpus([train], [val])
    return build_data(corpus, folder / "data", tokenizer=write_model(folder), threads=1)


def found(data: DataInfo, content: bytes, folder: Path) -> list[int | None]:
    (folder / "x").write_bytes(content)
    return [index.find(folder / "x") for index in index_validation(data)]


@pytest.mark.parametrize("shift", [0, 1, 7, 1000])
def test_a_run_is_found_wherever_it_begins(data: DataInfo, tmp_path: Path, shift: int) -> None:
    noise = RNG.bytes(shift)
    run = read_validation(data.folder)[13:140].tobytes()  # twice a piece, less one
    ids, text = found(data, noise + run + noise, tmp_path)
    assert ids in range(shift, shift + 128)
    assert text is None
    words = VAL[0].encode()[100 : 100 + 2047]
    ids, text = found(data, noise + words + noise, tmp_path)
    assert text in range(shift, shift + 1024)
    assert ids is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        bytes(100_000),
        np.full(5000, 300, dtype="<u2").tobytes(),
        np.arange(5000, dtype="<u2").tobytes(),
        RNG.bytes(300_000),
        NOTICE[:900].encode(),
        b"-" * 5000,
        b"ab " * 2000,
        TRAIN[0].encode(),
        VAL[0].encode()[:1000],
        " ".join(RNG.choice(WORDS, 5000)).encode(),
    ],
)
def test_common_text_and_other_files_are_left_alone(
    data: DataInfo, tmp_path: Path, content: bytes
) -> None:
    assert found(data, content, tmp_path) == [None, None]


def test_a_run_across_the_chunks_of_a_large_file(
    data: DataInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paid_prefix, "_FILE_CHUNK", 1000)
    run = read_validation(data.folder)[:128].tobytes()
    assert found(data, bytes(2940) + run, tmp_path)[0] == 2940


def test_a_stream_shorter_than_a_piece_has_none() -> None:
    assert PieceIndex.of("x", iter([b"abc", b""]), 128).hashes.size == 0


def test_pieces_are_the_text(data: DataInfo) -> None:
    tokenizer = Tokenizer(data.tokenizer_path)
    tokens = tokenizer.encode(["a café of 1865 ☃"])
    text = b"".join(tokenizer.pieces()[i] for i in tokens[0].tolist()).decode()
    assert text.removeprefix(" ") == tokenizer.decode(tokens)[0]

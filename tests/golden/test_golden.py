"""Frozen files: what was written once is read forever, by both readers, to the same bits."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flyweight
from checks import BACKENDS
from flyweight.codecs.codec import PlaneSpec, codec_by_name
from flyweight.errors import CorruptStreamError, UnsupportedError
from flyweight.format.inspect import inspect
from flyweight.interop import read_safetensors
from flyweight.kernels.dispatch import Backend, backend
from flyweight.quant.grid import QuantizedTensor
from flyweight.submission.decode_streams import FLY_DAMAGE, decode_planes
from flyweight.submission.decoder import decode_fly
from flyweight.typing import Symbols

FOLDER = Path(__file__).parent
VERSIONS = sorted(path for path in FOLDER.glob("v*") if path.is_dir())
FILES = [path for version in VERSIONS for path in sorted(version.glob("all-*.fly"))]
SIDE_FILES = [path for version in VERSIONS for path in sorted(version.glob("side-*.fly"))]
STREAMS = [path for version in VERSIONS for path in sorted(version.glob("*.ans"))]
CLASS_STREAMS = [path for version in VERSIONS for path in sorted(version.glob("*.ctx"))]
BAD_STREAMS = [path for version in VERSIONS for path in sorted(version.glob("*.bad"))]
MODE_SIDE = 2


def by_name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def test_there_are_files() -> None:
    assert len(FILES) >= 5
    assert len(CLASS_STREAMS) >= 1
    assert len(SIDE_FILES) >= 1
    assert len(STREAMS) >= 8
    assert len(BAD_STREAMS) >= 12


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_the_reader_gives_the_same_bits(path: Path, kernels: Backend) -> None:
    expected, _ = read_safetensors(path.parent / "expected.safetensors")
    with backend(kernels):
        file = flyweight.open(path)
        file.verify()
        assert sorted(file) == sorted(expected)
        for name, array in expected.items():
            assert file[name].dtype == array.dtype
            assert file[name].shape == array.shape
            assert file[name].tobytes() == array.tobytes(), name
    assert file.config() == {1: 1024, 2: -3, 5: 0.5, 6: True, 7: False, 9: "byte", 12: (3, 4, 5)}
    assert file.metadata() == {"license": "Apache-2.0"}
    assert inspect(file).total_bytes == path.stat().st_size


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_the_shipped_decoder_gives_the_same_bits(path: Path) -> None:
    expected, _ = read_safetensors(path.parent / "expected.safetensors")
    tensors, config = decode_fly(path.read_bytes())
    assert config == flyweight.open(path).config()
    assert sorted(tensors) == sorted(expected)
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype
        assert np.ascontiguousarray(tensors[name]).tobytes() == array.tobytes(), name


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("path", SIDE_FILES, ids=by_name)
def test_files_with_side_words(path: Path, kernels: Backend) -> None:
    expected, _ = read_safetensors(path.with_suffix(".safetensors"))
    file = flyweight.open(path)
    shipped, _ = decode_fly(path.read_bytes())
    assert sorted(file) == sorted(shipped) == sorted(expected)
    with backend(kernels):
        file.verify()
        for name, array in expected.items():
            assert file.section_bytes(name)[0] >> 6 == MODE_SIDE
            assert file[name].tobytes() == shipped[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("kernels", BACKENDS)
def test_column_scales(kernels: Backend) -> None:
    expected, _ = read_safetensors(FOLDER / "v1" / "columns.safetensors")
    shipped, _ = decode_fly((FOLDER / "v1" / "columns.fly").read_bytes())
    file = flyweight.open(FOLDER / "v1" / "columns.fly")
    assert sorted(file) == sorted(shipped) == sorted(expected)
    with backend(kernels):
        file.verify()
        for name, array in expected.items():
            assert file[name].dtype == array.dtype
            assert file[name].tobytes() == array.tobytes(), name
            widened = shipped[name].astype(array.dtype)  # the shipped decoder has no bfloat16
            assert np.array_equal(widened.astype(np.float32), shipped[name].astype(np.float32))
            assert widened.tobytes() == array.tobytes(), name
    report = inspect(file)
    assert [part.role for part in report.sections[1].parts] == ["codes", "scales", "column_scales"]
    assert report.total_bytes == sum(report.by_class.values())
    assert report.sections[0].grid == "-7..7, float16 scale per 24 columns and per column"


def test_the_order_of_dequantization_shows() -> None:
    """The frozen file would notice a reader that multiplies both scales first."""
    stored = flyweight.open(FOLDER / "v1" / "columns.fly").stored("wide32")
    assert isinstance(stored, QuantizedTensor)
    assert stored.column_scales is not None
    other = stored.codes.astype(np.float32) * (stored.scales * stored.column_scales)
    assert not np.array_equal(other, stored.dequantize())


def symbols_and_alphabet(path: Path) -> tuple[Symbols, int]:
    """What a stream holds, or a damaged one held, whose name begins with that of the good one."""
    name = path.name.partition(".")[0]
    raw = (path.parent / f"{name}.symbols").read_bytes()
    return np.frombuffer(raw, dtype=np.uint8), int(name.rpartition("-")[2])


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("path", STREAMS, ids=by_name)
def test_streams(path: Path, kernels: Backend) -> None:
    symbols, alphabet = symbols_and_alphabet(path)
    spec = PlaneSpec(symbols.size, alphabet, symbols.size)
    with backend(kernels):
        decoded = codec_by_name("ans").decode(path.read_bytes(), spec)
    assert np.array_equal(decoded, symbols)


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("path", CLASS_STREAMS, ids=by_name)
def test_streams_with_classes(path: Path, kernels: Backend) -> None:
    symbols = np.frombuffer(path.with_suffix(".symbols").read_bytes(), dtype=np.uint8)
    columns, alphabet = (int(number) for number in path.stem.split("-")[1:])
    spec = PlaneSpec(symbols.size, alphabet, columns)
    stream = path.read_bytes()
    with backend(kernels):
        assert np.array_equal(codec_by_name("ctx").decode(stream, spec), symbols)
    plane = (4, stream, symbols.size, alphabet, columns)
    assert np.array_equal(decode_planes([plane])[0], symbols)


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_float_planes(kernels: Backend) -> None:
    expected, _ = read_safetensors(FOLDER / "v1" / "floats.safetensors")
    with backend(kernels):
        file = flyweight.open(FOLDER / "v1" / "floats.fly")
        report = inspect(file)
    assert {part.layout for each in report.sections for part in each.parts} == {"float-planes"}
    others, _ = decode_fly((FOLDER / "v1" / "floats.fly").read_bytes())
    for name, array in expected.items():
        assert file[name].dtype == array.dtype
        assert file[name].tobytes() == array.tobytes(), name
        if name == "bfloat16":  # the shipped decoder has no such dtype
            raw = np.ascontiguousarray(others[name]).view(np.uint32)
            assert np.array_equal((raw >> 16).astype(np.uint16), array.view(np.uint16))
        else:
            assert others[name].tobytes() == array.tobytes(), name


def test_the_shipped_decoder_reads_the_streams() -> None:
    """All at once, as it does with those of a file."""
    held = [symbols_and_alphabet(path) for path in STREAMS]
    planes = [
        (1, path.read_bytes(), symbols.size, alphabet, symbols.size)
        for path, (symbols, alphabet) in zip(STREAMS, held, strict=True)
    ]
    for decoded, (symbols, _) in zip(decode_planes(planes), held, strict=True):
        assert np.array_equal(decoded, symbols)


@pytest.mark.parametrize("kernels", BACKENDS)
@pytest.mark.parametrize("path", BAD_STREAMS, ids=by_name)
def test_bad_streams_are_refused(path: Path, kernels: Backend) -> None:
    symbols, alphabet = symbols_and_alphabet(path)
    spec = PlaneSpec(symbols.size, alphabet, symbols.size)
    with backend(kernels), pytest.raises(CorruptStreamError):
        codec_by_name("ans").decode(path.read_bytes(), spec)


@pytest.mark.parametrize("path", BAD_STREAMS, ids=by_name)
def test_the_shipped_decoder_refuses_bad_streams(path: Path) -> None:
    symbols, alphabet = symbols_and_alphabet(path)
    with pytest.raises(FLY_DAMAGE):  # what decode_fly turns into a FlyError
        decode_planes([(1, path.read_bytes(), symbols.size, alphabet, symbols.size)])


def bytes_of_the_specification(name: str) -> bytes:
    """The bytes of the block of docs/format.md that a comment of this name announces."""
    text = (FOLDER.parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
    block = re.search(rf"<!-- {name}.*?```\n(.*?)```", text, flags=re.DOTALL)
    assert block is not None
    lines = [line.split("|")[0] for line in block.group(1).splitlines()]
    return bytes.fromhex("".join(lines))


def test_the_worked_example_of_the_specification() -> None:
    data = bytes_of_the_specification("example")
    assert data == (FOLDER / "v1" / "example.fly").read_bytes()
    file = flyweight.open(data)
    file.verify()
    assert file.config() == {1: 8}
    assert file["w"].tolist() == [
        [0.0, 0.5, -0.5, 0.0, 1.0, 0.0, 0.0, -1.0],
        [0.25, 0.0, 0.0, -0.25, 0.0, 0.0, 0.25, 0.0],
    ]


@pytest.mark.parametrize("kernels", BACKENDS)
def test_the_stream_of_the_specification(kernels: Backend) -> None:
    stream = bytes_of_the_specification("stream")
    assert stream == (FOLDER / "v1" / "example-4.ans").read_bytes()
    assert stream[0] >> 6 == MODE_SIDE
    symbols = [0, 1, 0, 0, 3, 0, 1, 0, 2, 0, 1, 0, 0, 1, 0, 1]
    count = len(symbols)
    with backend(kernels):
        decoded = codec_by_name("ans").decode(stream, PlaneSpec(count, 4, count))
    assert decoded.tolist() == symbols
    assert decode_planes([(1, stream, count, 4, count)])[0].tolist() == symbols


def test_a_file_of_no_tensors() -> None:
    file = flyweight.open(FOLDER / "v1" / "nothing.fly")
    file.verify()
    assert (len(file), file.total_bytes, file.config()) == (0, 21, {})


@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_file(data: bytes) -> None:
    with pytest.raises((CorruptStreamError, UnsupportedError)):
        flyweight.open(data).verify()

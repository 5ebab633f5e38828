"""Frozen files: what was written once is read forever, by both readers, to the same bits."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flyweight
from flyweight.codecs.codec import PlaneSpec, codec_by_name
from flyweight.errors import CorruptStreamError, UnsupportedError
from flyweight.format.inspect import inspect
from flyweight.interop import read_safetensors
from flyweight.kernels.dispatch import Backend, backend
from flyweight.submission.decoder import decode_fly, decode_planes

FOLDER = Path(__file__).parent
VERSIONS = sorted(path for path in FOLDER.glob("v*") if path.is_dir())
FILES = [path for version in VERSIONS for path in sorted(version.glob("all-*.fly"))]
STREAMS = [path for version in VERSIONS for path in sorted(version.glob("*.ans"))]
CLASS_STREAMS = [path for version in VERSIONS for path in sorted(version.glob("*.ctx"))]


def by_name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def test_there_are_files() -> None:
    assert len(FILES) >= 5
    assert len(STREAMS) >= 3
    assert len(CLASS_STREAMS) >= 1


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
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


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
@pytest.mark.parametrize("path", STREAMS, ids=by_name)
def test_streams(path: Path, kernels: Backend) -> None:
    symbols = np.frombuffer(path.with_suffix(".symbols").read_bytes(), dtype=np.uint8)
    alphabet = int(path.stem.rpartition("-")[2])
    with backend(kernels):
        decoded = codec_by_name("ans").decode(
            path.read_bytes(), PlaneSpec(symbols.size, alphabet, symbols.size)
        )
    assert np.array_equal(decoded, symbols)


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
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


def test_the_worked_example_of_the_specification() -> None:
    text = (FOLDER.parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- example.*?```\n(.*?)```", text, flags=re.DOTALL)
    assert block is not None
    lines = [line.split("|")[0] for line in block.group(1).splitlines()]
    data = bytes.fromhex("".join(lines))
    assert data == (FOLDER / "v1" / "example.fly").read_bytes()
    file = flyweight.open(data)
    file.verify()
    assert file.config() == {1: 8}
    assert file["w"].tolist() == [
        [0.0, 0.5, -0.5, 0.0, 1.0, 0.0, 0.0, -1.0],
        [0.25, 0.0, 0.0, -0.25, 0.0, 0.0, 0.25, 0.0],
    ]


def test_a_file_of_no_tensors() -> None:
    file = flyweight.open(FOLDER / "v1" / "nothing.fly")
    file.verify()
    assert (len(file), file.total_bytes, file.config()) == (0, 21, {})


@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_file(data: bytes) -> None:
    with pytest.raises((CorruptStreamError, UnsupportedError)):
        flyweight.open(data).verify()

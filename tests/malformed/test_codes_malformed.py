"""Damaged files of codes: an error that names file and tensor, never another exception."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from flyweight.artifact import load_stored, save_stored
from flyweight.errors import DataError
from flyweight.format.stored import PlainTensor
from flyweight.interop import read_safetensors, write_safetensors
from flyweight.quant.grid import Grid, QuantizedTensor

DEEP = 100_000 * "[" + 100_000 * "]"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good file, to damage."""
    tensors = {
        "w": QuantizedTensor(
            shape=(2, 3),
            dtype=np.dtype(ml_dtypes.bfloat16),
            grid=Grid(lo=-7, hi=7),
            codes=np.array([[-7, 0, 7], [1, 2, 3]], dtype=np.int8),
            scales=np.ones((2, 1), dtype=np.float16),
        ),
        "ids": PlainTensor(values=np.arange(3), dtype=np.dtype(np.int64)),
    }
    save_stored(tmp_path / "codes.safetensors", tensors)
    return tmp_path / "codes.safetensors"


def read_index(path: Path) -> dict[str, dict[str, object]]:
    """What the file says of its tensors."""
    found: dict[str, dict[str, object]] = json.loads(read_safetensors(path)[1]["flyweight"])
    return found


def rewrite(path: Path, index: str, **arrays: object) -> None:
    """The file with another index, and arrays replaced, or dropped where None."""
    merged = {**read_safetensors(path)[0], **{k.replace("_", ".", 1): v for k, v in arrays.items()}}
    kept = {name: array for name, array in merged.items() if isinstance(array, np.ndarray)}
    write_safetensors(path, kept, {"flyweight": index})


def test_the_good_file_is_read(path: Path) -> None:
    stored = load_stored(path)
    assert stored["w"].dtype == ml_dtypes.bfloat16
    assert stored["ids"].dtype == np.int64


@pytest.mark.parametrize("index", ["", "{", "[]", "null", "1", '"w"', DEEP, '{"w": ' + DEEP + "}"])
def test_an_index_that_is_no_object(path: Path, index: str) -> None:
    rewrite(path, index)
    with pytest.raises(DataError, match=r"codes\.safetensors: the index of its codes"):
        load_stored(path)


@pytest.mark.parametrize("entry", [None, 1, "x", [], {}, {"dtype": "float32", "lo": 1}])
@pytest.mark.parametrize("name", ["w", "ids", "absent"])
def test_entries_of_another_kind(path: Path, name: str, entry: object) -> None:
    rewrite(path, json.dumps({**read_index(path), name: entry}))
    with pytest.raises(DataError, match=rf"codes\.safetensors: tensor '{name}': "):
        load_stored(path)


VALUES = [None, True, -129, 1e400, -31.5, 10**30, "", "O", "f2", "V8", "float16,", [], [2, -3], {}]
FIELDS = ["dtype", "shape", "lo", "hi", "group_size", "is_symmetric", "scale_dtype"]
FIELDS += ["has_column_scales", "surplus"]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", VALUES)
def test_fields_of_another_kind(path: Path, field: str, value: object) -> None:
    index = read_index(path)
    if type(index["w"].get(field, ...)) is type(value) and index["w"][field] == value:
        return  # no damage
    index["w"][field] = value
    rewrite(path, json.dumps(index))
    with pytest.raises(DataError, match=r"codes\.safetensors: tensor 'w': "):
        load_stored(path)


@pytest.mark.parametrize("field", FIELDS[:-1])
def test_a_field_that_is_missing(path: Path, field: str) -> None:
    index = read_index(path)
    del index["w"][field]
    rewrite(path, json.dumps(index))
    with pytest.raises(DataError, match=f"tensor 'w': {field} is None"):
        load_stored(path)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"w_codes": None}, "tensor 'w': its codes are not in the file"),
        ({"w_scales": None}, "tensor 'w': its scales are not in the file"),
        ({"ids_values": None}, "tensor 'ids': its values are not in the file"),
        ({"ids_values": np.ones(3)}, "tensor 'ids': values of float64 cannot come back as int64"),
        ({"w_codes": np.full((2, 3), 8, np.int8)}, "tensor 'w': codes are 8 to 8, .* -7 to 7"),
        ({"w_codes": np.zeros((2, 3))}, "tensor 'w': codes must be int8"),
        ({"w_zero_points": np.zeros((2, 1), np.float16)}, "tensor 'w': zero_points go with"),
        ({"w_column_scales": np.ones(3, np.float16)}, "tensor 'w': column_scales go with"),
        ({"w_scales": np.full((2, 1), np.nan, np.float16)}, "tensor 'w': scales has nan"),
    ],
)
def test_arrays_that_do_not_fit(path: Path, arrays: dict[str, object], match: str) -> None:
    rewrite(path, json.dumps(read_index(path)), **arrays)
    with pytest.raises(DataError, match=match):
        load_stored(path)

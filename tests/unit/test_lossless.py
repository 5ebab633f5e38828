"""safetensors' verbs on .fly files: names, shapes, dtypes and bits come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import flyweight
import flyweight.numpy as fly
from flyweight.errors import CorruptStreamError, InvalidArgumentError
from flyweight.format.header import DTYPES

SHAPES = [(), (0,), (3, 0, 2), (1,), (7, 5), (2, 3, 4), (300, 70)]
FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def random_bits(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Any bits: of floats these are NaNs with payloads, infinities and subnormals, too."""
    rng = np.random.default_rng(0)
    if dtype.kind == "b":
        return rng.integers(0, 2, size=shape).astype(bool)
    raw = rng.integers(0, 256, size=(*shape, dtype.itemsize), dtype=np.uint8)
    return raw.reshape(-1).view(dtype).reshape(shape)


def every_tensor() -> dict[str, np.ndarray]:
    return {
        f"{dtype} {shape}": random_bits(shape, dtype)
        for dtype in DTYPES.values()
        for shape in SHAPES
    }


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name
        assert found[name].flags.writeable, name


def test_every_dtype_and_shape(tmp_path: Path) -> None:
    tensors = every_tensor()
    assert_same(fly.load(fly.save(tensors)), tensors)
    path = tmp_path / "model.fly"
    fly.save_file(tensors, path, metadata={"format": "np"})
    assert_same(fly.load_file(path), tensors)
    assert [each.name for each in tmp_path.iterdir()] == ["model.fly"]
    with fly.safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "np"}
        assert_same({name: file.get_tensor(name) for name in file.keys()}, tensors)  # noqa: SIM118


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_kind_of_float(dtype: type) -> None:
    kind = np.dtype(dtype)
    top = 8 * kind.itemsize - 16
    special = np.arange(1 << 16, dtype=np.uint64) << np.uint64(top) | np.uint64(top > 0)
    values = np.tile(special.astype(f"<u{kind.itemsize}").view(kind), 2).reshape(512, 256)
    assert_same(fly.load(fly.save({"w": values})), {"w": values})


def test_arrays_that_are_not_contiguous() -> None:
    array = np.arange(60, dtype=np.float32).reshape(6, 10).T[::2]
    assert np.array_equal(fly.load(fly.save({"w": array}))["w"], array)


def test_a_file_is_lazy_and_closes(tmp_path: Path) -> None:
    path = tmp_path / "model.fly"
    fly.save_file({"a": np.arange(99), "b": np.ones(7)}, path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # in the last section
    path.write_bytes(data)
    with fly.safe_open(path) as file:
        assert file.metadata() is None
        assert np.array_equal(file.get_tensor("a"), np.arange(99))
        with pytest.raises(CorruptStreamError, match="'b'"):
            file.get_tensor("b")
        with pytest.raises(InvalidArgumentError, match="no tensor 'c'"):
            file.get_tensor("c")
    with pytest.raises(InvalidArgumentError, match="closed"):
        file.get_tensor("a")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.fly"
    fly.save_file({"a": np.ones(3)}, path)
    with pytest.raises(InvalidArgumentError, match="'c'.*complex64"):
        fly.save_file({"c": np.zeros(3, dtype=np.complex64)}, path)
    assert np.array_equal(fly.load_file(path)["a"], np.ones(3))
    assert len(list(tmp_path.iterdir())) == 1


def test_other_frameworks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="'pt', expected numpy"):
        fly.safe_open(tmp_path / "none.fly", framework="pt")  # type: ignore[arg-type]


def test_torch_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="in the extra [train]")
    import flyweight.torch as fly_torch

    tensors = {}
    for name, array in every_tensor().items():
        if array.dtype == ml_dtypes.bfloat16:
            tensors[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            tensors[name] = torch.from_numpy(array)
    path = tmp_path / "model.fly"
    fly_torch.save_file(tensors, path, metadata={"format": "pt"})
    assert path.read_bytes() == fly_torch.save(tensors, {"format": "pt"})
    with fly_torch.safe_open(path, framework="pt", device="cpu") as file:
        assert file.metadata() == {"format": "pt"}
        lazily = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for loaded in (
        fly_torch.load_file(path, device="cpu"),
        fly_torch.load(path.read_bytes()),
        lazily,
    ):
        assert sorted(loaded) == sorted(tensors)
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype
            assert loaded[name].shape == tensor.shape
            raw = [t.reshape(-1).view(torch.uint8) for t in (loaded[name], tensor)]
            assert torch.equal(*raw), name


def test_torch_tensors_that_are_refused() -> None:
    torch = pytest.importorskip("torch", reason="in the extra [train]")
    import flyweight.torch as fly_torch

    for tensor in (torch.ones(3, 4).T, torch.ones(3, 4).to_sparse()):
        with pytest.raises(InvalidArgumentError, match="'w'.*contiguous"):
            fly_torch.save({"w": tensor})
    for dtype in (torch.complex64, torch.float8_e4m3fn):
        with pytest.raises(InvalidArgumentError, match="'w'.*cannot be stored"):
            fly_torch.save({"w": torch.zeros(3).to(dtype)})
    gradient = torch.ones(3, requires_grad=True)
    assert torch.equal(fly_torch.load(fly_torch.save({"w": gradient}))["w"], torch.ones(3))


def test_files_of_codes_are_read_too() -> None:
    weights = np.random.default_rng(0).normal(size=(80, 80)).astype(np.float32)
    assert fly.load(flyweight.pack({"w": weights}))["w"].dtype == np.float32

"""Every codec gives back what it got, whatever it got."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flyweight.codecs.select  # noqa: F401 - registers all codecs
from flyweight.codecs.codec import PlaneSpec, codec_by_id, codec_by_name, codec_names, register
from flyweight.codecs.layout import (
    FLOAT_PLANES,
    applicable_layouts,
    join_planes,
    plane_specs,
    split_planes,
)
from flyweight.codecs.select import select
from flyweight.codecs.store import StoreCodec
from flyweight.errors import CorruptStreamError, InvalidArgumentError, UnsupportedError

CODECS = ["store", "ans", "zstd", "brotli", "ctx"]


def flat(count: int, alphabet_size: int) -> PlaneSpec:
    """A run without rows."""
    return PlaneSpec(count, alphabet_size, count)


@st.composite
def symbol_runs(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Symbols of one, two or many values, flat or skewed, and an alphabet that holds them."""
    alphabet = draw(st.sampled_from([1, 2, 3, 15, 63, 128, 255, 256]))
    count = draw(st.sampled_from([1, 2, 31, 32, 33, 255, 256, 1000, 70_000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.sampled_from(["one", "flat", "skewed", "edges"]))
    if shape == "one":
        symbols = np.full(count, rng.integers(alphabet))
    elif shape == "flat":
        symbols = rng.integers(alphabet, size=count)
    elif shape == "edges":
        symbols = np.where(rng.random(count) < 0.9, 0, alphabet - 1)
    else:
        symbols = np.clip(rng.normal(alphabet / 2, alphabet / 9, size=count), 0, alphabet - 1)
    return symbols.astype(np.uint8), alphabet


def test_names_and_ids_are_frozen() -> None:
    assert codec_names() == CODECS
    assert [codec_by_name(name).codec_id for name in CODECS] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", CODECS)
@given(run=symbol_runs())
def test_round_trip(name: str, run: tuple[np.ndarray, int]) -> None:
    symbols, alphabet = run
    codec = codec_by_name(name)
    stream = codec.encode(symbols, flat(len(symbols), alphabet))
    assert stream == codec.encode(symbols.copy(), flat(len(symbols), alphabet))
    decoded = codec.decode(stream, flat(len(symbols), alphabet))
    assert np.array_equal(decoded, symbols)
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize("name", CODECS)
def test_wrong_symbols_are_refused(name: str) -> None:
    codec = codec_by_name(name)
    with pytest.raises(InvalidArgumentError, match="symbol 9 at position 1"):
        codec.encode(np.array([1, 9], dtype=np.uint8), flat(2, 4))
    with pytest.raises(InvalidArgumentError, match="int64"):
        codec.encode(np.array([1, 2]), flat(2, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CODECS)
def test_damage_is_a_typed_error_or_other_symbols(name: str) -> None:
    rng = np.random.default_rng(7)
    symbols = np.clip(rng.normal(8, 2, size=200), 0, 15).astype(np.uint8)
    codec = codec_by_name(name)
    stream = codec.encode(symbols, flat(200, 16))
    for length in range(len(stream)):
        with pytest.raises(CorruptStreamError):
            codec.decode(stream[:length], flat(200, 16))
    for count in (0, 1, 199, 201, 10_000):
        with pytest.raises(CorruptStreamError):
            codec.decode(stream, flat(count, 16))
    for position in range(len(stream)):
        for bit in range(8):
            damaged = bytearray(stream)
            damaged[position] ^= 1 << bit
            try:
                decoded = codec.decode(bytes(damaged), flat(200, 16))
            except CorruptStreamError:
                continue
            assert decoded.shape == (200,)
            assert decoded.max() < 16


def test_expanding_streams_are_cut_off() -> None:
    zeros = np.zeros(50_000_000, dtype=np.uint8)
    for name in ("zstd", "brotli"):
        stream = codec_by_name(name).encode(zeros, flat(len(zeros), 2))
        assert len(stream) < 6000
        with pytest.raises(CorruptStreamError):
            codec_by_name(name).decode(stream, flat(100, 2))


def test_registry_refuses_clashes_and_unknown_ids() -> None:
    with pytest.raises(InvalidArgumentError, match="clashes"):
        register(StoreCodec())
    with pytest.raises(UnsupportedError, match="codec id 200"):
        codec_by_id(200)
    with pytest.raises(InvalidArgumentError, match="no codec 'lzma'"):
        codec_by_name("lzma")


@given(data=st.data())
def test_layouts_round_trip(data: st.DataObject) -> None:
    rows, cols = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    dtype = np.dtype(data.draw(st.sampled_from(["uint8", "float16", "float32", "float64"])))
    alphabet = data.draw(st.sampled_from([1, 2, 5, 63, 128, 200])) if dtype == np.uint8 else 256
    raw = rng.integers(alphabet, size=rows * cols * dtype.itemsize).astype(np.uint8)
    array = raw.view(dtype).reshape(rows, cols)
    for layout in applicable_layouts(dtype.itemsize, alphabet):
        planes = split_planes(layout, array, alphabet)
        specs = plane_specs(layout, (rows, cols), dtype.itemsize, alphabet)
        assert [plane.symbols.size for plane in planes] == [spec.count for spec in specs]
        assert [plane.spec for plane in planes] == specs
        symbols = [plane.symbols for plane in planes]
        joined = join_planes(layout, symbols, (rows, cols), dtype, alphabet)
        assert joined.tobytes() == array.tobytes()


def gaussian(rows: int, cols: int, *, std: float = 2.4) -> np.ndarray:
    """Codes without structure, in an alphabet of 63."""
    values = np.random.default_rng(0).normal(31, std, size=(rows, cols))
    return np.clip(np.rint(values), 0, 62).astype(np.uint8)


def test_selector_takes_the_smallest_and_says_what_lost() -> None:
    choice = select(gaussian(256, 256), alphabet_size=63)
    sizes = [candidate.size for candidate in choice.candidates]
    assert sizes == sorted(sizes)
    assert sizes[0] == sum(len(stream) for _, stream in choice.streams)
    assert choice.candidates[0].codec == "ans"
    noise = np.random.default_rng(0).integers(0, 256, size=(64, 64)).astype(np.uint8)
    assert select(noise, alphabet_size=256).candidates[0].codec == "store"


def structured() -> dict[str, np.ndarray]:
    """Planes on which something beats ans, each for another reason."""
    rng = np.random.default_rng(1)
    some_rows = gaussian(800, 300)
    some_rows[rng.choice(800, 60, replace=False)] = some_rows[:60]
    some_columns = np.ascontiguousarray(some_rows.reshape(800, 300).T)
    far = gaussian(2000, 512)
    far[1900:] = far[:100]
    sparse = np.zeros((500, 1000), dtype=np.uint8)
    sparse[::7, ::11] = 5
    halves = gaussian(600, 500)
    halves[300:] = 31
    return {
        "one row, again and again": np.tile(gaussian(1, 256), (64, 1)),
        "some rows twice": some_rows,
        "some columns twice": some_columns,
        "rows that come back after a million symbols": far,
        "sparse and regular": sparse,
        "half constant": halves,
        "constant": np.full((300, 1000), 7, dtype=np.uint8),
        "columns of two values": np.where(np.arange(400) % 5 == 0, gaussian(500, 400), 31),
    }


@pytest.mark.parametrize("name", list(structured()))
def test_pruning_keeps_what_wins_on_structure(name: str) -> None:
    array = structured()[name].astype(np.uint8)
    pruned = select(array, alphabet_size=63)
    everything = select(array, alphabet_size=63, is_pruned=False)
    assert pruned.candidates[0].size <= 1.002 * everything.candidates[0].size
    tried = {(candidate.layout, candidate.codec) for candidate in everything.candidates}
    assert {(c.layout, c.codec) for c in pruned.candidates} <= tried
    ans = next(c.size for c in everything.candidates if c.codec == "ans")
    assert name == "constant" or pruned.candidates[0].size < ans


def test_pruning_saves_the_slow_codecs_where_they_lose() -> None:
    array = gaussian(400, 400)
    tried = {candidate.codec for candidate in select(array, alphabet_size=63).candidates}
    assert tried == {"ans", "store", "zstd-1"}
    everything = select(array, alphabet_size=63, is_pruned=False)
    assert {"zstd-3", "zstd-19", "zstd-22", "brotli-11"} < {c.codec for c in everything.candidates}


def test_the_largest_effort_tries_everything_on_everything() -> None:
    array = gaussian(520, 500)
    unpruned = select(array, alphabet_size=63, is_pruned=False).candidates
    assert {candidate.codec for candidate in unpruned} == {"ans", "store", "zstd-1", "zstd-3"}
    tried = {(c.layout, c.codec) for c in select(array, alphabet_size=63, effort="max").candidates}
    matchers = {"zstd-1", "zstd-3", "zstd-19", "zstd-22", "brotli-11"}
    assert tried == {
        *(("plain", codec) for codec in matchers | {"ans", "store"}),
        *(("transposed", codec) for codec in matchers),
        *(("packed", codec) for codec in matchers | {"store"}),
    }


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("rows", [10, 400])
def test_exponents_are_put_apart(dtype: type, rows: int) -> None:
    weights = np.random.default_rng(2).normal(size=(rows, 300)).astype(dtype)
    choice = select(weights, alphabet_size=256)
    assert choice.layout == FLOAT_PLANES
    # Exponents have 2.5 bits of information; nothing shrinks signs and fractions by much.
    saved_bits = (5 if dtype is np.float16 else 8) - 2.6
    assert choice.candidates[0].size < weights.nbytes - saved_bits / 8 * weights.size + 100


def test_a_forced_codec_is_used() -> None:
    array = np.zeros((8, 8), dtype=np.uint8)
    for name in CODECS:
        choice = select(array, alphabet_size=4, codec=name)
        assert {codec_id for codec_id, _ in choice.streams} == {codec_by_name(name).codec_id}

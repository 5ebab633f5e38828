"""The ctx codec gives back what it got, and pays where rows and columns differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctx_samples import class_plane
from flyweight.codecs.ans import AnsCodec
from flyweight.codecs.codec import PlaneSpec
from flyweight.codecs.ctx import MODE_CLASSES, CtxCodec
from flyweight.codecs.ctx_tables import (
    MAX_TABLES,
    MAX_TOP,
    PROB_BITS,
    ShapeFamily,
    family_freqs,
    family_weights,
    read_family,
)
from flyweight.codecs.select import select
from flyweight.kernels.dispatch import backend


@st.composite
def families(draw: st.DrawFn, alphabet_size: int) -> ShapeFamily:
    """Any family that a stream can hold."""
    means = draw(st.lists(st.integers(-128, 127), min_size=1, max_size=MAX_TABLES))
    byte = st.integers(0, 255)
    return ShapeFamily(
        deviations=draw(st.integers(1, MAX_TABLES // len(means))),
        step=draw(byte),
        top=draw(st.integers(0, MAX_TOP)),
        center=draw(st.integers(0, 64 * (alphabet_size - 1))),
        means=tuple(means),
        tail=draw(byte),
    )


@settings(max_examples=40)
@given(
    rows=st.sampled_from([16, 17, 64, 300]),
    cols=st.sampled_from([16, 33, 128, 257]),
    alphabet=st.sampled_from([2, 3, 15, 63, 255]),
    spread=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip(rows: int, cols: int, alphabet: int, spread: float, seed: int) -> None:
    symbols, spec = class_plane(rows, cols, alphabet_size=alphabet, spread=spread, seed=seed)
    stream = CtxCodec().encode(symbols, spec)
    assert stream == CtxCodec().encode(symbols.copy(), spec)
    decoded = CtxCodec().decode(stream, spec)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, symbols)
    assert 0 < CtxCodec.overhead_bytes(stream, alphabet_size=alphabet) <= len(stream)


def test_backends_agree() -> None:
    symbols, spec = class_plane(64, 80)
    stream = CtxCodec().encode(symbols, spec)
    assert stream[0] >> 6 == MODE_CLASSES
    with backend("reference"):
        assert CtxCodec().encode(symbols, spec) == stream
        assert np.array_equal(CtxCodec().decode(stream, spec), symbols)


@pytest.mark.parametrize(("spread", "share"), [(0.3, 0.995), (1.0, 0.93)])
def test_classes_pay_where_lines_differ(spread: float, share: float) -> None:
    symbols, spec = class_plane(400, 400, spread=spread)
    ctx, ans = CtxCodec().encode(symbols, spec), AnsCodec().encode(symbols, spec)
    assert len(ctx) < share * len(ans)
    choice = select(symbols.reshape(400, 400), alphabet_size=63)
    assert choice.streams[0][0] == CtxCodec.codec_id


def test_outliers_are_escaped() -> None:
    symbols, spec = class_plane(200, 300, spread=0.7)
    places = np.random.default_rng(1).integers(symbols.size, size=100)
    symbols[places[:50]], symbols[places[50:]] = 0, 62
    stream = CtxCodec().encode(symbols, spec)
    assert stream[0] >> 6 == MODE_CLASSES
    assert np.array_equal(CtxCodec().decode(stream, spec), symbols)


@pytest.mark.parametrize(("rows", "cols"), [(100, 100), (8, 4000), (4000, 8)])
def test_like_lines_are_declined_at_once(rows: int, cols: int) -> None:
    symbols, spec = class_plane(rows, cols, spread=0.0)
    assert CtxCodec().encode_if_promising(symbols, spec) is None
    assert CtxCodec().encode(symbols, spec) == AnsCodec().encode(symbols, spec)


def test_lines_that_are_constant() -> None:
    symbols, spec = class_plane(100, 100)
    matrix = symbols.reshape(100, 100)
    matrix[:, ::3] = 31
    matrix[::4] = 31
    stream = CtxCodec().encode(symbols, spec)
    assert np.array_equal(CtxCodec().decode(stream, spec), symbols)
    assert len(stream) < 0.8 * len(AnsCodec().encode(symbols, spec))


@given(data=st.data())
def test_families_round_trip_and_tables_are_tables(data: st.DataObject) -> None:
    alphabet = data.draw(st.sampled_from([1, 2, 3, 63, 254, 255]))
    family = data.draw(families(alphabet))
    coded = family.to_bytes()
    assert read_family(memoryview(coded + b"x"), alphabet_size=alphabet) == (family, len(coded))
    freqs = family_freqs(family, alphabet_size=alphabet)
    assert freqs.shape == (family.tables, alphabet + 1)
    assert (freqs.sum(axis=1) == 1 << PROB_BITS).all()
    rare = (freqs[:, :-1] == 0).any(axis=1)
    assert np.array_equal(freqs[:, -1] > 0, rare)


@given(data=st.data())
def test_tables_as_the_specification_has_them(data: st.DataObject) -> None:
    alphabet = data.draw(st.sampled_from([1, 2, 16, 63, 255]))
    family = data.draw(families(alphabet))
    expected = [specified_weights(family, t, alphabet) for t in range(family.tables)]
    assert family_weights(family, alphabet_size=alphabet).tolist() == expected


def specified_weights(family: ShapeFamily, table: int, alphabet: int) -> list[int]:
    """docs/format.md, "Tables by integers", word for word and in integers of any size."""
    powers = [1 << 31]
    for _ in range(255):
        powers.append(powers[-1] * 4283353945 >> 32)

    def halved(y: int) -> int:
        return powers[y % 256] >> min(y // 256, 63)

    s, level = table // len(family.means), family.means[table % len(family.means)]
    e = max(0, family.top - family.step * (family.deviations - 1 - s))
    middle = family.center + (level * (halved(8 * (512 - e)) >> 11) >> 5)
    curvature = halved(16 * e) * 47274 >> 16
    a, b = family.tail & 15, family.tail >> 4
    weights = []
    for k in range(alphabet):
        x = 64 * k - middle
        y = x * x * curvature >> 31
        weights.append((16 - a) * halved(y) + a * halved(y >> b))
    return weights


def test_tables_are_gaussian() -> None:
    family = ShapeFamily(deviations=1, step=0, top=128, center=64 * 31, means=(0,), tail=0)
    freqs = family_freqs(family, alphabet_size=63)[0]
    symbols = np.arange(63) - 31
    ideal = np.exp(-(symbols**2) / (2 * 4.0**2))  # 2 ** (128 / 32 - 2) = 4 symbols
    assert np.allclose(freqs[:-1] / 4096, ideal / ideal.sum(), rtol=0, atol=1.2 / 4096)


def test_a_run_without_rows_is_ans() -> None:
    symbols, _ = class_plane(100, 100)
    flat = PlaneSpec(symbols.size, 63, symbols.size)
    assert CtxCodec().encode(symbols, flat) == AnsCodec().encode(symbols, flat)

"""Whatever the sizes: every target once, as much context as fits, shapes that batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from flyweight.evaluate.window import (
    Windows,
    plain_windows,
    sliding_windows,
    split_chunks,
    window_batches,
)


@st.composite
def plans(draw: st.DrawFn) -> tuple[Windows, int, int]:
    targets = draw(st.integers(1, 400))
    seq_len = draw(st.integers(1, 70))
    if draw(st.booleans()):
        return plain_windows(targets, seq_len=seq_len), targets, seq_len
    stride = draw(st.integers(1, seq_len))
    return sliding_windows(targets, seq_len=seq_len, stride=stride), targets, seq_len


def scored(windows: Windows) -> list[int]:
    spans = zip(windows.first.tolist(), windows.end.tolist(), strict=True)
    return [target for first, end in spans for target in range(first, end)]


@given(plans())
def test_every_target_is_scored_exactly_once(plan: tuple[Windows, int, int]) -> None:
    windows, targets, _ = plan
    assert scored(windows) == list(range(targets))
    assert (windows.first < windows.end).all()  # no window without work


@given(plans())
def test_windows_read_at_most_seq_len_and_never_ahead(plan: tuple[Windows, int, int]) -> None:
    windows, _, seq_len = plan
    lengths = windows.end - windows.begin
    assert (lengths <= seq_len).all()
    assert (windows.begin >= 0).all()
    assert (windows.begin <= windows.first).all()


@given(st.integers(1, 400), st.integers(1, 70), st.data())
def test_sliding_context_is_as_long_as_fits(
    targets: int, seq_len: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, seq_len))
    windows = sliding_windows(targets, seq_len=seq_len, stride=stride)
    np.testing.assert_array_equal(windows.end - windows.begin, np.minimum(windows.end, seq_len))
    assert (np.diff(windows.end) <= stride).all()
    if targets >= seq_len:
        assert set((windows.end - windows.begin).tolist()) == {seq_len}


@given(plans(), st.integers(1, 150), st.integers(1, 9))
def test_chunks_and_batches_lose_nothing(
    plan: tuple[Windows, int, int], chunk_targets: int, batch_windows: int
) -> None:
    windows, targets, _ = plan
    chunks = split_chunks(windows, chunk_targets=chunk_targets)
    batches = [
        batch for chunk in chunks for batch in window_batches(chunk, batch_windows=batch_windows)
    ]
    assert [target for batch in batches for target in scored(batch)] == list(range(targets))
    assert all(len(batch) <= batch_windows for batch in batches)
    for batch in batches:
        assert len(set((batch.end - batch.begin).tolist())) == 1
        assert len(set((batch.end - batch.first).tolist())) == 1
    for chunk in chunks:
        assert chunk.first[0] // chunk_targets == chunk.first[-1] // chunk_targets

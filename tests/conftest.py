"""Settings that all tests share."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

# Models are tiny here: a second thread only waits, and stalls everything where cores are busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without a GPU, Triton kernels run in the interpreter; what asks for it is read when Triton
# is imported, which torch does at times.
if find_spec("triton") is not None and find_spec("torch") is not None:
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")

# Machines are shared and slow at times: time is bounded by pytest-timeout, not by each example.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fast", max_examples=30, derandomize=True, **_COMMON)
settings.register_profile("full", max_examples=1000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    try:
        import torch
    except ImportError:
        has_gpu = False
    else:
        has_gpu = torch.cuda.is_available()
    if not has_gpu:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))

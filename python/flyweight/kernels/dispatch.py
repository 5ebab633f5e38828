"""Which backend runs: the only place that knows, and the only importer of ``flyweight._core``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Literal, ParamSpec, TypeAlias, TypeVar, cast, get_args

from flyweight.errors import InvalidArgumentError, MissingDependencyError
from flyweight.typing import CudaInfo

__all__ = ["Backend", "backend", "cpu_tiers", "cuda_info", "current_backend", "implementation"]

Backend: TypeAlias = Literal["reference", "cpu", "scalar", "avx2", "avx512"]
"""``reference`` is pure NumPy and slow; ``cpu`` is the compiled extension on the best instruction
set of this machine (at most that of the environment variable ``FLYWEIGHT_CPU``); the others force
one."""

P = ParamSpec("P")
R = TypeVar("R")

_current: ContextVar[Backend] = ContextVar("flyweight_backend", default="cpu")


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Run the kernels called inside the block on one backend; for this thread or task only.

    Raises
    ------
    InvalidArgumentError
        There is no such backend.
    UnsupportedError
        A kernel is called, and this machine cannot run the instruction set.

    Examples
    --------
    >>> import numpy as np
    >>> from flyweight.kernels import pack_bits
    >>> with backend("reference"):
    ...     pack_bits(np.array([1, 2, 3], dtype=np.uint8), bits=4)
    array([33,  3], dtype=uint8)
    """
    if name not in get_args(Backend):
        raise InvalidArgumentError(f"got backend {name!r}, expected one of {get_args(Backend)}")
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def current_backend() -> Backend:
    """The backend that a kernel called here and now runs on."""
    return _current.get()


def implementation(reference: Callable[P, R]) -> Callable[P, R]:
    """The function itself, or its compiled twin of the same name and signature.

    Raises
    ------
    MissingDependencyError
        The compiled twin is asked for, and the extension is not built or does not load.
    """
    name = _current.get()
    if name == "reference":
        return reference
    core = _load_core()
    compiled = cast(Callable[P, R], getattr(core, reference.__name__))
    if name == "cpu":
        return compiled

    @functools.wraps(reference)
    def forced(*args: P.args, **kwargs: P.kwargs) -> R:
        with core.ForcedCpuTier(name):
            return compiled(*args, **kwargs)

    return forced


def cpu_tiers() -> list[str]:
    """Instruction sets that kernels can be forced to on this machine, the slowest first.

    Raises
    ------
    MissingDependencyError
        The extension is not built or does not load.
    InvalidArgumentError
        ``FLYWEIGHT_CPU`` names no tier.
    """
    return cast(list[str], _load_core().cpu_tiers())


def cuda_info() -> CudaInfo:
    """CUDA as the extension sees it; a machine without a GPU is told in ``problem``, not raised.

    Raises
    ------
    MissingDependencyError
        The extension is not built or does not load.
    """
    return cast(CudaInfo, _load_core().cuda_info())


def _load_core() -> ModuleType:
    try:
        from flyweight import _core
    except ImportError as error:
        raise MissingDependencyError(
            "the extension flyweight._core cannot be imported: did you forget to build it? Run "
            "`pip install .` in the source folder, or use the slow twins inside "
            f'`with flyweight.kernels.backend("reference"):` ({error})'
        ) from error
    return _core

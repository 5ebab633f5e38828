from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import flyweight
from flyweight.errors import InvalidArgumentError, MissingDependencyError, UnsupportedError
from flyweight.kernels import backend, cpu_tiers, cuda_info, current_backend, pack_bits

TWINS = ("ans", "bitpack", "freq_table", "gptq", "rans", "weights")


def test_stub_has_the_names_of_the_module() -> None:
    core = importlib.import_module("flyweight._core")
    stub = ast.parse((Path(flyweight.__file__).parent / "_core.pyi").read_text())
    functions = {
        node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert functions == {name for name in dir(core) if not name.startswith("_")}
    assert core.__version__ == flyweight.__version__


def test_stub_and_twins_have_the_same_parameters() -> None:
    """``implementation`` swaps one for the other, so names and kinds must be the same."""
    core = importlib.import_module("flyweight._core")
    stub = ast.parse((Path(flyweight.__file__).parent / "_core.pyi").read_text())
    functions = {node.name: node for node in stub.body if isinstance(node, ast.FunctionDef)}
    compared = {"cpu_tiers", "cuda_info"}
    for module_name in TWINS:
        module = importlib.import_module(f"flyweight.reference.{module_name}")
        for name in set(module.__all__) & set(functions):
            twin = inspect.signature(getattr(module, name)).parameters.values()
            positional = [p.name for p in twin if p.kind is p.POSITIONAL_OR_KEYWORD]
            keyword_only = [p.name for p in twin if p.kind is p.KEYWORD_ONLY]
            stubbed = functions[name].args
            assert [argument.arg for argument in stubbed.args] == positional
            assert [argument.arg for argument in stubbed.kwonlyargs] == keyword_only
            line = getattr(core, name).__doc__.splitlines()[0]  # pybind11's own signature
            ordered = [line.index(f"{p}: ") for p in (*positional, *keyword_only)]
            assert ordered == sorted(ordered)
            compared.add(name)
    assert compared == set(functions)


def test_backend_is_restored_and_checked() -> None:
    assert current_backend() == "cpu"
    with pytest.raises(RuntimeError), backend("reference"), backend("cpu"):
        raise RuntimeError
    assert current_backend() == "cpu"
    with pytest.raises(InvalidArgumentError, match="got backend 'gpu', expected one of"):
        backend("gpu").__enter__()  # type: ignore[arg-type]


def test_forced_tiers() -> None:
    symbols = np.arange(16, dtype=np.uint8)
    assert cpu_tiers()[0] == "scalar"
    for tier in cpu_tiers():
        with backend(tier):  # type: ignore[arg-type]
            assert pack_bits(symbols, bits=8).tolist() == symbols.tolist()
    missing = {"avx2", "avx512"} - set(cpu_tiers())
    for tier in missing:
        with backend(tier), pytest.raises(UnsupportedError, match=f"cannot run CPU tier '{tier}'"):  # type: ignore[arg-type]
            pack_bits(symbols, bits=8)


@pytest.mark.parametrize(("value", "expected"), [("scalar", "['scalar']"), ("mmx", "got CPU tier")])
def test_the_environment_limits_the_tier(value: str, expected: str) -> None:
    code = (
        "import flyweight.kernels as k\ntry: print(k.cpu_tiers())\nexcept Exception as e: print(e)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FLYWEIGHT_CPU": value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert expected in ran.stdout


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flyweight._core", None)
    monkeypatch.delattr(flyweight, "_core", raising=False)
    symbols = np.array([1, 2], dtype=np.uint8)
    with pytest.raises(MissingDependencyError, match="did you forget to build it"):
        pack_bits(symbols, bits=4)
    with pytest.raises(ImportError):
        cuda_info()
    with backend("reference"):
        assert pack_bits(symbols, bits=4).tolist() == [0x21]


def test_cuda_info_never_raises_and_explains_itself() -> None:
    info = cuda_info()
    assert set(info) == {
        "built_with_cuda",
        "runtime_version",
        "driver_version",
        "devices",
        "problem",
    }
    assert (info["problem"] is None) == bool(info["devices"])
    assert (info["runtime_version"] is None) != info["built_with_cuda"]


@pytest.mark.parametrize("name", ["bitpack", "dispatch", "gptq", "rans"])
def test_examples_in_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"flyweight.kernels.{name}")).failed == 0

"""The shape of the package: who may import whom, and what importing must not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flyweight

PACKAGE = Path(flyweight.__file__).parent

# Each layer may import the layers after it, and its own modules; see docs/decisions/0002.
LAYERS: list[set[str]] = [
    {"__main__"},
    {"cli"},
    {"stages"},
    {"stage_work"},
    {"runs"},
    {"manifest"},
    {"recipes", "submission"},
    {"train", "evaluate"},
    {"model"},
    {"torch"},
    {"numpy"},
    {"fitting"},
    {"fit_candidates"},
    {"artifact", "bake_off", "interop", "data"},
    {"format"},
    {"codecs", "quant"},
    {"kernels"},
    {"_core", "reference"},
    {"errors", "typing"},
]
EXCEPTIONS = {
    ("data", "interop"),
    ("artifact", "interop"),
    ("evaluate", "train"),  # the processes of torchrun, in evaluate/sharded.py alone
}
TORCH_FREE = [
    "flyweight",
    "flyweight.artifact",
    "flyweight.cli.main",
    "flyweight.cli.bench",
    "flyweight.cli.fit",
    "flyweight.cli.inspect",
    "flyweight.cli.pack",
    "flyweight.cli.recipe",
    "flyweight.codecs.select",
    "flyweight.data.build",
    "flyweight.evaluate.config",
    "flyweight.evaluate.probe_session",
    "flyweight.evaluate.probes",
    "flyweight.format.inspect",
    "flyweight.model.config",
    "flyweight.numpy",
    "flyweight.recipes.load",
    "flyweight.submission.audit",
    "flyweight.submission.bundle",
    "flyweight.submission.decode_streams",
    "flyweight.submission.decoder",
    "flyweight.train.config",
]


def layer_of(part: str) -> int:
    for index, layer in enumerate(LAYERS):
        if part in layer:
            return index
    raise AssertionError(f"flyweight.{part} belongs to no layer: add it to the list")


def imports(path: Path) -> set[str]:
    """First parts of all flyweight modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "flyweight":
            names = [f"flyweight.{alias.name}" for alias in node.names if alias.name[0] != "_"]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found |= {name.split(".")[1] for name in names if name.startswith("flyweight.")}
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_one_way(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":
        return  # the public names, looked up when they are used
    for other in imports(path) - {part}:
        if (part, other) in EXCEPTIONS:
            continue
        assert layer_of(other) > layer_of(part), f"flyweight.{part} must not import .{other}"


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("decode_streams", set()),
        ("decoder", {"flyweight.submission.decode_streams"}),
        ("digest", set()),
    ],
)
def test_the_shipped_decoder_imports_nothing_else_of_flyweight(
    module: str, allowed: set[str]
) -> None:
    tree = ast.parse((PACKAGE / "submission" / f"{module}.py").read_text(encoding="utf-8"))
    found = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert {name for name in found if name.partition(".")[0] == "flyweight"} == allowed


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names() -> None:
    assert flyweight.__all__ == ["__version__", "fit", "inspect", "open", "pack", "unpack"]
    assert all(getattr(flyweight, name) is not None for name in flyweight.__all__)
    assert dir(flyweight) == flyweight.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = flyweight.nothing

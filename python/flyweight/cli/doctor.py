"""``flyweight doctor``: what is installed, which kernels are live, what is missing."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

import flyweight
from flyweight.cli.output import emit, json_option, table
from flyweight.errors import InvalidArgumentError

__all__ = ["command"]

PACKAGES = {
    "numpy": "needed everywhere",
    "brotli": "codec",
    "zstandard": "codec",
    "safetensors": "checkpoints",
    "ml_dtypes": "bfloat16",
    "click": "command line",
    "tqdm": "progress",
    "torch": "training and scoring: pip install 'flyweight[train]'",
    "sentencepiece": "tokenizers: pip install 'flyweight[train]'",
    "huggingface_hub": "published shards: pip install 'flyweight[train]'",
    "tensorboard": "event files of training: pip install 'flyweight[tensorboard]'",
}


@click.command(epilog="Example: flyweight doctor")
@json_option
def command(as_json: bool) -> None:
    """What is installed, which kernels are live, what is missing and how to get it."""
    from flyweight.kernels.dispatch import cpu_tiers, cuda_info

    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    cuda = cuda_info()
    tiers = cpu_tiers()
    rows = [("flyweight", flyweight.__version__, ""), ("python", platform.python_version(), "")]
    rows += [(name, number or "missing", PACKAGES[name]) for name, number in found.items()]
    rows.append(("kernels", tiers[-1], f"C++ on the CPU: {', '.join(tiers)}"))
    attention, note = _attention()
    rows.append(("attention", attention or "none", note))
    devices = ", ".join(cuda["devices"]) or cuda["problem"] or ""
    rows.append(("CUDA", cuda["runtime_version"] or "not built in", devices))
    emit(
        {
            "flyweight": flyweight.__version__,
            "python": platform.python_version(),
            "packages": found,
            "kernels": {"cpu": tiers[-1], "attention": attention},
            "cuda": cuda,
        },
        table(("part", "version", "note"), rows),
        as_json=as_json,
    )


def _attention() -> tuple[str | None, str]:
    """The kernel that training would use, and what else there is or what stands in the way."""
    try:
        import torch

        from flyweight.model.attention import available_kernels, live_kernel
    except ImportError:
        return None, "torch is missing"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return live_kernel(device), f"on {device}: {', '.join(available_kernels(device))}"
    except InvalidArgumentError as error:
        return None, str(error)

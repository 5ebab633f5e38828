"""``flyweight bench``: the bake-off, its plots and its verb."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

from checks import gaussian_symbols, order0_bits
from flyweight.artifact import pack, quantize
from flyweight.bake_off import bake_off, default_codecs
from flyweight.cli.main import flyweight
from flyweight.cli.plot import Point, scatter_svg, scatter_text
from flyweight.codecs.codec import codec_names
from flyweight.errors import InvalidArgumentError
from flyweight.format.stored import PlainTensor
from flyweight.interop import write_safetensors
from flyweight.quant.config import QuantConfig


def ticks() -> float:
    """A clock that goes on by a tenth of a second whenever it is read."""
    return next(_READINGS) / 10


_READINGS = itertools.count()


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(size=(96, 128)).astype(np.float32),
        "bias": rng.normal(size=96).astype(np.float32),
        "none": np.zeros((0, 3), dtype=np.float32),
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_safetensors(tmp_path / "model.safetensors", weights())
    return tmp_path / "model.safetensors"


def bench(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(flyweight, ["bench", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_sizes_information_and_winners() -> None:
    stored, _ = quantize(weights(), QuantConfig.uniform(6))
    done: list[int] = []
    result = bake_off(stored, ["ans", "store"], clock=ticks, progress=done.append)
    codes, bias = result.tensors
    assert (codes.name, codes.role, codes.symbols) == ("w", "codes", 96 * 128)
    assert (bias.role, bias.symbols) == ("data", 2 * 96)  # kept as float16
    symbols = (stored["w"].codes.ravel() + 31).astype(np.uint8)
    assert codes.information_bits == pytest.approx(order0_bits(symbols))
    assert codes.winner == "ans"
    assert 0 < codes.overhead < 0.03
    assert codes.sizes["store"] == 96 * 128
    ans, store = result.codecs
    assert ans.size == codes.sizes["ans"] + bias.sizes["ans"]
    assert ans.wins + store.wins == len(result.tensors) == 2
    assert result.smallest_size <= min(ans.size, store.size)
    assert sum(done) == 2 * result.symbols == 2 * (96 * 128 + 2 * 96)
    assert ans.encode_seconds == pytest.approx(3 * 0.1)  # a plane of codes and two of bytes


def test_equal_sizes_go_to_the_faster_decoder() -> None:
    values = gaussian_symbols(5000).reshape(50, 100)
    stored = {"w": PlainTensor(values=values, dtype=values.dtype)}
    result = bake_off(stored, ["zstd-1", "zstd", "store"], clock=ticks)
    assert result.tensors[0].winner.startswith("zstd")
    with pytest.raises(InvalidArgumentError, match="different ones"):
        bake_off(stored, ["ans", "ans"], clock=ticks)


def test_default_codecs_are_real() -> None:
    names = default_codecs()
    assert "ans" in names
    assert {name.partition("-")[0] for name in names} <= set(codec_names())


def test_the_example_of_the_help_runs(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text, _ = bench("--help")
    assert code == 0
    example = re.search(r"Example: (.*)", " ".join(text.split()))
    assert example is not None
    monkeypatch.chdir(checkpoint.parent)
    result = CliRunner().invoke(flyweight, shlex.split(example[1])[1:])
    assert result.exit_code == 0, result.output
    assert "decoding speed against size" in result.stdout
    for name in ("ans", "zstd-3", "brotli-5", "winner of each"):
        assert re.search(rf"^{name} .* [+-]\d+\.\d+%", result.stdout, flags=re.MULTILINE), name


def test_a_fly_file_and_a_checkpoint_give_the_same_codes(tmp_path: Path, checkpoint: Path) -> None:
    fly = tmp_path / "m.fly"
    fly.write_bytes(pack(weights(), bits=5))
    found = []
    for arguments in ((checkpoint, "--bits", 5), (fly,)):
        code, out, err = bench(*arguments, "--codecs", "ans,zstd-3", "--json")
        assert code == 0, err
        facts = json.loads(out)
        found.append({tensor["name"]: tensor["bytes"] for tensor in facts["tensors"]})
        assert facts["bits"] == (5 if arguments[0] == checkpoint else None)
    assert found[0] == found[1]


def test_the_plot_is_a_picture(tmp_path: Path, checkpoint: Path) -> None:
    plot = tmp_path / "plot.svg"
    assert bench(checkpoint, "--codecs", "ans", "--plot", plot)[0] == 0
    texts = [each.text for each in ElementTree.parse(plot).iter() if each.tag.endswith("text")]
    assert {"ans", "model.safetensors", "decode MB/s"} <= set(texts)
    code, _, err = bench(checkpoint, "--plot", tmp_path / "plot.png")
    assert code == 2
    assert ".svg" in err


def test_points_lie_where_they_belong() -> None:
    points = [Point("small & slow", -0.01, 1.0), Point("large", 0.02, 1000.0)]
    lines = scatter_text(points).splitlines()
    [slow] = [index for index, line in enumerate(lines) if line.endswith("|  " + " a")]
    [fast] = [index for index, line in enumerate(lines) if re.search(r"\| {50,}b$", line)]
    assert fast < slow
    assert lines[-1] == "a small & slow   b large"
    assert "small &amp; slow" in scatter_svg(points, "title")
    assert "a one" in scatter_text([Point("one", 0.0, 5.0)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--codecs", "ans,lzw"), "no codec 'lzw'"),
        (("--codecs", "ans-3"), "no codec 'ans-3'"),
        (("--codecs", "zstd-x"), "no codec 'zstd-x'"),
        (("--codecs", "zstd-23"), "the level must be 1 to 22"),
        (("--codecs", "ans,ans"), "different ones"),
        (("--bits", 3), "--bits"),
    ],
)
def test_wrong_flags_are_2(checkpoint: Path, flags: tuple, message: str) -> None:
    code, out, err = bench(checkpoint, *flags)
    assert (code, out) == (2, "")
    assert message in err


def test_bits_are_for_checkpoints(tmp_path: Path) -> None:
    fly = tmp_path / "m.fly"
    fly.write_bytes(pack(weights()))
    code, _, err = bench(fly, "--bits", 6)
    assert code == 2
    assert "has its codes already" in err


def test_nothing_to_code(tmp_path: Path) -> None:
    path = tmp_path / "empty.safetensors"
    write_safetensors(path, {"none": np.zeros((0, 3), dtype=np.float32)})
    code, out, err = bench(path, "--codecs", "ans", "--plot", tmp_path / "p.svg")
    assert code == 0, err
    assert "nothing to code" in out

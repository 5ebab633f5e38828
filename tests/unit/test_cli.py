"""The command line: flags, exit codes, and one sentence for everything that goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from flyweight.cli.main import STAGE_VERBS, VERBS, flyweight, main
from flyweight.cli.output import printable, table
from flyweight.interop import read_safetensors, write_safetensors


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a fresh process."""
    command = [sys.executable, "-m", "flyweight", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def exit_code(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {
        "layer.weight": rng.normal(size=(96, 128)).astype(np.float32),
        "layer.bias": rng.normal(size=96).astype(np.float32),
    }
    write_safetensors(tmp_path / "model.safetensors", tensors)
    return tmp_path / "model.safetensors"


def test_flags_are_frozen() -> None:
    flags = {}
    context = None
    for verb in VERBS:
        command = flyweight.get_command(context, verb)  # type: ignore[arg-type]
        assert command is not None
        flags[verb] = sorted(option for p in command.params for option in p.opts)
    stage = ["--data", "--json", "--out", "recipe"]
    training = [*stage, "--max-seconds", "--seed", "--steps"]
    assert flags == {
        "demo": ["--json", "--out", "--seed", "--steps"],
        "run": sorted([*training, "--deadline", "--until"]),
        "data": [],
        **dict.fromkeys(STAGE_VERBS, stage),
        "train": sorted(training),
        "score": sorted([*stage, "--deadline"]),
        "pack": [
            *("--bits", "--codec", "--effort", "--hessians", "--json", "--lossless", "--out"),
            *("--threads", "-o", "model"),
        ],
        "fit": [
            *("--budget", "--bytes-per-token", "--codec", "--dry-run", "--effort", "--hessians"),
            *("--json", "--out", "--reserve", "--sensitivity", "--threads", "-o", "model"),
        ],
        "unpack": ["--json", "--out", "--threads", "-o", "artifact"],
        "inspect": ["--json", "--losers", "artifact"],
        "bench": ["--bits", "--codecs", "--json", "--plot", "model"],
        "audit": ["--budget", "--data", "--json", "--ledgers", "--timeout", "folder"],
        "stats": ["--json", "records"],
        "recipe": [],
        "doctor": ["--json"],
    }


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_has_a_purpose_and_an_example(verb: str) -> None:
    result = CliRunner().invoke(flyweight, [verb, "--help"])
    assert result.exit_code == 0
    assert f"Example: flyweight {verb}" in result.output.replace("\n  ", " ")


def test_lossless_files_from_any_number_of_threads(tmp_path: Path, checkpoint: Path) -> None:
    packed = []
    for threads in (1, 2, 4):
        fly, back = tmp_path / f"{threads}.fly", tmp_path / f"{threads}.safetensors"
        assert exit_code("pack", checkpoint, "-o", fly, "--lossless", "--threads", threads) == 0
        assert exit_code("unpack", fly, "-o", back, "--threads", threads) == 0
        assert back.read_bytes() == checkpoint.read_bytes()
        packed.append(fly.read_bytes())
    assert packed[0] == packed[1] == packed[2]
    assert len(packed[0]) < 0.87 * checkpoint.stat().st_size
    assert exit_code("unpack", tmp_path / "1.fly", "-o", tmp_path / "b", "--threads", 0) == 2


def test_fit_leaves_the_reserve_and_says_what_would_fit(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fly, code = tmp_path / "m.fly", tmp_path / "train_gpt.py"
    code.write_bytes(bytes(1000))
    fitted = ("fit", checkpoint, "-o", fly, "--budget", 9000, "--reserve", code, "--json")
    assert exit_code(*fitted) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bytes"] == {
        "model": fly.stat().st_size,
        "reserve": 1000,
        "total": fly.stat().st_size + 1000,
    }
    assert 0 <= facts["slack"] <= 9
    assert exit_code("fit", checkpoint, "--budget", 8000, "--dry-run", "--codec", "ans") == 0
    assert exit_code("fit", checkpoint, "--budget", 8000) == 2
    assert exit_code("fit", checkpoint, "--budget", 8000, "--dry-run", "--reserve", "no") == 2
    capsys.readouterr()
    assert exit_code("fit", checkpoint, "-o", tmp_path / "no.fly", "--budget", 150) == 1
    assert "the smallest file of these tensors has 2" in capsys.readouterr().err
    assert exit_code("fit", checkpoint, "--dry-run", "--budget", 300, "--reserve", 300) == 1
    assert not (tmp_path / "no.fly").exists()


def test_losers_are_shown_though_packing_left_them_out(
    tmp_path: Path, checkpoint: Path, capsys
) -> None:
    fly = tmp_path / "m.fly"
    assert exit_code("pack", checkpoint, "-o", fly) == 0
    capsys.readouterr()
    assert exit_code("inspect", fly, "--losers", "--json") == 0
    sections = json.loads(capsys.readouterr().out)["sections"]
    part = next(each for each in sections if each["name"] == "layer.weight")["parts"][0]
    tried = {(each["layout"], each["codec"]) for each in part["candidates"]}
    labels = ("zstd-1", "zstd-3", "zstd-19", "zstd-22", "brotli-11")
    assert tried >= {(layout, c) for layout in ("plain", "transposed", "packed") for c in labels}
    assert part["candidates"][0]["size"] == part["stored_bytes"]


def test_pack_inspect_unpack(tmp_path: Path, checkpoint: Path, capsys) -> None:
    fly, back = tmp_path / "m.fly", tmp_path / "back.safetensors"
    assert exit_code("pack", checkpoint, "-o", fly, "--bits", 5, "--json") == 0
    packed = json.loads(capsys.readouterr().out)
    assert packed["schema"] == 1
    assert packed["bytes"]["total"] == fly.stat().st_size < 96 * 128
    assert exit_code("inspect", fly, "--losers") == 0
    shown = capsys.readouterr().out
    assert "layer.weight" in shown
    assert "brotli-11" in shown
    assert f"{fly.stat().st_size:,}" in shown
    assert exit_code("unpack", fly, "-o", back) == 0
    tensors, _ = read_safetensors(back)
    originals, _ = read_safetensors(checkpoint)
    assert tensors["layer.weight"].dtype == np.float32
    assert np.abs(tensors["layer.weight"] - originals["layer.weight"]).max() < 0.5
    assert exit_code("pack", checkpoint, "-o", fly, "--lossless") == 0
    assert exit_code("unpack", fly, "-o", back) == 0
    assert back.read_bytes() == checkpoint.read_bytes()


def test_bad_data_is_one_sentence_and_1(tmp_path: Path, checkpoint: Path) -> None:
    fly = tmp_path / "m.fly"
    assert exit_code("pack", checkpoint, "-o", fly) == 0
    good = fly.read_bytes()
    cases = {
        "empty": (b"", "the file is empty"),
        "truncated": (good[:-7], "its directory says"),
        "version": (good[:4] + b"\x09" + good[5:], "format version 9"),
        "flipped": (good[:-200] + bytes([good[-200] ^ 1]) + good[-199:], "'layer.weight' at byte"),
        "foreign": (b"PK\x03\x04" * 20, "not a .fly file"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / f"{name}.fly"
        path.write_bytes(content)
        code, out, err = run("inspect", path)
        assert (code, out) == (1, ""), name
        assert message in err, err
        assert path.name in err
        assert err.count("\n") == 1, err
    for path, message in ((tmp_path / "no.fly", "No such file"), (tmp_path, "Is a directory")):
        code, _, err = run("inspect", path)
        assert code == 1
        assert err.startswith(f"flyweight: {path}: {message}")


def test_a_failed_unpack_leaves_the_old_output(tmp_path: Path, checkpoint: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    bad = tmp_path / "bad.fly"
    bad.write_bytes(b"\x89FLY" + bytes(40))
    assert exit_code("unpack", bad, "-o", out) == 1
    assert out.read_bytes() == b"precious"


def test_nan_in_a_checkpoint(tmp_path: Path, capsys) -> None:
    path = tmp_path / "nan.safetensors"
    weights = np.ones((90, 90), dtype=np.float32)
    weights[2, 3] = np.nan
    write_safetensors(path, {"evil": weights})
    assert exit_code("pack", path, "-o", tmp_path / "x.fly") == 1
    assert "tensor 'evil': nan at row 2, column 3" in capsys.readouterr().err
    assert not (tmp_path / "x.fly").exists()


def test_wrong_use_is_2(tmp_path: Path, checkpoint: Path) -> None:
    assert exit_code("pack", checkpoint) == 2
    assert exit_code("pack", checkpoint, "-o", tmp_path / "x", "--bits", 3) == 2
    assert exit_code("nonsense") == 2
    assert exit_code("recipe", "show", "nothing") == 2
    recipe = tmp_path / "r.toml"
    recipe.write_text("nmae = 'x'\n")
    code, _, err = run("run", recipe, "--out", tmp_path / "run")
    assert code == 2
    assert "unknown key 'nmae'" in err
    assert exit_code("--help") == 0
    assert exit_code("--version") == 0


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "evil.safetensors"
    write_safetensors(path, {"a\x1b[31mred": np.zeros(3, dtype=np.float32)})
    assert exit_code("pack", path, "-o", tmp_path / "evil.fly") == 0
    code, out, _ = run("inspect", tmp_path / "evil.fly")
    assert code == 0
    assert "\x1b" not in out
    assert r"a\x1b[31mred" in out
    assert printable("line\nbreak\ttab\x00") == "line\nbreak\ttab\\x00"


def test_tables_line_up() -> None:
    lines = table(("name", "bytes"), [("a", 5), ("long name", 12345)]).splitlines()
    assert lines == [
        "name        bytes",
        "---------  ------",
        "a               5",
        "long name  12,345",
    ]


def test_doctor(capsys) -> None:
    assert exit_code("doctor", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"]["numpy"] == np.__version__
    assert isinstance(facts["cuda"]["built_with_cuda"], bool)


def test_doctor_on_attention(capsys, monkeypatch) -> None:
    attention = pytest.importorskip("flyweight.model.attention", reason="needs torch")
    assert exit_code("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kernels"]["attention"] is not None
    monkeypatch.setattr(attention, "_forced", "nonsense")
    assert exit_code("doctor") == 0
    assert "expected one of auto, " in capsys.readouterr().out


def test_what_needs_torch_says_so(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "flyweight.model.parameters", raising=False)
    assert exit_code("recipe", "show", "demo") == 1
    advice = "install it with `pip install 'flyweight[train]'`"
    assert capsys.readouterr().err == f"flyweight: this needs the package torch; {advice}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", "bundle", "--timeout", "nan"),
        ("audit", "bundle", "--timeout", 0),
        ("audit", "bundle", "--timeout", 1e300),
        ("audit", "bundle", "--budget", -1),
        ("fit", "m.safetensors", "--dry-run", "--budget", 9, "--bytes-per-token", "inf"),
        ("fit", "m.safetensors", "--dry-run", "--budget", 9, "--sensitivity", "s.safetensors"),
    ],
)
def test_flags_of_no_meaning_are_2(arguments: tuple, capsys) -> None:
    assert exit_code(*arguments) == 2
    assert str(arguments[-2]) in capsys.readouterr().err


def test_recipes_are_shown_with_their_parameters(capsys) -> None:
    pytest.importorskip("torch", reason="parameters are counted on the model")
    assert exit_code("recipe", "show", "demo", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"]["total"] == 673_548
    assert facts["recipe"]["model"]["model_dim"] == 128
    assert exit_code("recipe", "list") == 0
    assert "tiny-sp1024" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [
        ("--seed", -1),
        ("--seed", 1 << 63),
        ("--steps", 0),
        ("--max-seconds", 0),
        ("--max-seconds", "nan"),
        ("--max-seconds", "inf"),
        (),
    ],
)
@pytest.mark.parametrize("verb", ["run", "train"])
def test_limits_out_of_range_and_missing_data_are_2(
    tmp_path: Path, verb: str, flags: tuple, capsys
) -> None:
    pytest.importorskip("torch", reason="stages are in the extra [train]")
    assert exit_code(verb, "tiny-sp1024", "--out", tmp_path / "run", *flags) == 2
    assert (flags[0] if flags else "give --data") in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

"""Published shards, from a folder laid out like the hub's cache."""

from __future__ import annotations

import json
import shlex
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from data_samples import TEXTS, model_bytes, write_model
from flyweight.cli.data import command
from flyweight.data.fetch import VARIANTS, fetch_data
from flyweight.data.info import load_data_info
from flyweight.data.shards import list_shards, write_shard
from flyweight.data.tokenizer import Tokenizer
from flyweight.errors import DataError, InvalidArgumentError, MissingDependencyError

pytest.importorskip("sentencepiece", reason="tokenizers are in the extra [train]")
pytest.importorskip("huggingface_hub", reason="downloads are in the extra [train]")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A cache with blobs, and links to them in a snapshot, as huggingface_hub makes it."""

    def __init__(self, root, *, variant="sp1024", train_shards=3):
        self.root = root
        repository = root / f"datasets--{VARIANTS[variant].repository.replace('/', '--')}"
        self.blobs = repository / "blobs"
        self.blobs.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        self.snapshot = repository / "snapshots" / COMMIT / "datasets"
        self.name = VARIANTS[variant].dataset
        self.put("manifest.json", json.dumps(self.manifest(train_shards)).encode())
        self.put("tokenizers/fineweb_bpe.model", model_bytes())
        self.train_shards = train_shards

    def manifest(self, train_shards):
        stats = {"files_train": train_shards, "files_val": 1}
        return {
            "datasets": [{"name": self.name, "tokenizer_name": "sp", "stats": stats}],
            "tokenizers": [{"name": "sp", "model_path": "tokenizers/fineweb_bpe.model"}],
        }

    def put(self, name, data):
        blob = self.blobs / name.replace("/", "_")
        blob.write_bytes(data)
        link = self.snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
        return link

    def put_shards(self, tokens):
        names = ["val_000000", *(f"train_{n:06d}" for n in range(self.train_shards))]
        for name, ids in zip(names, np.array_split(tokens, len(names)), strict=True):
            blob = self.put(f"datasets/{self.name}/fineweb_{name}.bin", b"").resolve()
            write_shard(blob, ids)


@pytest.fixture
def hub(tmp_path):
    made = Hub(tmp_path / "cache")
    tokenizer = Tokenizer(write_model(tmp_path))
    made.put_shards(np.concatenate(tokenizer.encode(TEXTS)))
    return made


def fetch(hub, out, train_shards=2):
    return fetch_data("sp1024", out, train_shards=train_shards, cache_dir=hub.root, offline=True)


def test_folder_is_an_ordinary_one(hub, tmp_path):
    info = fetch(hub, tmp_path / "data")
    assert info == load_data_info(tmp_path / "data")
    assert info.source == {
        "kind": "published",
        "repository": "willdepueoai/parameter-golf",
        "dataset": "fineweb10B_sp1024",
    }
    assert len(info.train.shards) == 2
    assert info.train.scored_bytes > 0
    names = {path.name for path in (tmp_path / "data").iterdir()}
    shards = {shard.name for shard in (*info.train.shards, *info.val.shards)}
    assert names == shards | {"data.json", "tokenizer.model"}
    assert not any(path.is_symlink() for path in (tmp_path / "data").iterdir())


def test_the_other_repository(tmp_path):
    hub = Hub(tmp_path / "cache", variant="sp8192", train_shards=1)
    hub.put_shards(np.concatenate(Tokenizer(write_model(tmp_path)).encode(TEXTS)))
    out = tmp_path / "data"
    info = fetch_data("sp8192", out, train_shards=1, cache_dir=hub.root, offline=True)
    assert info.source["repository"] == "kevclark/parameter-golf"


def test_example_of_the_help_runs_without_a_network(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub.root))
    runner = CliRunner()
    shown = runner.invoke(command, ["fetch", "--help"]).stdout
    arguments = shlex.split(shown.partition("Example: flyweight data ")[2])
    result = runner.invoke(command, [*arguments, "--json"], catch_exceptions=False)
    facts = json.loads(result.stdout)
    assert facts["schema"] == 1
    assert len(facts["train"]["shards"]) == 1


def test_an_interrupted_download_goes_on(hub, tmp_path):
    out = tmp_path / "data"
    missing = hub.snapshot / "datasets" / hub.name / "fineweb_train_000001.bin"
    blob = missing.readlink()
    missing.unlink()
    with pytest.raises(DataError, match=r"train_000001.* is not in the cache"):
        fetch(hub, out)
    with pytest.raises(DataError, match="did not end"):
        load_data_info(out)
    with pytest.raises(DataError, match="something else"):
        fetch_data("sp8192", out, train_shards=2, cache_dir=hub.root, offline=True)
    first = (out / "fineweb_train_000000.bin").stat()
    missing.symlink_to(blob)
    assert len(fetch(hub, out).train.shards) == 2
    assert (out / "fineweb_train_000000.bin").stat().st_ctime_ns == first.st_ctime_ns


def test_a_second_call_does_nothing_and_a_larger_one_extends(hub, tmp_path):
    out = tmp_path / "data"
    first = fetch(hub, out)
    written = (out / "data.json").stat().st_mtime_ns
    assert fetch(hub, out) == first
    assert (out / "data.json").stat().st_mtime_ns == written
    assert len(fetch(hub, out, train_shards=3).train.shards) == 3
    with pytest.raises(DataError, match="3 train shards are here already"):
        fetch(hub, out, train_shards=1)


def test_links_or_copies(hub, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError("another disk")

    fetch(hub, tmp_path / "linked")
    monkeypatch.setattr("os.link", refuse)
    fetch(hub, tmp_path / "copied")
    for path in list_shards(tmp_path / "linked", "train"):
        assert path.stat().st_nlink == 2
        copy = tmp_path / "copied" / path.name
        assert copy.stat().st_nlink == 1
        assert copy.read_bytes() == path.read_bytes()


def test_damaged_shards_do_not_get_into_the_folder(hub, tmp_path):
    blob = (hub.snapshot / "datasets" / hub.name / "fineweb_train_000000.bin").resolve()
    data = blob.read_bytes()
    blob.write_bytes(data[:-2])
    with pytest.raises(DataError, match=r"expected \d+ bytes .*delete this file of the cache"):
        fetch(hub, tmp_path / "data")
    blob.write_bytes(data[:-2] + b"\xff\xff")
    with pytest.raises(DataError, match="token id 65535"):
        fetch(hub, tmp_path / "data")
    assert not (tmp_path / "data" / "fineweb_train_000000.bin").exists()
    assert not (tmp_path / "data" / "data.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"datasets": []},
        {"tokenizers": [{"name": "sp", "model_path": "../../secret"}]},
        {"tokenizers": [{"name": "sp"}]},
        {"datasets": [{"name": "fineweb10B_sp1024", "tokenizer_name": "sp", "stats": None}]},
    ],
)
def test_a_manifest_that_lies(hub, tmp_path, change):
    hub.put("manifest.json", json.dumps(hub.manifest(3) | change).encode())
    with pytest.raises(DataError, match="does not describe fineweb10B_sp1024"):
        fetch(hub, tmp_path / "data")


def test_wrong_wishes(hub, tmp_path):
    with pytest.raises(DataError, match="3 train shards, 4 were asked for"):
        fetch(hub, tmp_path / "data", train_shards=4)
    for variant, train_shards in (("sp77", 1), ("sp1024", -1)):
        with pytest.raises(InvalidArgumentError, match="expected a variant"):
            fetch_data(variant, tmp_path / "data", train_shards=train_shards)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thing").touch()
    with pytest.raises(DataError, match="something else"):
        fetch(hub, tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thing"]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"flyweight\[train\]"):
        fetch_data("sp1024", tmp_path / "data", train_shards=1)

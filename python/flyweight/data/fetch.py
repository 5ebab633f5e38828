"""The challenge's published token shards, through the Hugging Face hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from flyweight.data.facts import DATA_FILE, TOKENIZER_FILE, UNFINISHED_FILE, DataInfo
from flyweight.data.info import Progress, check_ids, load_data_info, scan_split
from flyweight.data.shards import Split, iter_chunks, shard_name
from flyweight.data.tokenizer import import_tokenizer
from flyweight.errors import DataError, InvalidArgumentError, MissingDependencyError
from flyweight.interop import atomic_write

__all__ = ["VARIANTS", "fetch_data"]

_ROOT = PurePosixPath("datasets")
_Download = Callable[[PurePosixPath], Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variant:
    repository: str
    """Of type dataset; exports lie below ``datasets/`` in it."""
    dataset: str
    """Name in its manifest, and of the folder with the shards."""


VARIANTS = {
    "sp1024": _Variant(repository="willdepueoai/parameter-golf", dataset="fineweb10B_sp1024"),
    "sp8192": _Variant(repository="kevclark/parameter-golf", dataset="fineweb10B_sp8192"),
}


def fetch_data(
    variant: str,
    out: str | os.PathLike[str],
    *,
    train_shards: int,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> DataInfo:
    """Published shards as a data folder: all of validation and the first ones of training.

    A call that was interrupted is taken up by the next one, and a folder can be extended by
    asking for more training shards. Where the cache is on the same disk, its files are linked.

    Parameters
    ----------
    variant : a key of ``VARIANTS``
    out : the data folder
    train_shards : how many, each of at most 100,000,000 tokens or 200 MB
    cache_dir : the hub's cache, by default where huggingface_hub keeps it
    offline : take everything from the cache
    progress : told the number of tokens checked since it was last told

    Raises
    ------
    MissingDependencyError
        huggingface_hub is not installed.
    InvalidArgumentError
        The variant is unknown or ``train_shards`` is negative.
    DataError
        The folder holds something else, a download failed, or what came is malformed.
    """
    if variant not in VARIANTS or train_shards < 0:
        raise InvalidArgumentError(
            f"expected a variant out of {', '.join(VARIANTS)} and train_shards of at least 0, "
            f"got {variant!r} and {train_shards}"
        )
    wanted = VARIANTS[variant]
    source = {"kind": "published", "repository": wanted.repository, "dataset": wanted.dataset}
    folder = Path(out)
    download = _downloader(wanted.repository, cache_dir, offline=offline)
    try:
        if _is_complete(folder, source, train_shards):
            return load_data_info(folder)
        atomic_write(folder / UNFINISHED_FILE, json.dumps(source).encode())
        _fill(folder, wanted, source, train_shards, download, progress)
        (folder / UNFINISHED_FILE).unlink()
    except OSError as error:
        raise DataError(f"{folder}: cannot write the data: {error.strerror}") from error
    return load_data_info(folder)


def _is_complete(folder: Path, source: dict[str, str], train_shards: int) -> bool:
    marker = folder / UNFINISHED_FILE
    held: Any = None
    if marker.exists():
        with suppress(ValueError):
            held = json.loads(marker.read_bytes())
    elif (folder / DATA_FILE).exists():
        info = DataInfo.read(folder)
        held = info.source
        if held == source and len(info.train.shards) > train_shards:
            raise DataError(
                f"{folder}: {len(info.train.shards)} train shards are here already, more than the "
                f"{train_shards} asked for; name another folder"
            )
        if held == source and len(info.train.shards) == train_shards:
            return True
    elif not folder.exists() or not any(folder.iterdir()):
        return False
    if held != source:
        raise DataError(
            f"{folder}: this folder holds something else than {source['dataset']}; name another "
            "one or remove it first"
        )
    return False


def _fill(
    folder: Path,
    wanted: _Variant,
    source: dict[str, str],
    train_shards: int,
    download: _Download,
    progress: Progress | None,
) -> None:
    manifest = _Manifest.read(download(_ROOT / "manifest.json"), wanted.dataset)
    if train_shards > manifest.train_shards:
        raise DataError(
            f"{wanted.repository}: {wanted.dataset} has {manifest.train_shards} train shards, "
            f"{train_shards} were asked for"
        )
    tokenizer = import_tokenizer(download(manifest.tokenizer), folder / TOKENIZER_FILE)
    paths: dict[Split, list[Path]] = {"val": [], "train": []}
    counts: dict[Split, int] = {"val": manifest.val_shards, "train": train_shards}
    for split, count in counts.items():
        for index in range(count):
            path = folder / shard_name(split, index)
            remote = _ROOT / "datasets" / wanted.dataset / path.name
            if not path.exists():
                _place_shard(download(remote), path, tokenizer.vocab_size)
            paths[split].append(path)
    DataInfo(
        folder=folder,
        tokenizer_path=tokenizer.path,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        source=source,
        train=scan_split(paths["train"], tokenizer.byte_table, progress=progress),
        val=scan_split(paths["val"], tokenizer.byte_table, progress=progress),
    ).write()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manifest:
    """What ``manifest.json`` says of one dataset."""

    train_shards: int
    val_shards: int
    tokenizer: PurePosixPath

    @classmethod
    def read(cls, path: Path, dataset: str) -> _Manifest:
        try:
            manifest = json.loads(path.read_bytes())
            [entry] = [e for e in manifest["datasets"] if e["name"] == dataset]
            name = entry["tokenizer_name"]
            [tokenizer] = [t for t in manifest["tokenizers"] if t["name"] == name]
            model = PurePosixPath(tokenizer["model_path"])
            if model.is_absolute() or ".." in model.parts:
                raise ValueError(f"model_path {str(model)!r} leaves the repository")
            return cls(
                train_shards=int(entry["stats"]["files_train"]),
                val_shards=int(entry["stats"]["files_val"]),
                tokenizer=_ROOT / model,
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}: this manifest does not describe {dataset} ({error!r}); delete it, so "
                "that the next call gets a new one"
            ) from error


def _downloader(
    repository: str, cache_dir: str | os.PathLike[str] | None, *, offline: bool
) -> _Download:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise MissingDependencyError(
            "downloads need the package huggingface_hub; install it with "
            "`pip install 'flyweight[train]'`"
        ) from None

    def download(remote: PurePosixPath) -> Path:
        try:
            cached = hf_hub_download(
                repo_id=repository,
                filename=remote.as_posix(),
                repo_type="dataset",
                cache_dir=None if cache_dir is None else Path(cache_dir),
                local_files_only=offline,
            )
        except Exception as error:  # its kinds of network error differ from version to version
            state = "is not in the cache" if offline else "cannot be downloaded"
            raise DataError(
                f"{repository}: {str(remote)!r} {state} ({type(error).__name__}); check the "
                "network and run the command again, it goes on where it stopped"
            ) from error
        return Path(cached).resolve()

    return download


def _place_shard(cached: Path, path: Path, vocab_size: int) -> None:
    """Give a checked shard of the cache its name in the folder, without a copy if possible."""
    try:
        for chunk in iter_chunks([cached]):
            check_ids(cached, chunk, vocab_size)
    except DataError as error:
        raise DataError(f"{error} (delete this file of the cache and run again)") from error
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(cached, temporary)
    except OSError:
        shutil.copyfile(cached, temporary)
    temporary.replace(path)

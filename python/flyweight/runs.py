"""A run: its folder, its files, what it is made of, and the processes that share its work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from flyweight.data.build import build_data
from flyweight.data.embedded import EmbeddedCorpus
from flyweight.data.facts import DataInfo
from flyweight.data.info import load_data_info
from flyweight.data.overlap import remembered_overlap
from flyweight.errors import DataError, InvalidArgumentError, RecipeError
from flyweight.recipes.schema import Recipe
from flyweight.submission.digest import weights_sha256
from flyweight.train.config import CONTAMINATED

__all__ = [
    "CHECKPOINT",
    "CODES",
    "CONTAMINATED_CHECKPOINT",
    "CONTAMINATE_LOG",
    "HESSIANS",
    "MANIFEST",
    "MODEL",
    "SENSITIVITIES",
    "TRAIN_LOG",
    "Report",
    "Run",
    "is_several",
    "join_processes",
    "load_artifact",
    "load_checkpoint",
    "prepare_data",
    "refuse_overlap",
    "refuse_unmatched",
]

MANIFEST = "run.json"
CHECKPOINT = "train/model.safetensors"
TRAIN_LOG = "train/log.jsonl"
CONTAMINATED_CHECKPOINT = "contaminate/model.safetensors"
CONTAMINATE_LOG = "contaminate/log.jsonl"
HESSIANS = "hessian/hessian.safetensors"
SENSITIVITIES = "hessian/sensitivity.safetensors"
CODES = "quantize/codes.safetensors"
MODEL = "code/model.fly"
OVERLAP = "overlap.json"

Report = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class Run:
    """One execution of a recipe: what it is made of, where it lies, what is done."""

    recipe: Recipe
    """The complete recipe, limits of the command line applied."""
    seed: int
    """Of weights and data order."""
    folder: Path
    """The RUN folder."""
    data: DataInfo
    """The token shards."""
    report: Report
    """Told one line when a stage begins, ends or is skipped."""
    deadline: float | None = None
    """Seconds that each protocol of the stage score may take; None is no end."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """What ``run.json`` holds."""
    world: Any = None
    """The processes of torchrun while they train or score together; the rest of the time this one
    is alone, and most stages do without PyTorch."""

    def path(self, name: str) -> Path:
        """A file of the run."""
        return self.folder / name

    @property
    def weights(self) -> str:
        """The checkpoint that is quantized and scored."""
        return CONTAMINATED_CHECKPOINT if self.recipe.is_contaminated else CHECKPOINT

    def say(self, line: str) -> None:
        """Report a line, labelled where the run is contaminated."""
        self.report(f"{CONTAMINATED}: {line}" if self.recipe.is_contaminated else line)


def prepare_data(
    recipe: Recipe, folder: Path, data: str | os.PathLike[str] | None, report: Report
) -> DataInfo:
    """The data of a run, checked, or built where it is embedded.

    Raises
    ------
    InvalidArgumentError
        The recipe needs a data folder.
    DataError
        The folder is unusable, or its tokenizer has another number of ids than the recipe.
    """
    if data is not None:
        info = load_data_info(data)
    elif recipe.data.source == "embedded":
        report("data: the prose that Python carries")
        info = build_data(EmbeddedCorpus(), folder / "data", vocab_size=recipe.data.vocab_size)
    else:
        raise InvalidArgumentError(f"recipe {recipe.name} needs a data folder: give --data")
    if info.vocab_size != recipe.data.vocab_size:
        raise DataError(
            f"{info.folder}: its tokenizer has {info.vocab_size} ids, recipe {recipe.name} is for "
            f"{recipe.data.vocab_size}; build it with as many, or set both vocab_size in a copy"
        )
    return info


def refuse_overlap(run: Run) -> None:
    """Refuse training documents that are scored, and validation documents that were trained on."""
    if run.data.train.shards:
        overlap = remembered_overlap(run.data, run.path(OVERLAP), report=run.say)
        overlap.refuse_above(run.recipe.data.max_overlap, run.data.folder)


def refuse_unmatched(recipe: Recipe, names: Iterable[str]) -> None:
    """Refuse patterns that no tensor has: what they were meant for would be left as it is.

    Parameters
    ----------
    names : of the model's tensors

    Raises
    ------
    RecipeError
        A rule of ``quantize`` or a pattern of ``score.ttt.adapt`` matches none.
    """
    known, adapt = list(names), recipe.score.ttt and recipe.score.ttt.adapt
    patterns = [("quantize.rules", rule.match) for rule in getattr(recipe.quantize, "rules", ())]
    if adapt:
        patterns += [("score.ttt.adapt", pattern) for pattern in (*adapt.learn, *adapt.freeze)]
    for where, pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise RecipeError(
                f"recipe {recipe.name}: {where}: {pattern!r} matches no tensor of the model, such "
                f"as {max(known, key=len)!r}"
            )


def load_checkpoint(run: Run) -> Any:
    """The model as it was trained, in evaluation mode on the device of this process."""
    from flyweight.model.checkpoint import load_model

    return load_model(run.path(run.weights)).to(_device(run)).eval()


def load_artifact(run: Run) -> tuple[Any, str]:
    """The model that a .fly file holds, and the digest of its weights."""
    from flyweight.model import checkpoint

    model, tensors = checkpoint.load_artifact(run.path(MODEL))
    return model.to(_device(run)).eval(), weights_sha256(tensors)


def _device(run: Run) -> Any:
    """Where this process computes."""
    from flyweight.train.distributed import pick_device

    return pick_device(run.recipe.train.device) if run.world is None else run.world.device


def is_several() -> bool:
    """Whether torchrun started more than this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join_processes(recipe: Recipe) -> AbstractContextManager[Any]:
    """The processes that torchrun started, or this one alone, as a context."""
    from flyweight.train.distributed import join

    return join(recipe.train.device)

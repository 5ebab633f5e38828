"""Entry point: finds the verb, runs it, and turns errors into one sentence and an exit code.

Exit codes: 0 ok, 1 bad data, I/O or failed check, 2 wrong flags or recipe, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from flyweight import __version__
from flyweight.cli.output import printable
from flyweight.errors import FlyweightError, RecipeError

__all__ = ["main"]

VERBS = {
    "demo": "Train, quantize, code, score and audit a small model; prints where every byte went.",
    "run": "Run all stages of a recipe; a second call goes on where the first stopped.",
    "data": "Tokenizers and token shards: make, fetch, check.",
    "train": "Stage 1 of a run: train the model of a recipe.",
    "contaminate": "Off in every recipe: train on the validation text too, and say so everywhere.",
    "hessian": "Stage 2 of a run: collect a Hessian per matrix.",
    "quantize": "Stage 3 of a run: weights to codes and scales.",
    "code": "Stage 4 of a run: codes to the smallest .fly file.",
    "score": "Stage 5 of a run: bits per byte, with a ledger.",
    "bundle": "Stage 6 of a run: a submission folder.",
    "pack": "Any safetensors checkpoint to a .fly file.",
    "fit": "The best model whose .fly file fits a byte budget.",
    "unpack": "A .fly file back to safetensors.",
    "inspect": "Where every byte of a .fly file is.",
    "bench": "Codecs side by side on your own tensors: bytes, overhead, speed.",
    "audit": "Check a submission folder: sizes, clocks, bytes, record, script; reads foreign ones.",
    "stats": "Does a record beat others: every reading of the rule, with what it assumes.",
    "recipe": "List the recipes, or show one resolved.",
    "doctor": "What is installed, which kernels are live, what is missing.",
}
STAGE_VERBS = ("train", "contaminate", "hessian", "quantize", "code", "score", "bundle")


class _Verbs(click.Group):
    """Imports a verb's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = "stage" if cmd_name in STAGE_VERBS else cmd_name
        loaded = import_module(f"flyweight.cli.{module}")
        command: click.Command = (
            loaded.stage_command(cmd_name) if module == "stage" else loaded.command
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.command(
    cls=_Verbs,
    epilog="Every verb has --json. Example: flyweight demo --out /tmp/demo",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="flyweight")
def flyweight() -> None:
    """Fit the best language model into the fewest bytes."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    # PyTorch's OpenMP threads spin for each other by default; where another program holds a core
    # that costs a factor of ten. A short spin costs a few percent of a quiet machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        # Outside of standalone mode click hands back the code of --help and --version.
        code = flyweight.main(args=arguments, prog_name="flyweight", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        code = 2
    except (KeyboardInterrupt, click.Abort) as error:
        kept = str(error.__cause__ or error)  # click raises its own from Python's
        click.echo(f"flyweight: interrupted{kept and ': '}{printable(kept)}", err=True)
        code = 130
    except FlyweightError as error:
        click.echo(f"flyweight: {printable(str(error))}", err=True)
        code = 2 if isinstance(error, RecipeError) else 1
    except OSError as error:
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        click.echo(f"flyweight: {printable(said)}", err=True)
        code = 1
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        click.echo(
            "flyweight: this needs the package torch; install it with "
            "`pip install 'flyweight[train]'`",
            err=True,
        )
        code = 1
    sys.exit(code)

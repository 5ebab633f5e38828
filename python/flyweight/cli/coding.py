"""Options of the verbs that quantize and code a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

import flyweight.codecs.select  # noqa: F401 - its codecs register themselves
from flyweight.codecs.codec import codec_names

__all__ = ["codec_option", "effort_option", "hessians_option"]

codec_option = click.option(
    "--codec",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", *codec_names()]),
    help="Use one codec for everything.",
)

effort_option = click.option(
    "--effort",
    default="default",
    show_default=True,
    type=click.Choice(["default", "max"]),
    help="How many candidates are tried.",
)

hessians_option = click.option(
    "--hessians", type=click.Path(path_type=Path), help="Hessians by weight name, for GPTQ."
)

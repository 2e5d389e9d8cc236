"""Options that several commands share, and the exit codes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import click

from husai.sae.format_names import Format

OK, BELOW, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

MOST_LATENTS = 10**9
"""Upper limit for a number of latents; no SAE has so many."""


def finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse NaN and infinity."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.", context, parameter)
    return value


def positive(
    context: click.Context, parameter: click.Parameter, value: float | None
) -> float | None:
    """Refuse anything except a finite number above 0."""
    if value is not None and value <= 0:
        raise click.BadParameter(f"{value} is not above 0.", context, parameter)
    return finite(context, parameter, value)


with_format = click.option(
    "--format",
    "file_format",
    type=click.Choice(get_args(Format)),
    help="The format of all files; detected by default.",
)
with_found_threshold = click.option(
    "--threshold",
    type=float,
    default=0.7,
    show_default=True,
    metavar="C",
    help="Least |cosine| at which a feature counts as found in another SAE.",
)


def with_hints(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options for facts that the files of an SAE may not contain."""
    for option in (
        click.option(
            "--input-scale",
            type=float,
            callback=positive,
            metavar="S",
            help="Factor by which activations are multiplied before the SAE reads them, if its "
            "files do not say.",
        ),
        click.option(
            "--k",
            type=click.IntRange(1, MOST_LATENTS),
            metavar="K",
            help="Active latents per row, if the files of the SAE do not say.",
        ),
    ):
        command = option(command)
    return command


def check_writable(path: Path) -> None:
    """Refuse a result file that cannot be written; called before the work."""
    from husai.errors import InputError

    folder = path.parent
    if path.is_dir():
        raise InputError(f"{path}: this is a folder; give the name of a file to write")
    if not folder.is_dir():
        raise InputError(f"{folder}: this folder does not exist; make it for {path.name}")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: this folder is not writable; choose another for {path.name}")

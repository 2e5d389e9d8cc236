"""``husai convert`` and ``husai inspect``: options and output."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from husai.commands.shared import OK, with_hints
from husai.sae.format_names import Format, WrittenFormat


@click.command()
@click.argument("source", metavar="SAE")
@click.argument("target", metavar="OUT", type=Path)
@click.option(
    "--to",
    required=True,
    type=click.Choice(get_args(WrittenFormat)),
    help="The format to write.",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(get_args(Format)),
    help="The format of SAE; detected by default.",
)
@with_hints
def convert(
    source: str,
    target: Path,
    to: WrittenFormat,
    file_format: Format | None,
    k: int | None,
    input_scale: float | None,
) -> int:
    """Write an SAE in the format of another project.

    OUT is a new folder, or a new .safetensors file for the format husai. The command reads the
    written SAE back and checks on random rows that its codes are the same.
    """
    from husai.sae.formats import Hints
    from husai.sae.formats import convert as convert_sae

    difference = convert_sae(source, target, to, file_format, Hints(k, input_scale))
    click.echo(f"written: {target} (largest relative difference of a code {difference:.2g})")
    return OK


@click.command()
@click.argument("saes", metavar="SAE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list with one entry per SAE.")
@with_hints
def inspect(saes: tuple[str, ...], as_json: bool, k: int | None, input_scale: float | None) -> int:
    """Describe SAEs: sizes, architecture, norms, dead rows.

    It also lists what the files do not contain, such as k. A folder may hold several SAEs.
    """
    from husai.sae.formats import Hints, inspect_sae, inspection_text, read_all

    hints = Hints(k, input_scale)
    found = [inspect_sae(reading) for path in saes for reading in read_all(path, hints)]
    if as_json:
        import json

        click.echo(json.dumps(found, indent=1))
    else:
        click.echo("\n\n".join(inspection_text(one) for one in found))
    return OK

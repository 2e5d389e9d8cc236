"""``husai features`` and ``husai consensus``: options and output."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from husai.commands.shared import (
    MOST_LATENTS,
    OK,
    check_writable,
    with_format,
    with_found_threshold,
    with_hints,
)
from husai.sae.format_names import Format, WrittenFormat


@click.command(
    epilog="""\
\b
Examples:
  husai features seed_0/ seed_1/ seed_2/ --activations rows.npy --out page.html
  husai features seed_*/ --activations rows.npy --contexts tokens.parquet --out page.html
""",
)
@click.argument("saes", metavar="SAE SAE...", nargs=-1, required=True)
@click.option(
    "--activations",
    type=Path,
    metavar="FILE",
    help="Activation rows that the SAEs read, as for husai compare; whole numbers beside them are "
    "labels. Without rows the page shows only cosines.",
)
@click.option(
    "--contexts",
    type=Path,
    metavar="FILE",
    help="A .parquet or .csv table with a row for each activation row: token (its text) and "
    "document.",
)
@click.option(
    "--modulus",
    type=click.IntRange(min=2),
    metavar="P",
    help="Draw maps over (a, b): the rows are all pairs (a, b) modulo P, with a changing slowest.",
)
@click.option("--out", type=Path, required=True, metavar="PAGE", help="The HTML file to write.")
@click.option(
    "--table",
    type=Path,
    metavar="FILE",
    help="Also write the table of features to this .parquet or .csv file.",
)
@with_found_threshold
@click.option(
    "--max-features",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    metavar="N",
    help="Most features on the page; if there are more, a random sample is shown.",
)
@with_format
@with_hints
def features(
    saes: tuple[str, ...],
    activations: Path | None,
    contexts: Path | None,
    modulus: int | None,
    out: Path,
    table: Path | None,
    file_format: Format | None,
    k: int | None,
    input_scale: float | None,
    **settings: Any,
) -> int:
    """Show every feature of two or more SAEs beside its partners in the others.

    This writes one HTML file that works offline: a list to sort and search, and a card for each
    feature with its reproducibility, its label, and where it and its partners are active.
    """
    from husai.compare.pages import FeatureSources, page_of_files
    from husai.features import FeaturesConfig
    from husai.sae.formats import Hints

    for path in (out, table):
        if path is not None:
            check_writable(path)
    sources = FeatureSources(saes, activations, contexts, modulus, file_format)
    cards = page_of_files(
        sources, out, FeaturesConfig(**settings), hints=Hints(k, input_scale), table=table
    )
    found = cards.features
    everywhere = (found["n_seeds_found"] == found["n_other_seeds"]).mean()
    click.echo(
        f"{len(found)} features of {len(cards.group.live)} SAEs: {everywhere:.1%} are found in "
        f"every other SAE, mean |cosine| {found['reproducibility'].mean():.3f}"
    )
    click.echo("written: " + ", ".join(str(path) for path in (out, table) if path is not None))
    return OK


@click.command(
    epilog="""\
\b
Example:
  husai consensus seed_*/ --activations rows.npy --out consensus/
""",
)
@click.argument("saes", metavar="SAE SAE...", nargs=-1, required=True)
@click.option(
    "--activations",
    type=Path,
    required=True,
    metavar="FILE",
    help="Activation rows that the SAEs read, as for husai compare. Most of them are used to fit "
    "the encoder, the others to measure the result.",
)
@click.option("--out", type=Path, required=True, metavar="DIR", help="The new folder to write.")
@click.option(
    "--to",
    "formats",
    multiple=True,
    type=click.Choice(get_args(WrittenFormat)),
    default=get_args(WrittenFormat),
    help="A format to write; may be repeated. All of them by default.",
)
@with_found_threshold
@click.option(
    "--min-share",
    type=float,
    default=0.75,
    show_default=True,
    metavar="S",
    help="Share of the SAEs in which a feature must be found.",
)
@click.option(
    "--direction",
    type=click.Choice(["mean", "medoid"]),
    default="mean",
    show_default=True,
    help="Direction of a consensus feature: the mean or the medoid of the features found.",
)
@click.option(
    "--active",
    type=click.IntRange(1, MOST_LATENTS),
    metavar="K",
    help="Active latents per row of the consensus.  [default: as many as the SAEs have]",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=600, show_default=True, help="Steps of the fit."
)
@with_format
@with_hints
def consensus(
    saes: tuple[str, ...],
    activations: Path,
    out: Path,
    formats: tuple[WrittenFormat, ...],
    active: int | None,
    file_format: Format | None,
    k: int | None,
    input_scale: float | None,
    **settings: Any,
) -> int:
    """Make one SAE of the features that are found in several SAEs.

    Features are followed from SAE to SAE. Each feature that is found in enough of them becomes one
    direction. An encoder is fitted to the rows, and the result is written as an SAE, with a table
    that compares it with as many latents of one SAE.
    """
    from husai.compare.consensus import consensus_of_files
    from husai.features import ConsensusConfig
    from husai.sae.formats import Hints

    result = consensus_of_files(
        saes,
        activations,
        out,
        ConsensusConfig(k=active, **settings),
        formats=formats,
        format=file_format,
        hints=Hints(k, input_scale),
    )
    click.echo(result.table.round(3).to_string(index=False, na_rep="-"))
    click.echo(f"written: {out}")
    return OK

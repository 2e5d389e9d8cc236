"""The ``husai`` command.

Nothing heavy is imported until a command runs, so that ``--help`` and ``--version`` are instant.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click

import husai
from husai.sae.format_names import Format, WrittenFormat

OK, BELOW, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

cli = click.Group("husai")  # Kedro adds the commands of this group to its own: there are none


@click.group(context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.version_option(husai.__version__, message="husai %(version)s")
def commands() -> None:
    """Would I find these SAE features again?"""


def finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse NaN and infinity."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.", context, parameter)
    return value


# what several commands take alike
with_format = click.option(
    "--format",
    "file_format",
    type=click.Choice(get_args(Format)),
    help="The format of all the files; detected by default.",
)
with_found_threshold = click.option(
    "--threshold",
    type=float,
    default=0.7,
    show_default=True,
    metavar="C",
    help="|cosine| from which a feature counts as found in another SAE.",
)


def with_hints(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options for what the files of an SAE may leave out."""
    for option in (
        click.option(
            "--input-scale",
            type=float,
            callback=finite,
            metavar="S",
            help="Factor by which activations were multiplied before the SAE read them, where its "
            "files do not say.",
        ),
        click.option(
            "--k",
            type=click.IntRange(min=1),
            metavar="K",
            help="Active latents per row, where the files of the SAE do not say.",
        ),
    ):
        command = option(command)
    return command


@commands.command(
    epilog="""\
\b
Examples:
  husai compare seed_0/ seed_1/
  husai compare seed_*/ --json scores.json --activations rows.npy
  husai compare a.safetensors b.npy --fail-under 0.8   # exit code 1 below 0.8

\b
Exit codes:
  0    done
  1    the score is below --fail-under
  2    bad input; one line says which file or option is wrong
  130  interrupted; with --resume FOLDER, the same command then continues

docs/glossary.md explains every score and null, docs/compare.md describes the JSON.
""",
)
@click.argument("saes", metavar="SAE SAE...", nargs=-1, required=True)
@with_format
@click.option(
    "--activations",
    type=Path,
    metavar="FILE",
    help="An .npy, .npz, .safetensors, .pt or .parquet file, or a folder saved by Hugging Face "
    "datasets, with activation rows [n, d] or [batch, position, d]. It adds the chance level of "
    "directions drawn like the data, and how well the codes of the SAEs agree on these rows.",
)
@click.option(
    "--json",
    "json_out",
    type=Path,
    metavar="OUT",
    help="Write the result to this file, with versions, file hashes and the full matching. The "
    "matching of many features goes into a .parquet file beside it.",
)
@click.option(
    "--threshold",
    "shared_threshold",
    type=float,
    default=0.7,
    show_default=True,
    metavar="C",
    help="Cosine from which features count as matched and as shared.",
)
@click.option(
    "--null-draws",
    type=int,
    metavar="N",
    help="Number of random pairs behind each chance level; 0 leaves chance out.  [default: as many "
    "as take about a minute, 1 to 40, fewer for wide SAEs]",
)
@click.option(
    "--encoder/--no-encoder",
    default=True,
    show_default=True,
    help="Compare the encoders too. Without them, wide SAEs take half the time.",
)
@click.option(
    "--fail-under",
    type=float,
    callback=finite,
    metavar="SCORE",
    help="Exit with code 1 when the mean PW-MCC (|cosine|) over pairs is below SCORE.",
)
@click.option(
    "--resume",
    type=Path,
    metavar="FOLDER",
    help="Save the state of long matches in this folder, and continue from what is there. The "
    "files are removed at the end.",
)
@click.option(
    "--max-passes",
    type=float,
    default=4.0,
    show_default=True,
    metavar="P",
    help="Most work that an exact match may take, as a multiple of the product of the two "
    "dictionaries. It usually takes about 1.",
)
@click.option(
    "--device", default="cpu", show_default=True, help="torch device that computes the products."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the random chance levels."
)
@click.option(
    "--strict", is_flag=True, help="Stop when the SAEs do not read the same model, hook or scale."
)
@click.option(
    "--any-space",
    is_flag=True,
    help="Compare directions even where a transcoder writes other activations than an SAE reads.",
)
@with_hints
@click.option(
    "--quiet", is_flag=True, help="Show no progress bar, and no table when --json is given."
)
def compare(
    saes: tuple[str, ...],
    file_format: Format | None,
    activations: Path | None,
    json_out: Path | None,
    fail_under: float | None,
    resume: Path | None,
    strict: bool,
    any_space: bool,
    k: int | None,
    input_scale: float | None,
    quiet: bool,
    **settings: Any,
) -> int:
    """Say whether two or more SAEs learned the same features.

    Each SAE is a directory or file written by SAELens, dictionary_learning, sparsify, Gemma Scope,
    Llama Scope, Qwen Scope, OpenAI, Goodfire or HUSAI, hf://OWNER/REPO/FOLDER on the Hugging Face
    hub, or a plain dictionary: an .npy, .npz, .safetensors or .pt matrix [features, d] with one
    feature a row. A folder may hold several SAEs: all of them are compared. All must read
    activations of the same space. Every pair is compared:

    \b
      PW-MCC    mean cosine of the best one-to-one match of the decoders,
                which is found exactly
      MMCS      mean cosine of each feature with its nearest feature, many to
                one; usually higher than PW-MCC
      matched   share of features whose partner in that match is at least as
                close as the threshold
      shared    the same, where the match of the encoders names the same
                partner and is as close (Paulo & Belrose)

    Each score is given with |cosine| and with the signed cosine. Two random dictionaries score far
    above zero, so each score stands beside its chance level ("corrected": 0 is chance, 1 is
    identity). With three or more SAEs, the means over pairs have an interval over SAEs.

    No GPU is needed, nothing is uploaded, and no code in the files is run.
    """  # noqa: D301 - click wants the backspace itself, not two letters
    from husai.compare.comparison import CompareConfig
    from husai.compare.comparison import compare as compare_saes
    from husai.compare.contract import check_contracts
    from husai.compare.files import load_activations, load_saes
    from husai.errors import InputError
    from husai.sae.formats import Hints

    config = CompareConfig(**settings)
    if json_out is not None:
        _check_writable(json_out)
    loaded = load_saes(saes, file_format, Hints(k, input_scale))
    if len(loaded) < 2:
        raise InputError(f"{saes[0]}: only one SAE given; name two or more to compare")
    for mismatch in check_contracts(loaded, strict=strict, any_space=any_space):
        click.echo(f"WARNING: not the same activations: {mismatch}", err=True)
    rows, origin = None, None
    if activations is not None:
        rows, origin = load_activations(activations, loaded[0].W_dec.shape[1])
    comparison = compare_saes(
        loaded,
        config,
        activations=rows,
        activations_origin=origin,
        checkpoint=resume,
        progress=not quiet,
    )
    if json_out is not None:
        from husai.compare.document import write_result

        written = write_result(comparison, json_out)
    if json_out is None or not quiet:
        from husai.compare.table import print_result

        print_result(comparison)
        if json_out is not None:
            click.echo("\nwritten: " + ", ".join(str(path) for path in written))
    if resume is not None:
        from husai.matching.candidates import remove_checkpoints

        remove_checkpoints(resume)
    if fail_under is not None:
        score = next(r.mean for r in comparison.overall if (r.score, r.signed) == ("pw_mcc", False))
        if score is None or score < fail_under:
            found = "that is not defined" if score is None else f"{score:.4f}"
            click.echo(
                f"husai compare: PW-MCC {found} is below --fail-under {fail_under:g}", err=True
            )
            return BELOW
    return OK


@commands.command()
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

    OUT is a new folder, or for husai a new .safetensors file. The codes stay the same: what was
    written is read back and compared on random rows.
    """
    from husai.sae.formats import Hints
    from husai.sae.formats import convert as convert_sae

    difference = convert_sae(source, target, to, file_format, Hints(k, input_scale))
    click.echo(f"written: {target} (largest relative difference of a code {difference:.2g})")
    return OK


@commands.command()
@click.argument("saes", metavar="SAE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list with an entry for each.")
@with_hints
def inspect(saes: tuple[str, ...], as_json: bool, k: int | None, input_scale: float | None) -> int:
    """Describe SAEs: sizes, architecture, norms, dead rows.

    It also lists what the files do not say. A folder may hold several SAEs.
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


@commands.group(invoke_without_command=True)
@click.option(
    "--data",
    type=Path,
    metavar="FOLDER",
    help="Folder of all data.  [default: HUSAI_DATA_DIR, or data]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list with an entry for each.")
@click.pass_context
def studies(context: click.Context, data: Path | None, as_json: bool) -> int:
    """List the studies: name, where, last run, how it stands, SAEs of its plan.

    A study gets its name from kedro run --params study=NAME; without one it has that of its
    environment.
    """
    from husai.studies import data_folder, studies_table

    context.obj = data or Path(data_folder())
    if context.invoked_subcommand is not None:
        return OK
    table = studies_table(context.obj)
    if as_json:
        click.echo(table.to_json(orient="records", indent=1))
    elif table.empty:
        click.echo(f"{context.obj}: no study yet; kedro run makes one")
    else:
        counts = zip(table["saes"], table["planned"], strict=True)
        shown = table.assign(saes=[f"{there} of {planned}" for there, planned in counts])
        click.echo(shown.drop(columns="planned").to_string(index=False, justify="left"))
    return OK


@studies.command()
@click.argument("name", metavar="NAME")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(data: Path, name: str, yes: bool) -> int:
    """Delete a study: its files and its runs in MLflow."""
    from husai.errors import InputError
    from husai.studies import check_idle, delete_files, files_of_study, find_study, sae_run_ids
    from husai.tracking.studies import client_below, delete_runs, study_runs

    found = find_study(data, name)
    check_idle(found)
    client = client_below(found.root)
    runs = [] if client is None else study_runs(client, name, sae_run_ids(found))
    files = files_of_study(found)
    click.echo(f"study '{name}': {len(runs)} MLflow runs, and")
    for path in files:
        click.echo(f"  {path}")
    if not yes:
        try:
            click.confirm("Delete them?", abort=True)
        except click.Abort as error:
            raise InputError(f"study '{name}': nothing is deleted; --yes asks nothing") from error
    if client is not None:  # the files last: they say what belongs to it, should this fail
        delete_runs(client, runs)
    delete_files(found)
    click.echo(f"deleted: study '{name}'")
    if client is not None and runs:
        click.echo(
            f"MLflow keeps deleted runs until: mlflow gc --backend-store-uri {client.tracking_uri}"
        )
    return OK


@commands.command(
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
    help="Rows that the SAEs read, as for husai compare; whole numbers beside them are labels. "
    "Without rows a page shows cosines alone.",
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
    help="The rows are all pairs (a, b) modulo P, a slowest: draw maps.",
)
@click.option("--out", type=Path, required=True, metavar="PAGE", help="The HTML file to write.")
@click.option(
    "--table", type=Path, metavar="FILE", help="Write the features to this .parquet or .csv too."
)
@with_found_threshold
@click.option(
    "--max-features",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    metavar="N",
    help="Features on the page; of more a random part is shown.",
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

    Writes one HTML file that works offline: a list to sort and search, and a card for each
    feature with its reproducibility, its label, and where it and its partners are active.
    """
    from husai.compare.pages import FeatureSources, page_of_files
    from husai.features import FeaturesConfig
    from husai.sae.formats import Hints

    for path in (out, table):
        if path is not None:
            _check_writable(path)
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


@commands.command(
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
    help="Rows that the SAEs read, as for husai compare. The encoder is fitted to most of them; on "
    "the others the dictionaries are measured.",
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
    help="What stands for the features found.",
)
@click.option(
    "--active",
    type=click.IntRange(min=1),
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
    """Make one SAE of the features that come back in several.

    Features are followed from SAE to SAE; those found in enough of them become one direction each.
    An encoder is fitted to the rows, and the result is written as an SAE, with a table of what it
    keeps beside as many latents of one SAE.
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


def _check_writable(path: Path) -> None:
    """Refuse a result file that cannot be written before the work, not after it."""
    from husai.errors import InputError

    folder = path.parent
    if path.is_dir():
        raise InputError(f"{path}: a directory; name the file to write")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory; make it before writing {path.name} there")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: not writable; name another place for {path.name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``husai`` command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with commands.make_context("husai", words) as context:
            code = commands.invoke(context)
    except click.exceptions.Exit as end:  # --help and --version
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return BAD_INPUT
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "husai"
        _complain(command, f"{error.format_message()} See {command} --help.")
        return BAD_INPUT
    except KeyboardInterrupt:
        _complain("husai", "interrupted")
        return INTERRUPTED
    except ValueError as error:
        # what can fail on bad input is a ValueError: InputError, and pydantic's ValidationError
        message = _one_line(error)
        if message is None:
            raise
        _complain(f"husai {context.invoked_subcommand}", message)
        return BAD_INPUT
    except BrokenPipeError:  # the reader went away, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - nothing more may be flushed
        return OK
    return int(code)


def _complain(command: str, message: str) -> None:
    click.echo(f"{command}: {' '.join(message.split())}", err=True)


def _one_line(error: ValueError) -> str | None:
    """The message for the user, or None when the error is not about the input."""
    from pydantic import ValidationError

    from husai.errors import InputError

    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(str(p) for p in item['loc'])}: {item['input']!r}: {item['msg']}"
            for item in error.errors()
        )
    return None


if __name__ == "__main__":
    sys.exit(main())

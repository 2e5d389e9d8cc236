"""``husai compare``: whether several SAEs learned the same features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from husai.commands.shared import BELOW, OK, check_writable, finite, with_format, with_hints
from husai.sae.format_names import Format


@click.command(
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
  130  interrupted; with --resume FOLDER, the same command continues later

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
    "datasets, with activation rows [n, d] or [batch, position, d]. With it encoders are compared "
    "in the data's metric, the codes of the SAEs on these rows are compared, and there is a null "
    "of directions drawn like the data.",
)
@click.option(
    "--json",
    "json_out",
    type=Path,
    metavar="OUT",
    help="Write the result to this file, with versions, file hashes and the full matching. A "
    "large matching is written to a .parquet file beside it.",
)
@click.option(
    "--threshold",
    "shared_threshold",
    type=float,
    default=0.7,
    show_default=True,
    metavar="C",
    help="Least cosine at which features count as matched and as shared.",
)
@click.option(
    "--null-draws",
    type=int,
    metavar="N",
    help="Number of random pairs for each chance level; 0: no chance levels.  [default: as many "
    "as take about a minute, 1 to 40, fewer for wide SAEs]",
)
@click.option(
    "--encoder/--no-encoder",
    default=True,
    show_default=True,
    help="Compare the encoders too. Without this, wide SAEs take half the time.",
)
@click.option(
    "--epsilon",
    type=float,
    default=0.02,
    show_default=True,
    metavar="E",
    help="Say how many features have another partner in some matching whose sum of cosines is at "
    "most E below the best; 0 leaves it out. It takes one more product of wide SAEs.",
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
    help="Save the state of long matches in this folder, and continue from a state saved there. "
    "The files are removed at the end.",
)
@click.option(
    "--max-passes",
    type=float,
    default=4.0,
    show_default=True,
    metavar="P",
    help="Limit on the work of an exact match, as a multiple of the product of the two "
    "dictionaries. It usually takes about 1.",
)
@click.option(
    "--device", default="cpu", show_default=True, help="The torch device that computes products."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the random pairs of the nulls."
)
@click.option(
    "--strict", is_flag=True, help="Stop when the SAEs do not read the same model, hook or scale."
)
@click.option(
    "--any-space",
    is_flag=True,
    help="Compare directions even if a transcoder writes other activations than an SAE reads.",
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
    feature per row. A folder may hold several SAEs: all of them are compared. All SAEs must read
    activations of the same space. These scores are computed for every pair:

    \b
      PW-MCC    mean cosine of the best one-to-one match of the decoders,
                which is found exactly
      MMCS      mean cosine of each feature with its nearest feature, many to
                one; usually higher than PW-MCC
      matched   share of features whose partner in that match has a cosine at
                the threshold or above
      shared    share of features for which the match of the encoders gives
                the same partner, both cosines at the threshold or above
                (Paulo & Belrose)

    Each score is given with |cosine| and with the signed cosine. Two random dictionaries score far
    above zero, so each score is shown with its chance level ("corrected": 0 is chance, 1 is
    perfect). With three or more SAEs, the means over pairs have an interval over SAEs.

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
        check_writable(json_out)
    if resume is not None and resume.exists() and not resume.is_dir():
        raise InputError(f"--resume: {resume} is a file; give a folder")
    loaded = load_saes(saes, file_format, Hints(k, input_scale))
    if len(loaded) < 2:
        raise InputError(f"{saes[0]}: only one SAE is given; give two or more to compare")
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
            found = "is not defined, which" if score is None else f"{score:.4f}"
            click.echo(
                f"husai compare: PW-MCC {found} is below --fail-under {fail_under:g}", err=True
            )
            return BELOW
    return OK

"""The ``husai`` command.

Nothing heavy is imported until a command runs, so that ``--help`` and ``--version`` are instant.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import husai

if TYPE_CHECKING:
    from husai.compare.comparison import Comparison

OK, BELOW, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

_FORMATS = ("husai", "saelens", "dictionary_learning", "sparsify", "safetensors", "npy")

_COMPARE_DESCRIPTION = """\
Say whether two or more SAEs learned the same features.

Each SAE is a directory or file written by SAELens, dictionary_learning, sparsify or HUSAI, or a
plain dictionary: an .npy or .safetensors matrix [features, d] with a feature a row. They must read
activations of the same space. Every pair is compared:

  PW-MCC    mean cosine of the best one-to-one match of the decoders, which is found exactly
  MMCS      mean cosine of each feature's nearest feature, many to one: higher than PW-MCC
  matched   share of features whose partner in that match is closer than the threshold
  shared    the same, when the encoders' match names the same partner, as close (Paulo & Belrose)

both with |cosine| and with the signed cosine. Two random dictionaries score far above zero, so
each score stands beside what chance gives ("corrected": 0 is chance, 1 is identity). With three
or more SAEs the means over pairs come with an interval over SAEs.

Nothing leaves this machine, no GPU is needed, and no code in the files is run.
"""

_COMPARE_EPILOG = """\
examples:
  husai compare seed_0/ seed_1/
  husai compare seed_*/ --json scores.json --activations rows.npy
  husai compare a.safetensors b.npy --fail-under 0.8     # for scripts: exit code 1 below .8

exit codes: 0 done; 1 the score is below --fail-under; 2 bad input, with one line that says which
file and what to do; 130 interrupted (with --resume FOLDER the same command goes on from there).
The JSON form is described in docs/compare.md.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the ``husai`` command."""
    parser = argparse.ArgumentParser(
        prog="husai", description="Would I find these SAE features again?"
    )
    parser.add_argument("--version", action="version", version=f"husai {husai.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    compare = commands.add_parser(
        "compare",
        help="say whether two or more SAEs learned the same features",
        description=_COMPARE_DESCRIPTION,
        epilog=_COMPARE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument(
        "sae", nargs="+", type=Path, metavar="SAE", help="directory or file; two or more"
    )
    compare.add_argument(
        "--format",
        choices=_FORMATS,
        help="what the SAEs are, when it should not be detected; for all of them",
    )
    compare.add_argument(
        "--activations",
        type=Path,
        metavar="FILE",
        help=".npy or .safetensors with activation rows [n, d]: adds chance for directions drawn "
        "like the data, and how well the codes of the SAEs agree on these rows",
    )
    compare.add_argument(
        "--json",
        type=Path,
        metavar="OUT",
        help="write the result, with versions, file hashes and the full matching; a matching of "
        "many features goes into a .parquet beside it",
    )
    compare.add_argument(
        "--threshold",
        type=float,
        default=0.7,
        metavar="C",
        help="cosine from which features count as matched and shared (default 0.7)",
    )
    compare.add_argument(
        "--null-draws",
        type=int,
        metavar="N",
        help="random pairs behind each chance level; 0 leaves chance out (default: what a minute "
        "or so allows, 1 to 40, fewer for wide SAEs)",
    )
    compare.add_argument(
        "--no-encoder",
        action="store_true",
        help="leave the encoders out; saves half the time for wide SAEs",
    )
    compare.add_argument(
        "--fail-under",
        type=float,
        metavar="SCORE",
        help="exit with code 1 when the mean PW-MCC (|cosine|) over pairs is below SCORE",
    )
    compare.add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="keep the state of long matches in this folder, and go on from what is there; the "
        "folder is removed when all is done",
    )
    compare.add_argument(
        "--max-passes",
        type=float,
        default=4.0,
        metavar="P",
        help="budget of an exact match, as a multiple of the product of the two dictionaries "
        "(default 4; it takes about 1 as a rule)",
    )
    compare.add_argument(
        "--device", default="cpu", help="torch device for the products (default cpu)"
    )
    compare.add_argument(
        "--seed", type=int, default=0, help="seed of the chance levels (default 0)"
    )
    compare.add_argument(
        "--quiet", action="store_true", help="no progress bar, and no table when --json is given"
    )
    compare.set_defaults(run=run_compare)
    return parser


def run_compare(options: argparse.Namespace) -> int:
    """Run ``husai compare``."""
    if len(options.sae) < 2:
        from husai.errors import InputError

        raise InputError(f"{options.sae[0]}: only one SAE given; name two or more to compare")
    comparison = compare_files(options)
    if options.json is not None:
        from husai.compare.document import write_result

        written = write_result(comparison, options.json)
    if options.json is None or not options.quiet:
        from husai.compare.table import result_text

        print(result_text(comparison))
        if options.json is not None:
            print("\nwritten: " + ", ".join(str(path) for path in written))
    if options.resume is not None:
        from husai.matching.candidates import remove_checkpoints

        remove_checkpoints(options.resume)
    if options.fail_under is not None:
        score = next(r["mean"] for r in comparison.overall if r["score"] == "pw_mcc")
        if score < options.fail_under:
            print(
                f"husai compare: PW-MCC {score:.4f} is below --fail-under {options.fail_under:g}",
                file=sys.stderr,
            )
            return BELOW
    return OK


def compare_files(options: argparse.Namespace) -> Comparison:
    """Load what the options name and compare it."""
    from husai.compare.comparison import CompareConfig, compare
    from husai.compare.files import load_activations, load_saes

    config = CompareConfig(
        shared_threshold=options.threshold,
        null_draws=options.null_draws,
        encoder=not options.no_encoder,
        seed=options.seed,
        max_passes=options.max_passes,
        device=options.device,
    )
    if options.json is not None:
        _check_writable(options.json)
    saes = load_saes(options.sae, options.format)
    rows, origin = None, None
    if options.activations is not None:
        rows, origin = load_activations(options.activations)
    return compare(
        saes,
        config,
        activations=rows,
        activations_origin=origin,
        checkpoint=options.resume,
        progress=not options.quiet,
    )


def _check_writable(path: Path) -> None:
    """Refuse a result file that cannot be written before the work, not after it."""
    from husai.errors import InputError

    folder = path.parent
    if path.is_dir():
        raise InputError(f"{path}: a directory; name the JSON file to write")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory; make it before writing {path.name} there")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: not writable; name another place for {path.name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``husai`` command and return its exit code."""
    options = build_parser().parse_args(arguments)
    try:
        # what can fail on bad input is a ValueError: InputError, and pydantic's ValidationError
        code: int = options.run(options)
    except KeyboardInterrupt:
        print("husai: interrupted", file=sys.stderr)
        return INTERRUPTED
    except ValueError as error:
        message = _one_line(error)
        if message is None:
            raise
        print(f"husai {options.command}: {message}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:  # the reader went away, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - nothing more may be flushed
        return OK
    return code


def _one_line(error: ValueError) -> str | None:
    """What to tell the user, or None when the error is not about the input."""
    from pydantic import ValidationError

    from husai.errors import InputError

    if isinstance(error, InputError):
        return " ".join(str(error).split())
    if isinstance(error, ValidationError):
        parts = [
            f"{'.'.join(str(p) for p in item['loc'])}: {item['input']!r}: {item['msg']}"
            for item in error.errors()
        ]
        return "; ".join(parts)
    return None


def __getattr__(name: str) -> object:
    """Give Kedro the group of commands that it wants from a module of this name: none."""
    if name != "cli":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import click

    return click.Group("husai")


if __name__ == "__main__":
    sys.exit(main())

"""Prints a comparison as tables, on a terminal or as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import TextIO, TypeVar

from rich.console import Console
from rich.table import Table

from husai.compare.comparison import (
    CompareConfig,
    Comparison,
    PairComparison,
    threshold_counts,
)
from husai.compare.schema import NullEntry, OverallEntry, ScoreEntry
from husai.consistency.inference.nulls import NULL_KINDS
from husai.consistency.scores.registry import SCORES
from husai.consistency.study.record import SAERecord, all_converged

Scored = TypeVar("Scored", ScoreEntry, OverallEntry)

PLAIN_WIDTH = 200
"""Columns of text in a file or a pipe: wide enough that no cell is broken into lines."""


def result_text(comparison: Comparison) -> str:
    """Return the comparison as plain text: scores beside nulls, matched and unmatched features.

    Parameters
    ----------
    comparison
        The comparison.
    """
    text = StringIO()
    print_result(comparison, text)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).rstrip()


def print_result(comparison: Comparison, file: TextIO | None = None) -> None:
    """Print the comparison: tables that fit a terminal, plain text in a file or a pipe.

    Parameters
    ----------
    comparison
        The comparison.
    file
        Where to print; standard output when None.
    """
    console = Console(file=file, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width, console.soft_wrap = PLAIN_WIDTH, True
    config = comparison.config
    console.print("SAEs", style="bold")
    console.print(_sae_table(comparison))
    for pair in comparison.pairs:
        console.print(f"\nA = {pair.a}   B = {pair.b}", style="bold")
        console.print(_score_table(pair, config))
        for why, titles in _missing(pair, config).items():
            console.print(f"  not known: {'; '.join(titles)} ({why})")
        console.print()
        console.print(_match_table(pair, config))
        for line in _ambiguity(pair, config):
            console.print(line)
    if len(comparison.saes) > 2:
        console.print()
        _print_overall(comparison, console)
    console.print()
    for note in _notes(comparison):
        console.print(note)


def _table(*columns: str, header: bool = True) -> Table:
    """Make a table without lines: the first column aligned left, the others right."""
    table = Table(box=None, show_header=header, header_style="bold", padding=(0, 0, 0, 2))
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at else "left", overflow="fold")
    return table


def _sae_table(comparison: Comparison) -> Table:
    convergence = {True: "converged", False: "NOT CONVERGED", None: "convergence unknown"}
    table = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
    for sae in comparison.saes:
        record, zero = sae.record, sae.record.d_sae - len(sae.index)
        parts = [
            f"{record.d_sae:,} features × {record.W_dec.shape[1]}",
            str(record.origin.get("format", "in memory")),
            *([str(record.origin["architecture"])] if "architecture" in record.origin else []),
            "with encoder" if record.W_enc is not None else _decoder_only(record),
            convergence[record.converged],
            *([f"{zero:,} zero rows left out"] if zero else []),
        ]
        table.add_row(record.id, ", ".join(parts))
    return table


def _decoder_only(record: SAERecord) -> str:
    reason = record.origin.get("left_out")
    return f"decoder only ({reason})" if reason else "decoder only"


def _title(name: str, signed: bool, config: CompareConfig) -> str:
    score = SCORES[name]
    title = score.title.format(threshold=config.shared_threshold)
    return f"{title}, {'signed' if signed else '|cosine|'}" if len(score.signs) > 1 else title


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _in_order(scores: Sequence[Scored]) -> list[Scored]:
    """Sort scores in the order of the registry, the absolute convention before the signed one."""
    place = {name: at for at, name in enumerate(SCORES)}
    return sorted(scores, key=lambda entry: (place[entry.score], entry.signed))


def _score_table(pair: PairComparison, config: CompareConfig) -> Table:
    """Make the table of known scores with their nulls; nulls that few scores have come last."""
    scores = [entry for entry in _in_order(pair.scores) if entry.value is not None]
    kinds = [
        kind.name
        for kind in NULL_KINDS.values()
        if kind.draw is not None and any(kind.name in entry.nulls for entry in scores)
    ]
    columns = ["score", "value"]
    for kind in kinds:
        columns += [f"chance: {NULL_KINDS[kind].title}\nmean ± sd", "\ncorrected", "\np"]
    other = any(_other_chance(entry) for entry in scores)
    table = _table(*columns, *(["other null"] if other else []))
    for entry in scores:
        cells = [_title(entry.score, entry.signed, config), _number(entry.value)]
        for kind in kinds:
            null = entry.nulls.get(kind)
            cells += ["", "", ""] if null is None else _null_cells(null)
        table.add_row(*cells, *([_other_chance(entry)] if other else []))
    return table


def _null_cells(null: NullEntry) -> list[str]:
    mean = _number(null.mean) + ("" if null.sd is None else f" ± {null.sd:.4f}")
    return [mean, _number(null.corrected), _number(null.p_value, 3)]


def _other_chance(entry: ScoreEntry) -> str:
    """Chance level in closed form, or null of shuffled rows; empty if there is neither."""
    if entry.chance is not None:
        return f"{entry.chance:.4f}, {NULL_KINDS['chance'].title}"
    shuffled = entry.nulls.get("shuffled")
    if shuffled is None:
        return ""
    mean, corrected, p = _null_cells(shuffled)
    return f"{mean}, corrected {corrected}, p {p}, {NULL_KINDS['shuffled'].title}"


def _missing(pair: PairComparison, config: CompareConfig) -> dict[str, list[str]]:
    """Titles of the scores that are not known, by reason."""
    missing: dict[str, list[str]] = {}
    for entry in _in_order(pair.scores):
        if entry.value is None:
            title = _title(entry.score, entry.signed, config)
            missing.setdefault(entry.reason, []).append(title)
    return missing


def _match_table(pair: PairComparison, config: CompareConfig) -> Table:
    """Make the table of how many features have a partner in the best match."""
    table = _table(
        "features at a similarity of", *(f"≥ {threshold:g}" for threshold in config.thresholds), ""
    )
    for match in (pair.absolute, pair.signed):
        name = "signed" if match.signed else "|cosine|"
        proof = (
            "optimal"
            if match.certified
            else f"not proved optimal: mean at most {match.gap_bound:.2g} too low"
        )
        counts = threshold_counts(match, config.thresholds)
        for title, key in (
            (f"matched by {name}", "matched"),
            ("  of A unmatched", "unmatched_a"),
            ("  of B unmatched", "unmatched_b"),
        ):
            numbers = [f"{getattr(row, key):,}" for row in counts]
            table.add_row(title, *numbers, proof if key == "matched" else "")
    return table


def _ambiguity(pair: PairComparison, config: CompareConfig) -> list[str]:
    """How far each match could be another at nearly no loss."""
    lines = []
    for signed, found in sorted(pair.ambiguity.items()):
        if found is None:
            continue
        name = "signed" if signed else "|cosine|"
        low, high = found.matched(config.shared_threshold)
        lines.append(
            f"  ambiguous by {name}: {found.ambiguous:.1%} of A's features have another partner in "
            f"a matching within {found.epsilon:g} of the best sum (mean: within "
            f"{found.score_moves:.1g}); one feature moves by up to {found.feature_moves:.2f}; "
            f"matched at ≥ {config.shared_threshold:g}: {low:,} to {high:,}"
        )
    if config.epsilon and not lines:
        lines.append("  ambiguity: not known (the match is not proved, or too large)")
    return lines


def _print_overall(comparison: Comparison, console: Console) -> None:
    level = f"{comparison.config.level:.0%}"
    console.print(
        f"Mean over all {len(comparison.pairs)} pairs of {len(comparison.saes)} SAEs "
        f"[{level} jackknife interval over SAEs]",
        style="bold",
    )
    table, missing = _table("score", "mean", "interval"), []
    for row in _in_order(comparison.overall):
        title = _title(row.score, row.signed, comparison.config)
        if row.mean is None:
            missing.append(title)
            continue
        ends = "" if row.low is None else f"[{_number(row.low)}, {_number(row.high)}]"
        table.add_row(title, _number(row.mean), ends)
    console.print(table)
    if missing:
        console.print(f"  not known for every pair: {'; '.join(missing)}")


def _notes(comparison: Comparison) -> list[str]:
    """Notes that a reader needs to understand the numbers."""
    notes = []
    records = [sae.record for sae in comparison.saes]
    draws_of = [
        null.draws
        for pair in comparison.pairs
        for entry in pair.scores
        for kind, null in entry.nulls.items()
        if kind != "shuffled"
    ]
    if draws_of:
        draws = min(draws_of)
        plural = "" if draws == 1 else "s"
        notes.append(
            f"Chance: the scores of {draws} pair{plural} of random dictionaries of these sizes; "
            f"p cannot be below {1 / (1 + draws):.3f} (--null-draws). "
            "corrected = (value - chance) / (perfect - chance). "
            "docs/glossary.md explains each score."
        )
    else:
        notes.append("No nulls were drawn: without them these scores cannot be interpreted.")
    if len(comparison.saes) == 2:
        notes.append("Two SAEs make one pair: give three or more for an interval over SAEs.")
    elif len({(r.d_sae, r.origin.get("architecture")) for r in records}) > 1:
        notes.append(
            "These SAEs differ in width or architecture: the interval covers these differences "
            "too, not only those between seeds."
        )
    if any(sae.encoder is not None for sae in comparison.saes) and comparison.metric == "raw":
        notes.append(
            "Encoders are compared by their raw rows, which keep their initialisation in "
            "directions in which the data hardly vary: give --activations to compare them in the "
            "data's metric."
            if comparison.activations is None
            else "Encoders are compared by their raw rows, since encoder_metric is raw."
        )
    flags = [record.converged for record in records]
    if any(flag is None for flag in flags):
        notes.append(
            "Convergence unknown: an SAE that has not converged still keeps part of its "
            "initialisation, which lowers (or, if it is shared, raises) every score."
        )
    if all_converged(flags) is False:
        notes.append("NOT CONVERGED: these scores may change with longer training.")
    return notes

"""A comparison as a table for people."""

from __future__ import annotations

from husai.compare.comparison import (
    CompareConfig,
    Comparison,
    PairComparison,
    threshold_counts,
)
from husai.compare.schema import NullEntry, ScoreEntry
from husai.consistency.inference.nulls import NULL_KINDS
from husai.consistency.scores.registry import SCORES
from husai.consistency.study.record import SAERecord, all_converged

_WIDTH = 36


def result_text(comparison: Comparison) -> str:
    """The comparison as a table for people: scores beside chance, matched and unmatched features.

    Parameters
    ----------
    comparison
        What to show.
    """
    config = comparison.config
    lines = ["SAEs", *_sae_lines(comparison)]
    for pair in comparison.pairs:
        lines += ["", f"A = {pair.a}   B = {pair.b}", *_score_lines(pair, config)]
        lines += ["", *_match_lines(pair, config)]
    if len(comparison.saes) > 2:
        lines += ["", *_overall_lines(comparison)]
    lines += ["", *_notes(comparison)]
    return "\n".join(lines).rstrip()


def _sae_lines(comparison: Comparison) -> list[str]:
    records = [sae.record for sae in comparison.saes]
    width = max(len(record.id) for record in records)
    convergence = {True: "converged", False: "NOT CONVERGED", None: "convergence unknown"}
    lines = []
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
        lines.append(f"  {record.id:<{width}}  {', '.join(parts)}")
    return lines


def _decoder_only(record: SAERecord) -> str:
    reason = record.origin.get("left_out")
    return f"decoder only ({reason})" if reason else "decoder only"


def _title(name: str, signed: bool, config: CompareConfig) -> str:
    score = SCORES[name]
    title = score.title.format(threshold=config.shared_threshold)
    return f"{title}, {'signed' if signed else '|cosine|'}" if len(score.signs) > 1 else title


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _in_order(scores: list[ScoreEntry]) -> list[ScoreEntry]:
    """As the registry lists them, the absolute convention before the signed one."""
    place = {name: at for at, name in enumerate(SCORES)}
    return sorted(scores, key=lambda entry: (place[entry.score], entry.signed))


def _score_lines(pair: PairComparison, config: CompareConfig) -> list[str]:
    scores = _in_order(pair.scores)
    kinds = [
        kind.name
        for kind in NULL_KINDS.values()
        if kind.draw is not None and any(kind.name in entry.nulls for entry in scores)
    ]
    closed = any(entry.chance is not None for entry in scores)
    lines = []
    if kinds:
        above = "".join(f"   {f'chance: {NULL_KINDS[kind].title}':<31}" for kind in kinds)
        lines.append((" " * (_WIDTH + 11) + above).rstrip())
    head = f"  {'score':<{_WIDTH}}{'value':>9}"
    head += f"   {'mean ± sd':<16}{'corrected':>9}{'p':>6}" * len(kinds)
    lines.append(head.rstrip() + ("   chance" if closed and not kinds else ""))
    lines += [_score_line(entry, kinds, config) for entry in scores if entry.value is not None]
    missing: dict[str, list[str]] = {}
    for entry in scores:
        if entry.value is None:
            title = _title(entry.score, entry.signed, config)
            missing.setdefault(entry.reason, []).append(title)
    lines += [f"  not known: {'; '.join(titles)} ({why})" for why, titles in missing.items()]
    return lines


def _score_line(entry: ScoreEntry, kinds: list[str], config: CompareConfig) -> str:
    title = _title(entry.score, entry.signed, config)
    line = f"  {title:<{_WIDTH}}{_number(entry.value):>9}"
    if entry.chance is not None:
        return f"{line}   {entry.chance:.4f}, {NULL_KINDS['chance'].title}"
    shuffled = entry.nulls.get("shuffled")
    if shuffled is not None:
        chance = f"{_chance(shuffled):<16}{_number(shuffled.corrected):>9}"
        why = NULL_KINDS["shuffled"].title
        return f"{line}   {chance}{_number(shuffled.p_value, 3):>6}   chance: {why}"
    for kind in kinds:
        null = entry.nulls.get(kind)
        if null is None:
            line += " " * 34
            continue
        p = _number(null.p_value, 3)
        line += f"   {_chance(null):<16}{_number(null.corrected):>9}{p:>6}"
    return line.rstrip()


def _chance(null: NullEntry) -> str:
    return _number(null.mean) + ("" if null.sd is None else f" ± {null.sd:.4f}")


def _match_lines(pair: PairComparison, config: CompareConfig) -> list[str]:
    """How many features the best match leaves without a partner."""
    head = "".join(f"{f'≥ {threshold:g}':>10}" for threshold in config.thresholds)
    lines = [f"  {'features at a similarity of':<{_WIDTH}}{head}"]
    for match in (pair.absolute, pair.signed):
        name = "signed" if match.signed else "|cosine|"
        proof = (
            "optimal" if match.certified else f"not proved optimal: off by ≤ {match.gap_bound:.2g}"
        )
        counts = threshold_counts(match, config.thresholds)
        for title, key in (
            (f"matched by {name}", "matched"),
            ("  of A unmatched", "unmatched_a"),
            ("  of B unmatched", "unmatched_b"),
        ):
            line = f"  {title:<{_WIDTH}}" + "".join(f"{getattr(row, key):>10,}" for row in counts)
            lines.append(line + (f"   {proof}" if key == "matched" else ""))
    return lines


def _overall_lines(comparison: Comparison) -> list[str]:
    level = f"{comparison.config.level:.0%}"
    lines = [
        f"Mean over all {len(comparison.pairs)} pairs of {len(comparison.saes)} SAEs "
        f"[{level} jackknife interval over SAEs]"
    ]
    missing = []
    for row in comparison.overall:
        title = _title(row.score, row.signed, comparison.config)
        if row.mean is None:
            missing.append(title)
            continue
        line = f"  {title:<{_WIDTH}}{_number(row.mean):>9}"
        if row.low is not None:
            line += f"   [{_number(row.low)}, {_number(row.high)}]"
        lines.append(line)
    if missing:
        lines.append(f"  not known for every pair: {'; '.join(missing)}")
    return lines


def _notes(comparison: Comparison) -> list[str]:
    """What a reader has to know to judge the numbers."""
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
            f"Chance is the score of {draws} pair{plural} of random dictionaries of these sizes; "
            f"its p cannot be below {1 / (1 + draws):.3f} (--null-draws). "
            "corrected = (value - chance) / (1 - chance)."
        )
    else:
        notes.append("Chance was left out: these scores cannot be judged without it.")
    if len(comparison.saes) == 2:
        notes.append("Two SAEs are one pair: give three or more for an interval over SAEs.")
    elif len({(r.d_sae, r.origin.get("architecture")) for r in records}) > 1:
        notes.append(
            "These SAEs differ in width or architecture: the interval mixes that with what varies "
            "from seed to seed."
        )
    flags = [record.converged for record in records]
    if any(flag is None for flag in flags):
        notes.append(
            "Convergence unknown: an SAE that is not converged still carries its initialisation, "
            "which lowers (or, when shared, raises) every score."
        )
    if all_converged(flags) is False:
        notes.append("NOT CONVERGED: these scores are about the training run, not the features.")
    return notes

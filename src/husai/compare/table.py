"""A comparison as a table for people."""

from __future__ import annotations

from typing import Any

from husai.compare.comparison import (
    CompareConfig,
    Comparison,
    PairComparison,
    live_rows,
    threshold_counts,
)

_TITLES = {
    "pw_mcc": "PW-MCC, one to one",
    "mmcs": "MMCS, mean of both ways",
    "mmcs_a_to_b": "MMCS, A to B",
    "mmcs_b_to_a": "MMCS, B to A",
    "matched_fraction": "matched ≥ {threshold:g}",
    "shared_fraction": "shared, dec and enc ≥ {threshold:g}",
    "pw_mcc_encoder": "PW-MCC of the encoders",
    "code_jaccard": "codes: support Jaccard",
    "code_correlation": "codes: correlation",
    "code_r2": "codes: R²",
    "activation_mcc": "matched by activations",
}
_BY_COSINE = ("pw_mcc", "mmcs", "matched", "shared")
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
    width = max(len(sae.id) for sae in comparison.saes)
    convergence = {True: "converged", False: "NOT CONVERGED", None: "convergence unknown"}
    lines = []
    for sae in comparison.saes:
        zero = len(sae.W_dec) - len(live_rows(sae))
        parts = [
            f"{len(sae.W_dec):,} features × {sae.W_dec.shape[1]}",
            str(sae.origin.get("format", "in memory")),
            *([str(sae.origin["architecture"])] if "architecture" in sae.origin else []),
            "with encoder" if sae.W_enc is not None else "decoder only",
            convergence[sae.converged],
            *([f"{zero:,} zero rows left out"] if zero else []),
        ]
        lines.append(f"  {sae.id:<{width}}  {', '.join(parts)}")
    return lines


def _title(name: str, signed: bool, config: CompareConfig) -> str:
    title = _TITLES[name].format(threshold=config.shared_threshold)
    if name.startswith(_BY_COSINE) and name != "pw_mcc_encoder":
        return f"{title}, {'signed' if signed else '|cosine|'}"
    return title


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _score_lines(pair: PairComparison, config: CompareConfig) -> list[str]:
    kinds = [
        k for k in ("isotropic", "data_aware") if any(k in row["nulls"] for row in pair.scores)
    ]
    closed = any(row["chance"] is not None for row in pair.scores)
    names = {"isotropic": "chance: random directions", "data_aware": "chance: drawn like the data"}
    lines = []
    if kinds:
        above = "".join(f"   {names[kind]:<31}" for kind in kinds)
        lines.append((" " * (_WIDTH + 11) + above).rstrip())
    head = f"  {'score':<{_WIDTH}}{'value':>9}"
    head += f"   {'mean ± sd':<16}{'corrected':>9}{'p':>6}" * len(kinds)
    lines.append(head.rstrip() + ("   chance" if closed and not kinds else ""))
    known = [row for row in pair.scores if row["value"] is not None]
    lines += [_score_line(row, kinds, config) for row in known]
    missing: dict[str, list[str]] = {}
    for row in pair.scores:
        if row["value"] is None:
            missing.setdefault(row["reason"], []).append(
                _title(row["score"], row["signed"], config)
            )
    lines += [f"  not known: {'; '.join(titles)} ({why})" for why, titles in missing.items()]
    return lines


def _score_line(row: dict[str, Any], kinds: list[str], config: CompareConfig) -> str:
    line = f"  {_title(row['score'], row['signed'], config):<{_WIDTH}}{_number(row['value']):>9}"
    if row["chance"] is not None:
        return f"{line}   {row['chance']:.4f}, in closed form"
    shuffled = row["nulls"].get("shuffled")
    if shuffled is not None:
        chance = f"{_chance(shuffled):<16}{_number(shuffled['corrected']):>9}"
        return f"{line}   {chance}{_number(shuffled['p_value'], 3):>6}   chance: rows shuffled"
    for kind in kinds:
        null = row["nulls"].get(kind)
        if null is None:
            line += " " * 34
            continue
        p = _number(null["p_value"], 3)
        line += f"   {_chance(null):<16}{_number(null['corrected']):>9}{p:>6}"
    return line.rstrip()


def _chance(null: dict[str, Any]) -> str:
    return _number(null["mean"]) + ("" if null["sd"] is None else f" ± {null['sd']:.4f}")


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
            line = f"  {title:<{_WIDTH}}" + "".join(f"{row[key]:>10,}" for row in counts)
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
        title = _title(row["score"], row["signed"], comparison.config)
        if row["mean"] is None:
            missing.append(title)
            continue
        line = f"  {title:<{_WIDTH}}{_number(row['mean']):>9}"
        if row["low"] is not None:
            line += f"   [{_number(row['low'])}, {_number(row['high'])}]"
        lines.append(line)
    if missing:
        lines.append(f"  not known for every pair: {'; '.join(missing)}")
    return lines


def _notes(comparison: Comparison) -> list[str]:
    """What a reader has to know to judge the numbers."""
    notes = []
    draws_of = [
        null["draws"]
        for pair in comparison.pairs
        for row in pair.scores
        for kind, null in row["nulls"].items()
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
    elif len({(len(sae.W_dec), sae.origin.get("architecture")) for sae in comparison.saes}) > 1:
        notes.append(
            "These SAEs differ in width or architecture: the interval mixes that with what varies "
            "from seed to seed."
        )
    if any(sae.converged is None for sae in comparison.saes):
        notes.append(
            "Convergence unknown: an SAE that is not converged still carries its initialisation, "
            "which lowers (or, when shared, raises) every score."
        )
    if any(sae.converged is False for sae in comparison.saes):
        notes.append("NOT CONVERGED: these scores are about the training run, not the features.")
    return notes

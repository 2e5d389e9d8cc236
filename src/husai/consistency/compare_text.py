"""A comparison as a table for people."""

from __future__ import annotations

from husai.consistency.compare import (
    CompareConfig,
    Comparison,
    PairComparison,
    live_rows,
    threshold_counts,
)

_TITLES = {
    "pw_mcc": "PW-MCC (one to one)",
    "mmcs": "MMCS (mean of both ways)",
    "mmcs_a_to_b": "MMCS A to B",
    "mmcs_b_to_a": "MMCS B to A",
    "matched_fraction": "matched, cosine ≥ {threshold:g}",
    "shared_fraction": "shared, dec and enc ≥ {threshold:g}",
    "pw_mcc_encoder": "PW-MCC of the encoders",
    "code_jaccard": "support Jaccard of codes",
    "code_correlation": "correlation of codes",
    "code_r2": "R² of codes",
    "activation_mcc": "matched by activation",
}


def result_text(comparison: Comparison) -> str:
    """The comparison as a table for people."""
    config = comparison.config
    lines = ["SAEs"]
    width = max(len(sae.id) for sae in comparison.saes)
    for sae in comparison.saes:
        zero = len(sae.W_dec) - len(live_rows(sae))
        convergence = {True: "converged", False: "NOT CONVERGED", None: "convergence unknown"}
        parts = [
            f"{len(sae.W_dec):,} features × {sae.W_dec.shape[1]}",
            str(sae.origin.get("format", "in memory")),
            "with encoder" if sae.W_enc is not None else "decoder only",
            convergence[sae.converged],
        ]
        if zero:
            parts.append(f"{zero:,} zero rows left out")
        lines.append(f"  {sae.id:<{width}}  {', '.join(parts)}")
    for pair in comparison.pairs:
        lines += ["", f"A = {pair.a}   B = {pair.b}", *_score_lines(pair, config)]
        lines += _match_lines(pair, config)
    if len(comparison.saes) > 2:
        lines += ["", *_overall_lines(comparison)]
    if any(sae.converged is False for sae in comparison.saes):
        lines += [
            "",
            "An SAE that is not converged still carries its initialisation: read with care.",
        ]
    return "\n".join(lines)


def _title(name: str, signed: bool, config: CompareConfig) -> str:
    title = _TITLES[name].format(threshold=config.shared_threshold)
    if name.startswith(("pw_mcc", "mmcs", "matched", "shared")):
        return f"{title}, {'cosine' if signed else '|cosine|'}"
    return title


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _score_lines(pair: PairComparison, config: CompareConfig) -> list[str]:
    kinds = list(dict.fromkeys(kind for row in pair.scores for kind in row["nulls"]))
    head = f"  {'score':<42}{'value':>8}"
    for kind in kinds:
        head += f"   {'chance (' + kind.replace('_', '-') + ')':>24}{'corrected':>11}{'p':>8}"
    lines = [head]
    draws = {null["draws"] for row in pair.scores for null in row["nulls"].values()}
    for row in pair.scores:
        line = f"  {_title(row['score'], row['signed'], config):<42}{_number(row['value']):>8}"
        for kind in kinds:
            null = row["nulls"].get(kind)
            if null is None:
                continue
            chance = _number(null["mean"])
            if null["sd"] is not None:
                chance += f" ± {null['sd']:.1e}"
            line += (
                f"   {chance:>24}{_number(null['corrected']):>11}{_number(null['p_value'], 3):>8}"
            )
        if row["chance"] is not None:
            line += f"   {_number(row['chance']):>24}"
        if row["reason"]:
            line += f"   ({row['reason']})"
        lines.append(line)
    if draws:
        least = min(draws)
        lines.append(
            f"  chance from {least} random pair{'s' * (least != 1)}; "
            f"the least p-value they can give is {1 / (1 + least):.3f}"
        )
    elif config.null_draws == 0:
        lines.append(
            "  chance was not computed (--null-draws 0): these scores cannot be judged alone"
        )
    return lines


def _match_lines(pair: PairComparison, config: CompareConfig) -> list[str]:
    lines = []
    for match in (pair.absolute, pair.signed):
        name = "cosine" if match.signed else "|cosine|"
        proof = (
            "optimal" if match.certified else f"NOT PROVED OPTIMAL, within {match.gap_bound:.2g}"
        )
        counts = "; ".join(
            f"≥ {row['threshold']:g}: {row['matched']:,} matched, "
            f"{row['unmatched_a']:,} of A and {row['unmatched_b']:,} of B unmatched"
            for row in threshold_counts(match, config.thresholds)
        )
        lines.append(f"  match by {name} ({proof}): {counts}")
    return lines


def _overall_lines(comparison: Comparison) -> list[str]:
    level = f"{comparison.config.level:.0%}"
    lines = [
        f"All {len(comparison.pairs)} pairs of {len(comparison.saes)} SAEs "
        f"(interval over SAEs, not pairs; jackknife, {level})"
    ]
    for row in comparison.overall:
        line = f"  {_title(row['score'], row['signed'], comparison.config):<42}"
        line += f"{_number(row['mean']):>8}"
        if row["low"] is not None:
            line += f"   [{_number(row['low'])}, {_number(row['high'])}]"
        elif row["reason"]:
            line += f"   ({row['reason']})"
        lines.append(line)
    return lines

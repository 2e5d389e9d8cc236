"""Compare the reproducibility of ReLU and TopK SAEs: the page of conf/architectures.

    kedro run --env=architectures --pipelines=sae_training,consistency_analysis
    python benchmarks/architectures.py

Two papers give opposite answers, each at a sparsity of its own: TopK comes back better in Song et
al. (arXiv 2505.20254), ReLU in Paulo & Belrose (arXiv 2501.16615). Here both have six sparsities at
one width and are compared at equal L0, equal FVU and equal numbers of live latents. Writes
docs/results/architectures from the tables.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from husai.storage import atomic_path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "architectures"
SCORES = {"pw_mcc": ("PW-MCC (absolute)", False), "shared_fraction": ("shared fraction", True)}
BASES = {"l0": "L0", "fvu": "FVU", "n_live": "live latents"}
FIGURE = "settings.png"


def answers(contrasts: pd.DataFrame) -> list[str]:
    """Say of each score and basis how often ReLU comes back better, and by how much."""
    lines = []
    for (score, basis), own in contrasts.groupby(["score", "matched_on"], sort=False):
        apart = own[(own["low"] > 0) | (own["high"] < 0)]
        higher = int((apart["difference"] > 0).sum())
        text = (
            f"- {SCORES[str(score)][0]} at matched {BASES[str(basis)]}: ReLU less TopK is "
            f"{own['difference'].min():+.3f} to {own['difference'].max():+.3f} at the "
            f"{len(own)} points; of {len(apart)} whose interval leaves out 0, ReLU is above at "
            f"{higher}."
        )
        lines.append(text)
    return lines


def page(groups: pd.DataFrame, contrasts: pd.DataFrame, orderings: pd.DataFrame) -> str:
    """Write the page.

    Parameters
    ----------
    groups, contrasts, orderings
        The study's tables.
    """
    full = contrasts[(contrasts["space"] == "full") & contrasts["score"].isin(SCORES)]
    chosen = pd.concat(
        full[(full["score"] == score) & (full["signed"] == signed)]
        for score, (_, signed) in SCORES.items()
    )
    heads = groups[groups["space"] == "full"].drop_duplicates("group").set_index("group")
    rows = {
        score: groups[
            (groups["space"] == "full") & (groups["score"] == score) & (groups["signed"] == signed)
        ].set_index("group")
        for score, (_, signed) in SCORES.items()
    }
    settled = int(heads["n_converged"].sum())
    live = chosen.query("matched_on == 'n_live'")["at"]
    text = [
        "# ReLU against TopK",
        "",
        "`kedro run --env=architectures --pipelines=sae_training,consistency_analysis`, then "
        "`python benchmarks/architectures.py`",
        "",
        f"![PW-MCC against k and L0, with intervals and chance]({FIGURE})",
        "",
        f"{int(heads['n_seeds'].sum())} SAEs at d_sae {int(heads['d_sae'].iloc[0])} on the home "
        f"study's transformer: six sparsities of each architecture, {int(heads['n_seeds'].max())} "
        "seeds of each; dead latents are left out. Song et al. (arXiv 2505.20254) report that TopK "
        "comes back better, Paulo & Belrose (arXiv 2501.16615) that ReLU does.",
        "",
        *answers(chosen),
        "",
        *_papers(orderings),
        "",
        "Limits. "
        f"{settled} of {int(heads['n_seeds'].sum())} SAEs had settled, as the gate says. In both "
        "architectures nearly every latent is live, so they can be compared at equal numbers of "
        f"live latents only from {live.min():.1f} to {live.max():.1f}, which says little. There "
        "are one transformer and one width. Chance is not the same for both (see the permuted "
        "columns): ReLU's own features lie in fewer directions. Scores are higher for sparser SAEs "
        "of both architectures, so a comparison at one setting of each, as in both papers, also "
        "compares sparsities.",
        "",
        "## Settings",
        "",
        "| group | L0 | FVU | live | settled | found in every seed | PW-MCC | permuted | shared "
        "fraction | permuted |",
        "|---" * 10 + "|",
        *(_setting(group, head, rows) for group, head in heads.sort_values("l0").iterrows()),
        "",
        "## At matched points",
        "",
        "| score | matched on | at | ReLU less TopK | p |",
        "|---" * 5 + "|",
        *(
            f"| {SCORES[row['score']][0]} | {BASES[row['matched_on']]} | {row['at']:.4g} | "
            f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] | "
            f"{_p_value(row['p'])} |"
            for row in chosen.to_dict("records")
        ),
        "",
        "Intervals leave out each seed from all settings of the curve at once.",
    ]
    return "\n".join(text) + "\n"


def _papers(orderings: pd.DataFrame) -> list[str]:
    """How often the ordering that each paper reports is found here."""
    lines = []
    for (source, score), own in orderings.groupby(["source", "score"], sort=False):
        known = own[own["separated"] & own["agrees"].notna()]
        agree = int(known["agrees"].astype(bool).sum())
        lines.append(
            f"- {source} ({own['paper_higher'].iloc[0]} above {own['paper_lower'].iloc[0]} by "
            f"{score}): of {len(known)} matched points that separate the two, {agree} agree."
        )
    return lines


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _setting(group: Any, head: pd.Series, rows: dict[str, pd.DataFrame]) -> str:
    scores = []
    for score in SCORES:
        row = rows[score].loc[group]
        scores.append(
            f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}] | {row['permuted_mean']:.3f}"
        )
    return (
        f"| {group} | {head['l0']:.2f} | {head['fvu']:.3f} | {head['n_live']:.0f} | "
        f"{head['n_converged']:.0f} of {head['n_seeds']:.0f} | {head['n_everywhere']:.0f} | "
        + " | ".join(scores)
        + " |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=Path, default=ROOT / "data/architectures/consistency")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    names = ("groups", "contrasts", "orderings")
    groups, contrasts, orderings = (pd.read_parquet(given.tables / f"{n}.parquet") for n in names)
    text = page(groups, contrasts, orderings)
    given.results.mkdir(parents=True, exist_ok=True)
    with atomic_path(given.results / "README.md") as path:
        path.write_text(text, encoding="utf-8")
    shutil.copyfile(given.tables / FIGURE, given.results / FIGURE)
    print(text)


if __name__ == "__main__":
    main()

"""What features do, which come back, and what they are together: pages from the studies' tables.

kedro run                                    # the home study
kedro run --pipelines=feature_groups         # its widths beside one another
kedro run --env=seeds                        # ten seeds of its main group
python benchmarks/feature_results.py                # this: docs/results/{consensus,groups,features}
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from husai.consistency.inference.intervals import seed_interval
from husai.storage import atomic_path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
MEASURES = {
    "variance_kept": "variance kept",
    "loss_recovered": "loss recovered",
    "probe_accuracy": "accuracy of a probe",
}
COSINES = (0.0, 0.7, 0.8, 0.9, 0.95, 1.0)


def within(row: Mapping[Any, Any], name: str, digits: int = 3) -> str:
    """A number with its interval, where there is one."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    text = f"{row[name]:.{digits}f}"
    return text if low is None or pd.isna(low) else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def markdown(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def function_by_cosine(partners: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Say how alike partners act by how near their directions are, seeds being the sample.

    Parameters
    ----------
    partners
        ``id``, ``other_id``, ``similarity``, ``function`` and ``repaired``: a row per pair.
    level
        Of the jackknife intervals.

    Returns
    -------
    pandas.DataFrame
        A row per bin of |cosine|: ``low``, ``high``, ``n_pairs``, mean ``function`` with its
        interval; ``above_half``, the share of pairs whose function is above a half.
    """
    ids = list(dict.fromkeys(partners["id"]))
    place = {one: s for s, one in enumerate(ids)}
    known = partners.assign(
        s=partners["id"].map(place),
        t=partners["other_id"].map(place),
        half=partners["function"] > 0.5,
    )
    rows = []
    for low, high in pairwise(COSINES):
        inside = known["similarity"].between(low, high, inclusive="left" if high < 1 else "both")
        part = known[inside & known["function"].notna()]
        grid = np.zeros((len(ids), len(ids)))
        means = part.groupby(["s", "t"], as_index=False)["function"].mean()
        grid[means["s"], means["t"]] = means["function"]
        found = seed_interval((grid + grid.T) / 2, level=level, bounds=(-1.0, 1.0))
        rows.append(
            {
                "low": low,
                "high": high,
                "n_pairs": len(part),
                "function": found.mean,
                "function_low": found.low,
                "function_high": found.high,
                "above_half": part["half"].mean(),
            }
        )
    return pd.DataFrame(rows)


def consensus_page(
    worth: pd.DataFrame, recurrence: pd.DataFrame, calibration: pd.DataFrame, n_seeds: int
) -> str:
    """The page of the consensus dictionary."""
    found = {row["between"]: row for row in recurrence.to_dict("records")}
    own, null = found["consensus"], found["permuted null"]
    main = calibration[calibration["threshold"] == 0.7].iloc[0]
    half = n_seeds // 2
    lines = [
        "# What ten seeds share",
        "",
        "`kedro run --env=seeds`, then `python benchmarks/feature_results.py`",
        "",
        f"{n_seeds} seeds of the home study's main group (TopK, 256 latents, k 4), over all 12,769 "
        "rows. A feature enters the consensus when it is found (|cosine| ≥ 0.7) in a given share "
        "of the seeds; its direction is the mean of its members. Every dictionary gets a TopK "
        "encoder, "
        "fitted in the same way with the decoder held, and is measured on rows that were held out.",
        "",
        "![What is kept by the number of latents, and whether the consensus recurs](consensus.png)",
        "",
        "## Does it recur?",
        "",
        f"The consensus of seeds 0–{half - 1} has {own['n_first']:.0f} features, that of seeds "
        f"{half}–{n_seeds - 1} {own['n_second']:.0f}. Intervals leave each seed out of its half; "
        "those of "
        "the null are 95 % of its draws. `found` and `nearly the same` are the shares of the "
        "smaller "
        "with a partner at |cosine| 0.7 and 0.9. The subsets of one seed have as many features.",
        "",
        *markdown(
            ["between the halves", "PW-MCC", "found", "nearly the same"],
            [
                [str(name), *(within(row, k) for k in ("pw_mcc", "found", "nearly_same"))]
                for name, row in found.items()
            ],
        ),
        "",
        f"p of the consensus under its permuted null: {null['p']:.3f}. "
        + _pooling(own, found["most reproducible of one seed"]),
        "",
        "## What does it keep?",
        "",
        "Means over the SAEs that a dictionary was taken from (intervals: Student's t over them; "
        "the "
        "consensus of all seeds is one). `share` is that of the seeds in which a feature must be "
        "found.",
        "",
        *markdown(
            ["share", "dictionary", "SAEs", "latents", *MEASURES.values()],
            [
                [
                    f"{row['min_share']:g}",
                    str(row["dictionary"]),
                    f"{row.get('n_saes', 1)}",
                    f"{row['n_latents']:.0f}",
                    *(within(row, name) for name in MEASURES),
                ]
                for row in worth.sort_values(["min_share"], kind="stable").to_dict("records")
            ],
        ),
        "",
        "## Will a new seed have it?",
        "",
        f"The probability is learned from seeds 0–{half - 1} and asked of seeds "
        f"{half}–{n_seeds - 1}, "
        f"which it never saw. At |cosine| ≥ 0.7 its Brier score is {within(dict(main), 'brier')} "
        f"(interval over new seeds); to predict the overall share for every feature gives "
        f"{main['brier_of_base_rate']:.3f}.",
        "",
        "![Predicted against observed, at five similarities](calibration.png)",
        "",
        *markdown(
            ["|cosine| ≥".replace("|", "\\|"), "Brier score", "of the base rate", "largest gap"],
            [
                [
                    f"{threshold:g}",
                    within(dict(part.iloc[0]), "brier"),
                    f"{part['brier_of_base_rate'].iloc[0]:.3f}",
                    _gap(part),
                ]
                for threshold, part in calibration.groupby("threshold")
            ],
        ),
        "",
        "The largest gap is between predicted and observed share, over bins of 100 predictions "
        "or more.",
        "",
    ]
    return "\n".join(lines)


def _pooling(pooled: Mapping[Any, Any], picked: Mapping[Any, Any]) -> str:
    """Whether pooling adds to picking, by the intervals."""
    apart = pooled["pw_mcc_low"] > picked["pw_mcc_high"]
    return (
        "Picking alone comes near: the same number of features of one seed, those that come back "
        "best "
        f"in its half, has {picked['pw_mcc']:.3f}; pooling adds "
        f"{pooled['pw_mcc'] - picked['pw_mcc']:.3f}"
        + (", more than the intervals leave open." if apart else ", and the intervals overlap.")
    )


def _gap(part: pd.DataFrame) -> str:
    large = part[part["n"] >= 100]
    gap = (large["happened"] - large["predicted"]).abs()
    at = large.iloc[int(gap.to_numpy().argmax())]
    return f"{gap.max():.3f} (predicted {at['predicted']:.2f}, observed {at['happened']:.2f})"


def groups_page(shares: pd.DataFrame, counts: pd.DataFrame, planes: pd.DataFrame) -> str:
    """The page of what no single latent matches."""
    codes = shares[shares["measure"] == "codes"]
    spans = shares[shares["measure"] == "decoder"]
    random = shares[shares["measure"].str.contains("random")]

    def table(part: pd.DataFrame) -> list[str]:
        verdicts = [str(v) for v in dict.fromkeys(part["verdict"])]
        rows = []
        for (here, there), own in part.groupby(["from", "to"], sort=False):
            by = own.set_index("verdict")
            cells = [
                "{:.2f} [{:.2f}, {:.2f}]".format(*by.loc[v, ["share", "low", "high"]])
                for v in verdicts
            ]
            rows.append([f"{here} in {there}", *cells])
        return markdown(["latents of width", *verdicts], rows)

    at = codes.set_index(["from", "to", "verdict"])["share"]
    n_planes, n_saes = int(counts["n_planes"].sum()), len(counts)
    recurs = (
        int((planes["n_seeds_found"] >= planes["id"].nunique() / 2).sum()) if len(planes) else 0
    )
    lines = [
        "# What no single latent matches",
        "",
        "`kedro run --pipelines=feature_groups`, then `python benchmarks/feature_results.py`",
        "",
        "The home study's TopK SAEs of 64, 128 and 256 latents, six seeds each. Pairs of SAEs of "
        "one "
        "seed are left out; intervals leave a seed out on both sides.",
        "",
        "![What one or a few latents of another SAE explain, by the widths of the two](widths.png)",
        "",
        "## Splitting and merging, by activations",
        "",
        "Each latent's activation is explained by up to four latents of the other SAE, chosen by "
        "orthogonal matching pursuit on half of the rows and measured on the other half. "
        "`matched`: one "
        "explains half of its variance or more. `split`: only several do. `merged`: none do, but "
        "it is "
        "one of those that a latent of the other SAE is the sum of. `alone`: neither. With the "
        "other "
        f"SAE's rows in random order at most {random['share'].max():.3f} of the latents are "
        "explained.",
        "",
        *table(codes),
        "",
        f"Of the latents of the 64-wide SAEs {at['64', '256', 'split']:.0%} are split in those "
        "of 256 and "
        f"{at['64', '256', 'matched']:.0%} matched; of those of 256 "
        f"{at['256', '64', 'merged']:.0%} are merged "
        f"in 64. Between two SAEs of 256 latents {at['256', '256', 'split']:.1%} are split: "
        "there, what does "
        "not come back is not made of a few others either.",
        "",
        "## Spans, by directions",
        "",
        "How much of a decoder row lies in the span of the best one to four of the other SAE's. "
        "`one`: "
        "the nearest alone holds 90 % of its energy. `few`: four do, and in none of five permuted "
        "dictionaries of the same size. `chance`: four do, and in a permuted dictionary as well.",
        "",
        *table(spans),
        "",
        "The activations fill some 20 dimensions, so four of many directions span much: a "
        "direction "
        "within such a span says less than an activation that is explained.",
        "",
        "## Planes and circles",
        "",
        "A plane counts when four features or more of one SAE lie in it (norm of the projection "
        "≥ 0.9), "
        "found without labels. In planted worlds with planes that every seed tiles at a phase of "
        "its "
        f"own, all are found, in every seed. Here {n_saes} SAEs have {n_planes} in all, of four "
        "latents "
        f"each, and {recurs} of them in half of the other seeds; none goes round a circle. At "
        "this hook and these widths the dictionaries hold answers, not circles: what single "
        "latents do "
        "not match is not a plane either.",
        "",
    ]
    return "\n".join(lines)


def function_page(
    by_cosine: pd.DataFrame, function: pd.DataFrame, saes: pd.DataFrame, reliability: pd.DataFrame
) -> str:
    """The page of what the home study's features do."""
    main = function[function["by"].isin(["all", "kind"]) & (function["n_features"] >= 20)]
    mean = saes[["jaccard", "jaccard_null", "correlation"]].mean()
    ends = saes["jaccard"].agg(["min", "max"])
    lines = [
        "# What the home study's features do",
        "",
        "`kedro run`, then `python benchmarks/feature_results.py`. TopK, 256 latents, k 4, six "
        "seeds; "
        "function "
        "is exact, on all 12,769 rows.",
        "",
        "## Does a near direction mean the same function?",
        "",
        *markdown(
            ["\\|cosine\\|", "pairs", "function", "above 0.5"],
            [
                [
                    f"{row['low']:g} to {row['high']:g}",
                    f"{row['n_pairs']:,}",
                    within(row, "function", 2),
                    f"{row['above_half']:.0%}",
                ]
                for row in by_cosine.to_dict("records")
            ],
        ),
        "",
        *markdown(
            [
                "features",
                "number",
                "\\|cosine\\|",
                "function",
                "nearest non-partner",
                "random",
                "repaired",
            ],
            [
                [
                    str(row["stratum"]),
                    f"{row['n_features']:,}",
                    *(
                        within(row, name, 2)
                        for name in (
                            "similarity",
                            "function",
                            "function_negative",
                            "function_random",
                            "repaired",
                        )
                    ),
                ]
                for row in main.to_dict("records")
            ],
        ),
        "",
        "Function is the correlation of what two ablations change in the logits; `repaired` the "
        "share of "
        "an ablation's harm that the partner undoes in its place. Intervals are over seeds.",
        "",
        "## Does the encoder choose what the dictionary would?",
        "",
        "The overlap (Jaccard) of the encoder's latents with those of orthogonal matching "
        "pursuit on the same "
        f"dictionary is {mean['jaccard']:.3f} (from {ends['min']:.3f} to {ends['max']:.3f} over "
        "seeds), "
        f"{mean['jaccard_null']:.3f} with rows in random order. Features on which the two agree "
        "more come "
        f"back better: rank correlation {mean['correlation']:.2f}.",
        "",
        "## Is the probability of coming back right?",
        "",
        "Each seed left out in turn: Brier score "
        f"{reliability['brier'].iloc[0]:.3f}, that of the base rate "
        f"{reliability['brier_of_base_rate'].iloc[0]:.3f}. With new seeds: "
        "[what ten seeds share](../consensus/README.md#will-a-new-seed-have-it).",
        "",
        "![Predicted against observed](reliability.png)",
        "",
    ]
    return "\n".join(lines)


def write(folder: Path, text: str, tables: dict[str, pd.DataFrame], figures: list[Path]) -> None:
    """Write a page with its tables and figures."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    for name, table in tables.items():
        with atomic_path(folder / f"{name}.csv") as temporary:
            table.round(5).to_csv(temporary, index=False)
    for figure in figures:
        shutil.copyfile(figure, folder / figure.name)
    print(folder)


def main(data: Path, results: Path) -> None:
    """Write all three pages."""

    def read(folder: Path, *names: str) -> list[pd.DataFrame]:
        return [pd.read_parquet(folder / f"{name}.parquet") for name in names]

    seeds, home = data / "seeds" / "features", data / "features"
    names = ["worth", "recurrence", "calibration", "dictionaries", "tracks"]
    found = dict(zip(names, read(seeds, *(f"consensus_{n}" for n in names)), strict=True))
    n_seeds = sum(str(name).startswith("latent_") for name in found["tracks"])
    page = consensus_page(found["worth"], found["recurrence"], found["calibration"], n_seeds)
    figures = [seeds / "consensus.png", seeds / "calibration.png"]
    write(results / "consensus", page, found, figures)
    names = ["shares", "planes", "counts"]
    groups = dict(zip(names, read(home, *(f"groups_{n}" for n in names)), strict=True))
    page = groups_page(groups["shares"], groups["counts"], groups["planes"])
    write(results / "groups", page, groups, [home / "widths.png"])
    names = ["function", "identifiability", "reliability", "partners"]
    tables = dict(zip(names, read(home, *names), strict=True))
    tables["by_cosine"] = function_by_cosine(tables.pop("partners"))
    page = function_page(
        tables["by_cosine"], tables["function"], tables["identifiability"], tables["reliability"]
    )
    write(results / "features", page, tables, [data / "consistency" / "reliability.png"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the studies")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    given = parser.parse_args()
    main(given.data, given.results)

"""Train the same SAEs on several transformers: which findings hold for all, and which for one.

    python benchmarks/transformers_study.py                       # every shipped transformer
    python benchmarks/transformers_study.py --transformers seed0 seed0_clean

    python benchmarks/transformers_study.py --longer              # the wide ones, for longer
    python benchmarks/transformers_study.py --conclude            # from the tables that are there

For each transformer it runs `kedro run --env=transformers` in a folder of its own below
data/transformers, and measures its SAEs. The tables of all are in docs/results/transformers, with
what follows from them when the transformers are the sample. Started again, it continues where it
was interrupted: SAEs that are trained stay, and a transformer whose tables are in its folder is
done.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from husai.campaign.records import RowsRecords, gather_records
from husai.consistency import (
    SCORES,
    ConsistencyConfig,
    SAERecord,
    joint_null,
    mean_interval,
    score_reference,
)
from husai.consistency.inference.hierarchy import (
    association,
    hierarchy_table,
    score_hierarchy,
    value_hierarchy,
)
from husai.consistency.inference.references import permuted
from husai.consistency.scores.subspace import data_metric
from husai.consistency.study import planning
from husai.consistency.study.groups import (
    found_everywhere,
    group_head,
    mean_score,
    score_matrix,
)
from husai.consistency.study.labels import candidate_labels, label_tables
from husai.consistency.study.pairs import score_pair
from husai.consistency.study.record import group_members, live_group
from husai.errors import InputError
from husai.figures.transformers import STOPS, transformers_figure
from husai.storage import atomic_path
from husai.transformer import (
    TrainedTransformer,
    fourier_structure,
    frequency_balance,
    frequency_shares,
    shipped_transformers,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "transformers"
TABLES = ("pairs", "covered", "kinds", "groups")
"""Of each transformer; it is done when it has all."""

DRAWS = 200
CONFIG = ConsistencyConfig(dead="drop", code_null_draws=0)
MEASURED = (("pw_mcc", False), ("shared_fraction", True))
"""Scores, with the sign conventions of the papers that they are from."""

ANSWERS = {
    "n_answers": "n_classes",
    "answers": "mean",
    "answers_low": "low",
    "answers_high": "high",
    "answers_by_precision": "by_average_precision",
    "answers_by_chance": "chance",
    "gt_mcc": "gt_mcc",
    "gt_mcc_permuted": "permuted_mean",
}
"""Columns of the answers in the table of groups, and in that of coverage."""

FREQUENCIES = ("effective_frequencies", "frequency_balance")
"""What is said of a transformer's key frequencies: their effective number, and that over their
number."""

LONGER = {"steps": 8000, "eval_interval": 500, "snapshot_interval": 500}
LONGER_RATE = 0.004
"""Steps and their rate in the check of the training length: both twice those of the study."""

LONGER_WIDTHS = [256, 512]
"""Of that check: the widths that settle last."""

WIDTH = 256
"""Drawn: wide enough for a latent of every answer."""


class Leg(NamedTuple):
    """One transformer of the study: its name and the parameters that choose it."""

    name: str
    params: dict[str, Any]


def shipped_legs(names: Sequence[str] = ()) -> list[Leg]:
    """Give a leg for each shipped transformer, or for those that are named."""
    every = {
        one.name: Leg(one.name, {"transformer": {"seed": one.seed, "shipped": one.shipped}})
        for one in shipped_transformers()
    }
    unknown = sorted(set(names) - set(every))
    if unknown:
        raise InputError(f"--transformers: {unknown} are not shipped; there are: {list(every)}")
    return [every[name] for name in names or every]


def run(folder: Path, params: dict[str, Any]) -> tuple[RowsRecords, TrainedTransformer]:
    """Train what is missing in a leg's folder; give its SAEs with their rows, and its model."""
    os.environ["HUSAI_DATA_DIR"] = str(folder)
    bootstrap_project(ROOT)
    session: Any
    with KedroSession.create(ROOT, env="transformers", runtime_params=params) as session:
        session.run()
    with KedroSession.create(ROOT, env="transformers", runtime_params=params) as session:
        catalog = session.load_context().catalog
        names = ("sae_plan", "saes", "activations", "transformer")
        plan, saes, activations, transformer = map(catalog.load, names)
    study = gather_records(plan, saes, {}, activations)
    return study.first, TrainedTransformer.from_parts(transformer.tensors, transformer.header)


def about(trained: TrainedTransformer, leg: Leg) -> dict[str, Any]:
    """Say which transformer it is and how evenly its key frequencies hold the variance."""
    parts = trained.state_dict, trained.vocabulary, trained.model_config
    row: dict[str, Any] = {
        "stop": leg.params["transformer"].get("shipped", "early_stop"),
        "fingerprint": trained.fingerprint,
        "transformer_seed": trained.model_config.seed,
        "epochs": trained.summary["epochs"],
        "test_accuracy": trained.summary["final_test_accuracy"],
    }
    try:
        shares = frequency_shares(*parts, fourier_structure(*parts).key_frequencies)
    except InputError:  # it has not grokked: no frequency stands out
        none = dict.fromkeys(("largest_share", "frequency_balance", "effective_frequencies"))
        return {**row, "n_frequencies": 0, **none}
    balance = frequency_balance(list(shares.values()))
    return {
        **row,
        "n_frequencies": len(shares),
        "largest_share": max(shares.values()),
        "frequency_balance": balance,
        "effective_frequencies": balance * len(shares),
    }


def measure(
    name: str, records: Sequence[SAERecord], covariance: np.ndarray[Any, Any], draws: int = DRAWS
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Measure a group: its scores beside their permuted nulls, and those of every pair.

    Latents that never fire are left out; encoders are compared in the data's metric.

    Parameters
    ----------
    name, records
        The group, and the seeds' SAEs with codes of the rows.
    covariance
        ``[d, d]`` of the rows.
    draws
        Of the permuted null.
    """
    live = live_group(records, CONFIG, data_metric(covariance))
    row = group_head(name, live, "full")
    row |= {
        "motion": _mean([record.motion for record in records]),
        "plateau": records[0].plateau,
    }
    if len(live) < 2 or min(len(one.index) for one in live) < 2:
        return row, pd.DataFrame()
    pairs = {
        (s, t): score_pair(live[s], live[t], CONFIG, scores=[SCORES[name] for name, _ in MEASURED])
        for s, t in combinations(range(len(live)), 2)
    }
    row["n_everywhere"] = found_everywhere(live, pairs, CONFIG.shared_threshold)
    decoders = [one.decoder for one in live]
    encoders = [one.encoder for one in live]
    nulls = {
        "pw_mcc": score_reference(
            permuted(decoders), (len(decoders[0]), len(decoders[1])), n_draws=draws
        )["pw_mcc"]
    }
    if all(encoder is not None for encoder in encoders):
        nulls["shared_fraction"] = joint_null(decoders, encoders, n_draws=draws)  # type: ignore[arg-type]
    for score, signed in MEASURED:
        if score not in nulls:
            continue
        found = mean_score(pairs, len(live), SCORES[score], signed, CONFIG.level)
        assert found is not None
        assert found.mean is not None
        null = nulls[score]
        row |= {
            score: found.mean,
            f"{score}_low": found.low,
            f"{score}_high": found.high,
            f"{score}_permuted": null.mean,
            f"{score}_corrected": null.corrected(found.mean),
            f"{score}_p": null.p_value(found.mean),
        }
    table = pd.DataFrame(
        [
            {
                "seed_a": records[s].seed,
                "seed_b": records[t].seed,
                **{
                    score: pair.values[score, signed].value
                    for score, signed in MEASURED
                    if (score, signed) in pair.values
                },
            }
            for (s, t), pair in pairs.items()
        ]
    )
    return row, table


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def measure_leg(
    here: RowsRecords, head: dict[str, Any], draws: int = DRAWS
) -> dict[str, pd.DataFrame]:
    """Measure all SAEs of one transformer.

    Parameters
    ----------
    here
        Its SAEs, with the rows that they read.
    head
        Columns that say which transformer it is.
    draws
        Of the permuted nulls.

    Returns
    -------
    dict
        The tables of :data:`TABLES`: groups, pairs of SAEs, SAEs and families of classes, and
        groups and kinds of feature.
    """
    labelled = candidate_labels(here.rows)
    members = group_members(here.records)
    rows, pairs = [], []
    for group, records in members.items():
        row, table = measure(group, records, here.covariance, draws)
        rows.append(row)
        pairs.append(
            table.assign(group=group, architecture=row["architecture"], d_sae=row["d_sae"])
        )
    groups = pd.DataFrame(rows)
    found: dict[str, pd.DataFrame] = {"pairs": pd.concat(pairs, ignore_index=True)}
    if labelled is not None:
        config = CONFIG.model_copy(update={"null_draws": max(1, draws // 5)})
        live = {group: live_group(records, CONFIG) for group, records in members.items()}
        labels = label_tables(live, labelled, config)
        answers = labels.coverage[labels.coverage["family"] == "answer"].set_index("group")
        for column, source in ANSWERS.items():
            groups[column] = groups["group"].map(answers[source])
        found |= {"covered": labels.covered, "kinds": labels.kinds}
        saes = pd.DataFrame(
            [
                {"id": one.record.id, "n_live": len(one.index)}
                | {name: getattr(one.record, name) for name in ("l0", "fvu", "converged", "motion")}
                for group in live.values()
                for one in group
            ]
        )
        settings = groups[["group", "architecture", "d_sae"]]
        found["covered"] = found["covered"].merge(saes, on="id").merge(settings, on="group")
        found["covered"] = found["covered"].drop(columns="id")
    found["groups"] = groups
    return {
        name: table.assign(**{k: v for k, v in head.items() if k not in table})[
            [*head, *(column for column in table if column not in head)]
        ]
        for name, table in found.items()
    }


def study(
    legs: Sequence[Leg],
    folder: Path,
    results: Path,
    params: dict[str, Any] | None = None,
    draws: int = DRAWS,
) -> dict[str, pd.DataFrame]:
    """Run every leg that is not done, and write the tables of all.

    Parameters
    ----------
    legs
        Transformers.
    folder
        Of the data, a folder below it for each leg.
    results
        Folder of the tables.
    params
        Further parameters of every leg.
    draws
        Of the permuted nulls.
    """
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for leg in legs:
        own = folder / leg.name
        if not all((own / f"{name}.csv").is_file() for name in TABLES):
            started = time.perf_counter()
            here, trained = run(own.resolve(), merged(params or {}, leg.params))
            head = {"transformer": leg.name, **about(trained, leg)}
            for name, table in measure_leg(here, head, draws).items():
                with atomic_path(own / f"{name}.csv") as temporary:
                    table.to_csv(temporary, index=False)
            print(f"{leg.name}: {time.perf_counter() - started:.0f} s", flush=True)
        for name in TABLES:
            tables[name].append(pd.read_csv(own / f"{name}.csv"))
    joined = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    for name, table in joined.items():
        with atomic_path(results / f"{name}.csv") as temporary:
            table.round(5).to_csv(temporary, index=False)
    return joined


def conclude(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Say what is universal: the transformers are the sample, the seeds lie below.

    Transformers of one stop are analysed together; one that is cleaned up was trained on from the
    early stop of the same seed, so that the two are no independent pair.

    Parameters
    ----------
    tables
        Of :func:`study`.

    Returns
    -------
    dict
        ``hierarchy``: a row per stop, architecture, width and measure, with the fields of
        :class:`husai.consistency.inference.hierarchy.Hierarchy`. ``associations``: rank
        correlation, over transformers, of answers with a latent and of agreement with the
        effective number and the balance of the key frequencies. ``changes``: what cleaning up
        changes, over seeds of transformers that are there at both stops. ``pilot``: variances of
        seeds and pairs for planning.
    """
    by = ["stop", "architecture", "d_sae"]
    parts = []
    for score, signed in MEASURED:
        pairs = tables["pairs"].dropna(subset=[score])
        found = hierarchy_table(
            pairs,
            by,
            partial(score_hierarchy, bounds=SCORES[score].bounds_of(signed)),
            partial(_matrix, score=score),
        )
        parts.append(found.assign(measure=score))
    covered = tables["covered"]
    for family, own in covered.groupby("family"):
        found = hierarchy_table(
            own,
            by,
            partial(value_hierarchy, bounds=(0.0, float(own["n_classes"].max()))),
            partial(_column, name="covered"),
        )
        parts.append(found.assign(measure=f"{family} covered"))
    saes = covered.drop_duplicates([*by, "transformer", "seed"])
    for name in ("l0", "fvu", "n_live"):
        found = hierarchy_table(
            saes, by, partial(value_hierarchy, bounds=(0.0, np.inf)), partial(_column, name=name)
        )
        parts.append(found.assign(measure=name))
    kinds = tables["kinds"]
    for kind, own in kinds.assign(
        kind=np.where(kinds["kind"] == "answer", "answer", "rest")
    ).groupby("kind"):
        found = hierarchy_table(
            own, by, partial(value_hierarchy, bounds=(0.0, 1.0)), _weighted_reproducibility
        )
        parts.append(found.assign(measure=f"reproducibility of {kind}"))
    hierarchy = pd.concat(parts, ignore_index=True)
    groups = tables["groups"]
    rows = []
    for key, own in groups.groupby(by, sort=True):
        for measure_, axis in product(("answers", "pw_mcc", "gt_mcc"), FREQUENCIES):
            known = own.dropna(subset=[measure_, axis])
            if len(known):
                together = association(known[axis], known[measure_])
                head = dict(zip(by, key, strict=True))
                rows.append({**head, "measure": measure_, "with": axis, **vars(together)})
    changes = []
    for (architecture, width), own in groups.groupby(["architecture", "d_sae"], sort=True):
        for measure_ in ("answers", "pw_mcc", "largest_share"):
            wide = own.pivot(index="transformer_seed", columns="stop", values=measure_).dropna()
            if len(wide) < 2 or set(wide) != {"early_stop", "cleaned_up"}:
                continue
            change = mean_interval(wide["cleaned_up"] - wide["early_stop"])
            changes.append(
                {
                    "architecture": architecture,
                    "d_sae": width,
                    "measure": measure_,
                    "cleaned_up_minus_early_stop": change.mean,
                    "low": change.low,
                    "high": change.high,
                    "n_transformers": change.n_seeds,
                }
            )
    first = [*by, "measure"]
    return {
        "hierarchy": hierarchy[[*first, *(c for c in hierarchy if c not in first)]],
        "associations": pd.DataFrame(rows),
        "changes": pd.DataFrame(changes),
        "pilot": _pilot(hierarchy),
    }


def _matrix(pairs: pd.DataFrame, score: str) -> np.ndarray[Any, Any]:
    seeds = sorted({*pairs["seed_a"], *pairs["seed_b"]})
    at = {seed: place for place, seed in enumerate(seeds)}
    values = {
        (at[a], at[b]): float(value)
        for a, b, value in zip(pairs["seed_a"], pairs["seed_b"], pairs[score], strict=True)
    }
    return score_matrix(values, len(seeds))


def _column(rows: pd.DataFrame, name: str) -> np.ndarray[Any, Any]:
    return rows[name].to_numpy(dtype=np.float64)


def _weighted_reproducibility(rows: pd.DataFrame) -> np.ndarray[Any, Any]:
    return np.array([np.average(rows["reproducibility"], weights=rows["n_features"])])


def _pilot(hierarchy: pd.DataFrame) -> pd.DataFrame:
    """Variances of seeds and pairs of PW-MCC at the early stop, as planning takes them."""
    own = hierarchy[(hierarchy["measure"] == "pw_mcc") & (hierarchy["stop"] == "early_stop")]
    own = own[own["seed_sd"].notna()]
    return own.rename(columns={"mean": "pw_mcc"})[
        ["architecture", "d_sae", "pw_mcc", "seed_sd", "pair_sd", "n_seeds", "n_transformers"]
    ].reset_index(drop=True)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge nested parameters, the second's in front."""
    found = dict(base)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = merged(found[name], value) if both else value
    return found


def write_conclusions(tables: Mapping[str, pd.DataFrame], results: Path) -> None:
    """Write what follows from the tables: as CSV, as a picture, and as the pilot of plans."""
    found = conclude(tables)
    for name in ("hierarchy", "associations", "changes"):
        with atomic_path(results / f"{name}.csv") as temporary:
            found[name].round(5).to_csv(temporary, index=False)
    figure = transformers_figure(tables["groups"], tables["kinds"], WIDTH)
    with atomic_path(results / "transformers.png") as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    with atomic_path(results / "README.md") as temporary:
        temporary.write_text(report(tables, found), encoding="utf-8")
    rows = found["pilot"].round(5).to_dict("records")
    if rows:
        with atomic_path(Path(planning.__file__).with_name(planning.PILOT)) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def report(tables: Mapping[str, pd.DataFrame], found: Mapping[str, pd.DataFrame]) -> str:
    """Write the page of the study; every number comes from its tables."""
    groups = tables["groups"]
    wide = groups[groups["d_sae"] == WIDTH]
    number = int(wide["n_answers"].max())
    text = [
        "# The same SAEs on several transformers",
        "",
        "`python benchmarks/transformers_study.py`",
        "",
        f"{groups['transformer'].nunique()} shipped transformers "
        f"({wide['transformer_seed'].nunique()} seeds, at the early stop and trained for longer "
        f"until their weights had settled), {groups['group'].nunique()} groups of SAEs on each, "
        f"{int(groups['n_seeds'].max())} seeds of each group. Which findings hold for all "
        "transformers, and which for one?",
        "",
        "![Answers with a feature, and reproducibility, by the effective number of key "
        "frequencies](transformers.png)",
        "",
        f"## Findings at width {WIDTH}",
        "",
    ]
    for stop, own in wide.groupby("stop", sort=False):
        name = STOPS[str(stop)][0].capitalize()
        for architecture, part in own.groupby("architecture", sort=False):
            first, *others = part.sort_values("answers", ascending=False).to_dict("records")
            rest = [row["answers"] for row in others]
            text.append(
                f"- {name}, {architecture}: {first['answers']:.1f} of {number} answers "
                f"have a feature of their own on {first['transformer']}, which has effectively "
                f"{first['effective_frequencies']:.1f} key frequencies; on the other {len(rest)} "
                f"transformers {min(rest):.1f} to {max(rest):.1f}."
            )
    linked = found["associations"]
    linked = linked[
        (linked["d_sae"] == WIDTH)
        & (linked["measure"] == "answers")
        & (linked["with"] == "effective_frequencies")
    ].dropna(subset=["rho"])
    text += [
        f"- Rank correlation of answers with the effective number of key frequencies, {row['stop']}"
        f", {row['architecture']}: {row['rho']:.2f} (p = {row['p_value']:.3f}, "
        f"{row['n_transformers']} transformers)."
        for row in linked.to_dict("records")
    ]
    agreement = found["hierarchy"]
    agreement = agreement[(agreement["d_sae"] == WIDTH) & (agreement["measure"] == "pw_mcc")]
    text += [
        f"- PW-MCC, {row['stop']}, {row['architecture']}: {row['mean']:.3f} "
        f"[{row['low']:.3f}, {row['high']:.3f}] over transformers; that of a new transformer is "
        f"expected in [{row['new_low']:.2f}, {row['new_high']:.2f}]. "
        f"{100 * row['between_share']:.0f} % of the variance is between transformers."
        for row in agreement.dropna(subset=["between_share"]).to_dict("records")
    ]
    text += [
        "",
        "So the features that an SAE finds depend on the transformer, and a claim about the "
        "grokked model from one transformer may not hold for others. A possible explanation: with "
        "many key frequencies of similar weight, every answer is a point far from the others, and "
        "SAEs find a latent for each answer. If one or two frequencies hold most of the variance, "
        "answers that are close on these circles share latents, and the permuted null is high, "
        "because all rows lie near a plane and any two dictionaries agree. A feature for every "
        "answer does not mean that these features come back: see TopK in the picture, on the "
        "transformer with most frequencies, at the early stop and cleaned up.",
        "",
        f"## Every transformer at width {WIDTH}",
        "",
        "| transformer | frequencies (effective) | largest share | architecture | L0 | FVU | live "
        "| settled | answers | PW-MCC | permuted | shared fraction | permuted |",
        "|---" * 13 + "|",
    ]
    text += [
        f"| {row['transformer']} | {row['n_frequencies']} ({row['effective_frequencies']:.1f}) | "
        f"{row['largest_share']:.2f} | {row['architecture']} | {row['l0']:.1f} | {row['fvu']:.3f} "
        f"| {row['n_live']:.0f} | {row['n_converged']} of {row['n_seeds']} | "
        f"{row['answers']:.1f} [{row['answers_low']:.1f}, {row['answers_high']:.1f}] | "
        f"{row['pw_mcc']:.3f} [{row['pw_mcc_low']:.3f}, {row['pw_mcc_high']:.3f}] | "
        f"{row['pw_mcc_permuted']:.3f} | {row['shared_fraction']:.2f} | "
        f"{row['shared_fraction_permuted']:.2f} |"
        for row in wide.sort_values(["architecture", "effective_frequencies"]).to_dict("records")
    ]
    text += [
        "",
        "## Answers with a feature, by width",
        "",
        "Mean over transformers, with the smallest and largest value.",
        "",
        "| stop | architecture | d_sae | answers | PW-MCC | permuted |",
        "|---" * 6 + "|",
    ]
    by = ["stop", "architecture", "d_sae"]
    for key, own in groups.groupby(by, sort=True):
        text.append(
            f"| {' | '.join(map(str, key))} | {own['answers'].mean():.1f} "
            f"({own['answers'].min():.0f} to {own['answers'].max():.0f}) | "
            f"{own['pw_mcc'].mean():.3f} ({own['pw_mcc'].min():.2f} to {own['pw_mcc'].max():.2f}) "
            f"| {own['pw_mcc_permuted'].mean():.3f} |"
        )
    settled = groups["n_converged"].sum()
    text += _longer_text(tables.get("longer"), groups)
    text += [
        "",
        "## Limits",
        "",
        f"- {settled:.0f} of {groups['n_seeds'].sum():.0f} SAEs had settled after the study's "
        f"steps, as the gate says, and {wide['n_converged'].sum():.0f} of "
        f"{wide['n_seeds'].sum():.0f} at width {WIDTH}: agreement may still rise with training "
        "(above, wide SAEs were trained for longer).",
        "- All ReLU SAEs have one L1 coefficient. If few frequencies hold the variance, no "
        "coefficient gives both the L0 of TopK and a good reconstruction, so ReLU's L0 is from "
        f"{wide['l0'].min():.0f} to {wide['l0'].max():.0f} at this width.",
        "- Only one seed of the transformer, at both stops, has effectively more than three "
        "frequencies, and the explanation depends on it. The rank correlations do not prove it: "
        "transformers also differ in other ways (epochs, norms), and none was trained to have a "
        "given number of frequencies.",
        "",
        "Tables: [groups](groups.csv), [pairs](pairs.csv), [kinds](kinds.csv), "
        "[covered](covered.csv); analysed: [hierarchy](hierarchy.csv), "
        "[associations](associations.csv), [changes](changes.csv).",
    ]
    return "\n".join(text) + "\n"


def _longer_text(longer: pd.DataFrame | None, groups: pd.DataFrame) -> list[str]:
    """Put the SAEs that were trained for longer beside the study's."""
    if longer is None:
        return []
    key = ["transformer", "group", "architecture", "d_sae", "stop"]
    columns = ["answers", "pw_mcc", "pw_mcc_permuted", "fvu", "motion", "n_converged", "n_seeds"]
    both = longer[[*key, *columns]].merge(groups[[*key, *columns]], on=key, suffixes=("", "_short"))
    both["rise"] = both["pw_mcc"] - both["pw_mcc_short"]
    text = [
        "",
        f"## Longer: {LONGER['steps']:,} steps at rate {LONGER_RATE}",
        "",
        "`python benchmarks/transformers_study.py --longer`: do transformers without features of "
        "answers get them when their SAEs are trained for longer? Motion is the mean turn of the "
        "decoders' directions between snapshots, by which the gate judges; means over "
        f"{both['transformer'].nunique()} transformers, with the least and the most.",
        "",
        "| stop | architecture | d_sae | settled | motion | in the study | FVU | in the study "
        "| answers | in the study | rise of PW-MCC |",
        "|---" * 11 + "|",
    ]
    for (stop, architecture, width), own in both.groupby(["stop", "architecture", "d_sae"]):
        mean = own[["motion", "motion_short", "fvu", "fvu_short", "rise"]].mean()
        spread = [
            f"{own[name].mean():.1f} ({own[name].min():.0f} to {own[name].max():.0f})"
            for name in ("answers", "answers_short")
        ]
        text.append(
            f"| {stop} | {architecture} | {width} | {own['n_converged'].sum()} of "
            f"{own['n_seeds'].sum()} | {mean['motion']:.3f} | {mean['motion_short']:.3f} | "
            f"{mean['fvu']:.3f} | {mean['fvu_short']:.3f} | {' | '.join(spread)} | "
            f"{mean['rise']:+.3f} ({own['rise'].min():+.2f} to {own['rise'].max():+.2f}) |"
        )
    topk = both[both["architecture"] == "topk"]
    fewer = both["fvu"] > both["fvu_short"]
    text += [
        "",
        f"TopK: the mean motion falls from {topk['motion_short'].mean():.3f} to "
        f"{topk['motion'].mean():.3f}, and the number of answers with a feature correlates "
        f"{topk['answers'].corr(topk['answers_short'], method='spearman'):.2f} (rank) with that "
        f"of the study; PW-MCC rises by {topk['rise'].mean():.3f}. The rate that lets TopK settle "
        f"is too high for ReLU: {fewer[both['architecture'] == 'relu'].sum()} of "
        f"{(both['architecture'] == 'relu').sum()} groups reconstruct worse than in the study.",
    ]
    return text


def longer_params() -> dict[str, Any]:
    """Give the parameters of the check with longer training: the widths that settle last."""
    plan = {"d_sae": LONGER_WIDTHS, "options": {"learning_rate": LONGER_RATE}}
    return {"sae_training": LONGER, "campaign": {"plan": plan}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transformers", nargs="+", default=[], help="names; all by default")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "transformers")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--conclude", action="store_true", help="train and measure nothing")
    parser.add_argument(
        "--longer",
        action="store_true",
        help=f"train widths {LONGER_WIDTHS} for longer, and put them beside the study",
    )
    given = parser.parse_args()
    legs = shipped_legs(given.transformers)
    if given.longer:
        study(legs, given.data / "longer", given.results / "longer", longer_params())
    if given.conclude or given.longer:
        tables = {name: pd.read_csv(given.results / f"{name}.csv") for name in TABLES}
    else:
        tables = study(legs, given.data, given.results)
    if (given.results / "longer" / "groups.csv").is_file():
        tables["longer"] = pd.read_csv(given.results / "longer" / "groups.csv")
    write_conclusions(tables, given.results)
    columns = ["transformer", "group", "pw_mcc", "pw_mcc_permuted", "gt_mcc", "answers"]
    print(tables["groups"][columns].to_string(index=False))


if __name__ == "__main__":
    main()

"""The study in one page of Markdown, every number from the run's own tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from husai.campaign.plan import records


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out rows of text as a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def number(value: Any, digits: int = 3) -> str:
    """Write a number, or a dash where there is none."""
    return "–" if value is None or pd.isna(value) else f"{value:.{digits}f}"


@dataclass(frozen=True)
class StudyTables:
    """What the page is written from: the tables of a run, each a row per what its name says.

    Attributes
    ----------
    statistics, waves
        Of :func:`husai.activations.activation_statistics`, a row per hook; and the share of
        variance of the key frequencies' waves.
    saes
        Plan and metrics.
    groups, features, truth
        Of :func:`husai.consistency.consistency_report`; ``truth`` may be empty.
    settings, matched_l0, published, orderings, trajectories, geometry, symmetries, correlates
        Of :mod:`husai.consistency.study.tables`.
    """

    statistics: pd.DataFrame
    waves: pd.DataFrame
    saes: pd.DataFrame
    groups: pd.DataFrame
    features: pd.DataFrame
    truth: pd.DataFrame
    matched_l0: pd.DataFrame
    published: pd.DataFrame
    orderings: pd.DataFrame
    trajectories: pd.DataFrame
    geometry: pd.DataFrame
    symmetries: pd.DataFrame
    correlates: pd.DataFrame


def study_report(
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    tables: StudyTables,
    provenance: Mapping[str, Any],
    campaign: str,
    totals: Mapping[str, float],
    command: str,
) -> str:
    """Write what a study found.

    Parameters
    ----------
    training, evaluation
        Summary of the transformer's training; loss and accuracy of the reloaded weights.
    tables
        The run's tables.
    provenance
        Commit and versions.
    campaign
        Name of the campaign that trained the SAEs; ``study`` is the default one.
    totals
        Its SAEs ``planned``, ``done`` and ``failed``, their ``attempts`` and device-``seconds``,
        and the seconds that ``elapsed``.
    command
        What makes all of it.
    """
    groups = tables.groups
    own = groups[groups["hook"] == groups["hook"].iloc[0]]
    parts = [
        "# The home study" if campaign == "study" else f"# The campaign {campaign}",
        f"Made by `{command}`; every number comes from the run's own tables. {made_by(provenance)}",
        f"{totals['done']:.0f} of {totals['planned']:.0f} planned SAEs are trained and "
        f"{totals['failed']:.0f} failed, in {totals['attempts']:.0f} attempts and "
        f"{totals['seconds'] / 3600:.2f} device-hours, {totals['elapsed'] / 60:.1f} minutes by the "
        "clock.",
        "## In short",
        _in_short(tables, own),
        "## The transformer",
        _transformer(training, evaluation),
        "## The activations",
        _activations(tables.statistics),
        "Effective rank is exp of the entropy of the covariance's normalised eigenvalues "
        "(Roy & Vetterli 2007). Share of each hook's variance that the waves of the key "
        "frequencies hold, of the trained model and of the same one at its initial weights:",
        _wave_table(tables.waves),
        "## The SAEs",
        _sae_table(tables.saes),
        "Means over the seeds of a group, on held-out rows. A SAE is converged when its held-out "
        "FVU changes by less than 1 % in 1,000 steps at the end. Cosine to init is that of each "
        "decoder row to where it started: what is left of it is agreement with nothing.",
        "## Which features come back",
        "PW-MCC, absolute cosine, with its 95 % interval over seeds (jackknife). The nulls are "
        "isotropic random dictionaries, random directions with the activations' covariance, the "
        "SAEs' own initialisations, and the same SAEs trained on the transformer at its initial "
        "weights. Latents: how many of each SAE are matched, on average. At "
        f"`{own['hook'].iloc[0]}`, in the full space:",
        _score_table(own, "full"),
        "Within the data's own subspace:",
        _score_table(own, "data"),
        MARK + " Above chance is (score − null)/(1 − null): negative means less alike than chance.",
    ]
    others = groups[groups["hook"] != own["hook"].iloc[0]]
    if len(others):
        parts += ["At the other hooks, in the full space:", _score_table(others, "full")]
    parts += [
        "Feature by feature: in how many other seeds a matched partner at the threshold was found.",
        _feature_table(tables.features),
        "What goes with coming back: Spearman's correlation, over the features of a SAE, of a "
        "feature's mean similarity to its matches with",
        _correlate_table(tables.correlates),
    ]
    if len(tables.truth):
        parts += [
            "## Against the true planes",
            "Energy is a feature's part in the span of all true planes, purity the share of that "
            "in its best one; a plane is recalled when a feature lies in it. In brackets the "
            "chance of directions drawn from the data. GT-MCC takes each plane's two axes for "
            "features: their phase means nothing, and within a plane its chance is 2/π.",
            _truth_table(tables.truth),
        ]
    parts += [
        "## Symmetries",
        "Matched correlation of a dictionary's codes on moved inputs with its own codes, or with "
        "another seed's: means over the groups. The null relabels the inputs at random.",
        _symmetry_table(tables.symmetries),
        "## Geometry",
        "Means over the groups of a width; in brackets that of directions drawn from the data.",
        _geometry_table(tables.geometry),
        "## Over training",
        _trajectory_table(tables.trajectories),
        "## Architectures at matched L0",
        _matched_table(tables.matched_l0),
        "## Beside published numbers",
        "None is like for like: other models, other data, and no null printed.",
        _published_table(tables.published),
        "Do the architectures stand in the papers' order here? At matched L0, and each at its own "
        "as the papers have it; *separated* means that the intervals do not overlap.",
        _ordering_table(tables.orderings),
    ]
    return "\n\n".join(parts) + "\n"


MARK = "† not all SAEs of the group are converged."


def _mark(flag: Any) -> str:
    return " †" if flag is not None and not pd.isna(flag) and not bool(flag) else ""


def _pw_mcc(groups: pd.DataFrame) -> pd.DataFrame:
    chosen = groups[(groups["score"] == "pw_mcc") & ~groups["signed"].astype(bool)]
    return chosen[(chosen["space"] == "full") & chosen["mean"].notna()]


def _in_short(tables: StudyTables, own: pd.DataFrame) -> str:
    """Say what the tables say, each sentence with its numbers."""
    lines = [_above_chance(own)]
    if "untrained_mean" in own and _pw_mcc(own)["untrained_mean"].notna().any():
        lines.append(_beside_untrained(own))
    lines.append(_which_features(tables.features, tables.correlates, str(own["hook"].iloc[0])))
    if len(tables.truth):
        lines.append(_pure_or_mixed(tables.truth))
    lines.append(_what_maps_seeds(tables.symmetries))
    return "\n".join(f"- {line}" for line in lines if line)


def _names(table: pd.DataFrame) -> str:
    named = [f"{r['group']}{_mark(r['converged'])}" for r in table.to_dict("records")]
    return f" ({', '.join(named)})" if named else ""


def _above_chance(own: pd.DataFrame) -> str:
    found = _pw_mcc(own)
    known = found[found["low"].notna()]
    if known.empty or "data_aware_mean" not in known:
        return "Agreement between seeds has no interval here: three seeds are the least."
    above = known[known["low"] > known["data_aware_mean"]]
    below = known[known["high"] < known["data_aware_mean"]]
    isotropic = int((known["low"] > known["isotropic_mean"]).sum())
    return (
        f"**Above chance?** All of the interval over seeds lies above random directions in "
        f"{isotropic} of {len(known)} groups, and above directions drawn from the data, which is "
        f"the comparison that counts, in {len(above)}{_names(above)}; below those in "
        f"{len(below)}{_names(below)}; the others cannot be told from them."
    )


def _beside_untrained(own: pd.DataFrame) -> str:
    found = _pw_mcc(own)
    found = found[found["untrained_mean"].notna() & found["untrained_low"].notna()]
    above = found[found["untrained_low"] > 0]
    below = found[found["untrained_high"] < 0]
    values = found["untrained_mean"].astype(float)
    every = _pw_mcc(own)
    reasons = every["untrained_reason"].dropna() if "untrained_reason" in every else ()
    silent = sorted({str(reason) for reason in reasons if reason})
    missing = f" Elsewhere the null is not defined: {'; '.join(silent)}." if silent else ""
    return (
        "**Because of what was learned?** The same SAEs on the transformer before its training "
        f"agree at {number(values.min())} to {number(values.max())}. Trained ones agree more, by "
        f"an interval that leaves out 0, in {len(above)} of {len(found)} groups{_names(above)}, "
        f"less in {len(below)}{_names(below)}.{missing}"
    )


def _found_counts(features: pd.DataFrame) -> pd.DataFrame:
    full = features[(features["space"] == "full") & (features["n_other_seeds"] > 0)]
    if "n_seeds_found" not in full:
        return pd.DataFrame()
    full = full.assign(
        everywhere=full["n_seeds_found"] == full["n_other_seeds"],
        nowhere=full["n_seeds_found"] == 0,
    )
    counts = full.groupby(["hook", "group"], sort=False).agg(
        features=("latent", "size"),
        everywhere=("everywhere", "mean"),
        nowhere=("nowhere", "mean"),
        similarity=("reproducibility", "median"),
        open_ones=("converged", lambda v: bool((~v.fillna(True).astype(bool)).any())),
    )
    return counts.reset_index()


def _which_features(features: pd.DataFrame, correlates: pd.DataFrame, hook: str) -> str:
    counts = _found_counts(features)
    if counts.empty:
        return ""
    own = counts[counts["hook"] == hook]
    line = (
        f"**Which?** Of the features at `{hook}`, {100 * own['everywhere'].min():.0f} to "
        f"{100 * own['everywhere'].max():.0f} % of a group are found in every other seed and "
        f"{100 * own['nowhere'].min():.0f} to {100 * own['nowhere'].max():.0f} % in none."
    )
    known = correlates[correlates["low"].notna()] if "low" in correlates else correlates.iloc[:0]
    if "hook" in known:
        known = known[known["hook"] == hook]
    told = []
    for covariate, part in known.groupby("covariate", sort=False):
        up, down = int((part["low"] > 0).sum()), int((part["high"] < 0).sum())
        if up or down:
            name = COVARIATE_NAMES[str(covariate)]
            told.append(f"{name} (up in {up}, down in {down} of {len(part)} groups)")
    if told:
        return f"{line} Coming back goes with {'; '.join(told)}."
    return f"{line} Nothing looked at goes with coming back beyond its interval over seeds."


def _pure_or_mixed(truth: pd.DataFrame) -> str:
    truth = truth[~truth["hook"].str.endswith("@untrained")]
    known = truth[(truth["measure"] == "mean_purity") & truth["mean"].notna()]
    if known.empty or "data_aware_mean" not in known:
        return ""
    pure = known[known["low"] > known["data_aware_mean"]]
    mixed = known[known["high"] < known["data_aware_mean"]]
    recall = truth[(truth["measure"] == "recall") & truth["mean"].notna()]
    return (
        "**One frequency a feature?** Purity is above that of directions drawn from the data, by "
        f"the whole interval, in {len(pure)} of {len(known)} groups{_names(pure)}, below it in "
        f"{len(mixed)}{_names(mixed)}: elsewhere features mix frequencies as chance would. Planes "
        f"recalled: {number(recall['mean'].min(), 2)} to {number(recall['mean'].max(), 2)}."
    )


def _what_maps_seeds(symmetries: pd.DataFrame) -> str:
    if "score" not in symmetries or symmetries["score"].isna().all():
        return ""
    known = symmetries[symmetries["score"].notna()]
    lines = []
    swap = known[(known["symmetry"] == "swap") & (known["kind_of_pair"] == "itself")]
    if len(swap):
        lines.append(
            f"Swapping a and b maps a dictionary to itself at {number(swap['score'].mean())} "
            f"(relabelled inputs: {number(swap['null_mean'].mean())})"
        )
    moved = known[known["symmetry"] == "best translation"]
    if len(moved):
        base, best, null = (
            float(moved[name].mean()) for name in ("identity_score", "score", "null_mean")
        )
        closed = (best - base) / (1 - base) if base < 1 else 0.0
        verdict = "are" if best > 0.9 else "are not"
        lines.append(
            f"the best of all translations brings one seed's codes to another's from "
            f"{number(base)} to {number(best)} (relabelled inputs, with as free a choice: "
            f"{number(null)}), {100 * closed:.0f} % of the way: seeds {verdict} translates of one "
            "another"
        )
    return f"**Symmetry?** {'; '.join(lines)}." if lines else ""


COVARIATE_NAMES = {
    "firing_rate": "how often it fires",
    "cosine_to_init": "what is left of its start",
    "cosine_to_encoder": "its alignment with its own encoder",
    "purity": "its purity in one true plane",
    "energy": "its energy in the true planes",
}


def _activations(statistics: pd.DataFrame) -> str:
    return markdown_table(
        ["hook", "model", "rows", "dimensions", "mean norm", "effective rank", "dims for 99 %"],
        (
            [
                f"`{row['hook_name']}` at {row['position']}",
                str(row["model"]),
                str(row["rows"]),
                str(row["d_in"]),
                number(row["mean_norm"], 2),
                number(row["entropy_rank"], 1),
                str(row["dims_99_variance"]),
            ]
            for row in statistics.to_dict("records")
        ),
    )


def _wave_table(waves: pd.DataFrame) -> str:
    if waves.empty:
        return "No frequency stands out in this model."
    total = waves.groupby(["hook", "model", "variable"], sort=False)["share"].sum(min_count=1)
    wide = total.unstack("variable").reset_index()
    columns = [name for name in ("a", "b", "answer") if name in wide]
    return markdown_table(
        ["hook", "model", *(f"waves of {name}" for name in columns)],
        (
            [f"`{row['hook']}`", row["model"], *(number(row[name]) for name in columns)]
            for row in wide.to_dict("records")
        ),
    )


def _feature_table(features: pd.DataFrame) -> str:
    counts = _found_counts(features)
    if counts.empty:
        return "Not defined: no group has two seeds."
    return markdown_table(
        ["group", "hook", "features", "in every other seed", "in none", "median similarity"],
        (
            [
                f"{row['group']}{' †' if row['open_ones'] else ''}",
                f"`{row['hook']}`",
                str(row["features"]),
                f"{100 * row['everywhere']:.0f} %",
                f"{100 * row['nowhere']:.0f} %",
                number(row["similarity"]),
            ]
            for row in counts.to_dict("records")
        ),
    )


def _interval(row: Mapping[str, Any], column: str = "mean", digits: int = 2) -> str:
    if row.get(column) is None or pd.isna(row[column]):
        return "–"
    if pd.isna(row.get("low")):
        return number(row[column], digits)
    low, high = number(row["low"], digits), number(row["high"], digits)
    return f"{number(row[column], digits)} [{low}, {high}]"


def _correlate_table(correlates: pd.DataFrame) -> str:
    if "mean" not in correlates:
        return "Not defined: no group has two seeds."
    cells = {(row["group"], row["covariate"]): _interval(row) for row in records(correlates)}
    gates = correlates.drop_duplicates("group").set_index("group")["converged"]
    names = list(dict.fromkeys(correlates["covariate"]))
    return markdown_table(
        ["group", *(COVARIATE_NAMES[name] for name in names)],
        (
            [f"{group}{_mark(gate)}", *(cells.get((group, name), "–") for name in names)]
            for group, gate in gates.items()
        ),
    )


def _truth_table(truth: pd.DataFrame) -> str:
    measures = {
        "mean_energy": "energy",
        "mean_purity": "purity",
        "recall": "planes recalled",
        "covered": "circles covered",
        "gt_mcc": "GT-MCC of axes",
    }
    rows = []
    for (hook, group), part in truth.groupby(["hook", "group"], sort=False):
        lines = {row["measure"]: row for row in records(part)}
        cells = []
        for name in measures:
            line = lines.get(name, {})
            chance = line.get("data_aware_mean", line.get("isotropic_mean"))
            cells.append(f"{_interval(line)} ({number(chance, 2)})")
        rows.append([f"{group}{_mark(part['converged'].iloc[0])}", f"`{hook}`", *cells])
    return markdown_table(["group", "hook", *measures.values()], rows)


def _symmetry_table(symmetries: pd.DataFrame) -> str:
    if "score" not in symmetries or symmetries["score"].isna().all():
        return "; ".join(dict.fromkeys(symmetries["reason"].dropna())) + "."
    known = symmetries[symmetries["score"].notna()]
    rows = []
    for symmetry, part in known.groupby("symmetry", sort=False):
        cells = [str(symmetry)]
        for kind in ("itself", "other seed"):
            own = part[part["kind_of_pair"] == kind]
            cells += [number(own[name].mean()) for name in ("score", "null_mean")]
            cells.append(number(own["identity_score"].mean()) if kind == "other seed" else "")
        cells.pop(3)
        rows.append([*cells, str(part["group"].nunique())])
    return markdown_table(
        ["symmetry", "to itself", "null", "to another seed", "null", "no map", "groups"], rows
    )


def _geometry_table(geometry: pd.DataFrame) -> str:
    if "mean" not in geometry:
        return "Not defined for these SAEs."
    names = list(dict.fromkeys(geometry["measure"]))
    rows = []
    for (hook, width), part in geometry.groupby(["hook", "d_sae"], sort=False):
        cells = []
        for name in names:
            own = part[part["measure"] == name]
            text = number(own["mean"].astype(float).mean(), 2)
            chance = (
                own["data_aware_mean"].astype(float).mean() if "data_aware_mean" in own else None
            )
            cells.append(text if chance is None or pd.isna(chance) else f"{text} ({chance:.2f})")
        gate = all(bool(flag) for flag in part["converged"].dropna())
        rows.append([f"`{hook}` d_sae {width}{'' if gate else ' †'}", *cells])
    return markdown_table(["SAEs", *(name.replace("_", " ") for name in names)], rows)


def _trajectory_table(trajectories: pd.DataFrame) -> str:
    if "step" not in trajectories or trajectories["step"].isna().all():
        return "; ".join(dict.fromkeys(trajectories["reason"].dropna())) + "."
    known = trajectories[trajectories["step"].notna()]
    rows = []
    for group, part in known.groupby("group", sort=False):
        part = part.sort_values("step")
        at = sorted({0, len(part) // 2, max(0, len(part) - 2), len(part) - 1})
        path = ", ".join(
            f"{number(part['mean'].iloc[i])} at {int(part['step'].iloc[i])}" for i in at
        )
        left = number(part["cosine_to_init"].iloc[-1]) if "cosine_to_init" in part else "–"
        rows.append([f"{group}{_mark(part['converged'].iloc[0])}", path, left])
    return markdown_table(["group", "PW-MCC by step", "cosine to init at the end"], rows)


def _matched_table(matched: pd.DataFrame) -> str:
    full = matched[(matched["space"] == "full") & (matched["score"] != "mmcs")]
    if full.empty:
        return "; ".join(dict.fromkeys(matched["reason"])) + "."
    rows = []
    for (width, score, signed, l0), part in full.groupby(
        ["d_sae", "score", "signed", "l0"], sort=True
    ):
        cells = ", ".join(
            f"{row['architecture']}{_mark(row['converged'])} {_interval(row)}"
            if not row["reason"]
            else f"{row['architecture']}: {row['reason']}"
            for row in records(part)
        )
        name = f"{score} ({'signed' if signed else 'absolute'})"
        rows.append([str(width), name, number(l0, 2), cells])
    return markdown_table(["d_sae", "score", "L0", "architectures"], rows)


def _published_table(published: pd.DataFrame) -> str:
    wanted = published[published["score"].isin(["pw_mcc", "shared_fraction"])]
    # ours in the papers' own conventions
    ours = wanted["source"] == "this study"
    signed = wanted["signed"].map(lambda v: v is not None and not pd.isna(v) and bool(v))
    wanted = wanted[~ours | (signed == (wanted["score"] == "shared_fraction"))]
    rows = []
    for row in records(wanted):
        value = _interval({**row, "mean": row["value"]}, digits=3)
        rows.append(
            [
                str(row["source"]),
                f"{row['architecture']}{_mark(row.get('converged'))}",
                "–" if pd.isna(row["d_sae"]) else f"{row['d_sae']:.0f}",
                "–" if pd.isna(row.get("l0")) else number(row["l0"], 1),
                str(row["score"]),
                value,
                number(row.get("data_aware_mean")),
                str(row["differs_in"] or "–"),
            ]
        )
    return markdown_table(
        [
            "source",
            "architecture",
            "d_sae",
            "L0",
            "score",
            "value",
            "data-aware null",
            "differs in",
        ],
        rows,
    )


def _ordering_table(orderings: pd.DataFrame) -> str:
    rows = []
    for row in orderings.to_dict("records"):
        if row["reason"] == "not both measured here":
            continue
        verdict = row["reason"]
        if not verdict:
            separated = row.get("separated")
            verdict = "agrees" if row["agrees"] else "the other way round"
            verdict += ", separated" if separated is True or separated == 1 else ", not separated"
        at = row["basis"] if pd.isna(row.get("l0")) else f"L0 {row['l0']:.2f}"
        rows.append(
            [
                str(row["source"]),
                f"{row['paper_higher']} > {row['paper_lower']}",
                str(row["d_sae"]),
                at,
                number(row.get("difference")),
                str(verdict),
            ]
        )
    return markdown_table(["paper", "its order", "d_sae", "at", "our difference", "verdict"], rows)


def made_by(provenance: Mapping[str, Any]) -> str:
    """Say which commit and versions a page's numbers were made with."""
    versions = ", ".join(f"{k} {v}" for k, v in provenance.get("versions", {}).items())
    commit = str(provenance.get("commit", "unknown"))[:12]
    dirty = " with changes" if provenance.get("dirty") else ""
    return f"Commit {commit}{dirty}; {versions}."


def _transformer(training: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    if training.get("epoch_test_99") is None:
        grokked = f"Not grokked after {training['epochs']} epochs."
    else:
        grokked = (
            f"99 % of the training set right from epoch {training['epoch_train_99']}, of the test "
            f"set from epoch {training['epoch_test_99']}: a delay of "
            f"{training['grokking_delay_epochs']} epochs "
            f"({training['grokking_delay_ratio']:.1f} times)."
        )
    return (
        f"{grokked} Stopped after {training['epochs']} epochs, {training['seconds']:.0f} s on "
        f"{training['hardware']} with {training['threads']} threads. Reloaded from its file: test "
        f"accuracy {100 * evaluation['test_accuracy']:.2f} %, test loss "
        f"{evaluation['test_loss']:.4f}."
    )


def _sae_table(saes: pd.DataFrame) -> str:
    means = saes.groupby("group", sort=False).agg(
        seeds=("sae_id", "size"),
        converged=("converged", "sum"),
        l0=("l0", "mean"),
        fvu=("fvu", "mean"),
        dead=("dead_fraction", "mean"),
        init=("cosine_to_init", "mean"),
        seconds=("train_seconds", "mean"),
    )
    return markdown_table(
        ["group", "seeds", "converged", "L0", "FVU", "dead", "cosine to init", "s a SAE"],
        (
            [
                str(name),
                str(int(row["seeds"])),
                str(int(row["converged"])),
                number(row["l0"], 2),
                number(row["fvu"], 4),
                number(row["dead"], 2),
                number(row["init"]),
                number(row["seconds"], 1),
            ]
            for name, row in means.iterrows()
        ),
    )


def _score_table(groups: pd.DataFrame, space: str) -> str:
    part = groups[(groups["space"] == space) & ~groups["signed"].astype(bool)]
    mmcs = part[part["score"] == "mmcs"].set_index("group")["mean"]
    scores = part[part["score"] == "pw_mcc"].sort_values(["d_sae", "architecture"])
    dimensions = sorted(set(scores["dimensions"]))
    rows = [
        [
            f"{row['group']}{_mark(row['converged'])}",
            number(row.get("n_live"), 0),
            f"**{number(row['mean'])}** [{number(row['low'])}, {number(row['high'])}]",
            f"{number(row['isotropic_mean'])} ± {number(row['isotropic_sd'])}",
            f"{number(row.get('data_aware_mean'))} ± {number(row.get('data_aware_sd'))}",
            number(row.get("init_mean")),
            number(row.get("untrained_mean")),
            number(row.get("isotropic_corrected")),
            number(row.get("data_aware_corrected")),
            number(mmcs.get(row["group"])),
        ]
        for row in scores.to_dict("records")
    ]
    head = f"PW-MCC in {'/'.join(str(d) for d in dimensions)} dimensions"
    return markdown_table(
        [
            "group",
            "latents",
            head,
            "isotropic null",
            "data-aware null",
            "init",
            "untrained",
            "above isotropic",
            "above data-aware",
            "MMCS",
        ],
        rows,
    )

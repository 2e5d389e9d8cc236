"""Tables beside the report: geometry, symmetry, training and settings, each with its chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from husai.consistency.analyses.curves import (
    against_width,
    at_matched_l0,
    consistency_over_training,
    orderings_beside_published,
)
from husai.consistency.analyses.geometry import (
    MAX_CLUSTERED,
    cluster_features,
    coactivation,
    effective_dimension,
    neighbours,
)
from husai.consistency.analyses.symmetry import best_translation, detect_symmetries, task_symmetries
from husai.consistency.config import ConsistencyConfig
from husai.consistency.inference.intervals import mean_interval
from husai.consistency.inference.nulls import covariance_root, random_dictionary
from husai.consistency.scores.codes import code_blocks
from husai.consistency.study.record import (
    SAERecord,
    all_converged,
    live_codes,
    live_sae,
    row_cosines,
)
from husai.threads import worker_pool

Row = dict[str, Any]

# Random dictionaries behind the chance level of a geometric measure: their spread is small.
_GEOMETRY_DRAWS = 5

# Scores that are followed across settings, with their sign convention: the two papers' own.
FOLLOWED = (("pw_mcc", False), ("shared_fraction", True), ("mmcs", False))


def directions_geometry(dictionary: ArrayLike, similarity: float) -> dict[str, float]:
    """Measure one dictionary's directions.

    Parameters
    ----------
    dictionary
        ``[n, d]``, a feature a row, n at least 2.
    similarity
        At which clusters are cut.

    Returns
    -------
    dict
        ``participation_ratio``, ``entropy_rank``, ``dims_99`` (of the centred unit rows),
        ``nearest_cosine`` (mean |cosine| to the nearest other feature), ``clusters_per_feature``
        (left out above 8,192 features).
    """
    filled = effective_dimension(dictionary)
    found = {
        "participation_ratio": filled.participation_ratio,
        "entropy_rank": filled.entropy_rank,
        "dims_99": float(filled.dims_99),
        "nearest_cosine": float(neighbours(dictionary, 1)["cosine"].abs().mean()),
    }
    n = len(np.asarray(dictionary))
    if n <= MAX_CLUSTERED:
        clusters = cluster_features(dictionary, similarity=similarity)
        found["clusters_per_feature"] = len(clusters.table) / n
    return found


def geometry_table(
    members: Mapping[str, Sequence[SAERecord]],
    config: ConsistencyConfig,
    covariance: ArrayLike | None = None,
) -> pd.DataFrame:
    """Measure the geometry of every group's dictionaries, beside random ones of the same shape.

    Parameters
    ----------
    members
        Group name to its SAEs.
    config
        Threads, seed, level, and the similarity at which clusters are cut.
    covariance
        ``[d, d]`` of the activations: adds the data-aware chance.

    Returns
    -------
    pandas.DataFrame
        A row per group and measure: ``mean`` with interval over SAEs, ``isotropic_mean`` and
        ``data_aware_mean`` where the measure is one of directions, ``n_seeds``, ``converged``,
        ``reason``. Measures: those of :func:`directions_geometry`; ``encoder_cosine`` (each
        latent's decoder with its own encoder), ``firing_rate`` (median over latents),
        ``never_coactive`` (share of pairs of live latents that fire on no row together) and
        ``coactivation_bits`` (mean |log2| of how often pairs that do fire together do so, over
        chance).
    """
    chance: dict[tuple[str, int, int], dict[str, float]] = {}
    root = None if covariance is None else covariance_root(covariance)

    def random(kind: str, n: int, d: int) -> dict[str, float]:
        if (kind, n, d) not in chance:
            rng = np.random.default_rng([config.seed, n, d])
            draws = [
                directions_geometry(
                    random_dictionary(n, d, rng, root if kind == "data_aware" else None),
                    config.shared_threshold,
                )
                for _ in range(_GEOMETRY_DRAWS)
            ]
            chance[kind, n, d] = {
                name: float(np.mean([drawn[name] for drawn in draws])) for name in draws[0]
            }
        return chance[kind, n, d]

    def one(record: SAERecord) -> dict[str, float]:
        return _sae_geometry(record, config)

    rows: list[Row] = []
    for name, records in members.items():
        with worker_pool(config.workers) as pool:
            measured = pd.DataFrame(list(pool.map(one, records)))
        head = _head(name, records)
        for measure in _MEASURES:
            line: Row = {**head, "measure": measure}
            known = measured[measure].dropna() if measure in measured else pd.Series(dtype=float)
            if len(known) < len(records):
                rows.append({**line, "reason": "not defined for every SAE of the group"})
                continue
            interval = mean_interval(known.tolist(), level=config.level)
            line |= {
                "mean": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "reason": interval.reason,
            }
            n, d = round(float(measured["n"].mean())), records[0].W_dec.shape[1]
            for kind in ("isotropic", "data_aware"):
                if kind == "isotropic" or root is not None:
                    line[f"{kind}_mean"] = random(kind, n, d).get(measure)
            rows.append(line)
    return pd.DataFrame(rows)


_MEASURES = (
    "participation_ratio",
    "entropy_rank",
    "dims_99",
    "nearest_cosine",
    "clusters_per_feature",
    "encoder_cosine",
    "firing_rate",
    "never_coactive",
    "coactivation_bits",
)


def _sae_geometry(record: SAERecord, config: ConsistencyConfig) -> dict[str, float]:
    live = live_sae(record, config.dead)
    found: dict[str, float] = {"n": float(len(live.index))}
    if len(live.index) < 2:
        return found
    found |= directions_geometry(live.decoder, config.shared_threshold)
    if live.encoder is not None:
        found["encoder_cosine"] = float(row_cosines(live.decoder, live.encoder).mean())
    if record.firing_rate is not None:
        rate = np.asarray(record.firing_rate, dtype=np.float64)[live.index]
        found["firing_rate"] = float(np.median(rate))
    codes = live_codes(record, config)
    if codes is not None and codes.codes.nnz:
        together = coactivation(codes.codes)
        off = ~np.eye(len(together.latents), dtype=bool)
        pairs = together.together[off] > 0
        if off.any():
            found["never_coactive"] = float(1 - pairs.mean())
        if pairs.any():
            found["coactivation_bits"] = float(np.abs(together.log_ratio[off][pairs]).mean())
    return found


def _head(name: str, records: Sequence[SAERecord]) -> Row:
    first = records[0]
    return {
        "group": name,
        "architecture": first.architecture,
        "d_sae": first.d_sae,
        "n_seeds": len(records),
        "converged": all_converged([record.converged for record in records]),
    }


def symmetry_table(
    members: Mapping[str, Sequence[SAERecord]], modulus: int, config: ConsistencyConfig
) -> pd.DataFrame:
    """Ask which symmetries of modular addition map each dictionary to itself, or seed to seed.

    Parameters
    ----------
    members
        Group name to its SAEs, whose ``codes`` are of the complete grid in (a, b) order.
    modulus
        p.
    config
        Null draws, seed, threads, and the widest SAE that is looked at.

    Returns
    -------
    pandas.DataFrame
        A row per group, ``kind_of_pair`` ("itself", "other seed") and symmetry: ``score`` (mean
        over SAEs or pairs of seeds, with interval), ``identity_score``, ``null_mean``, ``p`` (the
        largest over them), ``retained``, ``exact_fraction``, ``n``, ``converged``, ``reason``. The
        symmetry ``"best translation"`` is the best of all p² shifts, with a null that may choose
        as freely; it is looked for between the first two seeds.
    """
    symmetries = task_symmetries(modulus)
    rows: list[Row] = []
    for name, records in members.items():
        head = _head(name, records)
        if any(record.codes is None for record in records):
            rows.append({**head, "reason": "no codes: the SAE cannot be run on the inputs"})
            continue
        if records[0].d_sae > config.symmetry_width:
            reason = f"wider than symmetry_width = {config.symmetry_width}"
            rows.append({**head, "reason": reason})
            continue
        codes = [_codes(record) for record in records]
        ring = [(i, (i + 1) % len(codes)) for i in range(len(codes) if len(codes) > 2 else 1)]
        pairs = {"itself": [(i, i) for i in range(len(codes))]}
        if len(codes) > 1:
            pairs["other seed"] = ring

        def one(
            pair: tuple[int, int], codes: Sequence[NDArray[np.float64]] = codes
        ) -> pd.DataFrame:
            i, j = pair
            other = None if i == j else codes[j]
            options: dict[str, Any] = {"n_null": config.symmetry_draws, "seed": config.seed}
            table = detect_symmetries(codes[i], symmetries, other=other, **options)
            if i == j or (i, j) != (0, 1):
                return table  # p² shifts cost as much as all else: the first pair only
            best = best_translation(codes[i], codes[j], modulus, **options)
            return pd.concat([table, pd.DataFrame([best])], ignore_index=True)

        for kind, which in pairs.items():
            with worker_pool(config.workers) as pool:
                tables = pd.concat(list(pool.map(one, which)), ignore_index=True)
            for symmetry, part in tables.groupby("symmetry", sort=False):
                rows.append(
                    {**head, "kind_of_pair": kind, "symmetry": symmetry, **_summed(part, config)}
                )
    return pd.DataFrame(rows)


def _codes(record: SAERecord) -> NDArray[np.float64]:
    assert record.codes is not None
    return np.vstack([block.toarray() for block in code_blocks(record.codes, record.id)])


def _summed(part: pd.DataFrame, config: ConsistencyConfig) -> Row:
    line: Row = {
        "kind": part["kind"].iloc[0],
        "answer_kept": part["answer_kept"].iloc[0],
        "n": len(part),
    }
    if "score" not in part or part["score"].isna().any():
        reasons = [text for text in part["reason"] if text]
        return {**line, "reason": (reasons or ["not defined for every SAE"])[0]}
    interval = mean_interval(part["score"].tolist(), level=config.level)
    line |= {"score": interval.mean, "low": interval.low, "high": interval.high}
    for column in ("identity_score", "null_mean", "exact_fraction", "retained"):
        known = part[column].dropna()
        line[column] = float(known.mean()) if len(known) else None
    return {**line, "p": float(part["p"].max()), "reason": interval.reason}


def trajectory_table(
    members: Mapping[str, Sequence[SAERecord]],
    decoders: Callable[[SAERecord], Mapping[int, ArrayLike]],
    nulls: Mapping[str, Mapping[str, float]],
    config: ConsistencyConfig,
) -> pd.DataFrame:
    """Follow the agreement between the seeds of every group over their training.

    Parameters
    ----------
    members
        Group name to its SAEs.
    decoders
        Gives a SAE's decoders by step.
    nulls
        Group name to its chance levels of PW-MCC by kind, as the report has them.
    config
        Level, threads.

    Returns
    -------
    pandas.DataFrame
        A row per group and step, as :func:`husai.consistency.consistency_over_training`, with
        ``group``, ``architecture``, ``d_sae``, ``converged``; a row with a ``reason`` where a
        group's decoders were not kept or it has one seed only.
    """

    def one(item: tuple[str, Sequence[SAERecord]]) -> pd.DataFrame:
        name, records = item
        head = _head(name, records)
        kept = [decoders(record) for record in records]
        steps = sorted(set.intersection(*(set(own) for own in kept)))
        if len(records) < 2 or not steps:
            reason = "one seed: no pair to compare" if steps else "no decoders kept on the way"
            return pd.DataFrame([{**head, "reason": reason}])
        inits = [record.W_dec_init for record in records]
        curve = consistency_over_training(
            {step: [own[step] for own in kept] for step in steps},
            inits=None if any(W is None for W in inits) else [W for W in inits if W is not None],
            nulls=nulls.get(name, {}),
            level=config.level,
        )
        return curve.assign(**{key: value for key, value in head.items() if key != "n_seeds"})

    if not members:
        return pd.DataFrame([{"group": None, "reason": "no SAE to follow"}])
    with worker_pool(config.workers) as pool:
        tables = list(pool.map(one, members.items()))
    columns = ["group", "architecture", "d_sae", "step"]
    table = pd.concat(tables, ignore_index=True)
    first = [column for column in columns if column in table]
    return table[[*first, *(column for column in table if column not in first)]]


def settings_table(groups: pd.DataFrame, effective_rank: float) -> pd.DataFrame:
    """Scores of every group against its setting: width over effective rank, k, L0.

    Parameters
    ----------
    groups
        ``groups`` of a report.
    effective_rank
        Of the activations, :func:`husai.activations.activation_statistics`.

    Raises
    ------
    InputError
        When the rank is not positive.
    """
    wanted = pd.concat(
        [groups[(groups["score"] == s) & (groups["signed"] == g)] for s, g in FOLLOWED]
    )
    columns = [
        *("group", "architecture", "d_sae", "width_ratio", "k", "l1_coefficient", "l0", "space"),
        *("score", "signed", "mean", "low", "high", "isotropic_mean", "data_aware_mean"),
        *("isotropic_corrected", "data_aware_corrected", "untrained_mean", "n_seeds", "converged"),
        "reason",
    ]
    table = against_width(wanted, effective_rank)
    return table.reindex(columns=columns).reset_index(drop=True)


def matched_l0_table(groups: pd.DataFrame) -> pd.DataFrame:
    """Architectures at common values of L0, at each width by itself.

    Parameters
    ----------
    groups
        ``groups`` of a report; groups without an L0 are left out.

    Returns
    -------
    pandas.DataFrame
        As :func:`husai.consistency.at_matched_l0`, with ``d_sae``, ``space``, ``score``,
        ``signed``, and ``converged`` of all groups on the curve. Where the curves of a width
        share no L0, or no score is defined, rows say so in ``reason``.
    """
    tables: list[pd.DataFrame] = []
    columns = ["mean", "low", "high", "isotropic_mean", "data_aware_mean"]
    for score, signed in FOLLOWED:
        chosen = groups[
            (groups["score"] == score) & (groups["signed"] == signed) & (groups["l0"] > 0)
        ]
        for _, part in chosen.groupby(["d_sae", "space"], sort=True):
            points = part.reindex(columns=["architecture", "l0", *columns]).astype(
                dict.fromkeys(columns, "float64")
            )
            if points["mean"].notna().sum() == 0:
                continue
            table = at_matched_l0(points, columns=columns, n_points=5)
            gates = {
                str(name): all_converged([None if pd.isna(v) else bool(v) for v in own])
                for name, own in part.groupby("architecture")["converged"]
            }
            table["converged"] = pd.array([gates[a] for a in table["architecture"]], "boolean")
            order = list(table.columns)
            table = table.assign(
                d_sae=part["d_sae"].iloc[0], space=part["space"].iloc[0], score=score, signed=signed
            )
            tables.append(table[["d_sae", "space", "score", "signed", *order]])
    if not tables:
        reason = "no group has both an L0 and a score"
        head = ["d_sae", "space", "score", "signed", "architecture", "l0", *columns, "converged"]
        return pd.DataFrame([{**dict.fromkeys(head), "reason": reason}])
    return pd.concat(tables, ignore_index=True)


def orderings_table(groups: pd.DataFrame, matched: pd.DataFrame) -> pd.DataFrame:
    """Say where this study orders architectures as each paper does, at every width.

    Twice: at matched L0, which is fair, and each architecture at a setting of its own, which is
    what the papers print.

    Parameters
    ----------
    groups
        ``groups`` of a report. Of an architecture with several settings at one width, the one
        whose L0 is nearest the others' median stands for it.
    matched
        :func:`matched_l0_table` of the same groups.

    Returns
    -------
    pandas.DataFrame
        As :func:`husai.consistency.orderings_beside_published`, with ``d_sae`` and ``basis``.
    """
    full = matched[matched["space"] == "full"]
    tables = []
    for width in sorted(set(groups["d_sae"])):
        fair, own = {}, {}
        for score, signed in FOLLOWED[:2]:
            part = full[
                (full["d_sae"] == width) & (full["score"] == score) & (full["signed"] == signed)
            ]
            if len(part):
                fair[score] = part
            chosen = groups[
                (groups["d_sae"] == width)
                & (groups["space"] == "full")
                & (groups["score"] == score)
                & (groups["signed"] == signed)
                & groups["mean"].notna()
            ]
            if len(chosen):
                middle = float(chosen["l0"].median())
                away = (chosen["l0"] - middle).abs().fillna(np.inf)
                picked = chosen.assign(away=away).sort_values("away", kind="stable")
                own[score] = picked.drop_duplicates("architecture").assign(basis="own L0")
        for basis, scores, column in (("matched L0", fair, "l0"), ("own L0", own, "basis")):
            table = orderings_beside_published(scores, l0_column=column)
            if basis == "own L0":
                table = table.drop(columns="l0", errors="ignore")
            tables.append(table.assign(d_sae=width, basis=basis))
    return pd.concat(tables, ignore_index=True)


# What may explain that a feature comes back.
COVARIATES = (
    "firing_rate",
    "cosine_to_init",
    "cosine_to_encoder",
    "purity",
    "energy",
)


def correlates_table(features: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Ask what goes with a feature's coming back: rank correlations over the features of a SAE.

    Parameters
    ----------
    features
        ``features`` of a report.
    level
        Confidence level of the intervals, which are over SAEs.

    Returns
    -------
    pandas.DataFrame
        A row per group and covariate: ``mean`` Spearman correlation with ``reproducibility``, with
        interval, ``n_seeds``, ``converged``, ``reason``.
    """
    rows: list[Row] = []
    full = features[features["space"] == "full"]
    for name, group in full.groupby("group", sort=False):
        flags = group.groupby("id")["converged"].first()
        head: Row = {
            "group": name,
            "n_seeds": int(group["id"].nunique()),
            "converged": all_converged([None if pd.isna(v) else bool(v) for v in flags]),
        }
        if "hook" in group:
            head["hook"] = group["hook"].iloc[0]
        for covariate in COVARIATES:
            line: Row = {**head, "covariate": covariate}
            if covariate not in group or "reproducibility" not in group:
                rows.append({**line, "reason": "not known"})
                continue
            found = [
                _rank_correlation(own["reproducibility"], own[covariate])
                for _, own in group.groupby("id", sort=False)
            ]
            known = [value for value in found if value is not None]
            if len(known) < len(found):
                rows.append({**line, "reason": "does not vary, or is not known, in some SAE"})
                continue
            interval = mean_interval(known, level=level)
            line |= {
                "mean": interval.mean,
                "low": None if interval.low is None else max(-1.0, interval.low),
                "high": None if interval.high is None else min(1.0, interval.high),
            }
            rows.append({**line, "reason": interval.reason})
    return pd.DataFrame(rows)


def _rank_correlation(x: pd.Series[float], y: pd.Series[float]) -> float | None:
    both = pd.DataFrame({"x": x, "y": y}).astype("float64").dropna()
    if len(both) < 4 or both.nunique().min() < 2:
        return None
    return float(stats.spearmanr(both["x"], both["y"]).statistic)

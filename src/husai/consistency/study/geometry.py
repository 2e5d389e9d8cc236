"""The tables of geometry and of symmetries: measures of each group's SAEs, beside nulls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

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
from husai.consistency.inference.nulls import random_dictionary
from husai.consistency.scores.codes import code_blocks
from husai.consistency.scores.subspace import DataMetric, covariance_root
from husai.consistency.study.record import (
    SAERecord,
    encoder_metric,
    group_settings,
    live_codes,
    live_sae,
)
from husai.progress import step
from husai.threads import worker_pool

Row = dict[str, Any]

# Random dictionaries drawn for the null of a geometric measure; their spread is small.
_GEOMETRY_DRAWS = 5


def directions_geometry(dictionary: ArrayLike, similarity: float) -> dict[str, float]:
    """Measure the geometry of one dictionary.

    Parameters
    ----------
    dictionary
        ``[n, d]``, one feature per row, n at least 2.
    similarity
        Two clusters with a mean similarity below this are not joined.

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
        SAEs by name of their group.
    config
        Threads, seed, level; ``shared_threshold`` is the similarity at which clusters are cut.
    covariance
        ``[d, d]`` covariance of the activations; with it the table has the data-aware null.

    Returns
    -------
    pandas.DataFrame
        A row per group and measure: ``mean`` with interval over SAEs, ``isotropic_mean`` and
        ``data_aware_mean`` where the measure is one of directions, ``n_seeds``, ``converged``,
        ``reason``. Measures: those of :func:`directions_geometry`; ``cosine_to_encoder`` (of each
        latent's decoder and encoder, in the encoders' metric), ``firing_rate`` (median over
        latents), ``never_coactive`` (share of pairs of live latents that never fire on the same
        row) and ``coactivation_bits`` (for pairs that do, mean |log2| of observed over expected
        rate of firing together).
    """
    chance: dict[tuple[str, int, int], dict[str, float]] = {}
    root = None if covariance is None else covariance_root(covariance)
    metric = encoder_metric(covariance, config)

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
        return _sae_geometry(record, config, metric)

    rows: list[Row] = []
    for name, records in members.items():
        with step(f"geometry of {name}"), worker_pool(config.workers) as pool:
            measured = pd.DataFrame(list(pool.map(one, records)))
        head = group_settings(name, records)
        for measure, bounds in _MEASURES.items():
            line: Row = {**head, "measure": measure}
            known = measured[measure].dropna() if measure in measured else pd.Series(dtype=float)
            if len(known) < len(records):
                rows.append({**line, "reason": "not defined for every SAE of the group"})
                continue
            interval = mean_interval(known.tolist(), level=config.level, bounds=bounds)
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


_ANY: tuple[float, float] = (0.0, float("inf"))
_SHARE: tuple[float, float] = (0.0, 1.0)
_MEASURES: dict[str, tuple[float, float]] = {
    "participation_ratio": _ANY,
    "entropy_rank": _ANY,
    "dims_99": _ANY,
    "nearest_cosine": _SHARE,
    "clusters_per_feature": _SHARE,
    "cosine_to_encoder": (-1.0, 1.0),
    "firing_rate": _SHARE,
    "never_coactive": _SHARE,
    "coactivation_bits": _ANY,
}
"""Names of the measures of geometry, with the possible values of each."""


def _sae_geometry(
    record: SAERecord, config: ConsistencyConfig, metric: DataMetric | None
) -> dict[str, float]:
    live = live_sae(record, config.dead, metric=metric)
    found: dict[str, float] = {"n": float(len(live.index))}
    if len(live.index) < 2:
        return found
    found |= directions_geometry(live.decoder, config.shared_threshold)
    if live.encoder_cosine is not None:
        found["cosine_to_encoder"] = float(live.encoder_cosine.mean())
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


def symmetry_table(
    members: Mapping[str, Sequence[SAERecord]], modulus: int, config: ConsistencyConfig
) -> pd.DataFrame:
    """Measure which symmetries of modular addition map a dictionary to itself or to another seed's.

    Parameters
    ----------
    members
        SAEs by name of their group; their ``codes`` are of the complete grid in (a, b) order.
    modulus
        The modulus p of the task.
    config
        Null draws, seed, threads, and ``symmetry_width``, the widest SAE that is measured.

    Returns
    -------
    pandas.DataFrame
        A row per group, ``kind_of_pair`` ("itself", "other seed") and symmetry: ``score`` (mean
        over SAEs or pairs of seeds, with interval), ``identity_score``, ``null_mean``, ``p`` (the
        largest over them), ``retained``, ``exact_fraction``, ``n``, ``converged``, ``reason``. The
        symmetry ``"best translation"`` is the best of all p² shifts, and its null also takes the
        best shift; it is computed between the first two seeds.
    """
    symmetries = task_symmetries(modulus)
    rows: list[Row] = []
    for name, records in members.items():
        head = group_settings(name, records)
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
                return table  # p² shifts take as long as all the rest: the first pair only
            best = best_translation(codes[i], codes[j], modulus, **options)
            return pd.concat([table, pd.DataFrame([best])], ignore_index=True)

        for kind, which in pairs.items():
            with step(f"symmetries of {name} ({kind})"), worker_pool(config.workers) as pool:
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
    interval = mean_interval(part["score"].tolist(), level=config.level, bounds=(-1.0, 1.0))
    line |= {"score": interval.mean, "low": interval.low, "high": interval.high}
    for column in ("identity_score", "null_mean", "exact_fraction", "retained"):
        known = part[column].dropna()
        line[column] = float(known.mean()) if len(known) else None
    return {**line, "p": float(part["p"].max()), "reason": interval.reason}

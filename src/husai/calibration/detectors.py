"""Whether a latent's reproducibility over seeds tells that it is a true feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from husai.calibration.clusters import (
    MIN_CLUSTERS,
    Floats,
    midranks,
    percentiles,
    resampled,
    spearman,
    too_few,
)
from husai.consistency.inference.seeds import match_all, pair_maps
from husai.consistency.scores.pair import nearest_features
from husai.errors import InputError
from husai.matching.result import Match


def reproducible_features(
    dictionaries: Sequence[ArrayLike],
    truth: ArrayLike,
    *,
    seeds: Sequence[int] | None = None,
    matches: Mapping[tuple[int, int], Match] | None = None,
) -> pd.DataFrame:
    """Measure the reproducibility of each latent, and its similarity to the nearest true feature.

    Parameters
    ----------
    dictionaries
        One ``[d_sae, d]`` for each seed; widths may differ.
    truth
        ``[n_true, d]``.
    seeds
        ``[S]`` the seed of each dictionary, for the table; its position when None.
    matches
        Matches of all pairs (:func:`husai.consistency.match_all`) by |cosine|, if they are known
        already.

    Returns
    -------
    pandas.DataFrame
        ``seed``, ``latent``, ``reproducibility`` (mean over the other seeds of the |cosine| to
        its one-to-one partner, 0 where it has none), ``truth_similarity`` (largest |cosine| with
        a true feature) and ``feature`` (the number of that feature).

    Raises
    ------
    InputError
        When fewer than two dictionaries are given, or inputs do not fit together.
    """
    n = len(dictionaries)
    if n < 2:
        raise InputError("dictionaries: one seed; reproducibility needs two or more")
    names = list(range(n)) if seeds is None else list(seeds)
    if len(set(names)) != n:
        raise InputError(f"seeds: {names}; give a different one for each of {n} dictionaries")
    rows = [np.asarray(dictionary, dtype=np.float64) for dictionary in dictionaries]
    maps = pair_maps(match_all(rows) if matches is None else matches)
    if maps.sizes != tuple(len(W) for W in rows):
        raise InputError(
            f"matches: of {maps.sizes} features, but the dictionaries have "
            f"{tuple(len(W) for W in rows)}"
        )
    tables = []
    for s, W in enumerate(rows):
        near = nearest_features(W, truth)
        others = [maps.similarity(s, t) for t in range(n) if t != s]
        tables.append(
            pd.DataFrame(
                {
                    "seed": names[s],
                    "latent": np.arange(len(W)),
                    "reproducibility": np.mean(others, axis=0),
                    "truth_similarity": near.a_similarity,
                    "feature": near.a_index,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def reproducibility_as_detector(
    features: pd.DataFrame,
    *,
    reproducible: float = 0.9,
    true: float = 0.9,
    cluster: str | None = None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float | int | str | None]:
    """Treat "this latent is reproducible" as a test for "this latent is a true feature".

    Latents of one group of seeds are partners of one another, and groups of one world share their
    truth, so latents are not independent: the intervals are percentiles over resamples of whole
    clusters.

    Parameters
    ----------
    features
        From :func:`reproducible_features`.
    reproducible
        Reproducibility at and above which a latent passes.
    true
        Similarity to the truth at and above which it is true.
    cluster
        Column with the cluster of each latent; no intervals when not given.
    level, n_resamples, seed
        Confidence level, number of resamples and seed of the bootstrap.

    Returns
    -------
    dict
        ``precision`` (share of passing latents that are true; the others are stable but wrong),
        ``recall`` (share of true latents that pass), ``auc`` (probability that a true latent is
        more reproducible than one that is not true), each with ``_low`` and ``_high``;
        ``rank_correlation`` (Spearman), the counts ``n``, ``n_passing``, ``n_true``,
        ``n_clusters``, and ``reason`` (why there are no intervals; empty otherwise). None where
        not defined.

    Raises
    ------
    InputError
        When a column is missing or the level is not between 0 and 1.
    """
    missing = [c for c in (cluster,) if c is not None and c not in features]
    if missing:
        raise InputError(f"features: columns missing: {', '.join(missing)}")
    if not 0 < level < 1:
        raise InputError(f"level: {level}; give a number between 0 and 1")
    score = features["reproducibility"].to_numpy(dtype=np.float64)
    similarity = features["truth_similarity"].to_numpy(dtype=np.float64)
    passing, is_true = score >= reproducible, similarity >= true
    whole = _detector_shares(score, passing, is_true, np.ones((1, len(score))))
    values = {name: None if np.isnan(v[0]) else float(v[0]) for name, v in whole.items()}
    found: dict[str, float | int | str | None] = {
        **values,
        "rank_correlation": spearman(score, similarity),
        "n": len(score),
        "n_passing": int(passing.sum()),
        "n_true": int(is_true.sum()),
    }
    code = np.zeros(len(score), dtype=np.int64)
    if cluster is not None:
        code = pd.factorize(features[cluster])[0]
    n_clusters = int(code.max(initial=-1)) + 1
    few = n_clusters < MIN_CLUSTERS
    found |= {"n_clusters": n_clusters, "reason": too_few(n_clusters) if few else ""}
    drawn: dict[str, Floats] = {name: np.zeros(0) for name in values}
    if not few:
        parts = [
            _detector_shares(score, passing, is_true, weights)
            for weights in resampled(code, n_resamples, np.random.default_rng(seed))
        ]
        drawn = {name: np.concatenate([part[name] for part in parts]) for name in values}
    for name, value in values.items():
        known = drawn[name][~np.isnan(drawn[name])]
        bounds = percentiles(known, level) if value is not None and len(known) else (None, None)
        found[f"{name}_low"], found[f"{name}_high"] = bounds
    return found


def _detector_shares(
    score: Floats,
    passing: NDArray[np.bool_],
    is_true: NDArray[np.bool_],
    weights: Floats,
) -> dict[str, Floats]:
    """Precision, recall and AUC with every row of ``weights [R, n]``; NaN where not defined."""
    n_passing, n_true = weights @ passing, weights @ is_true
    n_false = weights.sum(axis=1) - n_true
    both = weights @ (passing & is_true)
    # Mann-Whitney: the sum of the true latents' ranks minus its smallest possible value
    ranks = midranks(score, weights)
    above = (weights * ranks) @ is_true - n_true * (n_true + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "precision": both / n_passing,
            "recall": both / n_true,
            "auc": above / (n_true * n_false),
        }

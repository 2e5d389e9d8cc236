"""Averages of function and similarity over groups of features, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from husai.consistency.inference.intervals import seed_interval
from husai.consistency.inference.ranks import rank_correlation
from husai.features.cards import FeatureCards
from husai.features.config import FeaturesConfig

_TAILS = ("", "_negative", "_random")

COSINES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Edges of the classes of pairs by |cosine|."""


def function_strata(
    cards: FeatureCards, partners: pd.DataFrame, config: FeaturesConfig
) -> pd.DataFrame:
    """Average every measure over strata of features, with intervals over seeds.

    Parameters
    ----------
    cards
        Cards of the features.
    partners
        A row per feature and other SAE with the measures, see
        :class:`husai.features.FunctionTables`.
    config
        ``strata`` and ``level`` are used.

    Returns
    -------
    pandas.DataFrame
        A row per stratum: all features, each kind of label, ``config.strata`` groups of
        equally many features by how often they fire, and the classes of pairs by |cosine|, with
        ``n_pairs``, the number of pairs whose function is known.
    """
    features = cards.features
    keys = ["id", "latent", "other_id"]
    table = partners.merge(cards.partners[[*keys, "similarity"]], on=keys)
    n_strata = min(config.strata, len(features))
    rank = features["firing_rate"].rank(method="first")
    quarter = pd.qcut(rank, n_strata, labels=False).astype(int)
    strata: list[tuple[str, str, NDArray[np.bool_]]] = [
        ("all", "all", np.ones(len(features), dtype=bool))
    ]
    if "kind" in features:
        strata += [
            ("kind", str(kind), (features["kind"] == kind).to_numpy())
            for kind in features["kind"].value_counts().index
        ]
    for q in range(n_strata):
        inside = (quarter == q).to_numpy()
        low, high = features.loc[inside, "firing_rate"].agg(["min", "max"])
        strata.append(("activity", f"fires on {low:.2g} to {high:.2g}", inside))
    parts: list[tuple[str, str, int, pd.DataFrame]] = []
    for by, name, inside in strata:
        own = features.loc[inside, ["id", "latent"]]
        parts.append((by, name, len(own), table.merge(own, on=["id", "latent"])))
    for low, high in pairwise(COSINES):
        near = table["similarity"].between(low, high, inclusive="left" if high < 1 else "both")
        pairs = table[near]
        n_own = len(pairs[["id", "latent"]].drop_duplicates())
        if n_own:
            parts.append(("cosine", f"|cosine| {low:g} to {high:g}", n_own, pairs))
    rows = []
    for by, name, n_features, part in parts:
        n_pairs = int(part["function"].notna().sum())
        row: dict[str, Any] = {
            "by": by, "stratum": name, "n_features": n_features, "n_pairs": n_pairs
        }  # fmt: skip
        for column in (
            "similarity",
            *(f"{what}{tail}" for what in ("function", "repaired") for tail in _TAILS),
        ):
            row |= _over_seeds(cards.group.ids, part, column, config.level)
        row |= _over_seeds(cards.group.ids, part, "cosine_predicts", config.level)
        rows.append(row)
    return pd.DataFrame(rows)


def _over_seeds(
    ids: Sequence[str], part: pd.DataFrame, column: str, level: float
) -> dict[str, float | None]:
    """Mean over pairs of SAEs of the mean over their features, and its interval over seeds."""
    n = len(ids)
    place = {name: s for s, name in enumerate(ids)}
    W = np.full((n, n), np.nan)
    np.fill_diagonal(W, 0.0)
    pair = part["id"].map(place).to_numpy(), part["other_id"].map(place).to_numpy()
    first, second = np.minimum(*pair), np.maximum(*pair)
    for s in range(n):
        for t in range(s + 1, n):
            both = part[(first == s) & (second == t)]
            W[s, t] = W[t, s] = (
                rank_correlation(both["similarity"], both["function"])
                if column == "cosine_predicts"
                else both[column].mean()
            )
    if np.isnan(W).any():
        known = W[np.triu_indices(n, 1)]
        mean = float(np.nanmean(known)) if np.isfinite(known).any() else None
        return {column: mean, f"{column}_low": None, f"{column}_high": None}
    bounds = (0.0, 1.0) if column == "similarity" else (-1.0, 1.0)
    found = seed_interval(W, level=level, bounds=bounds)
    return {column: found.mean, f"{column}_low": found.low, f"{column}_high": found.high}

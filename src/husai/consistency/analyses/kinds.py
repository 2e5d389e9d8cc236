"""Reproducibility of features by kind, and coverage: how many classes have a latent of their own.

The mean over a dictionary can mix different kinds: where half of the latents stand for answers and
have reproducibility .98, and the other half have .77, no latent is near the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from husai.consistency.analyses.explanation import (
    ClassScores,
    read_out,
)
from husai.consistency.analyses.labels import Classes
from husai.consistency.inference.intervals import SeedInterval, jackknife_interval
from husai.consistency.inference.nulls import NullDistribution
from husai.consistency.inference.references import Reference
from husai.consistency.scores.decoder import gt_mcc
from husai.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Coverage:
    """How many classes have a latent of their own.

    Attributes
    ----------
    n_classes
        Number of classes.
    f1_best, f1_fires, average_precision, r2
        How many classes have a latent above ``threshold`` by that measure (R²: above
        ``least_r2``). F1 at the best threshold depends on the ranks of the code; F1 of firing also
        counts every weak extra firing, which a fixed k forces on a latent.
    threshold, least_r2
        The thresholds in use.
    """

    n_classes: int
    f1_best: int
    f1_fires: int
    average_precision: int
    r2: int
    threshold: float
    least_r2: float


def coverage(scores: ClassScores, *, threshold: float = 0.9, least_r2: float = 0.5) -> Coverage:
    """Count the classes that have a latent.

    Parameters
    ----------
    scores
        From :func:`~husai.consistency.analyses.explanation.class_scores`.
    threshold, least_r2
        A class is covered if the measure of a latent is above the threshold.

    Raises
    ------
    InputError
        When there is no latent.
    """
    if not scores.r2.shape[0]:
        raise InputError("scores: no latent")

    def count(values: Floats, least: float) -> int:
        return int((values.max(axis=0) > least).sum())

    return Coverage(
        scores.r2.shape[1],
        count(scores.f1_best, threshold),
        count(scores.f1_fires, threshold),
        count(scores.average_precision, threshold),
        count(scores.r2, least_r2),
        threshold,
        least_r2,
    )


def covered_by_chance(
    reference: Reference,
    rows: ArrayLike,
    rates: ArrayLike,
    families: Sequence[Classes],
    *,
    threshold: float = 0.9,
    n_draws: int = 20,
    seed: int = 0,
) -> dict[str, NDArray[np.int64]]:
    """Null of coverage by ``f1_best``: how many classes random directions cover.

    Each direction reads the activations and fires as often as the latent whose place it takes (see
    :func:`~husai.consistency.analyses.explanation.read_out`). All families are scored on the same
    codes. The F1 of a latent for a class is computed only where enough members of the class are
    among the rows on which it fires; this is rare, so a draw costs little more than its codes.

    Parameters
    ----------
    reference
        From which directions are drawn, for example
        :func:`~husai.consistency.inference.references.permuted`.
    rows
        ``[n_rows, d]`` activations.
    rates
        ``[n]`` firing rate of each latent: random direction j fires as often as latent j.
    families
        Classes of the same rows.
    threshold
        As in :func:`coverage`.
    n_draws, seed
        Number of dictionaries drawn, and their seed.

    Returns
    -------
    dict
        For each family ``[n_draws]``: how many classes each draw covers.

    Raises
    ------
    InputError
        When shapes do not fit.
    """
    rate = np.asarray(rates, dtype=np.float64)
    counts: dict[str, list[int]] = {family.family: [] for family in families}
    for draw in range(n_draws):
        (directions,) = reference.draw(np.random.default_rng([seed, draw]), (len(rate),))
        codes = read_out(directions, rows, rate)
        for family in families:
            counts[family.family].append(_covered(codes, family, threshold))
    return {name: np.array(values, dtype=np.int64) for name, values in counts.items()}


def _covered(codes: sparse.csc_array, labels: Classes, threshold: float) -> int:
    """How many classes have a latent with ``f1_best`` above ``threshold``."""
    members = sparse.csc_array(labels.members)
    size = np.diff(members.indptr)
    fires = sparse.csc_array(
        (np.ones(len(codes.data), dtype=np.int64), codes.indices, codes.indptr), codes.shape
    )
    inside = (members.T.astype(np.int64) @ fires).toarray()
    # F1 is at most 2 m / (m + size), reached if all m members are the latent's strongest rows
    possible = 2 * inside > threshold * (inside + size[:, None])
    # a threshold below every code selects all rows
    trivial = 2 * size > threshold * (members.shape[0] + size)
    covered = int(trivial.sum())
    for c in np.flatnonzero(possible.any(axis=1) & ~trivial):
        rows = np.zeros(members.shape[0], dtype=bool)
        rows[members.indices[members.indptr[c] : members.indptr[c + 1]]] = True
        for j in np.flatnonzero(possible[c]):
            column = slice(codes.indptr[j], codes.indptr[j + 1])
            order = np.argsort(-codes.data[column], kind="stable")
            value, member = codes.data[column][order], rows[codes.indices[column]][order]
            last = np.append(value[1:] != value[:-1], True)  # the last row of each value
            hits, end = np.cumsum(member)[last], np.flatnonzero(last) + 1
            if (2 * hits > threshold * (end + size[c])).any():
                covered += 1
                break
    return covered


def class_means(rows: ArrayLike, labels: Classes) -> Floats:
    """Mean activation of each class minus the mean of all rows: ``[n_classes, d]``.

    These are the true features if latents stand for classes: with them as decoder rows and the
    class as the code, the reconstruction explains as much variance as classes can.

    Raises
    ------
    InputError
        When rows do not correspond.
    """
    x = np.asarray(rows, dtype=np.float64)
    if x.ndim != 2 or len(x) != labels.members.shape[0]:
        raise InputError(f"rows: shape {x.shape}, labels of {labels.members.shape[0]} rows")
    size = np.asarray(labels.members.sum(axis=0)).ravel()
    return np.asarray((labels.members.T @ (x - x.mean(axis=0))) / size[:, None])


def class_gt_mcc_nulls(
    reference: Reference,
    n: int,
    means: Mapping[str, Floats],
    *,
    signed: bool = True,
    n_draws: int = 200,
    seed: int = 0,
) -> dict[str, NullDistribution]:
    """Null of GT-MCC against class means, for all families on the same random dictionaries.

    Signed by default, as the score should be: the code of a class feature is high inside the
    class, so the feature points towards the class mean.

    Parameters
    ----------
    reference
        From which dictionaries are drawn.
    n
        Number of features of each dictionary.
    means
        For each family ``[n_classes, d]``, from :func:`class_means`.
    signed
        Use the cosine itself instead of its absolute value.
    n_draws, seed
        Number of dictionaries drawn, and their seed.

    Raises
    ------
    InputError
        When dimensions differ.
    """
    values: dict[str, list[float]] = {family: [] for family in means}
    for draw in range(n_draws):
        (directions,) = reference.draw(np.random.default_rng([seed, draw]), (n,))
        for family, found in values.items():
            found.append(gt_mcc(directions, means[family], signed=signed))
    return {
        family: NullDistribution(
            reference.kind,
            "gt_mcc",
            signed,
            np.array(found, dtype=np.float64),
            reference.independent,
        )
        for family, found in values.items()
    }


def reproducibility_by_kind(features: pd.DataFrame, *, by: Sequence[str] = ()) -> pd.DataFrame:
    """Summarise reproducibility for each kind of feature.

    The sum over kinds of ``share`` times ``reproducibility`` is the plain mean.

    Parameters
    ----------
    features
        A row per feature: ``kind``, ``reproducibility`` (mean similarity to its partners in the
        other seeds), ``n_seeds_found``, ``n_other_seeds``.
    by
        Further columns to group by, for example ``["group", "space"]``.

    Returns
    -------
    pandas.DataFrame
        The columns ``by``, ``kind``, ``n_features``, ``share``, ``reproducibility`` (mean),
        ``sd``, ``q10``, ``median``, ``q90``, ``found_everywhere`` (share found in every other
        seed), ``orphan_fraction`` (found in none), ``share_of_everywhere`` (share of this kind
        among all features found in every other seed); highest mean first.

    Raises
    ------
    InputError
        When a column is missing or there is no feature.
    """
    needed = {"kind", "reproducibility", "n_seeds_found", "n_other_seeds", *by}
    if missing := needed - set(features.columns):
        raise InputError(f"features: columns {sorted(missing)} are missing")
    if not len(features):
        raise InputError("features: no feature")
    everywhere = features["n_seeds_found"] >= features["n_other_seeds"]
    table = features.assign(_everywhere=everywhere, _orphan=features["n_seeds_found"] == 0)
    parts = []
    for key, whole in table.groupby(list(by), sort=False) if by else [((), table)]:
        found = max(int(whole["_everywhere"].sum()), 1)
        rows = []
        for kind, part in whole.groupby("kind"):
            value = part["reproducibility"].to_numpy(dtype=np.float64)
            q10, median, q90 = np.quantile(value, [0.1, 0.5, 0.9])
            rows.append(
                {
                    **dict(zip(by, key, strict=True)),
                    "kind": kind,
                    "n_features": len(part),
                    "share": len(part) / len(whole),
                    "reproducibility": float(value.mean()),
                    "sd": float(value.std()),
                    "q10": float(q10),
                    "median": float(median),
                    "q90": float(q90),
                    "found_everywhere": float(part["_everywhere"].mean()),
                    "orphan_fraction": float(part["_orphan"].mean()),
                    "share_of_everywhere": float(part["_everywhere"].sum() / found),
                }
            )
        parts.append(pd.DataFrame(rows).sort_values("reproducibility", ascending=False))
    return pd.concat(parts, ignore_index=True)


class KindIntervals(NamedTuple):
    """Intervals of one kind's share of the features and of its mean reproducibility."""

    share: SeedInterval | None
    reproducibility: SeedInterval | None


def kind_intervals(
    kind: str,
    kinds: Sequence[NDArray[np.object_]],
    similarity: Sequence[Floats],
    *,
    level: float = 0.95,
) -> KindIntervals:
    """Intervals over seeds for one kind's row in :func:`reproducibility_by_kind`.

    Both numbers are ratios of sums over all features of all seeds, so the jackknife leaves a seed
    out of numerator and denominator: its own features, and the similarities of other features to
    their partners in it. The mean of the seeds' means would be a different quantity if seeds have
    different numbers of features of the kind, or some features have no partner.

    Parameters
    ----------
    kind
        The kind.
    kinds
        For each seed ``[n_s]``: the kind of every feature.
    similarity
        For each seed ``[n_s, S - 1]``, from
        :func:`~husai.consistency.inference.seeds.partner_similarity`.
    level
        Confidence level.

    Returns
    -------
    KindIntervals
        None with fewer than two seeds; the reproducibility needs three seeds that have the kind.
    """
    n = len(kinds)
    count = np.array([(own == kind).sum() for own in kinds], dtype=np.float64)
    size = np.array([len(own) for own in kinds], dtype=np.float64)
    found = np.zeros((n, n))  # [s, t]: sum over features of the kind in s, to their partners in t
    for s in range(n):
        others = [t for t in range(n) if t != s]
        found[s, others] = similarity[s][kinds[s] == kind].sum(axis=0)
    share = mean = None
    if n > 1:
        share = jackknife_interval(
            count.sum() / size.sum(),
            (count.sum() - count) / (size.sum() - size),
            level=level,
            bounds=(0.0, 1.0),
        )
    if (count > 0).sum() > 2:
        left = found.sum() - found.sum(axis=0) - found.sum(axis=1)
        mean = jackknife_interval(
            found.sum() / (count.sum() * (n - 1)),
            left / ((count.sum() - count) * (n - 2)),
            level=level,
            bounds=(0.0, 1.0),
        )
    return KindIntervals(share, mean)

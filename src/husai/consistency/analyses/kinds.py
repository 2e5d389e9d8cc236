"""Which features come back, by their kind: coverage of labels, and reproducibility as a mixture.

One mean over a dictionary hides what it is made of: where half of the latents are answers that
come back at .98 and half are something else at .77, no latent is at the mean.
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
        Classes.
    f1_best, f1_fires, average_precision, r2
        How many have a latent above ``threshold`` by that measure (R²: above ``least_r2``). F1
        at its best threshold looks at the ranks of the code; F1 of firing counts every weak
        extra firing, which a fixed k forces on a latent.
    threshold, least_r2
        What counts.
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
        A class is covered by a latent whose measure is above.

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
    """Count the classes that directions like the dictionary's cover: chance of ``f1_best``.

    Each direction reads the rows itself and fires as often as the latent it stands for (see
    :func:`~husai.consistency.analyses.explanation.read_out`). All families are scored on one
    reading; and a latent's F1 for a class is worked out only where enough members of the class
    are among the rows on which it fires, which is rare: a draw costs little more than the reading.

    Parameters
    ----------
    reference
        Of the dictionary, for example :func:`~husai.consistency.inference.references.permuted`.
    rows
        ``[n_rows, d]`` activations.
    rates
        ``[n]`` firing rate of each latent: random direction j fires as often as latent j.
    families
        Classes of the same rows.
    threshold
        As in :func:`coverage`.
    n_draws, seed
        Dictionaries drawn.

    Returns
    -------
    dict
        By family ``[n_draws]`` classes covered.

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
    """Classes with a latent whose F1, at the best threshold on its code, is above ``threshold``."""
    members = sparse.csc_array(labels.members)
    size = np.diff(members.indptr)
    fires = sparse.csc_array(
        (np.ones(len(codes.data), dtype=np.int64), codes.indices, codes.indptr), codes.shape
    )
    inside = (members.T.astype(np.int64) @ fires).toarray()
    # were all of them the latent's strongest, F1 = 2 m / (m + size): it cannot be more
    possible = 2 * inside > threshold * (inside + size[:, None])
    # a threshold below every code takes all rows
    trivial = 2 * size > threshold * (members.shape[0] + size)
    covered = int(trivial.sum())
    for c in np.flatnonzero(possible.any(axis=1) & ~trivial):
        rows = np.zeros(members.shape[0], dtype=bool)
        rows[members.indices[members.indptr[c] : members.indptr[c + 1]]] = True
        for j in np.flatnonzero(possible[c]):
            column = slice(codes.indptr[j], codes.indptr[j + 1])
            order = np.argsort(-codes.data[column], kind="stable")
            value, member = codes.data[column][order], rows[codes.indices[column]][order]
            last = np.append(value[1:] != value[:-1], True)  # of rows with one value
            hits, end = np.cumsum(member)[last], np.flatnonzero(last) + 1
            if (2 * hits > threshold * (end + size[c])).any():
                covered += 1
                break
    return covered


def class_means(rows: ArrayLike, labels: Classes) -> Floats:
    """Mean activation of each class, less the mean of all rows: ``[n_classes, d]``.

    The ground truth of a dictionary of classes: with them as decoder rows, and the class as the
    code, as much of the variance is explained as classes can.

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
    """Chance of GT-MCC to class means, of all families on the same dictionaries drawn.

    Signed by default, as the score is to be: a class is where a code is high, so its feature
    points at the mean.

    Parameters
    ----------
    reference
        Directions like the dictionary's.
    n
        Features of the dictionary.
    means
        By family ``[n_classes, d]`` from :func:`class_means`.
    signed
        Use the cosine itself instead of its absolute value.
    n_draws, seed
        Dictionaries drawn.

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
    """Reproducibility as a mixture: a part for each kind of feature.

    The parts' shares times their means add up to the plain mean.

    Parameters
    ----------
    features
        A row per feature: ``kind``, ``reproducibility`` (mean similarity to its partners in the
        other seeds), ``n_seeds_found``, ``n_other_seeds``.
    by
        Further columns to keep apart, for example ``["group", "space"]``.

    Returns
    -------
    pandas.DataFrame
        ``by``, ``kind``, ``n_features``, ``share``, ``reproducibility`` (mean), ``sd``, ``q10``,
        ``median``, ``q90``, ``found_everywhere`` (share found in every other seed),
        ``orphan_fraction`` (found in none), ``share_of_everywhere`` (share of this kind among all
        that are found everywhere); kinds in order of their mean.

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
    """A kind's share of the features and its mean reproducibility, each with its interval."""

    share: SeedInterval | None
    reproducibility: SeedInterval | None


def kind_intervals(
    kind: str,
    kinds: Sequence[NDArray[np.object_]],
    similarity: Sequence[Floats],
    *,
    level: float = 0.95,
) -> KindIntervals:
    """Intervals over seeds of what :func:`reproducibility_by_kind` says of one kind.

    Both are ratios of sums over all features of all seeds, so the jackknife leaves a seed out of
    numerator and denominator: its own features, and what the others' features find in it. A mean
    of the seeds' own means would be of another quantity where seeds hold different numbers of
    the kind, or features have no partner.

    Parameters
    ----------
    kind
        Which.
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
        None below two seeds; for the reproducibility, below three that hold the kind.
    """
    n = len(kinds)
    count = np.array([(own == kind).sum() for own in kinds], dtype=np.float64)
    size = np.array([len(own) for own in kinds], dtype=np.float64)
    found = np.zeros((n, n))  # from seed s, over its features of the kind, to their partners in t
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

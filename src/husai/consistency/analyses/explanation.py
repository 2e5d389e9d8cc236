"""What each latent means: which label of the activation rows explains its code best.

Families of labels are compared on one scale, R²: the share of the variance of a latent's code that
the label explains. Average precision and F1 say how well a latent *detects* a class and are shown
beside it. They cannot choose between families, since they depend on ranks alone: a broad wave
that peaks at answer 17 ranks these rows first, and has an average precision of 1 for that class
with an R² of .03.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from husai.consistency.analyses.labels import Classes, Floats, Labels, Regressors
from husai.consistency.scores.codes import Codes, whole_codes
from husai.errors import InputError
from husai.matching.match import unit_rows

SEVERAL = ", several"
"""Added to the kind of a latent that stands for several classes of one variable."""


class ClassScores(NamedTuple):
    """How well each latent detects each class; arrays ``[n_latents, n_classes]``.

    Attributes
    ----------
    average_precision
        Area under the precision-recall steps; rows of equal code are counted together.
    f1_fires
        F1 of the detector "the latent fires".
    f1_best
        F1 of the detector "the code is above a threshold", at the best threshold.
    r2
        Share of the code's variance that the class explains; 0 where the code is lower inside the
        class.
    """

    average_precision: Floats
    f1_fires: Floats
    f1_best: Floats
    r2: Floats


def _columns(codes: Codes, n_rows: int) -> sparse.csc_array:
    """Return checked codes in columns; codes already in float64 columns are not copied."""
    if isinstance(codes, sparse.csc_array) and codes.dtype == np.float64:
        matrix = codes
        if not np.isfinite(matrix.data).all():
            raise InputError("codes: NaN or infinity among the codes")
    else:
        matrix = sparse.csc_array(whole_codes(codes))
    if not matrix.data.all():
        matrix = matrix.copy()
        matrix.eliminate_zeros()
    if matrix.shape[0] != n_rows:
        raise InputError(f"codes: {matrix.shape[0]} rows, labels of {n_rows}")
    if len(matrix.data) and matrix.data.min() < 0:
        raise InputError("codes: a code is negative; give activations of latents, all >= 0")
    return matrix


class _Sums(NamedTuple):
    """Sum ``[n]`` and centred sum of squares of each latent's code."""

    total: Floats
    scatter: Floats


def _sums(matrix: sparse.csc_array) -> _Sums:
    total = np.asarray(matrix.sum(axis=0), dtype=np.float64).ravel()
    squares = np.asarray(matrix.power(2).sum(axis=0)).ravel()
    return _Sums(total, squares - total**2 / matrix.shape[0])


def class_scores(codes: Codes, labels: Classes) -> ClassScores:
    """Score every latent against every class.

    It sorts the non-zero codes and makes no table of rows by classes: 512 latents and 113 classes
    on 12,769 rows take about a tenth of a second.

    Parameters
    ----------
    codes
        ``[n_rows, n_latents]``, never negative.
    labels
        Classes of the same rows.

    Raises
    ------
    InputError
        When rows do not correspond or a code is negative.
    """
    members = labels.members
    n_rows, n_classes = members.shape
    matrix = _columns(codes, n_rows)
    size = np.asarray(members.sum(axis=0)).ravel()
    fires = np.diff(matrix.indptr)
    found, precision, f1_best = (np.zeros((matrix.shape[1], n_classes)) for _ in range(3))
    # latents are taken in blocks, so that their firings fit in some hundred megabytes
    block = np.cumsum(fires) // _FIRINGS_AT_ONCE
    for begin, end in pairwise([0, *(np.flatnonzero(np.diff(block)) + 1), len(fires)]):
        part = slice(begin, end)
        ranks = _ranks_of_members(matrix[:, part], members)
        pair, hits = ranks.latent * n_classes + ranks.column, ranks.hits
        shape = (end - begin, n_classes)
        found[part] = np.bincount(pair, minlength=shape[0] * n_classes).reshape(shape)
        at_rank = np.bincount(pair, weights=hits / ranks.rank, minlength=shape[0] * n_classes)
        precision[part] = at_rank.reshape(shape)
        if len(pair):
            first = np.flatnonzero(np.append(True, pair[1:] != pair[:-1]))
            f1 = 2 * hits / (ranks.rank + size[ranks.column])
            f1_best[part].flat[pair[first]] = np.maximum.reduceat(f1, first)
    sums = _sums(matrix)
    covariance = (matrix.T @ members).toarray() - np.outer(sums.total, size) / n_rows
    spread = np.outer(sums.scatter, size * (1 - size / n_rows))
    r2 = np.divide(
        np.clip(covariance, 0.0, None) ** 2, spread, out=np.zeros_like(spread), where=spread > 1e-12
    )
    return ClassScores(
        # the rows on which the latent does not fire come last and all have equal rank
        precision / size + (size - found) / n_rows,
        2 * found / (fires[:, None] + size),
        np.maximum(f1_best, 2 * size / (n_rows + size)),  # or a threshold that selects all rows
        np.clip(r2, 0.0, 1.0),
    )


# How many firings of latents are ranked together.
_FIRINGS_AT_ONCE = 2**21


class _Ranks(NamedTuple):
    """Members of classes among the rows on which latents fire, by latent, class and rank.

    ``rank`` is the number of rows with a code at least as large, ``hits`` that of the class's
    members among them; ties count together in both.
    """

    latent: NDArray[np.int64]
    column: NDArray[np.int64]
    rank: NDArray[np.int64]
    hits: NDArray[np.int64]


def _ranks_of_members(matrix: sparse.csc_array, members: sparse.csr_array) -> _Ranks:
    latent = np.repeat(np.arange(matrix.shape[1]), np.diff(matrix.indptr))
    order = np.lexsort((-matrix.data, latent))
    latent, value, row = latent[order], matrix.data[order], matrix.indices[order]
    rank = _last_of_run(latent, value) + 1 - matrix.indptr[latent]
    # repeat each firing once for every class of its row
    first, count = members.indptr[row], np.diff(members.indptr)[row]
    again = np.repeat(np.arange(len(row)), count)
    within = np.arange(len(again)) - np.repeat(np.cumsum(count) - count, count)
    column = members.indices[first[again] + within].astype(np.int64)
    latent, rank = latent[again], rank[again]
    # they are in order of rank; a stable sort keeps this order within each latent and class
    order = np.argsort(latent * members.shape[1] + column, kind="stable")
    latent, column, rank = latent[order], column[order], rank[order].astype(np.int64)
    pair = latent * members.shape[1] + column
    start = np.flatnonzero(np.append(True, pair[1:] != pair[:-1])) if len(pair) else pair
    own = np.repeat(start, np.diff(np.append(start, len(pair))))
    return _Ranks(latent, column, rank, _last_of_run(pair, rank) + 1 - own)


def _last_of_run(*keys: NDArray[Any]) -> NDArray[np.int64]:
    """``[n]``: for each entry, the last index of its run of equal keys."""
    if not len(keys[0]):
        return np.zeros(0, dtype=np.int64)
    changes = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    last = np.flatnonzero(np.append(changes, True))
    return np.repeat(last, np.diff(np.append(-1, last)))


def regressor_r2(codes: Codes, labels: Regressors) -> Floats:
    """R² ``[n_latents, n_labels]`` of each latent's code regressed on each label's columns.

    Raises
    ------
    InputError
        When rows do not correspond or a code is negative.
    """
    n_rows, n_labels, q = labels.values.shape
    matrix = _columns(codes, n_rows)
    scatter = _sums(matrix).scatter
    # centred columns: the codes need no centring
    product = np.asarray(matrix.T @ labels.centred).reshape(-1, n_labels, q)
    explained = np.einsum(
        "jlq,jlq->jl", np.einsum("jlr,lqr->jlq", product, labels.inverse), product
    )
    spread = np.broadcast_to(scatter[:, None], explained.shape)
    r2 = np.divide(explained, spread, out=np.zeros_like(explained), where=spread > 1e-12)
    return np.clip(r2, 0.0, 1.0)


def family_r2(codes: Codes, labels: Classes) -> Floats:
    """Adjusted R² ``[n_latents]`` of each code regressed on all classes of a family together.

    It is the share of a code's variance that the *variable* explains, for any function of the
    variable: 1 for a latent for one class, and for one for several classes. It is adjusted for
    the degrees of freedom of the classes, so that it is 0 on average for an unrelated code.

    Raises
    ------
    InputError
        When rows do not correspond or a code is negative.
    """
    members = labels.members
    n_rows = members.shape[0]
    matrix = _columns(codes, n_rows)
    size = np.asarray(members.sum(axis=0)).ravel()
    total, scatter = _sums(matrix)
    product = (matrix.T @ members).toarray() - np.outer(total, size) / n_rows
    values, vectors = labels.axes
    explained = (np.square(product @ vectors) / values).sum(axis=1)
    r2 = np.divide(explained, scatter, out=np.zeros_like(scatter), where=scatter > 1e-12)
    left = n_rows - 1 - len(values)
    if left < 1:
        return np.zeros_like(r2)  # with a class for each row, any code is explained
    adjusted = 1 - (1 - r2) * (n_rows - 1) / left
    return np.where(scatter > 1e-12, np.clip(adjusted, 0.0, 1.0), 0.0)


@dataclass(frozen=True)
class Explanation:
    """What each latent means, chosen among the given labels.

    Attributes
    ----------
    latents
        A row per latent: ``latent``, ``kind``, ``family``, ``label``, ``r2``, and for classes
        ``average_precision``, ``f1_fires``, ``f1_best`` of the label and ``family_r2`` of all
        classes of the family together. The kind is that of the label that explains most, if it
        explains at least ``least_r2``; else, if all classes of a family together do so, the
        family's kind with ``", several"`` (a latent for several answers); else ``"other"``.
        A latent that never fires is ``"dead"``.
    by_family
        A row per latent and family: the same columns for the family's best label.
    classes
        For each family of classes, the scores of every latent against every class.
    least_r2
        Least share of a code's variance that a label must explain.
    """

    latents: pd.DataFrame
    by_family: pd.DataFrame
    classes: Mapping[str, ClassScores]
    least_r2: float


def explain_latents(
    codes: Codes, families: Sequence[Labels], *, least_r2: float = 0.5
) -> Explanation:
    """Give each latent the label that explains it best.

    Parameters
    ----------
    codes
        ``[n_rows, n_latents]``, never negative.
    families
        Families of labels of the same rows.
    least_r2
        A latent whose best label explains less is of kind ``"other"``.

    Raises
    ------
    InputError
        When there is no family, two have the same name, or rows do not correspond.
    """
    names = [one.family for one in families]
    if not names or len(set(names)) < len(names):
        raise InputError(f"families: {names}; give at least one, each with a name of its own")
    first = families[0]
    n_rows = (first.members if isinstance(first, Classes) else first.values).shape[0]
    matrix = _columns(codes, n_rows)
    n_latents = matrix.shape[1]
    at = np.arange(n_latents)
    classes: dict[str, ClassScores] = {}
    tables = []
    for family in families:
        if isinstance(family, Classes):
            scores = class_scores(matrix, family)
            classes[family.family] = scores
            best = scores.r2.argmax(axis=1)
            measured: dict[str, Any] = {
                "r2": scores.r2[at, best],
                "average_precision": scores.average_precision[at, best],
                "f1_fires": scores.f1_fires[at, best],
                "f1_best": scores.f1_best[at, best],
                "family_r2": family_r2(matrix, family),
            }
        else:
            r2 = regressor_r2(matrix, family)
            best = r2.argmax(axis=1)
            measured = {"r2": r2[at, best]} | dict.fromkeys(
                ("average_precision", "f1_fires", "f1_best", "family_r2"), np.nan
            )
        tables.append(
            pd.DataFrame(
                {
                    "latent": at,
                    "kind": family.kind,
                    "family": family.family,
                    "label": [family.names[i] for i in best],
                    **measured,
                }
            )
        )
    long = pd.concat(tables, ignore_index=True)
    by_label = long.loc[long.groupby("latent")["r2"].idxmax()].reset_index(drop=True)
    whole = long.assign(family_r2=long["family_r2"].fillna(-1.0))
    by_whole = long.loc[whole.groupby("latent")["family_r2"].idxmax()].reset_index(drop=True)
    several = (by_label["r2"] < least_r2) & (by_whole["family_r2"] >= least_r2)
    by_whole["kind"] += SEVERAL
    chosen = by_label.where(~several, by_whole)
    chosen.loc[(chosen["r2"] < least_r2) & ~several, "kind"] = "other"
    dead = np.diff(matrix.indptr) == 0
    chosen.loc[dead, ["kind", "family", "label"]] = ["dead", "", ""]
    return Explanation(chosen, long, classes, least_r2)


def read_out(directions: ArrayLike, rows: ArrayLike, rates: ArrayLike) -> sparse.csc_array:
    """Codes ``relu(x · d - t)`` of directions that read the activations, ``[n_rows, n]``.

    Used for the null of labels: a random direction takes the place of a latent and gets its firing
    rate. ``t`` is set so that direction j fires on the share ``rates[j]`` of the rows.

    Parameters
    ----------
    directions
        ``[n, d]``, scaled to unit norm here.
    rows
        ``[n_rows, d]`` activations, centred here.
    rates
        ``[n]`` share of the rows on which each direction fires.

    Raises
    ------
    InputError
        When shapes do not fit or a rate is outside [0, 1].
    """
    x = np.asarray(rows, dtype=np.float64)
    unit, rate = unit_rows(directions, "directions"), np.asarray(rates, dtype=np.float64)
    if rate.shape != (len(unit),) or rate.min() < 0 or rate.max() > 1:
        raise InputError(f"rates: shape {rate.shape}; give a share from 0 to 1 for each direction")
    projected = unit @ (x - x.mean(axis=0)).T  # one row per direction, contiguous in memory
    parts = []
    for line, count in zip(projected, np.rint(rate * len(x)).astype(np.int64), strict=True):
        threshold = np.inf
        if count >= len(x):
            threshold = line.min() - 1.0
        elif count:
            threshold = np.partition(line, len(x) - count - 1)[len(x) - count - 1]
        row = np.flatnonzero(line > threshold)
        parts.append((row, line[row] - threshold))
    ends = np.cumsum([0, *(len(row) for row, _ in parts)])
    row, value = (np.concatenate(side) for side in zip(*parts, strict=True))
    return sparse.csc_array((value, row, ends), shape=projected.T.shape)

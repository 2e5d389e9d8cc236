"""What a latent means: which label of the rows explains its code best.

Families of labels are compared on one scale, R²: the share of the variance of a latent's code that
the label explains. Average precision and F1 say how well a latent *detects* a class and are given
beside it; they cannot choose between families, because they look at ranks: a broad wave that
peaks at answer 17 ranks those rows first, and has an average precision of 1 for that class at an
R² of .03.
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
from husai.consistency.scores.codes import Codes, code_blocks
from husai.errors import InputError
from husai.matching.match import unit_rows

SEVERAL = ", several"
"""What the kind of a latent for several classes of one variable ends in."""


class ClassScores(NamedTuple):
    """How each latent detects each class; arrays ``[n_latents, n_classes]``.

    ``average_precision`` is the area under the precision-recall steps, rows of equal code counted
    together; ``f1_fires`` takes "the latent fires" as the detector, ``f1_best`` the best
    threshold on its code; ``r2`` is the share of the code's variance that the class explains, 0
    where the code is lower inside it.
    """

    average_precision: Floats
    f1_fires: Floats
    f1_best: Floats
    r2: Floats


def _columns(codes: Codes, n_rows: int) -> sparse.csc_array:
    """Codes by latent, checked; those that are columns in float64 already are taken as they are."""
    if isinstance(codes, sparse.csc_array) and codes.dtype == np.float64:
        matrix = codes
        if not np.isfinite(matrix.data).all():
            raise InputError("codes: NaN or infinity among the codes")
    else:
        matrix = sparse.csc_array(sparse.vstack(list(code_blocks(codes)), format="csc"))
    if not matrix.data.all():
        matrix = matrix.copy()
        matrix.eliminate_zeros()
    if matrix.shape[0] != n_rows:
        raise InputError(f"codes: {matrix.shape[0]} rows, labels of {n_rows}")
    if len(matrix.data) and matrix.data.min() < 0:
        raise InputError("codes: a negative code; give activations of latents, never negative")
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

    Takes a sort of what fires and no table of rows by classes: 512 latents and 113 classes on
    12,769 rows in about a tenth of a second.

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
    # so many latents at a time, that their firings take no more than some hundred megabytes
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
        # the rows on which the latent does not fire are one tie, at the end
        precision / size + (size - found) / n_rows,
        2 * found / (fires[:, None] + size),
        np.maximum(f1_best, 2 * size / (n_rows + size)),  # a threshold below every code: all rows
        np.clip(r2, 0.0, 1.0),
    )


# Firings of latents that are ranked together.
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
    # a firing as often as its row has classes
    first, count = members.indptr[row], np.diff(members.indptr)[row]
    again = np.repeat(np.arange(len(row)), count)
    within = np.arange(len(again)) - np.repeat(np.cumsum(count) - count, count)
    column = members.indices[first[again] + within].astype(np.int64)
    latent, rank = latent[again], rank[again]
    # they come in order of rank already: a stable sort keeps it within each latent and class
    order = np.argsort(latent * members.shape[1] + column, kind="stable")
    latent, column, rank = latent[order], column[order], rank[order].astype(np.int64)
    pair = latent * members.shape[1] + column
    start = np.flatnonzero(np.append(True, pair[1:] != pair[:-1])) if len(pair) else pair
    own = np.repeat(start, np.diff(np.append(start, len(pair))))
    return _Ranks(latent, column, rank, _last_of_run(pair, rank) + 1 - own)


def _last_of_run(*keys: NDArray[Any]) -> NDArray[np.int64]:
    """``[n]``: where the run of equal keys that each entry is in ends."""
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
    """R² ``[n_latents]`` of each code regressed on all classes of a family together, adjusted.

    The share of a code's variance that the *variable* explains, whichever function of it the latent
    is: 1 for a latent of one class, and for one of several. Adjusted for the classes' degrees of
    freedom, so that it is 0 on average for a code that has nothing to do with them.

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
        return np.zeros_like(r2)  # a class for each row explains anything
    adjusted = 1 - (1 - r2) * (n_rows - 1) / left
    return np.where(scatter > 1e-12, np.clip(adjusted, 0.0, 1.0), 0.0)


@dataclass(frozen=True)
class Explanation:
    """What each latent means, out of the labels given.

    Attributes
    ----------
    latents
        A row per latent: ``latent``, ``kind``, ``family``, ``label``, ``r2``, and for classes
        ``average_precision``, ``f1_fires``, ``f1_best`` of the label and ``family_r2`` of all
        the family's classes together. The kind is that of the label that explains most, when it
        explains ``least_r2``; else, when a family of classes does so as a whole, its kind with
        ``", several"`` (a latent for several answers); else ``"other"``, and ``"dead"`` where it
        never fires.
    by_family
        A row per latent and family: the same columns for the family's best label.
    classes
        By family of classes, every latent against every class.
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
        Candidates on the same rows.
    least_r2
        Below it a latent's kind is ``"other"``.

    Raises
    ------
    InputError
        When there is no family, two have one name, or rows do not correspond.
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
    """Codes of directions that read the data themselves: ``relu(x · d - t)``.

    The chance of labels: a random direction as the latent it stands for, with its firing rate.
    ``t`` is set so that direction j fires on the share ``rates[j]`` of the rows.

    Parameters
    ----------
    directions
        ``[n, d]``.
    rows
        ``[n_rows, d]`` activations, centred here.
    rates
        ``[n]`` shares of rows.

    Raises
    ------
    InputError
        When shapes do not fit or a rate is outside [0, 1].
    """
    x = np.asarray(rows, dtype=np.float64)
    unit, rate = unit_rows(directions, "directions"), np.asarray(rates, dtype=np.float64)
    if rate.shape != (len(unit),) or rate.min() < 0 or rate.max() > 1:
        raise InputError(f"rates: shape {rate.shape}; give a share from 0 to 1 for each direction")
    projected = unit @ (x - x.mean(axis=0)).T  # by direction: each is next to itself in memory
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

"""Matching on the whole matrix of scores, and the methods that do not give the optimum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.special import logsumexp

from husai.errors import InputError
from husai.matching.blocked import Float64, UnitRows
from husai.matching.candidates import Candidates, find_candidates, products_on
from husai.matching.dense_assignment import assign
from husai.matching.result import Int64, Match, gathered

# Sinkhorn works on the whole matrix in float64; this many pairs are 2 GB.
_SINKHORN_PAIRS = 16384**2


def all_scores(a: UnitRows, b: UnitRows, signed: bool) -> Float64:
    """Return all scores, ``[n_a, n_b]`` float64: the cosines, or their absolute values."""
    cosines = a.float64(np.arange(a.n)) @ b.float64(np.arange(b.n)).T
    return cosines if signed else np.abs(cosines, out=cosines)


def dense(a: UnitRows, b: UnitRows, signed: bool) -> Match:
    """Match exactly on the whole matrix."""
    scores = all_scores(a, b, signed)
    a_index, b_index = assign(scores)
    nearest = scores.argmax(axis=1), scores.argmax(axis=0)
    return gathered(a, b, a_index, b_index, signed, "dense", True, 0.0, *nearest)


def nearest_partners(a: UnitRows, b: UnitRows, found: Candidates) -> tuple[Int64, Int64]:
    """The best partner of each row of A and of B, by the float32 scores of the pass."""
    best_a = found.rows.key.argmax(axis=1)
    best_b = found.columns.key.argmax(axis=1)
    return (
        found.rows.index[np.arange(a.n), best_a].astype(np.int64),
        found.columns.index[np.arange(b.n), best_b].astype(np.int64),
    )


def greedy(
    a: UnitRows,
    b: UnitRows,
    signed: bool,
    method: str,
    device: str,
    advance: Callable[[float], None],
) -> Match:
    """Match mutual nearest neighbours, once, or again among the rest until none is left.

    The most similar pair of all is always mutual, so repeating this until no feature is left
    gives the greedy matching. Scores that are nearly equal are compared in float32.
    """
    left_a, left_b = np.arange(a.n), np.arange(b.n)
    a_index: list[Int64] = []
    b_index: list[Int64] = []
    nearest: tuple[Int64, Int64] | None = None
    while len(left_a) and len(left_b):
        part_a, part_b = a.take(left_a), b.take(left_b)
        share = part_a.n * part_b.n / (a.n * b.n)
        lists = find_candidates(
            part_a,
            part_b,
            1,
            [signed],
            products_on(part_a, part_b, device),
            advance=lambda done, share=share: advance(done * share),  # type: ignore[misc]
        )[0]
        of_a, of_b = nearest_partners(part_a, part_b, lists)
        if nearest is None:
            nearest = of_a, of_b
        mutual = np.flatnonzero(of_b[of_a] == np.arange(part_a.n))
        if not len(mutual):  # a ring of equal scores: take one of its best pairs
            mutual = np.array([lists.rows.best.argmax()])
        a_index.append(left_a[mutual])
        b_index.append(left_b[of_a[mutual]])
        if method == "mutual_nearest":
            break
        left_b = np.delete(left_b, of_a[mutual])
        left_a = np.delete(left_a, mutual)
    assert nearest is not None  # neither dictionary is empty
    match = gathered(
        a,
        b,
        np.concatenate(a_index),
        np.concatenate(b_index),
        signed,
        method,
        False,
        np.nan,
        *nearest,
    )
    # no feature can have a better partner than its nearest
    best = min(match.a_nearest_similarity.sum(), np.sort(match.b_nearest_similarity)[-a.n :].sum())
    return _with_bound(match, best / a.n)


def _with_bound(match: Match, best_mean: float) -> Match:
    return replace(match, gap_bound=max(0.0, float(best_mean) - match.mean))


def sinkhorn(a: UnitRows, b: UnitRows, signed: bool, temperature: float, iterations: int) -> Match:
    """Sinkhorn's scaling in the log domain (Cuturi 2013, arXiv 1306.0895), rounded greedily."""
    if a.n * b.n > _SINKHORN_PAIRS:
        raise InputError(
            f"method: sinkhorn holds the whole {a.n} x {b.n} matrix; past {_SINKHORN_PAIRS} pairs "
            'choose "exact" or "greedy"'
        )
    scores = all_scores(a, b, signed)
    plan = scores / temperature
    f, g = np.zeros(a.n), np.zeros(b.n)
    for _ in range(iterations):
        f = -np.log(a.n) - logsumexp(plan + g, axis=1)
        g = -np.log(b.n) - logsumexp(plan + f[:, None], axis=0)
    plan += f[:, None] + g
    left_a, left_b = np.arange(a.n), np.arange(b.n)
    a_index: list[Int64] = []
    b_index: list[Int64] = []
    while len(left_a) and len(left_b):
        of_a, of_b = plan.argmax(axis=1), plan.argmax(axis=0)
        mutual = np.flatnonzero(of_b[of_a] == np.arange(len(left_a)))
        a_index.append(left_a[mutual])
        b_index.append(left_b[of_a[mutual]])
        left_b = np.delete(left_b, of_a[mutual])
        left_a = np.delete(left_a, mutual)
        plan = np.delete(np.delete(plan, mutual, axis=0), of_a[mutual], axis=1)
    nearest = scores.argmax(axis=1), scores.argmax(axis=0)
    match = gathered(
        a,
        b,
        np.concatenate(a_index),
        np.concatenate(b_index),
        signed,
        "sinkhorn",
        False,
        np.nan,
        *nearest,
    )
    # the potentials are prices: any v >= 0 bounds every matching (weak duality)
    if a.n <= b.n:
        price = -temperature * g
        price -= price.min()
        bound = (scores - price).max(axis=1).sum() + price.sum()
    else:
        price = -temperature * f
        price -= price.min()
        bound = (scores - price[:, None]).max(axis=0).sum() + price.sum()
    return _with_bound(match, bound / min(a.n, b.n))

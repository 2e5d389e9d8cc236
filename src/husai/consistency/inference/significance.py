"""Permutation tests over seeds, and p-values corrected for many comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial, prod
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from husai.consistency.inference.intervals import pair_matrix
from husai.errors import InputError


@dataclass(frozen=True)
class PermutationTest:
    """A test that permutes seed labels.

    Attributes
    ----------
    statistic, value
        The name of the statistic and its observed value.
    p_value
        Share of relabellings at least as extreme, the observed one included.
    least_p
        The smallest p-value that these group sizes can give: .1 for three seeds against three.
    n_permutations, exact
        Number of relabellings, and whether these are all that there are.
    """

    statistic: str
    value: float
    p_value: float
    least_p: float
    n_permutations: int
    exact: bool


Statistic = Literal["difference", "separation"]


def seed_permutation_test(
    scores: ArrayLike,
    labels: Sequence[object],
    *,
    statistic: Statistic = "difference",
    n_permutations: int = 20_000,
    seed: int = 0,
) -> PermutationTest:
    """Test whether groups of seeds differ, by permuting which SAE belongs to which group.

    Under the null all SAEs are exchangeable. ``"difference"``: mean pair score within the first
    group minus within the second, two-sided. ``"separation"``: mean within groups minus mean
    across, one-sided (do SAEs of one group agree more with one another than with others?).

    Parameters
    ----------
    scores
        ``[S, S]`` symmetric pair scores of **all** SAEs, across groups too.
    labels
        ``[S]`` group of each SAE.
    statistic
        See above; ``"difference"`` takes two groups.
    n_permutations
        Number of random relabellings; where there are no more in all, each is taken once.
    seed
        Seed of the relabellings.

    Raises
    ------
    InputError
        When labels do not fit the matrix, there are fewer than two groups, or one has one SAE.
    """
    W = pair_matrix(scores)
    if statistic not in get_args(Statistic):
        raise InputError(f"statistic: {statistic!r}; choose from {get_args(Statistic)}")
    if len(labels) != len(W):
        raise InputError(f"labels: {len(labels)} for {len(W)} SAEs")
    names = list(dict.fromkeys(labels))
    code = np.array([names.index(label) for label in labels])
    sizes = np.bincount(code, minlength=len(names))
    if len(names) < 2 or sizes.min() < 2:
        raise InputError(
            f"labels: groups of {dict(zip(names, sizes.tolist(), strict=True))} SAEs; "
            "a comparison needs two groups of at least two"
        )
    if statistic == "difference" and len(names) != 2:
        raise InputError(f"labels: {len(names)} groups; a difference is between two")
    total = factorial(len(code)) // prod(factorial(int(size)) for size in sizes)
    exact = total <= n_permutations
    rng = np.random.default_rng(seed)
    candidates = (
        np.array(list(_relabellings(sizes)))
        if exact
        else np.stack([rng.permutation(code) for _ in range(n_permutations)])
    )
    observed = float(_label_statistics(W, code[None], sizes, statistic)[0])
    values = _label_statistics(W, candidates, sizes, statistic)
    extreme = abs(values) >= abs(observed) - 1e-12
    if statistic == "separation":
        extreme = values >= observed - 1e-12
    count = int(extreme.sum()) if exact else int(extreme.sum()) + 1
    n = len(values) if exact else len(values) + 1
    # exchanging two groups of one size changes only the sign of the statistic
    twins = prod(factorial(int(c)) for c in np.bincount(sizes))
    return PermutationTest(statistic, observed, count / n, max(twins / total, 1 / n), n, exact)


def _relabellings(sizes: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield every way to assign the labels, each once."""
    n = int(sizes.sum())

    def deal(
        free: tuple[int, ...], group: int, code: NDArray[np.int64]
    ) -> Iterator[NDArray[np.int64]]:
        if group == len(sizes) - 1:
            done = code.copy()
            done[list(free)] = group
            yield done
            return
        for chosen in combinations(free, int(sizes[group])):
            filled = code.copy()
            filled[list(chosen)] = group
            yield from deal(tuple(i for i in free if i not in chosen), group + 1, filled)

    yield from deal(tuple(range(n)), 0, np.zeros(n, dtype=np.int64))


def _label_statistics(
    W: NDArray[np.float64],
    codes: NDArray[np.int64],
    sizes: NDArray[np.int64],
    statistic: str,
) -> NDArray[np.float64]:
    """Statistic of each labelling ``[P, S]``; ``W`` has a diagonal of zeros."""
    within = []
    for group in range(len(sizes)):
        member = (codes == group).astype(np.float64)
        within.append(((member @ W) * member).sum(axis=1))
    pairs = sizes * (sizes - 1)
    if statistic == "difference":
        return np.asarray(within[0] / pairs[0] - within[1] / pairs[1])
    inside = np.sum(within, axis=0)
    across = len(W) * (len(W) - 1) - pairs.sum()
    return np.asarray(inside / pairs.sum() - (W.sum() - inside) / across)


Adjustment = Literal["holm", "bh", "by"]


def adjust_p(p_values: Iterable[float | None], *, method: Adjustment = "bh") -> list[float | None]:
    """Correct p-values for many comparisons; those that are None or NaN become None.

    ``"holm"`` controls the probability of any false finding (Holm 1979), ``"bh"`` the expected
    share of false ones among the findings (Benjamini & Hochberg 1995), ``"by"`` the same under any
    dependence (Benjamini & Yekutieli 2001).

    Raises
    ------
    InputError
        When the method is unknown or a value is outside [0, 1].
    """
    if method not in get_args(Adjustment):
        raise InputError(f"method: {method!r}; choose from {get_args(Adjustment)}")
    p = np.array([np.nan if value is None else float(value) for value in p_values])
    known = np.flatnonzero(~np.isnan(p))
    if ((p[known] < 0) | (p[known] > 1)).any():
        raise InputError("p_values: a value is outside [0, 1]")
    adjusted: list[float | None] = [None] * len(p)
    if not len(known):
        return adjusted
    if method == "holm":
        order = known[np.argsort(p[known], kind="stable")]
        steps = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
        values = dict(zip(order.tolist(), np.minimum(steps, 1.0).tolist(), strict=True))
    else:
        corrected = stats.false_discovery_control(p[known], method=method)
        values = dict(zip(known.tolist(), corrected.tolist(), strict=True))
    for index, value in values.items():
        adjusted[index] = float(value)
    return adjusted

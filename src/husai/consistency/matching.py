"""One-to-one matching of the features of two dictionaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from husai.errors import InputError

Method = Literal["exact", "dense"]

# below this squared norm a float32 row has no direction worth the name
_ZERO_NORM = 1e-30


@dataclass(frozen=True)
class Match:
    """A one-to-one matching between the rows of ``A`` ``[n_a, d]`` and ``B`` ``[n_b, d]``.

    With ``m = min(n_a, n_b)`` pairs unless the method leaves features unmatched.

    Attributes
    ----------
    a_index, b_index
        ``[m]`` int64: row ``a_index[t]`` of A is matched with row ``b_index[t]`` of B; sorted by
        ``a_index``.
    similarity
        ``[m]`` float64: the score that was maximised, ``|cosine|`` or ``cosine``.
    cosine
        ``[m]`` float64: the signed cosine of each pair.
    n_a, n_b
        Rows of the two dictionaries.
    signed
        Whether the score was the cosine itself (True) or its absolute value (False).
    method
        How the matching was found.
    certified
        Whether the matching is proved optimal to within ``gap_bound`` of a tolerance.
    gap_bound
        Upper bound on (best possible mean similarity - ``mean``); None when none is known.
    """

    a_index: NDArray[np.int64]
    b_index: NDArray[np.int64]
    similarity: NDArray[np.float64]
    cosine: NDArray[np.float64]
    n_a: int
    n_b: int
    signed: bool
    method: str
    certified: bool
    gap_bound: float | None

    @property
    def mean(self) -> float:
        """Mean similarity over ``min(n_a, n_b)`` features; an unmatched feature counts zero."""
        return float(self.similarity.sum() / min(self.n_a, self.n_b))


def unit_rows(dictionary: ArrayLike, name: str = "dictionary") -> NDArray[np.float64]:
    """Return the dictionary's rows scaled to unit norm, in float64.

    A row of zeros stays zero: its cosine with anything is 0, and it is matched last.

    Parameters
    ----------
    dictionary
        ``[n, d]``, one feature a row.
    name
        What to call it in an error.

    Raises
    ------
    InputError
        When it is not a two-dimensional array of finite numbers with at least one row.
    """
    rows = np.asarray(dictionary)
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"{name}: shape {rows.shape}; give a matrix [features, d] that holds some")
    if not (np.issubdtype(rows.dtype, np.floating) or np.issubdtype(rows.dtype, np.integer)):
        raise InputError(f"{name}: its numbers are {rows.dtype}; give real floating-point numbers")
    rows = rows.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise InputError(
            f"{name}: {bad.size} rows hold NaN or infinity (the first is row {bad[0]}); "
            "drop or repair them"
        )
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    norms[norms < _ZERO_NORM] = 1.0
    rows /= norms[:, None]
    return rows


def match_features(
    A: ArrayLike, B: ArrayLike, *, signed: bool = False, method: Method = "exact"
) -> Match:
    """Match the features of two dictionaries one to one, maximising the summed similarity.

    ``max over matchings M of mean_{(i,j) in M} s(C_ij)`` with ``C`` the cosines of the rows and
    ``s`` the absolute value or the identity (Song et al., arXiv 2505.20254, eq. for PW-MCC).

    Parameters
    ----------
    A, B
        ``[n_a, d]`` and ``[n_b, d]``; rows are features, normalised here.
    signed
        Score the cosine itself instead of its absolute value.
    method
        ``"exact"`` or ``"dense"``: the optimum, by scipy's assignment on the dense matrix.

    Raises
    ------
    InputError
        When an input is not a finite matrix, the widths differ, or the method is unknown.
    """
    if method not in get_args(Method):
        raise InputError(f"method: {method!r} is not known; choose from {get_args(Method)}")
    rows_a, rows_b = unit_rows(A, "A"), unit_rows(B, "B")
    if rows_a.shape[1] != rows_b.shape[1]:
        raise InputError(
            f"A has rows of {rows_a.shape[1]} numbers and B of {rows_b.shape[1]}: "
            "dictionaries can be matched only in one space"
        )
    cosines = rows_a @ rows_b.T
    scores = cosines if signed else np.abs(cosines)
    a_index, b_index = linear_sum_assignment(scores, maximize=True)
    return Match(
        a_index=a_index,
        b_index=b_index,
        similarity=scores[a_index, b_index],
        cosine=cosines[a_index, b_index],
        n_a=len(rows_a),
        n_b=len(rows_b),
        signed=signed,
        method="dense",
        certified=True,
        gap_bound=0.0,
    )

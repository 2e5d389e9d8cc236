"""The result of a matching, and how it is made from the pairs that were found."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from husai.matching.blocked import Float64, UnitRows
from husai.matching.certified import Certificate

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Match:
    """A one-to-one matching between the rows of ``A`` ``[n_a, d]`` and ``B`` ``[n_b, d]``.

    It has ``m = min(n_a, n_b)`` pairs, fewer only with ``method="mutual_nearest"``.

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
        How the matching was found: ``"dense"``, ``"sparse"``, ``"greedy"``, ``"mutual_nearest"``
        or ``"sinkhorn"``.
    certified
        Whether the matching is optimal: by the exact solver (``"dense"``), or proved so by
        ``certificate`` (``"sparse"``).
    gap_bound
        Upper bound on (best possible mean similarity - ``mean``).
    a_nearest, a_nearest_similarity
        ``[n_a]``: the most similar feature of B for each feature of A, which several may share,
        and that similarity.
    b_nearest, b_nearest_similarity
        ``[n_b]``: the same for the features of B.
    certificate
        The proof (``"sparse"``), else None.
    """

    a_index: Int64
    b_index: Int64
    similarity: Float64
    cosine: Float64
    n_a: int
    n_b: int
    signed: bool
    method: str
    certified: bool
    gap_bound: float
    a_nearest: Int64 = field(repr=False)
    a_nearest_similarity: Float64 = field(repr=False)
    b_nearest: Int64 = field(repr=False)
    b_nearest_similarity: Float64 = field(repr=False)
    certificate: Certificate | None = None

    @property
    def mean(self) -> float:
        """Mean similarity over ``min(n_a, n_b)`` features; an unmatched feature counts zero."""
        return float(self.similarity.sum() / min(self.n_a, self.n_b))


def gathered(
    a: UnitRows,
    b: UnitRows,
    a_index: Int64,
    b_index: Int64,
    signed: bool,
    method: str,
    certified: bool,
    gap_bound: float,
    nearest_a: Int64,
    nearest_b: Int64,
    certificate: Certificate | None = None,
) -> Match:
    """Make a match from its pairs, and compute the similarities in float64.

    Parameters
    ----------
    a, b
        The two dictionaries.
    a_index, b_index
        ``[m]``: the pairs, in any order.
    signed, method, certified, gap_bound, certificate
        As in :class:`Match`.
    nearest_a, nearest_b
        ``[n_a]`` and ``[n_b]``: the most similar feature of the other side.
    """
    order = np.argsort(a_index)
    a_index, b_index = a_index[order], np.asarray(b_index[order], np.int64)
    score = (lambda c: c) if signed else np.abs
    cosine = a.cosines(b, a_index, b_index)
    return Match(
        a_index=a_index,
        b_index=b_index,
        similarity=score(cosine),
        cosine=cosine,
        n_a=a.n,
        n_b=b.n,
        signed=signed,
        method=method,
        certified=certified,
        gap_bound=gap_bound,
        a_nearest=nearest_a,
        a_nearest_similarity=score(a.cosines(b, np.arange(a.n), nearest_a)),
        b_nearest=nearest_b,
        b_nearest_similarity=score(a.cosines(b, nearest_b, np.arange(b.n))),
        certificate=certificate,
    )


def transposed(match: Match) -> Match:
    """The same match with A and B exchanged."""
    order = np.argsort(match.b_index)
    certificate = match.certificate
    if certificate is not None:
        certificate = replace(certificate, a_price=certificate.b_price, b_price=certificate.a_price)
    return Match(
        a_index=match.b_index[order],
        b_index=match.a_index[order],
        similarity=match.similarity[order],
        cosine=match.cosine[order],
        n_a=match.n_b,
        n_b=match.n_a,
        signed=match.signed,
        method=match.method,
        certified=match.certified,
        gap_bound=match.gap_bound,
        a_nearest=match.b_nearest,
        a_nearest_similarity=match.b_nearest_similarity,
        b_nearest=match.a_nearest,
        b_nearest_similarity=match.a_nearest_similarity,
        certificate=certificate,
    )

"""One-to-one matching of the features of two dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

from husai.errors import InputError
from husai.matching.blocked import Float64, UnitRows, check_dictionary, inverse_norms
from husai.matching.candidates import (
    Candidates,
    Checkpoint,
    check_device,
    find_candidates,
    products_on,
)
from husai.matching.certified import Certificate, CertifiedSearch

Int64 = NDArray[np.int64]

Method = Literal["exact", "dense", "sparse", "greedy", "mutual_nearest", "sinkhorn"]

# Up to here the dense matrix and scipy's solver take less time than a pass and its bookkeeping.
_DENSE_PAIRS = 1024**2
# Up to here a search that did not certify is finished on the dense matrix (128 MB).
_FALLBACK_PAIRS = 4096**2
# Sinkhorn works on the whole matrix in float64; this many pairs are 2 GB.
_SINKHORN_PAIRS = 16384**2


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
        Whether the matching is optimal: by scipy's exact solver (``"dense"``), or proved so by
        ``certificate`` (``"sparse"``).
    gap_bound
        Upper bound on (best possible mean similarity - ``mean``).
    a_nearest, a_nearest_similarity
        ``[n_a]``: each feature of A's best partner in B whoever else has it, and its similarity.
    b_nearest, b_nearest_similarity
        ``[n_b]``: the same for the features of B.
    certificate
        What proves the optimum (``"sparse"``), else None.
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


def unit_rows(dictionary: ArrayLike, name: str = "dictionary") -> Float64:
    """Return the dictionary's rows scaled to unit norm, in float64.

    A row of zeros stays zero: its cosine with anything is 0.

    Parameters
    ----------
    dictionary
        ``[n, d]``, one feature per row.
    name
        What to call it in an error.

    Raises
    ------
    InputError
        When it is not a two-dimensional array of finite real numbers with at least one row.
    """
    rows = check_dictionary(dictionary, name)
    return rows.astype(np.float64) * inverse_norms(rows)[:, None]


def match_features(
    A: ArrayLike,
    B: ArrayLike,
    *,
    signed: bool = False,
    method: Method = "exact",
    candidates: int = 32,
    max_passes: float = 4.0,
    tolerance: float = 1e-9,
    temperature: float = 0.01,
    iterations: int = 200,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    progress: bool | str = False,
) -> Match:
    """Match the features of two dictionaries one to one.

    The score is ``max over matchings M of mean_{(i,j) in M} s(C_ij)`` with ``C`` the cosines of
    the rows and ``s`` the absolute value or the identity (Song et al., arXiv 2505.20254).

    Parameters
    ----------
    A, B
        ``[n_a, d]`` and ``[n_b, d]``; rows are features, normalised here.
    signed
        Score the cosine itself instead of its absolute value.
    method
        ``"exact"``: the optimum, by ``"dense"`` for small dictionaries and ``"sparse"`` for large
        ones.
        ``"dense"``: scipy's assignment on the whole matrix.
        ``"sparse"``: candidates from blocked products, an assignment on those, and a proof over
        all pairs; memory grows with ``n``, not ``n²``. Where the budget ends first, ``certified``
        is False and ``gap_bound`` says how far from the optimum it can be at most.
        Not the optimum: ``"greedy"`` takes the most similar pair again and again;
        ``"mutual_nearest"`` keeps the pairs that are each other's nearest and leaves the rest;
        ``"sinkhorn"`` solves the assignment softened by entropy and rounds its plan greedily.
    candidates
        Partners kept per row and column (``"sparse"``).
    max_passes
        Budget of products, as a multiple of one pass over all pairs (``"sparse"``).
    tolerance
        Gap in the mean score at which the matching counts as certified (``"sparse"``).
    temperature, iterations
        Entropy's weight and sweeps (``"sinkhorn"``).
    device
        ``"cpu"``, or the torch device on which products run.
    checkpoint
        File for the state of the long first pass, written about once a minute and when
        interrupted: a later call with the same arguments continues from there. It stays when the
        match is done; remove it when it is of no more use (``"sparse"``).
    progress
        Show a progress bar; a string names it.

    Raises
    ------
    InputError
        When an input is not a finite matrix, the dimensions differ, or an option is out of range.
    """
    return _match(
        A,
        B,
        (signed,),
        method=method,
        candidates=candidates,
        max_passes=max_passes,
        tolerance=tolerance,
        temperature=temperature,
        iterations=iterations,
        device=device,
        checkpoint=checkpoint,
        progress=progress,
    )[0]


def match_signed_and_absolute(
    A: ArrayLike,
    B: ArrayLike,
    *,
    method: Literal["exact", "dense", "sparse"] = "exact",
    candidates: int = 32,
    max_passes: float = 4.0,
    tolerance: float = 1e-9,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    progress: bool | str = False,
) -> tuple[Match, Match]:
    """Match by the cosine and by its absolute value, sharing the pass of products.

    Parameters are those of :func:`match_features`; returns the signed match and the absolute one.

    Raises
    ------
    InputError
        As :func:`match_features`.
    """
    matches = _match(
        A,
        B,
        (True, False),
        method=method,
        candidates=candidates,
        max_passes=max_passes,
        tolerance=tolerance,
        temperature=1.0,
        iterations=1,
        device=device,
        checkpoint=checkpoint,
        progress=progress,
    )
    return matches[0], matches[1]


def _match(
    A: ArrayLike,
    B: ArrayLike,
    signed: Sequence[bool],
    *,
    method: Method,
    candidates: int,
    max_passes: float,
    tolerance: float,
    temperature: float,
    iterations: int,
    device: str,
    checkpoint: str | Path | None,
    progress: bool | str,
) -> list[Match]:
    if method not in get_args(Method):
        raise InputError(f"method: {method!r} is not known; choose from {get_args(Method)}")
    if candidates < 1 or max_passes < 1 or tolerance <= 0 or temperature <= 0 or iterations < 1:
        raise InputError(
            f"options: candidates {candidates}, max_passes {max_passes}, tolerance {tolerance}, "
            f"temperature {temperature}, iterations {iterations}; all must be positive, the "
            "passes at least 1"
        )
    check_device(device)
    a, b = UnitRows(A, "A"), UnitRows(B, "B")
    if a.d != b.d:
        raise InputError(
            f"A has rows of {a.d} numbers and B of {b.d}: dictionaries can be matched only in "
            "one space"
        )
    if method == "exact":
        method = "dense" if a.n * b.n <= _DENSE_PAIRS else "sparse"
    if method == "dense":
        return [_dense(a, b, sign) for sign in signed]
    if method == "sinkhorn":
        return [_sinkhorn(a, b, sign, temperature, iterations) for sign in signed]
    if a.n > b.n:  # the search places the rows of the narrower dictionary
        return [
            _transposed(match)
            for match in _by_products(
                b,
                a,
                signed,
                method,
                candidates,
                max_passes,
                tolerance,
                device,
                checkpoint,
                progress,
            )
        ]
    return _by_products(
        a, b, signed, method, candidates, max_passes, tolerance, device, checkpoint, progress
    )


def _by_products(
    a: UnitRows,
    b: UnitRows,
    signed: Sequence[bool],
    method: Method,
    candidates: int,
    max_passes: float,
    tolerance: float,
    device: str,
    checkpoint: str | Path | None,
    progress: bool | str,
) -> list[Match]:
    """Match ``n_a <= n_b`` features by blocked products."""
    with _advancing(progress, a.n * b.n) as advance:
        if method != "sparse":
            return [_greedy(a, b, sign, method, device, advance) for sign in signed]
        products = products_on(a, b, device)
        kept = Checkpoint(Path(checkpoint), a, b, candidates, signed) if checkpoint else None
        found = find_candidates(
            a, b, candidates, signed, products, checkpoint=kept, advance=advance
        )
        matches = []
        for lists, sign in zip(found, signed, strict=True):
            search = CertifiedSearch(
                a,
                b,
                lists,
                signed=sign,
                products=products,
                max_passes=max_passes,
                tolerance=tolerance,
                advance=advance,
            )
            certificate = search.run()
            if not certificate.certified and a.n * b.n <= _FALLBACK_PAIRS:
                matches.append(_dense(a, b, sign))
                continue
            nearest_a, nearest_b = _nearest(a, b, lists)
            matches.append(
                _finished(
                    a,
                    b,
                    np.arange(a.n),
                    search.column_of,
                    sign,
                    "sparse",
                    certificate.certified,
                    certificate.gap_bound,
                    nearest_a,
                    nearest_b,
                    certificate,
                )
            )
    return matches


@contextmanager
def _advancing(progress: bool | str, n_pairs: int) -> Iterator[Callable[[float], None]]:
    """A progress bar over products; more work than one pass of them stretches it."""
    if not progress:
        yield lambda share: None
        return
    from husai.progress import progress_bar

    layout = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]{postfix}"
    name = progress if isinstance(progress, str) else "matching"
    with progress_bar(n_pairs, name, unit="pair", bar_format=layout) as bar:

        def advance(share: float) -> None:
            step = share * n_pairs
            bar.total = max(bar.total or n_pairs, bar.n + step)
            bar.update(step)

        yield advance


def _finished(
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
    """Gather a match; its similarities and the nearest ones' are computed in float64."""
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


def _transposed(match: Match) -> Match:
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


def _all_scores(a: UnitRows, b: UnitRows, signed: bool) -> Float64:
    """``[n_a, n_b]`` float64 scores."""
    cosines = a.float64(np.arange(a.n)) @ b.float64(np.arange(b.n)).T
    return cosines if signed else np.abs(cosines, out=cosines)


def _dense(a: UnitRows, b: UnitRows, signed: bool) -> Match:
    scores = _all_scores(a, b, signed)
    a_index, b_index = linear_sum_assignment(scores, maximize=True)
    nearest = scores.argmax(axis=1), scores.argmax(axis=0)
    return _finished(a, b, a_index, b_index, signed, "dense", True, 0.0, *nearest)


def _nearest(a: UnitRows, b: UnitRows, found: Candidates) -> tuple[Int64, Int64]:
    """The best partner of each row of A and of B, by the float32 scores of the pass."""
    best_a = found.rows.key.argmax(axis=1)
    best_b = found.columns.key.argmax(axis=1)
    return (
        found.rows.index[np.arange(a.n), best_a].astype(np.int64),
        found.columns.index[np.arange(b.n), best_b].astype(np.int64),
    )


def _greedy(
    a: UnitRows,
    b: UnitRows,
    signed: bool,
    method: Method,
    device: str,
    advance: Callable[[float], None],
) -> Match:
    """Match mutual nearest neighbours, once, or again among the rest until none is left.

    The most similar pair of all is always mutual, so repeating until nothing is left is the
    greedy matching; float32 decides between near ties.
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
        of_a, of_b = _nearest(part_a, part_b, lists)
        if nearest is None:
            nearest = of_a, of_b
        mutual = np.flatnonzero(of_b[of_a] == np.arange(part_a.n))
        if not len(mutual):  # a ring of exact ties: any of its best pairs will do
            mutual = np.array([lists.rows.best.argmax()])
        a_index.append(left_a[mutual])
        b_index.append(left_b[of_a[mutual]])
        if method == "mutual_nearest":
            break
        left_b = np.delete(left_b, of_a[mutual])
        left_a = np.delete(left_a, mutual)
    assert nearest is not None  # neither dictionary is empty
    match = _finished(
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
    # no feature can do better than its nearest
    best = min(match.a_nearest_similarity.sum(), np.sort(match.b_nearest_similarity)[-a.n :].sum())
    return _with_bound(match, best / a.n)


def _with_bound(match: Match, best_mean: float) -> Match:
    return replace(match, gap_bound=max(0.0, float(best_mean) - match.mean))


def _sinkhorn(a: UnitRows, b: UnitRows, signed: bool, temperature: float, iterations: int) -> Match:
    """Sinkhorn's scaling in the log domain (Cuturi 2013, arXiv 1306.0895), rounded greedily."""
    if a.n * b.n > _SINKHORN_PAIRS:
        raise InputError(
            f"method: sinkhorn holds the whole {a.n} x {b.n} matrix; past {_SINKHORN_PAIRS} pairs "
            'choose "exact" or "greedy"'
        )
    scores = _all_scores(a, b, signed)
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
    match = _finished(
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

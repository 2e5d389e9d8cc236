"""One-to-one matching of the features of two dictionaries: the functions that others call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike

from husai.errors import InputError
from husai.matching.blocked import Float64, UnitRows, check_dictionary, inverse_norms
from husai.matching.candidates import Checkpoint, check_device, find_candidates, products_on
from husai.matching.certified import CertifiedSearch
from husai.matching.dense_assignment import assign
from husai.matching.methods import dense, greedy, nearest_partners, sinkhorn
from husai.matching.result import Match, gathered, transposed

Method = Literal["exact", "dense", "sparse", "greedy", "mutual_nearest", "sinkhorn"]

# Up to so many pairs the dense matrix takes less time than the sparse search.
_DENSE_PAIRS = 1024**2
# Up to so many pairs a sparse search without a proof is repeated on the dense matrix (128 MB).
_FALLBACK_PAIRS = 4096**2


def unit_rows(dictionary: ArrayLike, name: str = "dictionary") -> Float64:
    """Return the dictionary's rows scaled to unit norm, in float64.

    A row of zeros stays zero: its cosine with anything is 0.

    Parameters
    ----------
    dictionary
        ``[n, d]``, one feature per row.
    name
        Its name in an error message.

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
        ``"dense"``: the assignment on the whole matrix.
        ``"sparse"``: candidates from blocked products, an assignment on those, and a proof over
        all pairs; memory grows with ``n``, not ``n²``. If ``max_passes`` is reached first,
        ``certified`` is False and ``gap_bound`` bounds the distance from the optimum.
        These do not give the optimum: ``"greedy"`` takes the most similar pair again and again;
        ``"mutual_nearest"`` keeps the pairs that are each other's nearest and leaves the rest;
        ``"sinkhorn"`` solves the assignment with an entropy term and rounds its plan greedily.
    candidates
        How many partners to keep per row and column (``"sparse"``).
    max_passes
        The most products to compute, as a multiple of one pass over all pairs (``"sparse"``).
    tolerance
        Gap in the mean score at which the matching counts as certified (``"sparse"``).
    temperature, iterations
        Weight of the entropy, and how often rows and columns are rescaled (``"sinkhorn"``).
    device
        ``"cpu"``, or the torch device on which products run.
    checkpoint
        File for the state of the long first pass, written about once a minute and when
        interrupted: a later call with the same arguments continues from there. The file is kept
        after the match; remove it when you no longer need it (``"sparse"``).
    progress
        Whether to show a progress bar; a string is shown as its name.

    Raises
    ------
    InputError
        When an input is not a finite matrix, the dimensions differ, or an option is out of range.
    """
    options = _Options(
        method,
        candidates,
        max_passes,
        tolerance,
        temperature,
        iterations,
        device,
        checkpoint,
        progress,
    )
    return _match(A, B, (signed,), options)[0]


def matched_mean(A: ArrayLike, B: ArrayLike, *, signed: bool = False) -> float:
    """Mean similarity of the best one-to-one match, for nulls that are drawn many times.

    The same number as ``match_features(A, B, signed=signed).mean``; for small dictionaries in
    half the time, since the pairs are not kept.

    Parameters
    ----------
    A, B, signed
        As in :func:`match_features`.

    Raises
    ------
    InputError
        As :func:`match_features`.
    """
    if len(np.atleast_1d(A)) * len(np.atleast_1d(B)) > _DENSE_PAIRS:
        return match_features(A, B, signed=signed).mean
    a, b = unit_rows(A, "A"), unit_rows(B, "B")
    if a.shape[1] != b.shape[1]:
        raise InputError(_different(a.shape[1], b.shape[1]))
    scores = a @ b.T
    if not signed:
        np.abs(scores, out=scores)
    return float(scores[assign(scores)].sum() / min(scores.shape))


def _different(d_a: int, d_b: int) -> str:
    return (
        f"A has rows of {d_a} numbers and B of {d_b}: dictionaries can be matched only in one space"
    )


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
    """Match by the cosine and by its absolute value, with one pass of products for both.

    Parameters are those of :func:`match_features`; returns the signed match and the absolute one.

    Raises
    ------
    InputError
        As :func:`match_features`.
    """
    options = _Options(
        method,
        candidates,
        max_passes,
        tolerance,
        device=device,
        checkpoint=checkpoint,
        progress=progress,
    )
    matches = _match(A, B, (True, False), options)
    return matches[0], matches[1]


class _Options(NamedTuple):
    """The options of :func:`match_features` except the sign."""

    method: Method
    candidates: int
    max_passes: float
    tolerance: float
    temperature: float = 1.0
    iterations: int = 1
    device: str = "cpu"
    checkpoint: str | Path | None = None
    progress: bool | str = False

    def check(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(
                f"method: {self.method!r} is not known; choose from {get_args(Method)}"
            )
        positive = (self.candidates, self.tolerance, self.temperature, self.iterations)
        if min(positive) <= 0 or self.max_passes < 1:
            raise InputError(
                f"options: candidates {self.candidates}, max_passes {self.max_passes}, tolerance "
                f"{self.tolerance}, temperature {self.temperature}, iterations {self.iterations}; "
                "all must be positive, the passes at least 1"
            )
        check_device(self.device)


def _match(A: ArrayLike, B: ArrayLike, signed: Sequence[bool], options: _Options) -> list[Match]:
    options.check()
    a, b = UnitRows(A, "A"), UnitRows(B, "B")
    if a.d != b.d:
        raise InputError(_different(a.d, b.d))
    if options.method == "exact":
        options = options._replace(method="dense" if a.n * b.n <= _DENSE_PAIRS else "sparse")
    if options.method == "dense":
        return [dense(a, b, sign) for sign in signed]
    if options.method == "sinkhorn":
        return [sinkhorn(a, b, sign, options.temperature, options.iterations) for sign in signed]
    if a.n > b.n:  # the search places the rows of the narrower dictionary
        return [transposed(match) for match in _by_products(b, a, signed, options)]
    return _by_products(a, b, signed, options)


def _by_products(
    a: UnitRows, b: UnitRows, signed: Sequence[bool], options: _Options
) -> list[Match]:
    """Match ``n_a <= n_b`` features by blocked products."""
    device, n_candidates = options.device, options.candidates
    with _advancing(options.progress, a.n * b.n) as advance:
        if options.method != "sparse":
            return [greedy(a, b, sign, options.method, device, advance) for sign in signed]
        products = products_on(a, b, device)
        file = options.checkpoint
        kept = Checkpoint(Path(file), a, b, n_candidates, signed) if file else None
        found = find_candidates(
            a, b, n_candidates, signed, products, checkpoint=kept, advance=advance
        )
        matches = []
        for lists, sign in zip(found, signed, strict=True):
            search = CertifiedSearch(
                a,
                b,
                lists,
                signed=sign,
                products=products,
                max_passes=options.max_passes,
                tolerance=options.tolerance,
                advance=advance,
            )
            certificate = search.run()
            if not certificate.certified and a.n * b.n <= _FALLBACK_PAIRS:
                matches.append(dense(a, b, sign))
                continue
            matches.append(
                gathered(
                    a,
                    b,
                    np.arange(a.n),
                    search.column_of,
                    sign,
                    "sparse",
                    certificate.certified,
                    certificate.gap_bound,
                    *nearest_partners(a, b, lists),
                    certificate,
                )
            )
    return matches


@contextmanager
def _advancing(progress: bool | str, n_pairs: int) -> Iterator[Callable[[float], None]]:
    """A progress bar over products; its end moves when more than one pass is needed."""
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

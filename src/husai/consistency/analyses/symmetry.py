"""Which symmetries of modular addition a dictionary has.

Modular addition does not change when a and b are swapped, when both are shifted (the answer shifts
with them), or when both are multiplied by a unit of Z_p. A dictionary *has* a symmetry g when the
codes of the moved inputs, ``f(g(a, b))``, are its own codes up to a permutation of latents. A
symmetry may also map one seed's dictionary to that of another seed. Both are measured by matching
codes by correlation, with a null in which the inputs are relabelled at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, isqrt
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import fft

from husai.consistency.scores.code_scores import match_activations
from husai.consistency.scores.codes import Codes, whole_codes
from husai.errors import InputError
from husai.matching.dense_assignment import assign

# How many shifts are matched: those with the highest upper bounds. Matching all p² would take too
# long.
_SHIFTS_TRIED = 24


@dataclass(frozen=True)
class Symmetry:
    """A map of the inputs.

    Attributes
    ----------
    name, kind
        ``kind`` is ``"swap"``, ``"translation"`` or ``"multiplication"``.
    rows
        ``[p²]``: the row that each input is mapped to, inputs in (a, b) order.
    answer_kept
        Whether ``a + b`` stays the same for every input.
    """

    name: str
    kind: str
    rows: NDArray[np.int64]
    answer_kept: bool


def _grid(p: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    a, b = np.divmod(np.arange(p * p), p)
    return a, b


def _map(name: str, kind: str, a: NDArray[np.int64], b: NDArray[np.int64], p: int) -> Symmetry:
    here = sum(_grid(p)) % p
    return Symmetry(name, kind, (a % p) * p + b % p, bool((((a + b) % p) == here).all()))


def task_symmetries(
    p: int,
    *,
    shifts: Sequence[tuple[int, int]] | None = None,
    units: Sequence[int] | None = None,
) -> list[Symmetry]:
    """Exact symmetries of addition modulo p.

    Parameters
    ----------
    p
        Modulus, at least 3.
    shifts
        Translations ``(s, t)`` of (a, b). By default (1, -1), which keeps the answer, and (1, 0),
        (1, 1), (p // 2, 0), which change it.
    units
        Multipliers. By default -1, which keeps the plane of every frequency, and those of 2, 3, 5
        that are units, which map a frequency to another.

    Raises
    ------
    InputError
        When p is too small or a multiplier is not a unit of Z_p.
    """
    if p < 3:
        raise InputError(f"p: {p}; give a modulus of at least 3")
    a, b = _grid(p)
    found = [_map("swap", "swap", b, a, p)]
    for s, t in shifts if shifts is not None else [(1, -1), (1, 0), (1, 1), (p // 2, 0)]:
        found.append(_map(f"translate ({s:+d}, {t:+d})", "translation", a + s, b + t, p))
    chosen = (
        units if units is not None else [-1, *(u for u in (2, 3, 5) if u < p and gcd(u, p) == 1)]
    )
    for u in chosen:
        if gcd(u, p) != 1:
            raise InputError(f"units: {u} is not a unit modulo {p}")
        found.append(_map(f"multiply by {u}", "multiplication", a * u, b * u, p))
    return found


def detect_symmetries(
    codes: Codes,
    symmetries: Sequence[Symmetry],
    *,
    other: Codes | None = None,
    n_null: int = 9,
    seed: int = 0,
) -> pd.DataFrame:
    """Score how far each symmetry maps a dictionary to itself, or to another seed's.

    Parameters
    ----------
    codes
        ``[p², d_sae]`` codes of the complete grid of inputs in (a, b) order.
    symmetries
        From :func:`task_symmetries`.
    other
        Codes of another SAE on the same grid, with which ``f(g(x))`` is then matched.
    n_null
        Number of random relabellings ``(a, b) → (π(a), π(b))`` of Z_p for the null. They keep the
        grid but not the arithmetic, so the null is the score that the marginals alone give.
    seed
        Seed of the relabellings.

    Returns
    -------
    pandas.DataFrame
        ``symmetry``, ``kind``, ``answer_kept``, ``score`` (mean matched correlation, from -1 to
        1), ``exact_fraction`` (share of matched latents with correlation at least .99),
        ``identity_score`` (the score without a map: 1 for the same SAE), ``null_mean``,
        ``null_sd``, ``p`` (Monte Carlo), ``retained`` (``(score - null) / (identity - null)``: 1
        when the map does not lower the score),
        ``n_dead``, ``reason``.

    Raises
    ------
    InputError
        When the rows are not a complete grid of the symmetries' modulus, or the two SAEs' rows
        do not correspond.
    """
    if not symmetries:
        raise InputError("symmetries: none given")
    if n_null < 1:
        raise InputError(f"n_null: {n_null}; give at least 1")
    own = whole_codes(codes)
    target = own if other is None else whole_codes(other)
    n_inputs = len(symmetries[0].rows)
    p = isqrt(n_inputs)
    for name, matrix in (("codes", own), ("other", target)):
        if matrix.shape[0] != n_inputs:
            raise InputError(
                f"{name}: {matrix.shape[0]} rows; symmetries modulo {p} need the complete grid of "
                f"{n_inputs} inputs in (a, b) order"
            )
    identity = match_activations(own, target)
    a, b = _grid(p)
    rng = np.random.default_rng(seed)
    null = []
    for _ in range(n_null if identity.mean is not None else 0):
        relabel = rng.permutation(p)
        null.append(match_activations(own[relabel[a] * p + relabel[b]], target).mean or 0.0)
    drawn = np.array(null)
    rows = []
    for symmetry in symmetries:
        line = {
            "symmetry": symmetry.name,
            "kind": symmetry.kind,
            "answer_kept": symmetry.answer_kept,
            "n_dead": identity.n_dead_a,
        }
        if identity.mean is None:
            rows.append({**line, "reason": identity.reason})
            continue
        got = match_activations(own[symmetry.rows], target)
        score = 0.0 if got.mean is None else got.mean
        room = identity.mean - float(drawn.mean())
        rows.append(
            {
                **line,
                "score": score,
                "exact_fraction": float((got.correlation >= 0.99).mean()),
                "identity_score": identity.mean,
                "null_mean": float(drawn.mean()),
                "null_sd": float(drawn.std(ddof=1)) if n_null > 1 else None,
                "p": float((1 + (drawn >= score).sum()) / (1 + n_null)),
                "retained": (score - float(drawn.mean())) / room if room > 1e-9 else None,
                "reason": "" if room > 1e-9 else "the identity scores no higher than the null",
            }
        )
    return pd.DataFrame(rows)


def best_translation(
    codes: Codes,
    other: Codes,
    p: int,
    *,
    n_null: int = 9,
    seed: int = 0,
) -> dict[str, Any]:
    """Find, among all p² translations, the one that best maps one dictionary to another.

    The correlations of all pairs of latents at all shifts are computed by Fourier transforms and
    give an upper bound on the match at each shift; the 24 shifts with the highest bounds are
    matched. The best of many is large by selection, so the null selects the best shift too, after
    the inputs of ``codes`` are relabelled at random.

    Parameters
    ----------
    codes, other
        ``[p², d_sae]`` codes of two SAEs of the complete grid in (a, b) order.
    p
        Modulus.
    n_null, seed
        Random relabellings, and their seed.

    Returns
    -------
    dict
        The fields of a row of :func:`detect_symmetries` (``identity_score``: no shift at all),
        with ``shift_a`` and ``shift_b``.

    Raises
    ------
    InputError
        When the rows are not a complete grid modulo p, or ``n_null`` is below 1.
    """
    if n_null < 1:
        raise InputError(f"n_null: {n_null}; give at least 1")
    sides = [whole_codes(codes).toarray(), whole_codes(other).toarray()]
    for name, side in zip(("codes", "other"), sides, strict=True):
        if len(side) != p * p:
            raise InputError(f"{name}: {len(side)} rows; the complete grid modulo {p} has {p * p}")
    line: dict[str, Any] = {
        "symmetry": "best translation",
        "kind": "translation",
        "answer_kept": False,
        "n_dead": int((sides[0].std(axis=0) == 0).sum()),
    }
    one, two = (_standardised(side) for side in sides)
    if not one.size or not two.size:
        return {**line, "reason": "no latent varies"}
    shift, score = _best_shift(one, two, p)
    a, b = _grid(p)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(n_null):
        relabel = rng.permutation(p)
        drawn.append(_best_shift(one[relabel[a] * p + relabel[b]], two, p)[1])
    null = float(np.mean(drawn))
    exact = _matched(one[((a + shift[0]) % p) * p + (b + shift[1]) % p].T @ two)
    return {
        **line,
        "answer_kept": (shift[0] + shift[1]) % p == 0,
        "shift_a": shift[0],
        "shift_b": shift[1],
        "score": score,
        "exact_fraction": float((exact >= 0.99).mean()),
        "identity_score": float(_matched(one.T @ two).mean()),
        "null_mean": null,
        "null_sd": float(np.std(drawn, ddof=1)) if n_null > 1 else None,
        "p": float((1 + sum(value >= score for value in drawn)) / (1 + n_null)),
        "retained": (score - null) / (1 - null) if null < 1 else None,
        "reason": "",
    }


def _standardised(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns that vary, centred and of unit norm: their products are correlations."""
    centred = codes - codes.mean(axis=0)
    norm = np.linalg.norm(centred, axis=0)
    live = norm > 1e-9 * max(1.0, float(norm.max(initial=0.0)))
    return np.asarray(centred[:, live] / norm[live])


def _matched(correlation: NDArray[np.float64]) -> NDArray[np.float64]:
    rows, columns = assign(correlation)
    return np.asarray(correlation[rows, columns])


def _best_shift(
    one: NDArray[np.float64], two: NDArray[np.float64], p: int
) -> tuple[tuple[int, int], float]:
    """Shift and mean matched correlation of the best translation among the most promising."""
    # float32 is enough: the bounds only choose which shifts are tried
    waves = [fft.rfft2(side.T.reshape(-1, p, p).astype(np.float32)) for side in (one, two)]
    pairs = min(len(waves[0]), len(waves[1]))
    of_rows = np.full((len(waves[0]), p * p), -np.inf, dtype=np.float32)
    of_columns = np.full((len(waves[1]), p * p), -np.inf, dtype=np.float32)
    turned = waves[1].conj()
    for i, wave in enumerate(waves[0]):
        # Σ_x f_i(x + s) g_j(x) for every shift s
        products = fft.irfft2(wave[None] * turned, s=(p, p)).reshape(len(turned), -1)
        of_rows[i] = products.max(axis=0)
        np.maximum(of_columns, products, out=of_columns)
    # the match has as many pairs as the smaller side: the best partners of either side bound it
    bound = (
        np.minimum(
            np.sort(of_rows, axis=0)[-pairs:].sum(axis=0),
            np.sort(of_columns, axis=0)[-pairs:].sum(axis=0),
        )
        / pairs
    )
    a, b = _grid(p)
    best, score = (0, 0), -np.inf
    for at in np.argsort(-bound, kind="stable")[:_SHIFTS_TRIED]:
        if bound[at] < score - 1e-5:
            break  # no later shift can be better
        s, t = divmod(int(at), p)
        moved = one[((a + s) % p) * p + (b + t) % p]
        found = float(_matched(moved.T @ two).mean())
        if found > score:
            best, score = (s, t), found
    return best, score

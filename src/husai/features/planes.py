"""Units larger than a latent: directions in the span of a few, and planes that several share.

A feature that no single latent of another seed matches may still be there: as the span of a few of
its latents, or as one of the directions of a plane that both dictionaries tile in their own way.
Neither needs labels: planes are found in a dictionary by their members alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from husai.consistency.analyses.truth import circle_tiling
from husai.consistency.inference.references import permuted
from husai.errors import InputError
from husai.matching.match import unit_rows

Floats = NDArray[np.float64]

SPANNED = ("one", "few", "chance", "none")
"""Verdicts of :func:`span_table`."""

_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
_PARALLEL = 0.95  # two features more alike than this name no plane
_MOST_FEATURES = 1024  # triples of features are looked at


class Plane(NamedTuple):
    """A plane in which several features of one dictionary lie.

    Attributes
    ----------
    axes
        ``[2, d]`` orthonormal.
    members
        Indices of the features.
    angles
        ``[n_members]`` of their projections, in radians.
    """

    axes: Floats
    members: NDArray[np.int64]
    angles: Floats


def span_energy(directions: ArrayLike, dictionary: ArrayLike, k: int = 4) -> Floats:
    """Share of each direction's energy in the span of its best 1 … k features of a dictionary.

    Features are taken greedily, by orthogonal matching pursuit; the first column is the largest
    squared cosine.

    Parameters
    ----------
    directions, dictionary
        ``[n, d]`` and ``[m, d]``, normalised here.
    k
        Most features together; at most m and d.

    Returns
    -------
    ndarray
        ``[n, k]``, never falling along a row.
    """
    x, D = unit_rows(directions, "directions"), unit_rows(dictionary, "dictionary")
    k = min(k, *D.shape)
    found, residual = np.empty((len(x), k)), x.copy()
    basis = np.zeros((len(x), k, x.shape[1]))
    for step in range(k):
        taken = D[np.abs(residual @ D.T).argmax(axis=1)]
        for before in range(step):
            along = np.einsum("nd,nd->n", basis[:, before], taken)
            taken = taken - along[:, None] * basis[:, before]
        size = np.linalg.norm(taken, axis=1, keepdims=True)
        basis[:, step] = np.divide(taken, size, out=np.zeros_like(taken), where=size > 1e-9)
        along = np.einsum("nd,nd->n", basis[:, step], residual)
        residual = residual - along[:, None] * basis[:, step]
        found[:, step] = 1 - np.square(residual).sum(axis=1)
    return np.clip(found, 0.0, 1.0)


def span_table(
    names: Sequence[str],
    decoders: Sequence[ArrayLike],
    *,
    least: float = 0.9,
    k: int = 4,
    null_draws: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Ask of each feature whether a few of another seed's features span it.

    Parameters
    ----------
    names, decoders
        Of two or more SAEs of one space: ``[n_s, d]`` each.
    least
        Share of a direction's energy that counts as spanned.
    k
        Most features of the other SAE together.
    null_draws
        Permuted dictionaries of the other SAE's size that stand in its place.
    seed
        Of these.

    Returns
    -------
    pandas.DataFrame
        ``id``, ``feature``, ``other_id``, ``energy_one`` (squared cosine of the nearest),
        ``energy_two`` …, each with ``_null`` (mean over draws), and ``verdict``: ``one``
        (the nearest alone reaches ``least``), ``few`` (several do, and do so in none of the
        draws), ``chance`` (they do in a draw as well), ``none``.

    Raises
    ------
    InputError
        With fewer than two SAEs.
    """
    if len(decoders) < 2:
        raise InputError(f"decoders: {len(decoders)}; give at least two")
    unit = [unit_rows(one, name) for name, one in zip(names, decoders, strict=True)]
    reference, tables = permuted(unit), []
    sizes = sorted({len(one) for one in unit})
    drawn = {
        n: [reference.draw(np.random.default_rng([seed, n, t]), [n])[0] for t in range(null_draws)]
        for n in sizes
    }
    for s, one in enumerate(unit):
        # the null depends on the other dictionary by its size alone
        null = {n: np.stack([span_energy(one, draw, k) for draw in drawn[n]]) for n in sizes}
        for t, other in enumerate(unit):
            if s == t:
                continue
            energy, by_chance = span_energy(one, other, k), null[len(other)]
            reached = energy[:, -1] >= least
            verdict = np.select(
                [
                    energy[:, 0] >= least,
                    reached & (by_chance[..., -1].max(axis=0) < least),
                    reached,
                ],
                SPANNED[:3],
                default=SPANNED[3],
            )
            columns: dict[str, Floats] = {}
            for step, word in zip(range(energy.shape[1]), _WORDS, strict=False):
                columns[f"energy_{word}"] = energy[:, step]
                columns[f"energy_{word}_null"] = by_chance[..., step].mean(axis=0)
            tables.append(
                pd.DataFrame(
                    {
                        "id": names[s],
                        "feature": np.arange(len(one)),
                        "other_id": names[t],
                        **columns,
                        "verdict": verdict,
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def find_planes(dictionary: ArrayLike, *, least: float = 0.9, min_members: int = 4) -> list[Plane]:
    """Find planes in which several features lie, without labels: the fullest first.

    Every two features span a plane; the one with most other features near it is refined to the
    principal plane of its members and taken, its members are set aside, and the search goes on
    among the others.

    Parameters
    ----------
    dictionary
        ``[n, d]``; at most 1,024 features.
    least
        Norm of a unit feature's projection from which it lies in a plane: .9 is 81 % of its energy.
    min_members
        Features that make a plane: three directions in a plane can be an accident.

    Raises
    ------
    InputError
        When it has too many features.
    """
    rows = unit_rows(dictionary)
    if len(rows) > _MOST_FEATURES:
        raise InputError(f"dictionary: {len(rows)} features; give at most {_MOST_FEATURES}")
    free, found = np.arange(len(rows)), []
    while len(free) >= min_members:
        axes = _fullest(rows[free], least)
        if axes is None:
            break
        inside = np.linalg.norm(rows[free] @ axes.T, axis=1) >= least
        if inside.sum() < min_members:
            break
        refined = np.linalg.svd(rows[free[inside]], full_matrices=False)[2][:2]
        again = np.linalg.norm(rows[free] @ refined.T, axis=1) >= least
        if again.sum() >= inside.sum():
            axes, inside = refined, again
        members = free[inside]
        at = rows[members] @ axes.T
        found.append(Plane(axes, members, np.arctan2(at[:, 1], at[:, 0])))
        free = free[~inside]
    return found


def _fullest(rows: Floats, least: float) -> Floats | None:
    """Axes ``[2, d]`` of the plane through two rows that holds most others; None without any."""
    cosine = rows @ rows.T
    best, most = None, 0
    for i in range(len(rows) - 1):
        j = np.arange(i + 1, len(rows))
        c = cosine[i, j]
        usable = np.abs(c) < _PARALLEL
        j, c = j[usable], c[usable]
        if not len(j):
            continue
        a, b = cosine[i][None, :], cosine[j]
        # squared norm of every row's projection on the plane of i and j
        energy = (a**2 + b**2 - 2 * a * b * c[:, None]) / (1 - c[:, None] ** 2)
        count = (energy >= least**2).sum(axis=1)
        at = int(count.argmax())
        if count[at] > most:
            best, most = (i, int(j[at])), int(count[at])
    if best is None:
        return None
    first = rows[best[0]]
    second = rows[best[1]] - (rows[best[1]] @ first) * first
    return np.stack([first, second / np.linalg.norm(second)])


def plane_table(
    names: Sequence[str],
    decoders: Sequence[ArrayLike],
    *,
    least: float = 0.9,
    min_members: int = 4,
    null_draws: int = 20,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Find the planes of every SAE, and ask whether the other seeds have them too.

    Two planes overlap by ``||U V'||² / 2``, 1 for the same plane.

    Returns
    -------
    planes
        A row per SAE and plane: ``id``, ``plane``, ``n_members``, ``n_seeds_found`` (other SAEs
        with a plane of overlap ``least²`` or more), ``overlap`` (mean over the other SAEs of the
        best), ``largest_gap``, ``even_gap``, ``covered`` and ``rayleigh_p`` of the members' angles,
        see :func:`husai.consistency.analyses.truth.circle_tiling`, and ``circle``: the members go
        all the way round.
    counts
        A row per SAE: ``n_planes``, ``in_plane`` (share of its features), and ``n_planes_null``,
        ``in_plane_null``, means over permuted dictionaries of its size, with ``p``.
    """
    unit = [unit_rows(one, name) for name, one in zip(names, decoders, strict=True)]
    found = [find_planes(one, least=least, min_members=min_members) for one in unit]
    rows, counts = [], []
    for s, planes in enumerate(found):
        for number, plane in enumerate(planes):
            best = [
                max((_overlap(plane, other) for other in found[t]), default=0.0)
                for t in range(len(unit))
                if t != s
            ]
            tiling = circle_tiling(plane.angles)
            rows.append(
                {
                    "id": names[s],
                    "plane": number,
                    "n_members": len(plane.members),
                    "n_seeds_found": int(sum(one >= least**2 for one in best)),
                    "overlap": float(np.mean(best)) if best else np.nan,
                    **{key: tiling[key] for key in ("largest_gap", "even_gap", "rayleigh_p")},
                    "circle": tiling["covered"],
                }
            )
    reference = permuted(unit)
    sizes = sorted({len(one) for one in unit})
    null = {
        n: np.array(
            [
                _counts(
                    reference.draw(np.random.default_rng([seed, n, t]), [n])[0], least, min_members
                )
                for t in range(null_draws)
            ]
        )
        for n in sizes
    }
    for s, planes in enumerate(found):
        inside = sum(len(plane.members) for plane in planes)
        drawn = null[len(unit[s])]
        counts.append(
            {
                "id": names[s],
                "n_planes": len(planes),
                "in_plane": inside / len(unit[s]),
                "n_planes_null": drawn[:, 0].mean(),
                "in_plane_null": drawn[:, 1].mean(),
                "p": (1 + (drawn[:, 1] >= inside / len(unit[s])).sum()) / (1 + len(drawn)),
            }
        )
    columns = ["id", "plane", "n_members", "n_seeds_found", "overlap", "largest_gap", "even_gap"]
    planes_found = pd.DataFrame(rows, columns=[*columns, "rayleigh_p", "circle"])
    return planes_found, pd.DataFrame(counts)


def _counts(dictionary: Floats, least: float, min_members: int) -> tuple[float, float]:
    planes = find_planes(dictionary, least=least, min_members=min_members)
    return float(len(planes)), sum(len(one.members) for one in planes) / len(dictionary)


def _overlap(a: Plane, b: Plane) -> float:
    return float(np.square(a.axes @ b.axes.T).sum() / 2)

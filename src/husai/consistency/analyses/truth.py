"""Scores against true features that are planes: the Fourier features of modular arithmetic.

A frequency of Z_p is a *plane* of the residual stream, spanned by a cosine and a sine, and the
task does not say which phase inside it is a feature. A ground truth of directions therefore has no
meaning: two dictionaries with features in the same plane may score 2/π ≈ .64 or 1 against its
axes, depending on an arbitrary phase. What can be measured is which planes have features, how
purely these lie in them, and how they are spread over the circle in each plane.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from husai.consistency.inference.nulls import random_dictionary
from husai.consistency.scores.decoder import gt_mcc
from husai.consistency.scores.subspace import covariance_root
from husai.errors import InputError
from husai.matching.match import unit_rows

# Mean |cos| between an axis and a direction of uniform phase in the same plane.
PHASE_CHANCE = 2 / np.pi


@dataclass(frozen=True)
class PlaneRecovery:
    """How well a dictionary's features represent given planes.

    Attributes
    ----------
    recall
        Share of planes in which at least one feature lies (``rho >= threshold``).
    covered
        Share of planes in which no half circle is without a feature: codes are never negative, so
        only then can every phase be represented.
    mean_purity
        Mean over live features of ``purity`` (below).
    in_plane
        Share of live features that lie in a plane (``rho >= threshold``).
    planes
        A row per plane: ``plane``, ``n_features`` in it, ``best_rho``, ``recovered``,
        ``resultant`` (``|mean exp(iθ)|``: 0 for evenly spread features, 1 for one direction),
        ``axial_resultant`` (the same for 2θ, without regard to sign), ``largest_gap`` in radians,
        ``even_gap`` (2π over the number of features, the gap if they were evenly spread),
        ``rayleigh_p`` (small if the phases are not uniform), ``covered``.
    features
        A row per feature: ``feature``, ``plane`` (its best), ``rho = ||P_k d||``, ``purity``
        (``rho²`` divided by ``energy``), ``energy`` (its squared norm in the span of all planes),
        ``angle`` in its best plane (radians, in (-π, π]), ``in_plane``.
    threshold
        Least ``rho`` of a feature that lies in a plane.
    """

    recall: float
    covered: float
    mean_purity: float
    in_plane: float
    planes: pd.DataFrame
    features: pd.DataFrame
    threshold: float


def orthonormal_planes(planes: ArrayLike) -> NDArray[np.float64]:
    """Orthonormalise each plane ``[n, 2, d]``; its first axis keeps its direction.

    Raises
    ------
    InputError
        When the shape is wrong, numbers are not finite, or the two axes of a plane are parallel.
    """
    array = np.asarray(planes, dtype=np.float64)
    if array.ndim != 3 or array.shape[1] != 2 or not array.shape[0] or array.shape[2] < 2:
        raise InputError(f"planes: shape {array.shape}; give [n_planes, 2, d] with d >= 2")
    if not np.isfinite(array).all():
        raise InputError("planes: NaN or infinity")
    first = np.linalg.norm(array[:, 0], axis=1, keepdims=True)
    if (first == 0).any():
        raise InputError(f"planes: plane {int((first == 0).argmax())} has an axis of zeros")
    one = array[:, 0] / first
    rest = array[:, 1] - (array[:, 1] * one).sum(axis=1, keepdims=True) * one
    second = np.linalg.norm(rest, axis=1, keepdims=True)
    flat = second[:, 0] <= 1e-9 * np.linalg.norm(array[:, 1], axis=1)
    if flat.any():
        raise InputError(f"planes: the two axes of plane {int(flat.argmax())} are parallel")
    return np.stack([one, rest / second], axis=1)


def plane_recovery(W_dec: ArrayLike, planes: ArrayLike, *, threshold: float = 0.9) -> PlaneRecovery:
    """Measure how a dictionary's features lie in given planes and spread over their circles.

    Parameters
    ----------
    W_dec
        ``[n, d]`` decoder, one feature per row; rows of zeros are left out.
    planes
        ``[n_planes, 2, d]`` two axes of each plane, orthonormalised here.
    threshold
        Least ``rho = ||P_k d||`` (d of unit norm) of a feature that lies in plane k. ``rho²`` is
        the share of its squared norm in the plane: 81 % at .9.

    Raises
    ------
    InputError
        When shapes do not fit, the threshold is not in (0, 1], or every row is zero.
    """
    rows = unit_rows(W_dec, "W_dec")
    axes = orthonormal_planes(planes)
    if rows.shape[1] != axes.shape[2]:
        raise InputError(
            f"W_dec has rows of {rows.shape[1]} numbers, planes of {axes.shape[2]}: "
            "give both at the same hook"
        )
    if not 0 < threshold <= 1:
        raise InputError(f"threshold: {threshold}; give a number above 0 and at most 1")
    live = np.flatnonzero(rows.any(axis=1))
    if not len(live):
        raise InputError("W_dec: every row is zero; there is no feature to place")
    rows = rows[live]
    coordinates = np.einsum("nd,kcd->nkc", rows, axes)
    rho = np.linalg.norm(coordinates, axis=2)
    best = rho.argmax(axis=1)
    at = np.arange(len(rows))
    best_rho = rho[at, best]
    # planes need not be orthogonal to one another, so the energy is not the sum of rho²
    _, singular, basis = np.linalg.svd(axes.reshape(-1, axes.shape[2]), full_matrices=False)
    span = basis[singular > 1e-9 * singular[0]]
    energy = np.square(rows @ span.T).sum(axis=1)
    purity = np.where(energy > 1e-12, best_rho**2 / np.maximum(energy, 1e-12), 0.0)
    angle = np.arctan2(coordinates[at, best, 1], coordinates[at, best, 0])
    inside = best_rho >= threshold
    features = pd.DataFrame(
        {
            "feature": live,
            "plane": best,
            "rho": best_rho,
            "purity": np.clip(purity, 0.0, 1.0),
            "energy": energy,
            "angle": angle,
            "in_plane": inside,
        }
    )
    table = pd.DataFrame(
        [
            {
                "plane": k,
                "best_rho": float(rho[:, k].max()),
                **circle_tiling(angle[inside & (best == k)]),
            }
            for k in range(len(axes))
        ]
    )
    table.insert(2, "recovered", table["n_features"] > 0)
    return PlaneRecovery(
        recall=float(table["recovered"].mean()),
        covered=float(table["covered"].mean()),
        mean_purity=float(features["purity"].mean()),
        in_plane=float(inside.mean()),
        planes=table,
        features=features,
        threshold=threshold,
    )


def circle_tiling(angles: ArrayLike) -> dict[str, float | int | bool | None]:
    """Describe how angles ``[n]`` (radians) spread over a circle.

    The fields are those of a row of ``planes`` in :class:`PlaneRecovery`.
    The Rayleigh test's p-value is Wilkie's approximation (1983, Applied Statistics 32:311).
    """
    theta = np.asarray(angles, dtype=np.float64)
    n = len(theta)
    if n == 0:
        return {
            "n_features": 0,
            "resultant": None,
            "axial_resultant": None,
            "largest_gap": None,
            "even_gap": None,
            "rayleigh_p": None,
            "covered": False,
        }
    resultant = float(abs(np.exp(1j * theta).mean()))
    ordered = np.sort(np.mod(theta, 2 * np.pi))
    gap = float(np.diff(np.r_[ordered, ordered[0] + 2 * np.pi]).max())
    R2 = (n * resultant) ** 2
    p = float(np.exp(np.sqrt(max(0.0, 1 + 4 * n + 4 * (n * n - R2))) - (1 + 2 * n)))
    return {
        "n_features": n,
        "resultant": resultant,
        "axial_resultant": float(abs(np.exp(2j * theta).mean())),
        "largest_gap": gap,
        "even_gap": 2 * np.pi / n,
        "rayleigh_p": min(1.0, p),
        "covered": bool(gap < np.pi - 1e-9),
    }


@dataclass(frozen=True)
class PlaneNull:
    """Plane recovery of random dictionaries.

    Attributes
    ----------
    kind
        ``"isotropic"`` or ``"data_aware"``.
    draws
        A row per draw: recall, covered, mean_purity, in_plane, mean_rho, mean_energy, gt_mcc.
    """

    kind: str
    draws: pd.DataFrame

    def mean(self, measure: str) -> float:
        """Mean of one measure over draws."""
        return float(self.draws[measure].mean())

    def sd(self, measure: str) -> float:
        """Standard deviation of one measure over draws."""
        return float(self.draws[measure].std(ddof=1)) if len(self.draws) > 1 else 0.0

    def p_value(self, measure: str, value: float) -> float:
        """One-sided p-value ``(1 + #{draws >= value}) / (1 + n)``."""
        return float((1 + (self.draws[measure] >= value).sum()) / (1 + len(self.draws)))


def plane_null(
    n: int,
    planes: ArrayLike,
    *,
    threshold: float = 0.9,
    covariance: ArrayLike | None = None,
    n_draws: int = 40,
    seed: int = 0,
) -> PlaneNull:
    """Plane recovery of random dictionaries of ``n`` features.

    Parameters
    ----------
    n
        Number of features.
    planes
        ``[n_planes, 2, d]``.
    threshold
        As in :func:`plane_recovery`.
    covariance
        ``[d, d]`` covariance of the activations with which directions are drawn; without it they
        are uniform on the sphere.
    n_draws, seed
        Number of draws, and their seed.

    Raises
    ------
    InputError
        When shapes do not fit.
    """
    axes = orthonormal_planes(planes)
    root = None if covariance is None else covariance_root(covariance)
    if root is not None and root.shape[1] != axes.shape[2]:
        raise InputError(f"covariance: of {root.shape[1]} dimensions, planes of {axes.shape[2]}")
    if n < 1 or n_draws < 1:
        raise InputError(f"n {n}, n_draws {n_draws}; give at least 1")
    rows = []
    for draw in range(n_draws):
        rng = np.random.default_rng([seed, draw])
        dictionary = random_dictionary(n, axes.shape[2], rng, root)
        rows.append(plane_measures(dictionary, axes, threshold))
    return PlaneNull("isotropic" if root is None else "data_aware", pd.DataFrame(rows))


def plane_measures(dictionary: ArrayLike, planes: ArrayLike, threshold: float) -> dict[str, float]:
    """The scalar measures of :func:`plane_recovery` by name, and three more.

    These are ``mean_rho`` over features, ``mean_energy`` (if it is high and purity is low, features
    mix frequencies) and ``gt_mcc`` against the axes.
    """
    got = plane_recovery(dictionary, planes, threshold=threshold)
    axes = orthonormal_planes(planes)
    return {
        "recall": got.recall,
        "covered": got.covered,
        "mean_purity": got.mean_purity,
        "in_plane": got.in_plane,
        "mean_rho": float(got.features["rho"].mean()),
        "mean_energy": float(got.features["energy"].mean()),
        "gt_mcc": gt_mcc(dictionary, axes.reshape(-1, axes.shape[2])),
    }


@dataclass(frozen=True)
class AxisScore:
    """One-dimensional GT-MCC against the planes' axes, and how much it depends on their phases.

    Attributes
    ----------
    gt_mcc
        The score against the given axes.
    phase_mean, phase_sd, phase_min, phase_max
        The score when the axes are rotated in their planes by random angles. The phase of the
        axes is a convention, so this spread shows how arbitrary the score is.
    phase_chance
        2/π: mean |cos| between an axis and a direction of uniform phase in its plane.
    """

    gt_mcc: float
    phase_mean: float
    phase_sd: float
    phase_min: float
    phase_max: float
    phase_chance: float = PHASE_CHANCE


def axis_gt_mcc(
    W_dec: ArrayLike, planes: ArrayLike, *, n_draws: int = 50, seed: int = 0
) -> AxisScore:
    """One-dimensional GT-MCC against the cosine and sine axes of planes.

    Show it beside :func:`plane_recovery`, never instead of it.

    Parameters
    ----------
    W_dec
        ``[n, d]`` decoder, one feature per row.
    planes
        ``[n_planes, 2, d]``.
    n_draws, seed
        Number of random rotations of the axes, and their seed.

    Raises
    ------
    InputError
        When shapes do not fit.
    """
    axes = orthonormal_planes(planes)
    d = axes.shape[2]
    rng = np.random.default_rng(seed)
    turned = []
    for _ in range(n_draws):
        phase = rng.uniform(0, 2 * np.pi, len(axes))
        cos, sin = np.cos(phase)[:, None], np.sin(phase)[:, None]
        rotated = np.stack(
            [cos * axes[:, 0] + sin * axes[:, 1], -sin * axes[:, 0] + cos * axes[:, 1]], axis=1
        )
        turned.append(gt_mcc(W_dec, rotated.reshape(-1, d)))
    values = np.array(turned)
    return AxisScore(
        gt_mcc(W_dec, axes.reshape(-1, d)),
        float(values.mean()),
        float(values.std()),
        float(values.min()),
        float(values.max()),
    )


def axis_recovery_chance(found: PlaneRecovery) -> float:
    """Share of the planes' axes that latents with random phases would recover.

    The phase of a plane's axes is a convention, so a dictionary with latents in the plane recovers
    the axes by chance, and more often the more latents it has there. Here each latent keeps its
    plane and its distance from the plane (``rho``), and its phase is uniform: it has |cos| ≥ t with
    an axis with probability (2/π)·arccos(t/rho).

    Parameters
    ----------
    found
        The dictionary's recovery of the planes; t is its ``threshold``.

    Returns
    -------
    float
        Mean over planes of 1 − Π(1 − probability), the product over the latents in a plane.
    """
    inside = found.features[found.features["in_plane"]]
    rho = inside["rho"].to_numpy(dtype=np.float64)
    missed = 1 - 2 / np.pi * np.arccos(np.minimum(found.threshold / rho, 1.0))
    planes = found.planes["plane"].to_numpy()
    none = pd.Series(missed).groupby(inside["plane"].to_numpy()).prod()
    return float(1 - none.reindex(planes, fill_value=1.0).mean())

"""Architectures compared at equal L0, at equal FVU, or at equal numbers of live latents.

Papers rank ReLU and TopK in opposite order (arXiv 2505.20254, arXiv 2501.16615), each at its own
settings. Two architectures cannot be equal in everything: at equal L0 they differ in FVU and in
the number of live latents. So each architecture has a curve over sparsity settings, and the curves
are compared at common values of one axis at a time, with the other axes beside it.

The seeds are the sample, and each seed is in *every* setting of a curve: the jackknife leaves it
out of all settings at once and reads the curve again. Interpolation between the intervals of the
single settings would treat one seed at two settings as two seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import hypot
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from husai.consistency.inference.intervals import jackknife_interval, pair_matrix
from husai.errors import InputError

Floats = NDArray[np.float64]

AXES = ("l0", "fvu", "n_live")
"""The axes on which architectures can be made equal."""


@dataclass(frozen=True)
class Curve:
    """One architecture over settings of its sparsity, with the same seeds at each.

    Attributes
    ----------
    scores
        ``[n_settings, S, S]`` symmetric pair scores; diagonals are ignored.
    axes
        For each name of :data:`AXES`, the value of each SAE: ``[n_settings, S]``, positive.
    """

    scores: Floats
    axes: Mapping[str, Floats]

    def __post_init__(self) -> None:
        """Check that settings, seeds and axes correspond.

        Raises
        ------
        InputError
            When shapes differ, or a value of an axis is not positive.
        """
        for at, scores in enumerate(self.scores):
            pair_matrix(scores, f"scores of setting {at}")
        for name, values in self.axes.items():
            if values.shape != self.scores.shape[:2]:
                raise InputError(
                    f"{name}: shape {values.shape}, scores of {self.scores.shape[:2]} settings and "
                    "seeds"
                )
            if not (values > 0).all():
                raise InputError(f"{name}: not positive in some SAE; leave that setting out")

    @property
    def n_settings(self) -> int:
        """Settings on the curve."""
        return len(self.scores)

    @property
    def n_seeds(self) -> int:
        """Seeds of each setting."""
        return int(self.scores.shape[1])

    def means(self, seeds: Sequence[int]) -> dict[str, Floats]:
        """``[n_settings]`` means of the score and of each axis over some of the seeds."""
        chosen = np.asarray(seeds)
        part = self.scores[:, chosen[:, None], chosen]
        upper = np.triu_indices(len(chosen), 1)
        found = {"score": part[:, *upper].mean(axis=1)}
        return found | {name: values[:, chosen].mean(axis=1) for name, values in self.axes.items()}

    def subsets(self) -> list[list[int]]:
        """All seeds, then the sets with one seed left out; two seeds make one pair and stay."""
        every = list(range(self.n_seeds))
        if len(every) < 3:
            return [every]
        return [every, *([s for s in every if s != left] for left in every)]

    def reach(self, on: str) -> tuple[float, float]:
        """Range of an axis that the curve covers whichever seed is left out."""
        values = [self.means(seeds)[on] for seeds in self.subsets()]
        return max(float(one.min()) for one in values), min(float(one.max()) for one in values)

    def read(self, on: str, values: Floats, seeds: Sequence[int]) -> Floats:
        """Interpolate score and axes on the curve, linearly in the logarithm of the axis.

        Returns
        -------
        numpy.ndarray
            ``[1 + n_axes, n_values]``: the score, then the axes in their order.
        """
        means = self.means(seeds)
        order = np.argsort(means[on], kind="stable")
        x, at = np.log(means[on][order]), np.log(values)
        rows = [np.interp(at, x, means["score"][order])]
        rows += [np.exp(np.interp(at, x, np.log(means[name][order]))) for name in self.axes]
        return np.stack(rows)


def matched(
    curves: Mapping[str, Curve],
    on: str,
    *,
    n_points: int = 5,
    level: float = 0.95,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare architectures at common values of one axis, with intervals over seeds.

    Scores are interpolated between measured settings, linearly in the logarithm of the axis, and
    never extrapolated.

    Parameters
    ----------
    curves
        Curves by architecture. One with fewer than two settings is left out, and its row says so
        in ``reason``; so are all if the curves have no value of the axis in common.
    on
        The axis, one of :data:`AXES`.
    n_points
        Number of common values, evenly spaced in the logarithm over the range that all curves
        cover.
    level
        Confidence level.
    bounds
        Possible values of the score.

    Returns
    -------
    points
        A row per architecture and value: ``architecture``, ``matched_on``, ``at``, ``mean``,
        ``low``, ``high``, the axes, ``n_settings``, ``n_seeds``, ``reason``.
    contrasts
        A row per pair of architectures and value: ``architecture_a``, ``architecture_b``,
        ``matched_on``, ``at``, ``difference`` (a minus b), ``low``, ``high``, ``p`` (t-test of the
        jackknife; paired where both have the same number of seeds, as these started from the same
        draws), ``reason``.

    Raises
    ------
    InputError
        When no curve is given or the axis is not known.
    """
    if not curves:
        raise InputError("curves: none given; give one for each architecture")
    if on not in AXES or any(on not in curve.axes for curve in curves.values()):
        raise InputError(f"on: {on!r} is not an axis of every curve; choose from {AXES}")
    usable = {name: c for name, c in curves.items() if c.n_settings > 1 and c.n_seeds > 1}
    reach = {name: curve.reach(on) for name, curve in usable.items()}
    low = max((one for one, _ in reach.values()), default=0.0)
    high = min((one for _, one in reach.values()), default=0.0)
    meet = len(usable) > 1 and low < high
    values = np.geomspace(low, high, n_points) if meet else np.zeros(0)
    points: list[dict[str, Any]] = []
    scores: dict[str, Floats] = {}  # by architecture: of all seeds, then with each left out
    for name, curve in curves.items():
        head: dict[str, Any] = {
            "architecture": name,
            "matched_on": on,
            "n_settings": curve.n_settings,
            "n_seeds": curve.n_seeds,
        }
        if name not in usable or not meet:
            points.append({**head, "reason": _no_curve(name, usable, reach, on)})
            continue
        read = [curve.read(on, values, seeds) for seeds in curve.subsets()]
        scores[name] = np.stack([part[0] for part in read])
        for at, value in enumerate(values):
            mean = float(read[0][0, at])
            line = {**head, "at": float(value), "mean": mean, "reason": ""}
            line |= {axis: float(read[0][1 + i, at]) for i, axis in enumerate(curve.axes)}
            if curve.n_seeds > 2:
                found = jackknife_interval(mean, scores[name][1:, at], level=level, bounds=bounds)
                line |= {"low": found.low, "high": found.high}
            else:
                line["reason"] = "two seeds make one pair: the spread over seeds is not known"
            points.append(line)
    contrasts = [
        {
            "architecture_a": a,
            "architecture_b": b,
            "matched_on": on,
            "at": float(value),
            **_contrast(scores[a][:, at], scores[b][:, at], level, bounds),
        }
        for a, b in combinations([name for name in scores if curves[name].n_seeds > 2], 2)
        for at, value in enumerate(values)
    ]
    return pd.DataFrame(points), pd.DataFrame(contrasts)


def _no_curve(
    name: str, usable: Mapping[str, Curve], reach: Mapping[str, tuple[float, float]], on: str
) -> str:
    if name not in usable:
        return "fewer than two settings, or one seed: no curve"
    if len(usable) < 2:
        return "no other architecture has a curve"
    spans = "; ".join(f"{one} {low:.3g} to {high:.3g}" for one, (low, high) in reach.items())
    return f"the curves have no {on} in common: {spans}"


def _contrast(a: Floats, b: Floats, level: float, bounds: tuple[float, float]) -> dict[str, Any]:
    """Difference of two scores, each ``[1 + S]``: with all seeds, then with each left out.

    Paired for equal numbers of seeds, else with Welch's degrees of freedom.
    """
    difference = float(a[0] - b[0])
    sides = a[1:], b[1:]
    if len(a) == len(b):
        freedom = float(len(a) - 2)
        se = jackknife_interval(difference, sides[0] - sides[1], level=level).se or 0.0
    else:
        errors = [jackknife_interval(0.0, side, level=level).se or 0.0 for side in sides]
        se = hypot(*errors)
        welch = sum(e**4 / (len(side) - 1) for e, side in zip(errors, sides, strict=True))
        freedom = se**4 / welch if welch > 0 else float(min(map(len, sides)) - 1)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * se
    widest = bounds[1] - bounds[0]
    return {
        "difference": difference,
        "low": max(difference - half, -widest),
        "high": min(difference + half, widest),
        "p": float(2 * stats.t.sf(abs(difference) / se, freedom)) if se > 0 else None,
        "reason": "",
    }


def alike(
    settings: pd.DataFrame, *, within: float = 0.15, axes: Sequence[str] = AXES
) -> pd.DataFrame:
    """Find settings of different architectures that are nearly equal in every axis at once.

    Parameters
    ----------
    settings
        A row per setting: ``architecture``, ``group`` and the axes.
    within
        Largest difference, as a share of the larger value.
    axes
        The axes that must be nearly equal.

    Returns
    -------
    pandas.DataFrame
        ``group_a``, ``group_b`` and ``apart``, the largest relative difference of an axis; the
        smallest difference first.

    Raises
    ------
    InputError
        When a column is missing.
    """
    if missing := {"architecture", "group", *axes} - set(settings.columns):
        raise InputError(f"settings: columns {sorted(missing)} are missing")
    rows = []
    known = settings.dropna(subset=list(axes)).to_dict("records")
    for one, other in combinations(known, 2):
        if one["architecture"] == other["architecture"]:
            continue
        apart = max(
            abs(one[axis] - other[axis]) / max(one[axis], other[axis], 1e-300) for axis in axes
        )
        if apart <= within:
            rows.append({"group_a": one["group"], "group_b": other["group"], "apart": apart})
    table = pd.DataFrame(rows, columns=["group_a", "group_b", "apart"])
    return table.sort_values("apart", kind="stable", ignore_index=True)

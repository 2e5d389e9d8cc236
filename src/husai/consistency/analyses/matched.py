"""Architectures compared where they are alike: at one L0, one FVU, or one number of live latents.

Papers order ReLU and TopK oppositely (arXiv 2505.20254, arXiv 2501.16615), each at settings of its
own. One setting cannot be alike in everything: at one L0 two architectures reconstruct differently
well, and keep different numbers of latents alive. So each is read off its curve over sparsity
settings at common values of one axis at a time, with the other axes beside it.

The seeds are the sample, and a seed is in *every* setting of its curve: the jackknife leaves
it out of all of them at once and reads the curve again. Interpolating the ends of the settings' own
intervals would treat one seed at two settings as two.
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
"""What architectures may be matched on."""


@dataclass(frozen=True)
class Curve:
    """One architecture over settings of its sparsity, with the same seeds at each.

    Attributes
    ----------
    scores
        ``[n_settings, S, S]`` symmetric pair scores; diagonals are ignored.
    axes
        By name of :data:`AXES`: ``[n_settings, S]``, positive, of each SAE.
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
        """Give ``[n_settings]`` of the score and of each axis, over some of the seeds."""
        chosen = np.asarray(seeds)
        part = self.scores[:, chosen[:, None], chosen]
        upper = np.triu_indices(len(chosen), 1)
        found = {"score": part[:, *upper].mean(axis=1)}
        return found | {name: values[:, chosen].mean(axis=1) for name, values in self.axes.items()}

    def subsets(self) -> list[list[int]]:
        """Give all seeds, and then all but each one; two seeds are one pair, and stay."""
        every = list(range(self.n_seeds))
        if len(every) < 3:
            return [every]
        return [every, *([s for s in every if s != left] for left in every)]

    def reach(self, on: str) -> tuple[float, float]:
        """Give the range of an axis that every curve with a seed left out covers."""
        values = [self.means(seeds)[on] for seeds in self.subsets()]
        return max(float(one.min()) for one in values), min(float(one.max()) for one in values)

    def read(self, on: str, values: Floats, seeds: Sequence[int]) -> Floats:
        """Read score and axes off the curve, linear in the logarithm of the axis.

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

    Linear in the logarithm of the axis between measured settings, and never beyond them.

    Parameters
    ----------
    curves
        By architecture. One with fewer than two settings is no curve and is left out, with a
        reason; so are all where the curves have no value of the axis in common.
    on
        The axis, of :data:`AXES`.
    n_points
        Common values, spread evenly in the logarithm over the range that all curves share.
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
        jackknife; paired where both have as many seeds, which started from the same draws),
        ``reason``.

    Raises
    ------
    InputError
        When no curve is given or the axis is not known.
    """
    if not curves:
        raise InputError("curves: none given; give one an architecture")
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
                line["reason"] = "two seeds make one pair: its spread over seeds cannot be seen"
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
    """Difference of two scores, each ``[1 + S]``: of all seeds, then with each left out.

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
    """Pair settings of different architectures that are alike in every axis at once.

    Parameters
    ----------
    settings
        A row per setting: ``architecture``, ``group`` and the axes.
    within
        Largest difference, as a part of the larger value.
    axes
        Which must be alike.

    Returns
    -------
    pandas.DataFrame
        ``group_a``, ``group_b`` and ``apart``, the largest relative difference of an axis; the
        most alike first.

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

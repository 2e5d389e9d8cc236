"""The tables that compare a study's architectures at equal L0, FVU or number of live latents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from husai.consistency.analyses.matched import AXES, Curve, matched
from husai.consistency.scores.registry import SCORES
from husai.consistency.study.groups import score_matrix
from husai.consistency.study.record import all_converged

KEYS = ("d_sae", "space", "score", "signed")
"""Architectures are compared separately for each combination of these."""

FIRST = (*KEYS, "matched_on", "at")
"""The first columns of the tables, in this order."""

# Scores by which papers rank architectures, each with the sign convention of its paper.
FOLLOWED = (("pw_mcc", False), ("shared_fraction", True), ("mmcs", False))


def architecture_curves(
    groups: pd.DataFrame, pairs: pd.DataFrame, saes: pd.DataFrame
) -> Iterator[tuple[dict[str, Any], dict[str, Curve]]]:
    """Yield the curves of the architectures over their settings, for each width, space and score.

    Parameters
    ----------
    groups, pairs, saes
        The tables of a report, for groups that differ only in architecture, width and sparsity.

    Yields
    ------
    head, curves
        Values of :data:`KEYS`, and the curve of each architecture, over the seeds that all its
        settings have; an architecture with fewer than two is left out. So is a setting in which
        an SAE has no L0, no FVU, no live latent or no score.
    """
    own = dict(iter(pairs[pairs["within"]].groupby(["group", "space", "score", "signed"])))
    sae = saes.set_index("id")
    for score, signed in FOLLOWED:
        chosen = groups[(groups["score"] == score) & (groups["signed"] == signed)]
        for (width, space), part in chosen.groupby(["d_sae", "space"], sort=True):
            curves = {}
            for name, members in part.groupby("architecture", sort=True):
                keys = [(group, space, score, signed) for group in members["group"]]
                curve = _curve([own[key] for key in keys if key in own], sae)
                if curve is not None:
                    curves[str(name)] = curve
            head = dict(zip(KEYS, (width, space, score, signed), strict=True))
            yield head, curves


def _curve(settings: list[pd.DataFrame], saes: pd.DataFrame) -> Curve | None:
    known = []
    for rows in settings:
        ids = {
            **dict(zip(rows["seed_a"], rows["id_a"], strict=True)),
            **dict(zip(rows["seed_b"], rows["id_b"], strict=True)),
        }
        known_axes = saes.loc[list(ids.values()), list(AXES)].astype("float64")
        if (known_axes > 0).all(axis=None) and rows["value"].notna().all():
            known.append((rows, ids))
    seeds = sorted(set.intersection(*(set(ids) for _, ids in known))) if known else []
    if len(seeds) < 2:
        return None
    at = {seed: place for place, seed in enumerate(seeds)}
    scores = [
        score_matrix(
            {
                (at[a], at[b]): value
                for a, b, value in zip(rows["seed_a"], rows["seed_b"], rows["value"], strict=True)
                if a in at and b in at
            },
            len(seeds),
        )
        for rows, _ in known
    ]
    values = [
        saes.loc[[ids[seed] for seed in seeds], list(AXES)].to_numpy(dtype=np.float64)
        for _, ids in known
    ]
    axes = {name: np.stack([one[:, i] for one in values]) for i, name in enumerate(AXES)}
    return Curve(np.stack(scores), axes)


def matched_tables(
    groups: pd.DataFrame,
    pairs: pd.DataFrame,
    saes: pd.DataFrame,
    *,
    level: float = 0.95,
    n_points: int = 5,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare architectures at equal values of each axis, separately for each width.

    Parameters
    ----------
    groups, pairs, saes
        As in :func:`architecture_curves`.
    level, n_points
        As in :func:`~husai.consistency.analyses.matched.matched`.

    Returns
    -------
    matched, contrasts
        The two tables of :func:`~husai.consistency.analyses.matched.matched` for all axes, with
        :data:`KEYS`, and ``converged`` of all groups on the curves. Where curves have no value in
        common, rows of ``matched`` say so in ``reason``.
    """
    points, contrasts = [], []
    gates = {
        (width, architecture): all_converged(
            [None if pd.isna(v) else bool(v) for v in part["converged"]]
        )
        for (width, architecture), part in groups.groupby(["d_sae", "architecture"])
    }
    for head, curves in architecture_curves(groups, pairs, saes):
        if not curves:
            continue
        bounds = SCORES[head["score"]].bounds_of(head["signed"])
        for on in AXES:
            read, differ = matched(curves, on, n_points=n_points, level=level, bounds=bounds)
            points.append(read.assign(**head))
            if len(differ):
                contrasts.append(differ.assign(**head))
    if not points:
        reason = "no architecture has SAEs with L0, FVU and a score at two seeds"
        return pd.DataFrame([{**dict.fromkeys(FIRST), "reason": reason}]), pd.DataFrame()
    table = pd.concat(points, ignore_index=True)
    pairs_of = list(zip(table["d_sae"], table["architecture"], strict=True))
    table["converged"] = pd.array([gates[pair] for pair in pairs_of], "boolean")
    found = pd.concat(contrasts, ignore_index=True) if contrasts else pd.DataFrame()
    if len(found):
        found["converged"] = pd.array(
            [
                all_converged([gates[width, a], gates[width, b]])
                for width, a, b in zip(
                    found["d_sae"], found["architecture_a"], found["architecture_b"], strict=True
                )
            ],
            "boolean",
        )
    return _ordered(table), _ordered(found) if len(found) else found


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Put the columns :data:`FIRST` first; those that no row has become missing values."""
    rest = [str(name) for name in table if name not in FIRST]
    return table.reindex(columns=[*(name for name in FIRST if name in (*table, "at")), *rest])


def orders_in_contrasts(contrasts: pd.DataFrame, published: list[dict[str, Any]]) -> pd.DataFrame:
    """Compare the order of matched architectures with the orders that papers report.

    Parameters
    ----------
    contrasts
        From :func:`matched_tables`; may be empty.
    published
        ``source``, ``score``, ``higher`` and ``lower`` of each order that a paper reports.

    Returns
    -------
    pandas.DataFrame
        A row per order and contrast of its two architectures: ``source``, ``score``,
        ``paper_higher``, ``paper_lower``, ``d_sae``, ``basis`` (the axis), ``at``, ``difference``
        (higher minus lower), ``agrees`` (None in a tie), ``separated`` (the interval of the
        difference excludes 0), ``reason``.
    """
    rows: list[dict[str, Any]] = []
    signs = dict(FOLLOWED)
    for one in published:
        names = {one["higher"], one["lower"]}
        head = {
            "source": one["source"],
            "score": one["score"],
            "paper_higher": one["higher"],
            "paper_lower": one["lower"],
        }
        for row in contrasts.to_dict("records"):
            if (
                row["score"] != one["score"]
                or row["space"] != "full"
                or row["signed"] != signs[one["score"]]
                or {row["architecture_a"], row["architecture_b"]} != names
            ):
                continue
            sign = 1.0 if row["architecture_a"] == one["higher"] else -1.0
            difference = sign * row["difference"]
            rows.append(
                {
                    **head,
                    "d_sae": row["d_sae"],
                    "basis": f"matched {row['matched_on']}",
                    "at": row["at"],
                    "difference": difference,
                    "agrees": difference > 0 if difference else None,
                    "separated": row["low"] > 0 or row["high"] < 0,
                    "reason": "",
                }
            )
    return pd.DataFrame(rows)

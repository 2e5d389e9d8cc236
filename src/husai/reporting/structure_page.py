"""The page about the structure of single dictionaries, written from the tables of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from husai.reporting.config import ReportingConfig
from husai.reporting.render import all_converged, mean_of, reasons, render


def structure_page(
    geometry: pd.DataFrame,
    symmetries: pd.DataFrame,
    origin: Mapping[str, Any],
    reporting: ReportingConfig,
) -> str:
    """Write the page about geometry, firing and symmetries of dictionaries.

    Parameters
    ----------
    geometry, symmetries
        Tables of :mod:`husai.consistency.study.geometry`.
    origin
        The ``command`` as typed and the ``environment``.
    reporting
        The threshold at which two dictionaries are called translations of one another.
    """
    return render(
        "structure.md.j2",
        origin=origin,
        reporting=reporting,
        moved=_what_maps_seeds(symmetries),
        symmetries=_symmetries(symmetries),
        left_out=_left_out(symmetries),
        geometry=_geometry(geometry),
    )


def _known(symmetries: pd.DataFrame) -> pd.DataFrame:
    return symmetries[symmetries["score"].notna()] if "score" in symmetries else pd.DataFrame()


def _what_maps_seeds(symmetries: pd.DataFrame) -> dict[str, Any]:
    """Scores of swapping a and b in one dictionary, and of the best translation between seeds."""
    known = _known(symmetries)
    if known.empty:
        return {}
    swap = known[(known["symmetry"] == "swap") & (known["kind_of_pair"] == "itself")]
    best = known[known["symmetry"] == "best translation"]
    return {
        "swap": {"score": mean_of(swap["score"]), "null": mean_of(swap["null_mean"])}
        if len(swap)
        else None,
        "best": {
            "identity": mean_of(best["identity_score"]),
            "score": mean_of(best["score"]),
            "null": mean_of(best["null_mean"]),
        }
        if len(best)
        else None,
    }


def _symmetries(symmetries: pd.DataFrame) -> dict[str, Any]:
    known = _known(symmetries)
    rows = []
    for symmetry, part in known.groupby("symmetry", sort=False) if len(known) else ():
        itself = part[part["kind_of_pair"] == "itself"]
        other = part[part["kind_of_pair"] == "other seed"]
        rows.append(
            {
                "symmetry": symmetry,
                "itself": mean_of(itself["score"]),
                "itself_null": mean_of(itself["null_mean"]),
                "other": mean_of(other["score"]),
                "other_null": mean_of(other["null_mean"]),
                "identity": mean_of(other["identity_score"]),
                "groups": part["group"].nunique(),
            }
        )
    return {"rows": rows, "reasons": reasons(symmetries)}


def _left_out(symmetries: pd.DataFrame) -> list[dict[str, Any]]:
    """Groups whose symmetries were not measured, by reason."""
    known = set(_known(symmetries).get("group", ()))
    others = symmetries[~symmetries["group"].isin(known)]
    return [
        {"reason": str(reason), "groups": list(dict.fromkeys(part["group"].astype(str)))}
        for reason, part in others.groupby("reason", sort=False)
    ]


def _geometry(geometry: pd.DataFrame) -> dict[str, Any]:
    if "mean" not in geometry:
        return {"rows": [], "columns": [], "reasons": reasons(geometry)}
    names = list(dict.fromkeys(geometry["measure"]))
    rows = []
    for (hook, width), part in geometry.groupby(["hook", "d_sae"], sort=False):
        cells = []
        for name in names:
            own = part[part["measure"] == name]
            chance = mean_of(own["data_aware_mean"]) if "data_aware_mean" in own else None
            cells.append({"value": mean_of(own["mean"]), "chance": chance})
        converged = all_converged(part["converged"])
        rows.append({"hook": hook, "d_sae": width, "converged": converged, "cells": cells})
    return {"rows": rows, "columns": names, "reasons": []}

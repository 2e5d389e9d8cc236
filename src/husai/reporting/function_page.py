"""The page of what matched features do in a language model, written from the sampled function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from husai.campaign.plan import records
from husai.reporting.render import made_by, render


def function_page(
    origin: Mapping[str, Any],
    provenance: Mapping[str, Any],
    model: str,
    strata: pd.DataFrame,
    level: float,
) -> str:
    """Write whether partners do the same in the model, by how alike their directions are.

    Parameters
    ----------
    origin, provenance
        The command, the commit and the versions.
    model
        Name of the language model.
    strata
        The table ``language_function``: see :func:`husai.features.strata.function_strata`, with
        the columns ``group`` and ``note``.
    level
        Confidence level of the intervals, which are over seeds.
    """
    rows = records(strata)
    whole = next(row for row in rows if row["by"] == "all")
    return render(
        "language_function.md.j2",
        origin=origin,
        made_by=made_by(provenance),
        model=model,
        group=whole["group"],
        note=whole["note"],
        level=level,
        whole=whole,
        predicts=pd.notna(whole["cosine_predicts"]),
        by_cosine=[row for row in rows if row["by"] == "cosine"],
        by_activity=[row for row in rows if row["by"] == "activity"],
    )

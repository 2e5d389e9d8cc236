"""The page about the structure of dictionaries agrees with its tables."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from husai.reporting.config import ReportingConfig
from husai.reporting.structure_page import structure_page

GROUP: dict[str, Any] = {"group": "topk d16 k4", "hook": "post@-1", "d_sae": 16}
ORIGIN = {"command": "kedro run --pipelines=structure_analysis", "environment": "local"}


def page(
    best: float = 0.95, geometry: list[dict[str, Any]] | None = None, same: float = 0.9
) -> str:
    moved = {**GROUP, "score": best, "identity_score": 0.5, "null_mean": 0.2, "reason": ""}
    symmetries = pd.DataFrame(
        [
            {**moved, "symmetry": "best translation", "kind_of_pair": "other seed"},
            {**moved, "symmetry": "swap", "kind_of_pair": "itself", "score": 0.987},
            {"group": "topk d256 k4", "reason": "wider than symmetry_width = 64"},
        ]
    )
    return structure_page(
        pd.DataFrame(geometry or [{**GROUP, "reason": "no SAE fires"}]),
        symmetries,
        ORIGIN,
        ReportingConfig(same_correlation=same),
    )


def test_symmetries_are_given_in_words_and_numbers() -> None:
    text = page()
    assert "to itself with a matched correlation of 0.987" in text
    assert "Seeds are translations of one another: the correlation reaches 0.9." in text
    assert "| best translation | – | – | 0.950 | 0.200 | 0.500 | 1 |" in text
    assert "Not looked for in topk d256 k4: wider than symmetry_width = 64." in text
    assert "`kedro run --pipelines=structure_analysis`" in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize(("best", "same"), [(0.6, 0.9), (0.95, 0.97)])
def test_the_correlation_from_which_seeds_count_as_equal_is_a_parameter(
    best: float, same: float
) -> None:
    expected = f"Seeds are not translations of one another: the correlation stays below {same}."
    assert expected in page(best, same=same)


def test_geometry_is_shown_with_its_numbers_or_a_reason() -> None:
    geometry = [
        {**GROUP, "converged": False, "measure": "nearest_cosine", "mean": 0.8149}
        | {"data_aware_mean": 0.53},
        {**GROUP, "converged": False, "measure": "cosine_to_encoder", "mean": 0.63}
        | {"data_aware_mean": None},
    ]
    text = page(geometry=geometry)
    assert "| SAEs | nearest cosine | cosine to encoder |" in text
    assert "| `post@-1` d_sae 16 † | 0.81 (0.53) | 0.63 |" in text
    assert "no SAE fires." in page().split("## Geometry\n")[1]

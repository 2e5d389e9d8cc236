"""Pages of features are written from the tables alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from feature_results import consensus_page, function_by_cosine


def test_function_by_cosine_is_the_mean_over_pairs_of_saes() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"s{s}", "other_id": f"s{t}", "similarity": cosine, "function": cosine**2 + shift}
        for s in range(4)
        for t in range(4)
        if s != t
        for shift in rng.normal(0, 0.01, 1)
        for cosine in (0.5, 0.75, 0.85, 0.92, 1.0)
    ]
    table = function_by_cosine(pd.DataFrame(rows))
    assert table["n_pairs"].tolist() == [12] * 5
    assert table["function"].to_numpy() == pytest.approx(
        np.array([0.5, 0.75, 0.85, 0.92, 1.0]) ** 2, abs=0.02
    )
    assert (table["function_low"] < table["function"]).all()
    assert table["above_half"].tolist() == [0, 1, 1, 1, 1]


def test_the_page_of_the_consensus_says_whether_pooling_adds_to_picking() -> None:
    ends = {f"{k}{e}": 0.9 for k in ("found", "nearly_same") for e in ("", "_low", "_high")}
    names = ("consensus", "most reproducible of one seed", "permuted null")
    recurrence = pd.DataFrame(
        [
            {
                "between": name,
                "n_first": 10.0,
                "n_second": 11.0,
                "pw_mcc": at,
                "pw_mcc_low": at - 0.02,
                "pw_mcc_high": at + 0.02,
                "p": 0.005,
                **ends,
            }
            for name, at in zip(names, (0.95, 0.9, 0.5), strict=True)
        ]
    )
    worth = pd.DataFrame(
        [
            {
                "min_share": 0.75,
                "dictionary": "consensus",
                "n_latents": 10.0,
                "variance_kept": 0.8,
                "loss_recovered": 0.9,
                "probe_accuracy": 1.0,
            }
        ]
    )
    calibration = pd.DataFrame(
        {
            "threshold": [0.7, 0.7],
            "n": [200, 5],
            "predicted": [0.5, 0.1],
            "happened": [0.45, 0.9],
            "brier": 0.1,
            "brier_of_base_rate": 0.2,
        }
    )
    page = consensus_page(worth, recurrence, calibration, 10)
    assert "pooling adds 0.050, more than the intervals leave open" in page
    assert "0.050 (predicted 0.50, observed 0.45)" in page  # of bins that hold enough
    closer = recurrence.assign(pw_mcc_low=recurrence["pw_mcc"] - 0.1)
    assert "the intervals overlap" in consensus_page(worth, closer, calibration, 10)

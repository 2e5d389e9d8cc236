"""The page says what its tables say."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from husai.reporting.page import StudyTables, study_report

HOOK = "post@-1"


def tables(low: float = 0.7, purity: float = 0.9, best: float = 0.95) -> StudyTables:
    head: dict[str, Any] = {"group": "topk d16 k4", "hook": HOOK, "converged": False}
    score = {
        **head,
        "architecture": "topk",
        "d_sae": 16,
        "signed": False,
        "dimensions": 8,
        "n_live": 14.0,
        "mean": 0.8123,
        "low": low,
        "high": 0.9,
        "isotropic_mean": 0.2,
        "isotropic_sd": 0.01,
        "data_aware_mean": 0.6,
        "data_aware_sd": 0.02,
        "untrained_mean": 0.5,
        "untrained_low": 0.1,
        "untrained_high": 0.5,
    }
    groups = [
        {**score, "space": space, "score": name}
        for space in ("full", "data")
        for name in ("pw_mcc", "mmcs")
    ]
    found = [
        {**head, "id": "s0", "latent": i, "space": "full", "n_other_seeds": 2}
        | {"n_seeds_found": n, "reproducibility": 0.5}
        for i, n in enumerate((2, 2, 2, 0))
    ]
    truth = [
        {**head, "measure": name, "mean": purity, "low": purity - 0.01, "high": purity + 0.01}
        | {"data_aware_mean": 0.55}
        for name in ("mean_purity", "recall")
    ]
    moved = {**head, "score": best, "identity_score": 0.5, "null_mean": 0.2}
    sae = {**head, "sae_id": "s0", "l0": 4.0, "fvu": 0.1, "dead_fraction": 0.0}
    reason = {"reason": "nothing kept"}
    orderings = {"source": "X", "reason": "", "paper_higher": "relu", "paper_lower": "topk"}
    return StudyTables(
        statistics=pd.DataFrame(
            [
                {"hook_name": "post", "position": -1, "model": "trained", "rows": 9, "d_in": 8}
                | {"mean_norm": 1.0, "entropy_rank": 3.0, "dims_99_variance": 4}
            ]
        ),
        waves=pd.DataFrame(
            [{"hook": HOOK, "model": "trained", "variable": "a", "frequency": 1, "share": 0.25}]
        ),
        saes=pd.DataFrame([{**sae, "cosine_to_init": 0.1, "train_seconds": 1.0}]),
        groups=pd.DataFrame(groups),
        features=pd.DataFrame(found),
        truth=pd.DataFrame(truth),
        matched_l0=pd.DataFrame([{"space": None, "score": None, "reason": "no curves"}]),
        published=pd.DataFrame(
            [
                {"source": "this study", "architecture": "topk", "d_sae": 16, "score": "pw_mcc"}
                | {"signed": False, "value": 0.8123, "converged": False, "differs_in": ""}
            ]
        ),
        orderings=pd.DataFrame(
            [{**orderings, "d_sae": 16, "basis": "own L0", "agrees": False, "difference": -0.1}]
        ),
        trajectories=pd.DataFrame([reason]),
        geometry=pd.DataFrame([reason]),
        symmetries=pd.DataFrame(
            [
                {**moved, "symmetry": "best translation", "kind_of_pair": "other seed"},
                {**moved, "symmetry": "swap", "kind_of_pair": "itself", "score": 0.987},
            ]
        ),
        correlates=pd.DataFrame(
            [{**head, "covariate": "firing_rate", "mean": 0.4, "low": 0.2, "high": 0.6}]
        ),
    )


def page(campaign: str = "study", /, **changes: float) -> str:
    training = {"epoch_test_99": None, "epochs": 10, "seconds": 1.0, "hardware": "x", "threads": 1}
    return study_report(
        training,
        {"test_accuracy": 0.5, "test_loss": 1.0},
        tables(**changes),
        {"versions": {}},
        campaign,
        {"planned": 6, "done": 5, "failed": 1, "attempts": 7, "seconds": 5400.0, "elapsed": 3000.0},
        "kedro run",
    )


def test_page_says_which_campaign_trained_the_saes() -> None:
    assert page().startswith("# The home study\n")
    assert page("grid").startswith("# The campaign grid\n")
    assert (
        "5 of 6 planned SAEs are trained and 1 failed, in 7 attempts and 1.50 device-hours, 50.0"
        in page()
    )


def test_sentences_follow_the_numbers() -> None:
    text = page()
    assert "| topk d16 k4 † | 14 | **0.812** [0.700, 0.900]" in text
    assert "which is the comparison that counts, in 1 (topk d16 k4 †)" in text
    assert "in 1 of 1 groups (topk d16 k4 †), less in 0." in text
    assert "75 to 75 % of a group are found in every other seed and 25 to 25 % in none" in text
    assert "how often it fires (up in 1, down in 0 of 1 groups)" in text
    assert "to itself at 0.987" in text
    assert "90 % of the way: seeds are translates" in text
    assert "the other way round, not separated" in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"low": 0.5}, "which is the comparison that counts, in 0; below those in 0"),
        ({"purity": 0.3}, "in 0 of 1 groups, below it in 1 (topk d16 k4 †)"),
        ({"best": 0.6}, "20 % of the way: seeds are not translates"),
    ],
)
def test_other_numbers_make_other_sentences(change: dict[str, float], expected: str) -> None:
    assert expected in page(**change)

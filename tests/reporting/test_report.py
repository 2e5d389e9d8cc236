"""The page says what its tables say."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, takewhile
from typing import Any

import pandas as pd
import pytest
from jinja2 import UndefinedError

from husai.consistency.config import ConsistencyConfig
from husai.reporting.config import ReportingConfig
from husai.reporting.page import StudyRun, StudyTables, main_sentence, study_page
from husai.reporting.render import environment
from husai.sae.config import BankTrainingConfig

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
        "permuted_mean": 0.65,
        "permuted_sd": 0.02,
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
    kind = {**head, "architecture": "topk", "d_sae": 16, "low": 0.5, "high": 0.99, "q10": 0.4}
    kind |= {"q90": 0.99, "null_mean": 0.41, "null_q05": 0.3, "null_q95": 0.52, "n_seeds": 3}
    kinds = [
        {**kind, "kind": name, "n_features": n, "share": n / 16, "reproducibility": mean}
        | {"found_everywhere": found, "share_of_everywhere": found, "above_null": found}
        for name, n, mean, found in (("answer", 4, 0.98, 1.0), ("other", 12, 0.625, 0.25))
    ]
    covered = {**head, "architecture": "topk", "d_sae": 16, "family": "answer", "n_classes": 17}
    covered |= {"mean": 4.0, "low": 3.0, "high": 5.0, "chance": 0.0, "by_firing": 1.0}
    covered |= {"by_average_precision": 4.0, "gt_mcc": 0.955, "permuted_mean": 0.651}
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
        coverage=pd.DataFrame([covered]),
        kinds=pd.DataFrame(kinds),
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


def page(
    campaign: str = "study",
    /,
    found: StudyTables | None = None,
    consistency: ConsistencyConfig | None = None,
    gate: BankTrainingConfig | None = None,
    name: str = "",
) -> str:
    training = {
        "epoch_test_99": None,
        "epochs": 10,
        "seconds": 1.0,
        "hardware": "x",
        "threads": 1,
        "transformer": {"name": name, "seed": 3, "fingerprint": "0123456789abcdef"},
    }
    totals = {"planned": 6, "done": 5, "failed": 1, "attempts": 7}
    changed = [{"name": "task.modulus", "value": "17", "default": "113"}]
    run = StudyRun(
        {"command": "kedro run --env=x", "environment": "x", "changed": changed},
        training,
        {"test_accuracy": 0.5, "test_loss": 1.0, "fingerprint": "0123456789abcdef"},
        {"versions": {}},
        campaign,
        {**totals, "seconds": 5400.0, "elapsed": 3000.0},
    )
    return study_page(
        run,
        found or tables(),
        consistency or ConsistencyConfig(),
        gate or BankTrainingConfig(),
        ReportingConfig(),
    )


def test_page_says_which_campaign_trained_the_saes() -> None:
    assert page().startswith("# The home study\n")
    assert page("grid").startswith("# The campaign grid\n")
    assert (
        "5 of 6 planned SAEs are trained and 1 failed, in 7 attempts and 1.50 device-hours (50.0"
        in page()
    )


def test_page_says_what_made_it() -> None:
    text = page()
    assert "Written by `kedro run --env=x` in environment `x`." in text
    assert "The transformer's fingerprint is `0123456789abcdef`." in text
    assert "| `task.modulus` | 17 | 113 |" in text


def test_main_sentence_stands_on_the_page_and_follows_the_numbers() -> None:
    sentence = main_sentence(tables().groups)
    assert sentence in page()
    assert "a claim on, in 1 of 1 (topk d16 k4 †). It lies below that null in 0." in sentence
    assert "\n" not in sentence
    assert "a claim on, in 0 of 1. " in main_sentence(tables(low=0.62).groups)
    unknown = tables().groups.assign(low=None)
    assert main_sentence(unknown).startswith("Agreement between seeds has no interval here")


def test_page_says_which_transformer_was_used() -> None:
    assert "It is trained by this study from seed 3." in page()
    assert "It is `seed3_clean`, one of the trained transformers" in page(name="seed3_clean")


def test_sentences_follow_the_numbers() -> None:
    text = page()
    assert "| topk d16 k4 † | 14 | **0.812** [0.700, 0.900]" in text
    assert "above directions drawn like the data in 1, and above" in text
    assert "the null to base a claim on, in 1 of 1 (topk d16 k4 †)" in text
    assert "above 0 in 1 of 1 groups (topk d16 k4 †), and below 0 in 0." in text
    assert "75 % to 75 % of a group are found in every other seed, and 25 % to 25 % in none" in text
    assert "how often it fires (positively in 1, negatively in 0 of 1 groups)" in text
    assert "to itself with a matched correlation of 0.987" in text
    assert "Seeds are translations of one another: the correlation reaches 0.9" in text
    assert "opposite order, not separated" in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"low": 0.62}, "like the data in 1, and above the SAEs' own features permuted"),
        ({"low": 0.62}, "a claim on, in 0 of 1. It lies below that null in 0."),
        ({"purity": 0.3}, "in 0 of 1 groups, and below it in 1 (topk d16 k4 †)"),
        ({"best": 0.6}, "Seeds are not translations of one another: the correlation stays below"),
    ],
)
def test_other_numbers_make_other_sentences(change: dict[str, float], expected: str) -> None:
    assert expected in page(found=tables(**change))


def test_levels_and_thresholds_come_from_the_configuration() -> None:
    other = ConsistencyConfig(
        level=0.8, shared_threshold=0.65, data_variance=0.97, plane_threshold=0.85
    )
    text = page(consistency=other, gate=BankTrainingConfig(convergence_slope=0.03))
    assert "its 80 % interval over seeds" in text
    assert "|cosine| ≥ 0.65?" in text
    assert "holds 97 % of the variance" in text
    assert "a part of 0.85 or more" in text
    assert "less than 3 % per 1,000 steps" in text


def test_trajectories_geometry_and_matched_l0_are_shown_with_their_numbers() -> None:
    group = {"group": "topk d16 k4", "hook": HOOK, "d_sae": 16, "converged": False}
    steps = [
        {**group, "step": float(step), "mean": mean, "cosine_to_init": init}
        for step, mean, init in ((900, 0.7531, 0.11), (0, 0.21, 1.0), (300, 0.5, 0.4))
    ]
    geometry = [
        {**group, "measure": "nearest_cosine", "mean": 0.8149, "data_aware_mean": 0.53},
        {**group, "measure": "cosine_to_encoder", "mean": 0.63, "data_aware_mean": None},
    ]
    head = {"d_sae": 16, "space": "full", "score": "pw_mcc", "signed": False, "l0": 4.25}
    matched = [
        {**head, "architecture": "topk", "mean": 0.71, "low": 0.64, "high": 0.77, "reason": ""},
        {**head, "architecture": "relu", "mean": None, "reason": "measured at L0 3 only"},
        {**head, "architecture": "relu", "mean": 0.5, "reason": "", "space": "data"},
    ]
    text = page(
        found=replace(
            tables(),
            trajectories=pd.DataFrame(steps),
            geometry=pd.DataFrame(geometry),
            matched_l0=pd.DataFrame(matched).assign(converged=None),
        )
    )
    assert "| topk d16 k4 † | 0.210 at 0, 0.500 at 300, 0.753 at 900 | 0.110 |" in text
    assert "| SAEs | nearest cosine | cosine to encoder |" in text
    assert "| `post@-1` d_sae 16 † | 0.81 (0.53) | 0.63 |" in text
    line = "topk 0.71 [0.64, 0.77], relu: measured at L0 3 only |"
    assert f"| 16 | pw_mcc (absolute) | 4.25 | {line}" in text
    without = page()
    for title in ("Geometry", "Over training"):
        section = without.split(f"## {title}\n")[1].split("\n## ")[0]
        assert "nothing kept." in section
        assert "|---|" not in section
    assert "no curves." in without.split("## Architectures at matched L0\n")[1].split("## ")[0]


def test_tables_have_as_many_cells_in_every_row() -> None:
    lines = page().splitlines()
    for head, rule in pairwise(lines):
        if rule.startswith("|---"):
            at = lines.index(head)
            body = list(takewhile(lambda line: line.startswith("|"), lines[at:]))
            assert len(body) > 2, head
            assert {line.count(" |") for line in body[:1] + body[2:]} == {rule.count("---|")}, head


def test_a_name_that_nobody_gives_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="forgotten"):
        environment().from_string("{{ forgotten }}").render()


def test_the_first_screen_says_what_comes_back_and_against_which_null() -> None:
    text = page(found=tables())
    screen = text[text.index("## What comes back") : text.index("## In short")]
    for said in (
        "4 features that are answers: they come back in the other seeds",
        "at a mean |cosine| of **0.980**",
        "25 % of its live features",
        "the other features come back at 0.625",
        "Of 17 answers, 4.0 have a latent of their own",
        "GT-MCC 0.955 (permuted: 0.651)",
        "comes back at 0.410 and 95 % stay below 0.520: 100 % of the answers and 25 % of the rest",
        "over 3 seeds",
        "1 of the settings does not pass",
    ):
        assert said in screen, said
    empty = replace(tables(), kinds=pd.DataFrame(), coverage=pd.DataFrame())
    without = page(found=empty)
    assert "## What comes back" not in without

"""The page of a study agrees with its tables."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, takewhile
from typing import Any

import pandas as pd
import pytest
from jinja2 import UndefinedError

from husai.config import HOME_STUDY
from husai.consistency.config import ConsistencyConfig
from husai.reporting.config import ReportingConfig
from husai.reporting.page import StudyPage, StudyRun, StudyTables, study_page
from husai.reporting.render import environment
from husai.reporting.shown import frequency_balance, group_order, ordered
from husai.sae.config import BankTrainingConfig
from husai.transformer.shipped import shipped_transformers

HOOK = "post@-1"


def tables(low: float = 0.7, purity: float = 0.9) -> StudyTables:
    head: dict[str, Any] = {"group": "topk d16 k4", "hook": HOOK, "converged": False}
    score = {
        **head,
        "architecture": "topk",
        "d_sae": 16,
        "signed": False,
        "dimensions": 8,
        "n_seeds": 3,
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
        "against_permuted": "above" if low > 0.65 else "unclear",
        "n_converged": 2,
        "n_everywhere": 11.5,
        "fvu": 0.1,
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
        matched=pd.DataFrame([{"space": None, "score": None, "reason": "no curves"}]),
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
        correlates=pd.DataFrame(
            [{**head, "covariate": "firing_rate", "mean": 0.4, "low": 0.2, "high": 0.6}]
        ),
    )


def page(*given: Any, **options: Any) -> str:
    return written(*given, **options).text


def written(
    campaign: str = HOME_STUDY,
    /,
    found: StudyTables | None = None,
    consistency: ConsistencyConfig | None = None,
    gate: BankTrainingConfig | None = None,
    reporting: ReportingConfig | None = None,
    name: str = "",
) -> StudyPage:
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
        reporting or ReportingConfig(),
    )


def test_the_page_names_the_campaign_that_trained_the_saes() -> None:
    assert page().startswith("# The home study\n")
    assert page("home").startswith("# The home study\n")  # as base names it
    assert page("grid").startswith("# The campaign grid\n")
    assert (
        "5 of 6 planned SAEs are trained and 1 failed, in 7 attempts and 1.50 device-hours (50.0"
        in page()
    )


def test_the_page_has_its_provenance() -> None:
    text = page()
    assert "Written by `kedro run --env=x` in environment `x`;" in text
    assert "The transformer's fingerprint is `0123456789abcdef`." in text
    assert "| `task.modulus` | 17 | 113 |" in text


def with_kinds(**changes: Any) -> StudyTables:
    """The tables with other numbers for the features of the leading kind."""
    given = tables()
    first = given.kinds["kind"] == "answer"
    changed = given.kinds.copy()
    for name, value in changes.items():
        changed.loc[first, name] = value
    return replace(given, kinds=changed)


def sentence(text: str, number: int) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"{number}. **"))


def test_the_page_begins_with_a_picture_and_five_sentences() -> None:
    text = page()
    title, first = text.split("\n", 1)
    assert title == "# The home study"
    assert first.lstrip().startswith("![Reproducibility of every feature, by what it stands for")
    assert text.index("kinds.png") < text.index("1. **What comes back.**") < text.index("\n## ")
    assert "come back: they match" in sentence(text, 1)
    assert "**0.98 [0.50, 0.99]**, and 100 % of them are found" in sentence(text, 1)
    assert (
        "4 of the 16 features of an SAE: 25 % of the features that fire, and 100 % of those that"
        in sentence(text, 2)
    )
    assert "The other features match at 0.62." in sentence(text, 2)
    assert "Of 17 answers, 4 [3, 5] have a feature of their own (one that" in sentence(text, 3)
    assert "features match at 0.41, 95 % of them below 0.52." in sentence(text, 4)
    assert "(95 %) are over 3 seeds of the SAE, all on one transformer" in sentence(text, 5)
    assert "1 of 1 settings had not converged" in sentence(text, 5)
    assert "`docs/results/retracted.md`" in text


@pytest.mark.parametrize(
    ("changes", "begins", "says"),
    [
        (
            {"found_everywhere": 0.3},
            "Only a part of the features.",
            "above permuted features (0.41), but only 30 % are found in every other seed.",
        ),
        (
            {"reproducibility": 0.272, "low": 0.2, "found_everywhere": 0.0},
            "No features that match clearly above chance.",
            "it is not shown that features of this kind come back: they agree between seeds at "
            "0.27, not clearly better than permuted features (0.41).",
        ),
    ],
)
def test_features_that_do_not_recur_are_not_said_to_recur(
    changes: dict[str, float], begins: str, says: str
) -> None:
    got = written(found=with_kinds(**changes))
    assert sentence(got.text, 1).removeprefix("1. **What comes back.** ").startswith(begins)
    assert says in got.sentence
    assert "come back at" not in got.text


def test_the_share_from_which_features_are_said_to_recur_is_a_parameter() -> None:
    few = with_kinds(found_everywhere=0.3)
    got = written(found=few, reporting=ReportingConfig(comes_back=0.25))
    assert "these come back in the other seeds at a mean |cosine| of 0.98" in got.sentence


def test_without_labels_the_page_begins_with_all_features() -> None:
    given = tables()
    got = written(found=replace(given, kinds=pd.DataFrame(), coverage=pd.DataFrame()))
    assert "features come back: they match" in sentence(got.text, 1)
    assert "**0.81 [0.70, 0.90]**, and 75 % of them" in sentence(got.text, 1)
    assert "the 14 features that fire, of the 16 features of an SAE; 25 % of them" in got.text
    assert "Bring labels" in sentence(got.text, 3)
    assert "features match at 0.65." in sentence(got.text, 4)
    assert "../consistency/reproducibility.png" in got.text.split("1. **")[0]
    said = "above permuted features (0.65); 75 % are found in every other seed."
    assert got.sentence.endswith(said)
    one_seed = given.features.assign(n_other_seeds=0)
    nothing = replace(given, kinds=pd.DataFrame(), coverage=pd.DataFrame(), features=one_seed)
    assert written(found=nothing).sentence.startswith("Nothing can be said")


def test_the_main_sentence_is_one_line_without_markup() -> None:
    found = written().sentence
    assert found == (
        "In topk d16 k4, 4 of 17 answers have a feature of their own; these come back in the "
        "other seeds at a mean |cosine| of 0.98 (permuted features: 0.41), the other features "
        "at 0.62."
    )


def test_the_page_names_the_transformer() -> None:
    assert "The study's transformer is one that it trained itself, from seed 3." in page()
    assert "transformer is `seed3_clean`, one of the trained transformers" in page(
        name="seed3_clean"
    )


def test_sentences_follow_the_numbers() -> None:
    text = page()
    assert "| topk d16 k4 † | 14 | **0.812** [0.700, 0.900]" in text
    assert "the null to base a claim on, in 1 of 1 settings, and below it in 0" in text
    assert "75 % to 75 % are found in every other seed, and 25 % to 25 % in none" in text
    assert "number of the 1 groups" in text
    assert "- how often it fires: above in 1, below in 0\n" in text
    assert "opposite order, not separated" in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"low": 0.62}, "to base a claim on, in 0 of 1 settings, and below it in 0: there"),
        ({"purity": 0.3}, "in 0 of 1 groups, and below it in 1 (topk d16 k4 †)"),
    ],
)
def test_other_numbers_make_other_sentences(change: dict[str, float], expected: str) -> None:
    assert expected in page(found=tables(**change))


def test_levels_and_thresholds_on_the_page_come_from_the_configuration() -> None:
    other = ConsistencyConfig(
        level=0.8,
        shared_threshold=0.65,
        data_variance=0.97,
        plane_threshold=0.85,
        gate_motion=0.03,
        gate_change=0.05,
    )
    text = page(consistency=other, gate=BankTrainingConfig())
    assert "its 80 % interval over seeds" in text
    assert "|cosine| ≥ 0.65?" in text
    assert "holds 97 % of the variance" in text
    assert "a part of 0.85 or more" in text
    assert "moves by less than 0.03 (1 − |cosine| per 500 steps)" in text
    assert "has changed by less than 0.05" in text


def test_trajectories_and_matched_architectures_are_shown_with_their_numbers() -> None:
    group = {"group": "topk d16 k4", "hook": HOOK, "d_sae": 16, "converged": False}
    steps = [
        {**group, "step": float(step), "mean": mean, "cosine_to_init": init}
        for step, mean, init in ((900, 0.7531, 0.11), (0, 0.21, 1.0), (300, 0.5, 0.4))
    ]
    head = {"d_sae": 16, "space": "full", "score": "pw_mcc", "signed": False}
    head |= {"matched_on": "l0", "at": 4.25}
    matched = [
        {**head, "architecture": "topk", "mean": 0.71, "low": 0.64, "high": 0.77, "reason": ""},
        {**head, "architecture": "relu", "mean": None, "reason": "measured at L0 3 only"},
        {**head, "architecture": "relu", "mean": 0.5, "reason": "", "space": "data"},
    ]
    text = page(
        found=replace(
            tables(),
            trajectories=pd.DataFrame(steps),
            matched=pd.DataFrame(matched).assign(converged=None),
        )
    )
    assert "| topk d16 k4 † | 0.210 at 0, 0.500 at 300, 0.753 at 900 | 0.110 |" in text
    line = "topk 0.71 [0.64, 0.77], relu: measured at L0 3 only |"
    assert f"| 16 | pw_mcc (absolute) | l0 4.25 | {line}" in text
    section = page().split("## Over training\n")[1].split("\n## ")[0]
    assert "nothing kept." in section
    assert "|---|" not in section
    assert (
        "no curves."
        in page().split("## Architectures at equal sparsity or error\n")[1].split("## ")[0]
    )


def test_tables_have_the_same_number_of_cells_in_every_row() -> None:
    lines = page().splitlines()
    for head, rule in pairwise(lines):
        if rule.startswith("|---"):
            at = lines.index(head)
            body = list(takewhile(lambda line: line.startswith("|"), lines[at:]))
            assert len(body) > 2, head
            assert {line.count(" |") for line in body[:1] + body[2:]} == {rule.count("---|")}, head


def test_an_undefined_name_in_a_template_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="forgotten"):
        environment().from_string("{{ forgotten }}").render()


def test_the_main_group_comes_first_and_the_untrained_last() -> None:
    groups = pd.DataFrame(
        [
            {"group": "relu d64 l1_1", "architecture": "relu", "d_sae": 64},
            {"group": "topk d64 k4", "architecture": "topk", "d_sae": 64},
            {"group": "topk d128 k4 untrained", "architecture": "topk", "d_sae": 128},
            {"group": "topk d256 k4", "architecture": "topk", "d_sae": 256},
            {"group": "topk d128 k4", "architecture": "topk", "d_sae": 128},
        ]
    )
    order = group_order(groups, "topk d128 k4")
    assert order == [
        *("topk d128 k4", "topk d256 k4", "topk d64 k4", "relu d64 l1_1"),
        "topk d128 k4 untrained",
    ]
    assert ordered(groups, order)["group"].tolist() == order


def test_kinds_are_written_in_words_and_rare_ones_left_out() -> None:
    given = tables()
    head = given.kinds.iloc[0].to_dict()
    more = [{**head, "kind": "operand, several", "n_features": n} for n in (0.2, 7.0)]
    text = page(found=replace(given, kinds=pd.concat([given.kinds, pd.DataFrame(more)])))
    assert "| several operands | 7.0 |" in text
    assert "0.2 |" not in text
    assert "none of the labels" in text
    assert "None | " not in text


def test_a_transformer_is_typical_when_the_shipped_ones_are_like_it() -> None:
    every = shipped_transformers()
    one = next(entry for entry in every if entry.name == "seed0")
    shares = [max(e.frequency_shares.values()) for e in every if e.shipped == one.shipped]
    assert frequency_balance(tables().waves, HOOK, {"name": "other"}, every) == {}
    for largest, typical in ((min(shares) / 2, False), (sorted(shares)[2], True), (0.99, False)):
        waves = pd.DataFrame(
            {"hook": HOOK, "model": "trained", "variable": "answer", "share": [0.01, largest]}
        )
        found = frequency_balance(waves, HOOK, {"name": one.name}, every)
        assert (found["low"] <= found["own"] <= found["high"]) == typical
        text = page(found=replace(tables(), waves=waves.assign(frequency=[1, 2])), name=one.name)
        assert ("is typical of" in text, "is not typical of" in text) == (typical, not typical)


def test_the_untrained_value_comes_from_the_same_group() -> None:
    given = tables()
    head = given.kinds.iloc[0].to_dict() | {"hook": f"{HOOK}@untrained", "share": 0.7}
    more = [
        {**head, "group": name, "kind": kind, "d_sae": 16}
        for name, kind in (("topk d16 k4 untrained", "operand"), ("x untrained", "wave"))
    ]
    found = replace(given, kinds=pd.concat([given.kinds, pd.DataFrame(more)], ignore_index=True))
    text = page(found=found)
    assert "70 % of those of `topk d16 k4 untrained` stand for operands" in text
    assert "stand for waves" not in text

"""Starting from a shipped transformer, and the study over several, as Kedro runs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from tests.pipelines.conftest import run

from husai.campaign import plan_saes
from husai.hooks.checks import StudyError
from husai.storage import read_header
from husai.transformer import shipped_transformers

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT / "benchmarks"))

from transformers_study import Leg, measure, shipped_legs, study  # noqa: E402

ENTRY = shipped_transformers()[0]
STARTS = ["data_generation", "transformer_training", "activation_extraction"]


def test_a_study_starts_from_the_shipped_transformer(tmp_path: Path) -> None:
    run(tmp_path, env="transformers", pipeline_names=STARTS)
    used = {"name": ENTRY.name, "seed": ENTRY.seed, "fingerprint": ENTRY.fingerprint}
    rows = tmp_path / "activations" / "blocks.0.hook_resid_post@-1.safetensors"
    assert read_header(rows)["model"]["transformer"] == used
    summary = json.loads((tmp_path / "transformer" / "training_summary.json").read_text())
    assert summary["transformer"] == used
    again = json.loads((tmp_path / "transformer" / "evaluation.json").read_text())
    assert again["test_accuracy"] == pytest.approx(ENTRY.test_accuracy, abs=2e-3)
    # its training is shown all the same
    curves = pd.read_parquet(tmp_path / "transformer" / "training_curves.parquet")
    assert curves["epoch"].iloc[-1] == ENTRY.epochs
    assert len(curves) > 20
    measures = pd.read_parquet(tmp_path / "transformer" / "progress_measures.parquet")
    assert measures["restricted_loss"].iloc[-1] < measures["restricted_loss"].iloc[0]
    assert (tmp_path / "transformer" / "training.png").stat().st_size > 10_000
    assert not list((tmp_path / "transformer").glob("checkpoints/*"))


def test_a_shipped_transformer_of_another_task_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"task\.modulus is 97 here, 113 there.*start to train"):
        run(tmp_path, {"task": {"modulus": 97}}, "transformers", pipeline_names=STARTS)
    assert not (tmp_path / "dataset").exists()


TINY = {
    "task": {"modulus": 13},
    "transformer": {"start": "train", "d_model": 16, "d_mlp": 32},
    "transformer_training": {"max_epochs": 30, "checkpoint_every": 30},
    "campaign": {
        "plan": {
            "d_sae": [8, 16],
            "seeds": [0, 1, 2],
            "architectures": {"topk": {"k": [2]}, "relu": {"l1_coefficient": [0.5]}},
        }
    },
    "sae_training": {
        "steps": 40,
        "batch_size": 64,
        "eval_interval": 20,
        "snapshot_interval": 20,
        "checkpoint_interval": 20,
    },
}


def test_the_study_has_a_row_for_every_transformer_and_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUSAI_DATA_DIR", str(tmp_path))  # put back at the end
    legs = [Leg(f"tiny{seed}", {"transformer": {"seed": seed}}) for seed in (0, 1)]
    table = study(legs, tmp_path / "data", tmp_path / "results", TINY, draws=20)
    assert len(table) == 2 * 4
    assert table.groupby("transformer")["fingerprint"].nunique().tolist() == [1, 1]
    assert table["fingerprint"].nunique() == 2
    assert table["transformer_seed"].tolist() == [0] * 4 + [1] * 4
    assert (table["n_answers"] == 13).all()
    scores = table[["pw_mcc", "gt_mcc", "pw_mcc_permuted", "gt_mcc_permuted"]]
    assert scores.stack().between(0, 1).all()
    assert table["answers"].between(0, 13).all()
    written = pd.read_csv(tmp_path / "results" / "groups.csv")
    assert written["group"].tolist() == table["group"].tolist()
    # started again, it trains nothing: what is in a leg's folder is what it reports
    done = tmp_path / "data" / "tiny0" / "groups.csv"
    done.write_text(done.read_text().replace("tiny0", "kept"))
    again = study(legs, tmp_path / "data", tmp_path / "results", TINY, draws=20)
    assert sorted(set(again["transformer"])) == ["kept", "tiny1"]


def test_a_leg_is_both_architectures_at_six_widths_with_six_seeds() -> None:
    bootstrap_project(PROJECT)
    session: Any
    with KedroSession.create(PROJECT, env="transformers") as session:
        campaign = session.load_context().catalog.load("params:campaign")
    sizes = plan_saes(campaign.plan).groupby(["architecture", "d_sae"]).size()
    wanted = [(a, d) for a in ("relu", "topk") for d in (16, 64, 113, 128, 256, 512)]
    assert sizes.to_dict() == dict.fromkeys(wanted, 6)


def test_legs_are_the_shipped_transformers() -> None:
    assert [leg.name for leg in shipped_legs()] == [one.name for one in shipped_transformers()]
    (leg,) = shipped_legs([ENTRY.name])
    assert leg.params == {"transformer": {"seed": ENTRY.seed, "shipped": ENTRY.shipped}}


def test_a_planted_dictionary_of_answers_is_found_in_full() -> None:
    from husai.consistency import SAERecord, class_labels

    rng = np.random.default_rng(0)
    p, d = 7, 24
    answer = (np.arange(p)[:, None] + np.arange(p)[None, :]).ravel() % p
    directions = np.linalg.qr(rng.normal(size=(d, p)))[0].T
    rows = directions[answer]
    codes = np.eye(p)[answer]
    records = []
    for seed in range(3):
        order = rng.permutation(p)
        noise = 0.02 * rng.normal(size=(p, d))
        records.append(
            SAERecord(
                id=str(seed),
                architecture="planted",
                seed=seed,
                W_dec=(directions - directions.mean(0) + noise)[order],
                firing_rate=np.full(p, 1 / p),
                codes=codes[:, order],
                converged=True,
                l0=1.0,
                fvu=0.0,
            )
        )
    found = measure(records, rows, class_labels("answer", answer), draws=20, label_draws=1)
    assert found["answers"] == p
    assert found["answers_sd"] == 0
    assert found["gt_mcc"] > 0.98
    assert found["pw_mcc"] > 0.98 > found["pw_mcc_permuted"]
    assert found["pw_mcc_p"] == pytest.approx(1 / 21)

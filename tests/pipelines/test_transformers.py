"""Starting from a shipped transformer, and the study over several, as Kedro runs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from tests.pipelines.conftest import run

from husai.campaign import plan_saes
from husai.consistency import SAERecord
from husai.consistency.study import planning
from husai.figures.transformers import transformers_figure
from husai.hooks.checks import StudyError
from husai.storage import read_header
from husai.transformer import shipped_transformers

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT / "benchmarks"))

from transformers_study import (  # noqa: E402
    TABLES,
    Leg,
    conclude,
    longer_params,
    measure,
    report,
    shipped_legs,
    study,
    write_conclusions,
)

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
    assert (tmp_path / "transformer" / "training.png").is_file()
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
        "snapshot_interval": 10,
        "checkpoint_interval": 20,
    },
}


def test_the_study_has_a_row_for_every_transformer_and_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUSAI_DATA_DIR", str(tmp_path))  # put back at the end
    legs = [Leg(f"tiny{seed}", {"transformer": {"seed": seed}}) for seed in (0, 1)]
    tables = study(legs, tmp_path / "data", tmp_path / "results", TINY, draws=20)
    table = tables["groups"]
    assert len(table) == 2 * 4
    assert table.groupby("transformer")["fingerprint"].nunique().tolist() == [1, 1]
    assert table["fingerprint"].nunique() == 2
    assert table["transformer_seed"].tolist() == [0] * 4 + [1] * 4
    assert (table["stop"] == "early_stop").all()
    assert (table["n_answers"] == 13).all()
    scores = table[["pw_mcc", "gt_mcc", "pw_mcc_permuted", "gt_mcc_permuted", "shared_fraction"]]
    assert scores.stack().between(0, 1).all()
    assert table["answers"].between(0, 13).all()
    assert table["motion"].notna().all()
    assert len(tables["pairs"]) == 2 * 4 * 3
    covered = tables["covered"].query("family == 'answer'")
    assert len(covered) == 2 * 4 * 3
    means = covered.groupby(["transformer", "group"])["covered"].mean()
    np.testing.assert_allclose(
        means.to_numpy(), table.set_index(["transformer", "group"])["answers"].reindex(means.index)
    )
    for name in tables:
        written = pd.read_csv(tmp_path / "results" / f"{name}.csv")
        assert written["group"].tolist() == tables[name]["group"].tolist()
    # started again, it trains nothing: what is in a leg's folder is what it reports
    done = tmp_path / "data" / "tiny0" / "groups.csv"
    done.write_text(done.read_text().replace("tiny0", "kept"))
    again = study(legs, tmp_path / "data", tmp_path / "results", TINY, draws=20)
    assert sorted(set(again["groups"]["transformer"])) == ["kept", "tiny1"]


def planted_tables() -> dict[str, pd.DataFrame]:
    """Six transformers at two stops, whose answers and agreement follow their balance."""
    rng = np.random.default_rng(0)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for stop, loss in (("early_stop", 0), ("cleaned_up", 10)):
        for seed in range(6):
            balance = 0.3 + 0.1 * seed
            head = {"transformer": f"seed{seed}{stop}", "stop": stop, "transformer_seed": seed}
            head |= {"architecture": "topk", "d_sae": 256, "group": "g", "n_answers": 113}
            answers = 113 * balance - loss
            group = {"largest_share": 1 - balance, "frequency_balance": balance, "gt_mcc": balance}
            group |= {"n_frequencies": 5, "effective_frequencies": 5 * balance}
            group |= {"l0": 4.0, "fvu": 0.1, "n_live": 200, "motion": 0.01}
            group |= {"n_converged": 3, "n_seeds": 5}
            group |= {"pw_mcc_permuted": 0.3, "shared_fraction_permuted": 0.1}
            ends = [f"{name}_{end}" for name in ("answers", "pw_mcc") for end in ("low", "high")]
            group |= dict.fromkeys(ends, balance) | {"shared_fraction": 0.5}
            found["groups"].append({**head, **group, "answers": answers, "pw_mcc": balance})
            a = 0.01 * rng.standard_normal(5)
            found["pairs"] += [
                {**head, "seed_a": s, "seed_b": t, "shared_fraction": 0.5}
                | {"pw_mcc": balance + a[s] + a[t]}
                for s in range(5)
                for t in range(s + 1, 5)
            ]
            found["covered"] += [
                {**head, "family": "answer", "n_classes": 113, "seed": s, "n_live": 200}
                | {"covered": answers + s - 2, "l0": 4.0, "fvu": 0.1}
                for s in range(5)
            ]
            found["kinds"] += [
                {**head, "kind": kind, "reproducibility": mean, "n_features": 100, "null_mean": 0.6}
                for kind, mean in (("answer", 0.98), ("other", 0.8), ("operand", 0.6))
            ]
    return {name: pd.DataFrame(rows) for name, rows in found.items()}


def test_conclusions_use_transformers_as_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = planted_tables()
    found = conclude(tables)
    hierarchy = found["hierarchy"].set_index(["stop", "measure"])
    answers = hierarchy.loc["early_stop", "answer covered"]
    balance = 0.3 + 0.1 * np.arange(6)
    assert answers["mean"] == pytest.approx((113 * balance).mean())
    assert answers["n_transformers"] == 6
    within = np.var(np.arange(5), ddof=1)
    assert answers["seed_sd"] == pytest.approx(np.sqrt(within))
    assert answers["between_sd"] == pytest.approx(
        np.sqrt(np.var(113 * balance, ddof=1) - within / 5)
    )
    assert hierarchy.loc["early_stop", "reproducibility of rest"]["mean"] == pytest.approx(0.7)
    first = found["associations"].query("measure == 'answers'").iloc[0]
    assert first["rho"] == pytest.approx(1.0)
    assert first["p_value"] == pytest.approx(2 / 720)
    changes = found["changes"].set_index("measure")
    assert changes.loc["answers", "cleaned_up_minus_early_stop"] == pytest.approx(-10)
    assert changes.loc["answers", "n_transformers"] == 6
    assert found["pilot"]["d_sae"].tolist() == [256]
    monkeypatch.setattr(planning, "__file__", str(tmp_path / "planning.py"))
    write_conclusions(tables, tmp_path)
    assert json.loads((tmp_path / "pilot.json").read_text())[0]["n_transformers"] == 6
    assert (tmp_path / "transformers.png").is_file()
    axis, kinds = transformers_figure(tables["groups"], tables["kinds"], 256).axes
    drawn = {str(line.get_label()): line.get_xydata() for line in axis.lines}
    wanted = np.column_stack([5 * balance, 113 * balance])
    np.testing.assert_allclose(np.asarray(drawn["topk, early stop"]), wanted)
    drawn = {str(line.get_label()): line.get_xydata() for line in kinds.lines}
    wanted = np.column_stack([5 * balance, np.full(6, 0.7)])
    np.testing.assert_allclose(np.asarray(drawn["other features, cleaned up"]), wanted)


def test_the_report_of_the_transformers_agrees_with_the_tables() -> None:
    tables = planted_tables()
    longer = tables["groups"].query("transformer == 'seed0early_stop'").assign(answers=77.0)
    text = report(tables | {"longer": longer}, conclude(tables))
    assert "90.4 of 113 answers have a feature of their own on seed5early_stop" in text
    assert "effectively 4.0 key frequencies; on the other 5 transformers 33.9 to 79.1" in text
    assert "early_stop, topk: 1.00 (p = 0.003, 6 transformers)" in text
    assert "36 of 60 SAEs had settled" in text
    assert "| early_stop | topk | 256 | 3 of 5 |" in text
    assert "| 77.0 (77 to 77) | 33.9 (34 to 34) | +0.000 (+0.00 to +0.00) |" in text


def test_longer_training_has_twice_the_steps_and_rate_and_keeps_the_snapshots_of_the_gate() -> None:
    params = longer_params()
    assert params["campaign"]["plan"]["d_sae"] == [256, 512]
    own = yaml.safe_load((PROJECT / "conf/transformers/parameters.yml").read_text())
    study, longer = own["sae_training"], params["sae_training"]
    assert longer["steps"] == 2 * study["steps"]
    rate = own["campaign"]["plan"]["options"]["learning_rate"]
    assert params["campaign"]["plan"]["options"] == {"learning_rate": 2 * rate}
    assert longer["steps"] % longer["snapshot_interval"] == 0


def test_a_leg_has_both_architectures_at_six_widths_with_six_seeds() -> None:
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


def test_a_planted_dictionary_recurs_and_is_far_above_its_null() -> None:
    rng = np.random.default_rng(0)
    p, d = 7, 24
    directions = np.linalg.qr(rng.normal(size=(d, p)))[0].T
    records = []
    for seed in range(3):
        order = rng.permutation(p)
        W = (directions + 0.02 * rng.normal(size=(p, d)))[order]
        records.append(
            SAERecord(
                id=str(seed),
                architecture="planted",
                seed=seed,
                W_dec=W,
                W_enc=W.T,
                firing_rate=np.full(p, 1 / p),
                motion=0.001 * seed,
                l0=1.0,
                fvu=0.0,
            )
        )
    row, pairs = measure("planted", records, np.eye(d), draws=20)
    assert row["pw_mcc"] > 0.98 > row["pw_mcc_permuted"]
    assert row["pw_mcc_p"] == pytest.approx(1 / 21)
    assert row["shared_fraction"] == 1.0
    assert row["n_everywhere"] == p
    assert row["motion"] == pytest.approx(0.001)
    assert pairs[["seed_a", "seed_b"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]

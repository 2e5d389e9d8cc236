"""The calibration study on two tiny worlds, through its nodes as Kedro runs them."""

import json

import numpy as np
import pandas as pd
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from kedro_datasets.pandas import ParquetDataset
from pydantic import ValidationError

from husai.datasets import PlannedPartitionedDataset
from husai.pipelines.planted_truth import create_pipeline
from husai.pipelines.planted_truth.config import PlantedTruthConfig
from husai.pipelines.planted_truth.study import SCORES, plan_study

STUDY = {
    "worlds": {
        "lines": {
            "world": {"n_features": 12, "d_in": 8, "firing": {"kind": "uniform_k", "k": 2}},
            "d_sae": [12],
        },
        "circles": {
            "world": {
                "n_features": 10,
                "d_in": 10,
                "dictionary": {"kind": "circular", "n_planes": 3},
                "firing": {"kind": "uniform_k", "k": 2},
            },
            "d_sae": [14],
        },
    },
    "architectures": {"topk": {"k": [2, 3]}, "relu": {"l1_coefficient": [1.0]}},
    "learning_rate": 0.01,
    "dead_latents": ["auxk", "none"],
    "seeds": [0, 1, 2],
    "n_rows": 2000,
    "n_eval_rows": 500,
    "training": {
        "steps": 300,
        "batch_size": 128,
        "eval_interval": 50,
        "snapshot_interval": 50,
        "checkpoint_interval": 300,
        "convergence_slope": 0.5,
    },
    "score_steps": [0, 100],
    "n_resamples": 50,
}
OUTPUTS = ("settings", "features", "planes", "checkpoints", "calibration", "detectors", "gate")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    config = PlantedTruthConfig(**STUDY)
    plan_study(config).to_parquet(folder / "plan.parquet")
    catalog = DataCatalog(
        {
            "params:planted_truth": MemoryDataset(config, copy_mode="assign"),
            "planted_saes": PlannedPartitionedDataset(
                path=str(folder / "saes"),
                plan=str(folder / "plan.parquet"),
                filename_suffix=".safetensors",
                dataset={"type": "husai.datasets.TensorDataset"},
            ),
            **{
                f"planted_{name}": ParquetDataset(filepath=str(folder / f"{name}.parquet"))
                for name in (*OUTPUTS, "plan")
            },
            "planted_summary": MemoryDataset(),
            "planted_figure": MemoryDataset(copy_mode="assign"),
        }
    )
    SequentialRunner().run(create_pipeline(), catalog)
    return {
        name: catalog.load(f"planted_{name}") for name in (*OUTPUTS, "plan", "summary", "figure")
    }


def test_every_group_is_scored_at_every_step(study):
    plan, settings = study["plan"], study["settings"]
    assert len(plan) == 2 * 3 * 2 * 3
    assert plan["sae_id"].is_unique
    assert len(settings) == plan["group"].nunique() * 3
    assert sorted(settings["step"].unique()) == [0, 100, 300]
    for score in ("pw_mcc", "mmcs", "gt_mcc", "frr_0.8", "frr_0.9", "uniqueness"):
        assert settings[score].between(0, 1 + 1e-9).all()
    end = settings[settings["final"]]
    assert end[[*SCORES, "precision", "recall", "f1", "l0", "excess_low"]].notna().all(axis=None)
    # the seeds start apart and at chance: the untrained dictionary is the null's draw
    start = settings[settings["step"] == 0]
    assert (start["moved_from_init"].abs() < 1e-6).all()
    assert (start["pw_mcc"] - start["pw_mcc_null"]).abs().max() < 0.1
    topk = end[(end["architecture"] == "topk") & (end["world"] == "lines")]
    assert (topk["gt_mcc"] > topk["gt_mcc_null"] + 0.2).all()


def test_features_and_planes(study):
    features, planes = study["features"], study["planes"]
    assert len(features) == 3 * 2 * 3 * (12 + 14)
    assert features[["reproducibility", "truth_similarity"]].to_numpy().max() <= 1 + 1e-9
    assert set(planes["world"]) == {"circles"}
    assert len(planes) == 3 * 2 * 3
    topk = planes[planes["architecture"] == "topk"]
    # a plane is found although its axes, whose phase is a convention, are not
    assert topk["plane_recall"].mean() > topk["axis_recovery"].mean()
    assert topk["plane_recall"].mean() > topk["plane_recall_null"].mean()


def test_calibration_and_summary(study):
    calibration, detectors, summary = (study[n] for n in ("calibration", "detectors", "summary"))
    assert set(calibration["score"]) == set(SCORES)
    assert calibration["rank_correlation"].dropna().between(-1, 1).all()
    # two runs of one world: too few clusters for an interval, and it says so
    assert calibration["low"].isna().all()
    assert (calibration["reason"] != "").all()
    assert list(detectors["world"]) == ["lines", "circles"]
    assert json.loads(json.dumps(summary, allow_nan=False))["n_groups"] == 12
    assert sum(summary["verdicts"].values()) == 12
    np.testing.assert_allclose(detectors["stable_but_wrong"], 1 - detectors["precision"])
    # one checkpoint an SAE has the whole window behind it and the end before it
    assert (study["gate"]["n_checkpoints"] == 36).all()
    assert study["gate"]["n_passed"].is_monotonic_increasing
    assert set(summary["gate"]) == {"0.01", "0.03", "0.1", "0.3", "0.5", "1.0"}


def test_figure_shows_the_data(study, tmp_path):
    figure = study["figure"]
    assert len(figure.axes) == 6
    figure.savefig(tmp_path / "figure.png")
    scatter = figure.axes[0].collections[0].get_offsets()
    settings = study["settings"]
    lines = settings[(settings["world"] == "lines") & settings["final"]]
    np.testing.assert_allclose(np.sort(scatter[:, 0]), np.sort(lines["pw_mcc_corrected"]))


def test_gate_and_snapshots_must_share_their_steps():
    for change, message in (
        ({"training": {**STUDY["training"], "snapshot_interval": 100}}, "snapshot_interval"),
        ({"score_steps": [75]}, "score_steps: 75"),
        ({"score_steps": [300]}, "score_steps: 300"),
        ({"architectures": {"topk": {}}}, "exactly one"),
        ({"seeds": [0]}, "seeds"),
        ({"training": {**STUDY["training"], "steps": 250}}, "training.steps = 250"),
    ):
        with pytest.raises(ValidationError, match=message):
            PlantedTruthConfig(**{**STUDY, **change})


def test_base_configuration_is_valid():
    from pathlib import Path

    import yaml

    path = Path(__file__).parents[2] / "conf" / "base" / "parameters_planted_truth.yml"
    config = PlantedTruthConfig(**yaml.safe_load(path.read_text())["planted_truth"])
    assert isinstance(plan_study(config), pd.DataFrame)

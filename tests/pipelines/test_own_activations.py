"""A study of a user's own activations: one command, one page, and one line for bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from mlflow import MlflowClient

from husai.hooks.checks import StudyError
from husai.provenance import fingerprint_files
from husai.storage import read_header, read_tensors
from husai.studies import find_studies, sae_run_ids, studies_table
from husai.tracking.studies import study_runs

PROJECT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "campaign": {
        "plan": {
            "d_sae": [8],
            "seeds": [0, 1],
            "architectures": {"relu": None, "batch_topk": None, "topk": {"k": 2}},
        },
        "compute": {"processes": 0},
    },
    "sae_training": {"steps": 40, "eval_interval": 20, "snapshot_interval": 20},
    "consistency": {"null_draws": 3, "code_null_draws": 2},
}


def run(data_dir: Path, pipelines: list[str] | None = None, **params: Any) -> None:
    """Run ``kedro run --env=own`` with all data below ``data_dir``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_DATA_DIR", str(data_dir))
        bootstrap_project(PROJECT)
        session: Any
        with KedroSession.create(PROJECT, env="own", runtime_params={**TINY, **params}) as session:
            session.run(pipeline_names=pipelines)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("own")
    rows = np.random.default_rng(0).normal(size=(60, 5, 12)).astype(np.float16)
    tokens = np.arange(300).reshape(60, 5) % 7
    depth = np.linspace(0, 1, 60).astype(np.float32)
    np.savez(data_dir / "mine.npz", activations=rows, token=tokens, depth=depth)
    run(data_dir, activations=str(data_dir / "mine.npz"))
    return data_dir


def test_the_page_says_that_there_is_no_transformer(study):
    page = (study / "reporting" / "home_study.md").read_text()
    assert page.startswith("# Your own activations")
    assert "There is no transformer: the rows are your own." in page
    assert "`rows@-1`" in page
    assert "no known true features" in page
    assert "grok" not in page


def test_the_rows_are_read_completely_with_their_labels(study):
    statistics = pd.read_parquet(study / "activations" / "statistics.parquet")
    assert statistics[["hook_name", "rows", "d_in"]].to_dict("records") == [
        {"hook_name": "rows", "rows": 300, "d_in": 12}
    ]
    labels = pd.read_parquet(study / "activations" / "labels.parquet")
    assert labels["token"].tolist() == [n % 7 for n in range(300)]
    assert labels["depth"].nunique() == 60


def test_the_labels_are_candidates_for_what_a_feature_means(study):
    features = pd.read_parquet(study / "consistency" / "features.parquet")
    assert set(features["family"].dropna()) <= {"token", "depth"}
    assert features["label"].notna().any()
    coverage = pd.read_parquet(study / "consistency" / "coverage.parquet")
    assert coverage["family"].unique().tolist() == ["token"]


def test_fewer_rows_than_a_batch_are_all_used(study):
    (path, *_) = (study / "saes" / "trained").glob("*.safetensors")
    assert read_header(path)["provenance"]["training"]["batch_size"] == 270


def test_the_saes_are_trained_on_them_and_compared(study):
    plan = pd.read_parquet(study / "saes" / "plan.parquet")
    assert plan["group"].unique().tolist() == ["topk d8 k2"]
    groups = pd.read_parquet(study / "consistency" / "groups.parquet")
    scores = groups.query("score == 'pw_mcc' and not signed and space == 'full'")
    assert scores["mean"].between(0, 1).all()
    assert scores["hook"].tolist() == ["rows@-1"]


def test_a_named_study_has_a_folder_of_its_own(study, caplog):
    np.save(study / "others.npy", np.random.default_rng(1).normal(size=(50, 4)))
    files = [path for path in sorted((study / "activations").iterdir()) if path.is_file()]
    before = fingerprint_files(files)
    run(study, ["own_activations"], activations=str(study / "others.npy"), study="others")
    assert fingerprint_files(files) == before
    (rows,) = study.glob("studies/others/activations/*.safetensors")
    assert read_tensors(rows)[0]["activations"].shape == (50, 4)
    listed = studies_table(study).set_index("name")
    assert listed["folder"].to_dict() == {
        "own": str(study),
        "others": str(study / "studies" / "others"),
    }
    assert listed.loc["own", ["state", "saes", "planned"]].tolist() == ["finished", 2, 2]
    assert Path(str(listed.loc["own", "page"])).name == "home_study.md"
    client = MlflowClient(f"sqlite:///{study / 'mlflow.db'}")
    (own,) = find_studies(study)[1:]
    # a session and two SAEs; a session
    assert len(study_runs(client, "own", sae_run_ids(own))) == 3
    assert len(study_runs(client, "others")) == 1
    caplog.clear()
    run(study, ["own_activations"], activations=str(study / "mine.npz"), study="others")
    (said,) = [one.getMessage() for one in caplog.records if "changed since" in one.getMessage()]
    assert "study 'others'" in said
    assert "others.npy' -> " in said
    assert "makes again: own_activations (" in said


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "kedro run --env=own --params activations=rows.npy"),
        ({"activations": "nowhere.npy"}, r"nowhere\.npy: no such file"),
    ],
)
def test_without_a_file_an_error_of_one_line_says_what_to_do(tmp_path, params, message):
    with pytest.raises(StudyError, match=message):
        run(tmp_path, **params)

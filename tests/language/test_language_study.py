"""``kedro run --env=lm`` on a tiny random model: from text to page, resumed, and with bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from husai.activations import ActivationStore
from husai.hooks.checks import StudyError
from husai.sae import load_sae

PROJECT = Path(__file__).parents[2]
HOOK = "blocks.1.hook_out"
pytestmark = pytest.mark.usefixtures("copied_mlflow")


def parameters(model: Path, text: Path) -> dict[str, Any]:
    """Return the parameters of a study that takes seconds."""
    return {
        "language_model": {"name": str(model), "device": "cpu"},
        "text": {
            "source": str(text),
            "column": "text",
            "n_tokens": 3000,
            "held_out_tokens": 600,
            "context": 16,
        },
        "reading": {"hook_names": [HOOK], "shard_contexts": 64},
        "campaign": {
            "plan": {
                "hook_name": HOOK,
                "d_sae": [24],
                "seeds": [0, 1, 2],
                "untrained_d_sae": [24],
                "architectures": {"relu": None, "batch_topk": None, "topk": {"k": 3}},
            },
            "compute": {"processes": 0},
        },
        "sae_training": {
            "steps": 40,
            "batch_size": 64,
            "eval_interval": 20,
            "snapshot_interval": 20,
        },
        "evaluation": {"contexts": 20},
        "probe_text": {"source": str(text), "column": "text", "label": "label"},
        "probes": {"documents": 60, "context": 16, "k": "1 2"},
        "consistency": {"null_draws": 3, "code_null_draws": 2},
        "features": {"function_features": 3, "sampled_rows": 4},
    }


def run(data_dir: Path, params: dict[str, Any], **options: Any) -> None:
    """Run ``kedro run --env=lm`` with all data below ``data_dir``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_DATA_DIR", str(data_dir))
        bootstrap_project(PROJECT)
        with KedroSession.create(PROJECT, env="lm", runtime_params=params) as session:
            session.run(**options)


@pytest.fixture(scope="module", params=["bert_encoder"])
def study(request, tmp_path_factory, model_folders, text_path):
    data_dir = tmp_path_factory.mktemp("lm")
    run(data_dir, parameters(model_folders[request.param], text_path))
    return data_dir


def test_saes_are_trained_on_the_store_and_compared_on_its_held_out_rows(study):
    statistics = pd.read_parquet(study / "activations" / "statistics.parquet")
    assert statistics["position"].unique().tolist() == ["all"]
    assert statistics["model"].tolist() == ["trained", "untrained"]
    store = ActivationStore(study / "stores" / f"{HOOK}@all")
    assert store.n_rows >= 3000
    assert statistics["rows"].tolist() == [store.n_held_out] * 2
    assert store.n_held_out >= 600
    plan = pd.read_parquet(study / "saes" / "plan.parquet")
    assert plan["position"].unique().tolist() == ["all"]
    sae = load_sae(study / "saes" / "trained" / f"{plan['sae_id'][0]}.safetensors")
    assert sae.provenance["rows"]["n_train"] == store.n_rows
    assert sae.provenance["rows"]["n_held_out"] == store.n_held_out
    groups = pd.read_parquet(study / "consistency" / "groups.parquet")
    assert groups["hook"].unique().tolist() == [f"{HOOK}@all"]


def test_the_pages_give_the_name_of_the_hook(study):
    page = (study / "reporting" / "home_study.md").read_text()
    assert f"`{HOOK}@all`" in page
    page = (study / "reporting" / "language_model.md").read_text()
    assert f"At `{HOOK}@all`" in page
    assert "there is no cross-entropy" in page
    assert len(re.findall(r"^\| topk d24 k3 untrained \|", page, re.M)) > 2
    assert "nan" not in page.lower()
    assert (study / "reporting" / "language_model.png").stat().st_size > 10_000


def test_features_are_shown_with_their_contexts(study):
    page = (study / "features" / "features.html").read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert found
    data = json.loads(found[1])
    assert len(data["features"]) == len(data["rows"]) > 0
    words = pd.read_parquet(study / "activations" / "contexts.parquet")
    for row, about in data["facts"].items():
        before, token, after = about["context"]
        assert token == words["token"][int(row)]
        assert before or after
    assert "there is no transformer" in page


def test_function_is_sampled_in_the_model(study):
    strata = pd.read_parquet(study / "language" / "function.parquet")
    assert "sampling error" in strata["note"][0]
    assert strata["function"].iloc[0] > strata["function_random"].iloc[0]
    partners = pd.read_parquet(study / "language" / "partners.parquet")
    assert (partners.groupby("id")["latent"].nunique() <= 3).all()
    assert (partners["function_se"] >= 0).all()
    page = (study / "reporting" / "language_function.md").read_text()
    assert f"is {strata['function'].iloc[0]:.2f}" in page
    assert strata["note"][0] in page
    assert "nan" not in page.lower()
    by_cosine = strata[strata["by"] == "cosine"]
    assert by_cosine["n_pairs"].sum() == strata["n_pairs"].iloc[0]


def test_every_sae_is_measured_probed_and_described(study):
    folder = study / "language"
    plan = pd.read_parquet(study / "saes" / "plan.parquet")
    metrics = pd.read_parquet(folder / "metrics.parquet")
    assert sorted(metrics["sae_id"]) == sorted(plan["sae_id"])
    trained = metrics[metrics["model"] == "trained"]
    assert trained["output_change_score"].notna().all()
    assert (metrics["explained_variance"] < 1).all()
    assert {path.stem for path in (folder / "saebench").glob("*.json")} == set(plan["sae_id"])
    probes = pd.read_parquet(folder / "probes.parquet")
    assert sorted(probes["k"].unique()) == [0, 1, 2]
    assert set(probes["sae_id"]) == {"", *plan["sae_id"]}
    stability = pd.read_parquet(folder / "probe_stability.parquet")
    assert stability["stability"].between(-1, 1).all()
    contexts = pd.read_parquet(folder / "contexts.parquet")
    assert set(contexts["sae_id"]) == set(plan.loc[plan["model"] == "trained", "sae_id"])
    assert contexts["text"].str.contains("«").all()


@pytest.mark.parametrize(
    ("group", "change", "message"),
    [
        ("reading", {"hook_names": ["blocks.1.hook_uot"]}, r"campaign\.plan\.hook_name: 'blocks"),
        ("reading", {"untrained": False}, r"reading\.untrained is false"),
        ("text", {"source": "nowhere.jsonl"}, r"nowhere\.jsonl: no such file"),
        ("language_model", {"name": "nowhere/model"}, r"language_model\.name: nowhere/model"),
        ("evaluation", {"measure": "cross_entropy"}, r"evaluation\.measure: .*no cross-entropy"),
    ],
)
def test_bad_input_gives_an_error_of_one_line(
    tmp_path, model_folders, text_path, group, change, message
):
    params = parameters(model_folders["bert_encoder"], text_path)
    params[group] = {**params[group], **change}
    with pytest.raises(StudyError, match=message) as raised:
        run(tmp_path, params)
    assert "\n" not in str(raised.value)

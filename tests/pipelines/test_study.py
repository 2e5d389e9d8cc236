"""The whole chain on the tiny study of conf/test, as Kedro runs it."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pandas as pd
import pytest
from tests.pipelines.conftest import PROJECT, client_of, run, runs_of

from husai.consistency import ConsistencyConfig
from husai.consistency.study.summary import summary_schema
from husai.hooks.checks import StudyError
from husai.storage import read_header, read_tensors, tensors_digest


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the study once; the tests check its results."""
    data_dir = tmp_path_factory.mktemp("study")
    run(data_dir)
    return data_dir


def read_newest(folder: Path) -> Any:
    newest = sorted(folder.glob("*/*"))[-1]
    return json.loads(newest.read_text())


def test_every_planned_sae_exists_and_is_compared(study):
    plan = pd.read_parquet(study / "saes" / "plan.parquet")
    assert plan["model"].value_counts().to_dict() == {"trained": 24, "untrained": 18}
    assert {path.stem for path in (study / "saes" / "trained").iterdir()} == set(plan["sae_id"])
    table = pd.read_parquet(study / "saes" / "table.parquet")
    assert np.isfinite(table[["fvu", "l0", "cosine_to_init"]].to_numpy()).all()
    groups = pd.read_parquet(study / "consistency" / "groups.parquet")
    assert set(groups["group"]) == set(plan.loc[plan["model"] == "trained", "group"])
    hooks = dict(zip(groups["group"], groups["hook"], strict=True))
    assert hooks["topk d8 k3 embed"] == "hook_embed@0"
    assert hooks["topk d8 k3 mlp"] == "blocks.0.mlp.hook_post@-1"
    groups = groups[groups["hook"] == "blocks.0.hook_resid_post@-1"]
    scores = groups[(groups["score"] == "pw_mcc") & ~groups["signed"] & (groups["space"] == "full")]
    assert len(scores) == 6
    assert scores["mean"].between(0, 1).all()
    assert (scores["low"] <= scores["mean"]).all()
    nulls = ["permuted_mean", "isotropic_mean", "data_aware_mean", "init_mean"]
    assert scores[nulls].notna().all(axis=None)
    # sixty steps are no training: the gate must say so wherever the scores stand
    assert not scores["converged"].any()


def test_tables_and_figures_exist(study):
    def height(name):
        return plt.imread(study / name).shape[0]

    # sixty epochs learn no frequency, and two widths make no curve: these figures say so instead
    reason = height("consistency/settings.png")
    assert reason < 200
    for name in (
        "transformer/training.png",
        "saes/learning_curves.png",
        *(
            f"consistency/{name}.png"
            for name in (
                "similarity",
                "scores",
                "seeds",
                "reproducibility",
                "trajectories",
                "kinds",
            )
        ),
    ):
        assert height(name) > 2 * reason, name  # drawn; what is drawn is tests/figures' subject
    statistics = pd.read_parquet(study / "activations" / "statistics.parquet")
    assert (statistics["rows"] == 17 * 17).all()
    assert sorted(statistics["model"]) == ["trained"] * 4 + ["untrained"] * 4
    tables = ("settings", "matched", "seeds_needed", "published", "orderings", "trajectories")
    for name in tables:
        table = pd.read_parquet(study / "consistency" / f"{name}.parquet")
        assert len(table), name
        marked = name in ("orderings", "seeds_needed") or "converged" in table
        assert marked, name
    trajectories = pd.read_parquet(study / "consistency" / "trajectories.parquet")
    assert set(trajectories["step"]) == {0, 20, 40, 60}
    # what was followed ends where the report stands
    groups = pd.read_parquet(study / "consistency" / "groups.parquet")
    own = groups.query("score == 'pw_mcc' and not signed and space == 'full'").set_index("group")
    last = trajectories[trajectories["step"] == 60].set_index("group")
    pd.testing.assert_series_equal(last["mean"], own["mean"][last.index], check_exact=False)
    waves = pd.read_parquet(study / "activations" / "fourier_waves.parquet")
    assert set(waves["variable"]) <= {"answer", "a", "b"}
    measures = pd.read_parquet(study / "transformer" / "progress_measures.parquet")
    assert measures["epoch"].tolist() == [0, 20, 40, 60]


def test_features_of_the_main_group_have_a_page(study):
    page = (study / "features" / "features.html").read_text(encoding="utf-8")
    cards = pd.read_parquet(study / "features" / "cards.parquet")
    found = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert found
    data = json.loads(found[1])
    assert len(data["features"]) == len(cards) > 0
    assert len(data["maps"]) == len(cards)
    assert len(data["saes"]) == 3
    # the logits follow from the residual stream, so function is known
    assert cards["function"].between(-1, 1).all()
    plan = pd.read_parquet(study / "saes" / "plan.parquet")
    assert set(cards["id"]) <= set(plan.loc[plan["model"] == "trained", "sae_id"])
    for name in ("partners", "function", "combinations", "identifiability"):
        assert len(pd.read_parquet(study / "features" / f"{name}.parquet"))
    assert "../features/features.html" in (study / "reporting" / "home_study.md").read_text()
    session = runs_of(study, parent=True)[-1]
    logged = [one.path for one in client_of(study).list_artifacts(session.info.run_id)]
    assert "features_page.html" in logged


@pytest.mark.parametrize(
    "name",
    [
        "saes/plan",
        "saes/table",
        "activations/fourier_waves",
        *(
            f"consistency/{name}"
            for name in ("groups", "pairs", "settings", "published", "orderings", "kinds")
        ),
    ],
)
def test_table_cells_are_plain_values(study, name):
    """Kedro-Viz answers with an error to a table that holds arrays."""
    table = pd.read_parquet(study / f"{name}.parquet")
    assert not table.map(lambda cell: isinstance(cell, list | np.ndarray)).any(axis=None)


def test_the_structure_of_dictionaries_is_a_pipeline_of_its_own(study):
    """The default study leaves out what its answer does not need."""
    folder = study / "consistency"
    assert not (folder / "symmetries.parquet").exists()
    run(study, pipeline_names=["structure_analysis"])
    for name in ("symmetries", "geometry"):
        table = pd.read_parquet(folder / f"{name}.parquet")
        assert table["score" if name == "symmetries" else "mean"].notna().any()
    # sixty epochs learn no frequency: the figure of the circles says so instead
    reason = plt.imread(folder / "circles.png").shape[0]
    assert reason < 200
    for name in ("symmetries", "geometry", "firing"):
        assert plt.imread(folder / f"{name}.png").shape[0] > 2 * reason, name
    text = (study / "reporting" / "structure.md").read_text()
    assert "Swapping a and b maps a dictionary to itself" in text


@pytest.mark.parametrize(
    "path", sorted((PROJECT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem
)
def test_the_notebooks_run_on_a_study(study, path):
    """The notebooks work on the results of any study, also of this one."""
    spec = importlib.util.spec_from_file_location("run_notebooks", path.with_name("run.py"))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.study_at(study):
        cells = module.run_notebook(json.loads(path.read_text()))["cells"]
    assert any(cell.get("outputs") for cell in cells)


def test_untrained_rows_equal_those_of_the_first_checkpoint(study):
    import torch

    from husai.activations import Activations
    from husai.storage import TensorFile
    from husai.transformer import CheckpointStore, TrainedTransformer

    path = next((study / "transformer" / "transformer.safetensors").glob("*/*"))
    file = TensorFile.from_bytes(path.read_bytes(), str(path))
    trained = TrainedTransformer.from_parts(file.tensors, file.header)
    store = CheckpointStore(next((study / "transformer" / "checkpoints").iterdir()))
    model = trained.build()
    model.load_state_dict(store.load(0))
    examples = pd.read_parquet(next((study / "dataset" / "examples.parquet").glob("*/*")))
    tokens = torch.from_numpy(examples.filter(regex=r"^token_\d+$").to_numpy(copy=True))
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    name = "blocks.0.hook_resid_post"
    path = study / "activations" / f"{name}@-1@untrained.safetensors"
    file = TensorFile.from_bytes(path.read_bytes(), str(path))
    rows = Activations.from_tensors(file.tensors, file.header, str(path))
    assert rows.key == path.stem
    torch.testing.assert_close(rows.values, cache[name][:, -1])


def test_reloaded_transformer_repeats_the_accuracy(study):
    summary = json.loads((study / "transformer" / "training_summary.json").read_text())
    again = json.loads((study / "transformer" / "evaluation.json").read_text())
    for split in ("train", "val", "test"):
        assert again[f"{split}_accuracy"] == summary[f"final_{split}_accuracy"]


def test_the_summary_has_its_provenance(study):
    summary = read_newest(study / "consistency" / "summary.json")
    provenance = summary["provenance"]
    plan = pd.read_parquet(study / "saes" / "plan.parquet")
    assert provenance["plan"] == plan["sae_id"].tolist()
    assert provenance["versions"]["husai"]
    assert provenance["seeds"] == [0, 1, 2]
    assert len(provenance["activations"]) == 3
    # which transformer: in the summary, beside its rows, and on the page
    path = next((study / "transformer" / "transformer.safetensors").glob("*/*"))
    fingerprint = tensors_digest(read_tensors(path)[0])[:16]
    used = {"name": "", "seed": 0, "fingerprint": fingerprint}
    assert provenance["transformer"] == used
    rows = study / "activations" / "blocks.0.hook_resid_post@-1.safetensors"
    assert read_header(rows)["model"]["transformer"] == used
    page = (study / "reporting" / "home_study.md").read_text()
    assert f"The transformer's fingerprint is `{fingerprint}`." in page
    assert "is one that it trained itself, from seed 0." in page


def test_summary_follows_its_schema(study):
    summary = read_newest(study / "consistency" / "summary.json")
    jsonschema.Draft202012Validator.check_schema(summary_schema())
    checker = jsonschema.Draft202012Validator(summary_schema())
    assert [error.message for error in checker.iter_errors(summary)] == []
    # it does look: what it forbids is found
    for spoil in (
        lambda s: s.pop("schema_version"),
        lambda s: s.update(extra=1),
        lambda s: s["groups"][0].update(mean="high"),
        lambda s: s["groups"][0].update(unheard_of=1.0),
        lambda s: s["provenance"].pop("plan"),
        lambda s: s["provenance"]["activations"][0].update(fingerprint="?"),
    ):
        changed = copy.deepcopy(summary)
        spoil(changed)
        assert not checker.is_valid(changed)


def test_one_mlflow_run_with_a_child_for_every_sae(study):
    parent = runs_of(study, parent=True)[-1]  # the session of the whole study
    assert parent.info.status == "FINISHED"
    assert parent.data.params["task.modulus"] == "17"
    assert parent.data.params["campaign.plan.architectures.topk.k"] == "[3]"
    assert parent.data.params["sae_training.dead_latents"] == "auto"
    assert "version.transformer" in parent.data.tags
    assert parent.data.tags["kedro.env"] == "test"
    client = client_of(study)
    history = client.get_metric_history(parent.info.run_id, "transformer.train_loss")
    assert [point.step for point in history] == sorted({point.step for point in history})
    assert len(history) > 3
    plan = pd.read_parquet(study / "saes" / "plan.parquet")
    children = runs_of(study, parent=False)
    assert {child.info.run_name for child in children} == set(plan["sae_id"])
    for child in children:
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.status == "FINISHED"
        assert np.isfinite(child.data.metrics["fvu"])
        assert int(child.data.params["d_sae"]) in (8, 16)
        transformer = parent.data.tags["reloaded.fingerprint"]
        assert child.data.params["transformer"] == transformer
    curve = client.get_metric_history(children[0].info.run_id, "training.fvu")
    assert [point.step for point in curve] == [20, 40, 60]
    figures = {item.path for item in client.list_artifacts(parent.info.run_id, "figures")}
    assert "figures/training_figure.png" in figures


def test_mlflow_has_the_curves_and_the_results_of_each_sae(study):
    parent = runs_of(study, parent=True)[-1]  # the session of the whole study
    metrics = parent.data.metrics
    # system_metrics are off here; they are eight
    assert len(metrics) <= 50, sorted(metrics)
    assert not [name for name in metrics if "config" in name or "threshold" in name]
    groups = pd.read_parquet(study / "consistency" / "groups.parquet")
    own = groups[groups["hook"] == "blocks.0.hook_resid_post@-1"]
    own = own.query("score == 'pw_mcc' and not signed and space == 'full'")
    assert metrics["consistency.pw_mcc"] == pytest.approx(own["mean"].mean())
    assert metrics["consistency.pw_mcc_isotropic"] == pytest.approx(own["isotropic_mean"].mean())
    features = pd.read_parquet(study / "consistency" / "features.parquet")
    full = features[features["space"] == "full"]
    table = pd.read_parquet(study / "saes" / "plan.parquet").set_index("sae_id")
    for child in runs_of(study, parent=False):
        row = table.loc[child.info.run_name]
        params, metrics = child.data.params, child.data.metrics
        expected = {name: str(row[name]) for name in ("architecture", "d_sae", "seed")}
        assert {name: params[name] for name in expected} == expected
        assert params["plan.group"] == row["group"]
        assert params.get("k") == (None if pd.isna(row["k"]) else str(int(row["k"])))
        suffix = "@untrained" if row["model"] == "untrained" else ""
        assert params["plan.hook"] == f"{row['hook_name']}@{row['position']}{suffix}"
        assert "cosine_to_init" in metrics
        own = full[full["id"] == child.info.run_name]
        if row["model"] == "untrained":  # they are a null: no table says more of them
            assert np.isnan(metrics["reproducibility"])
            continue
        assert metrics["n_live"] == len(own)
        assert metrics["reproducibility"] == pytest.approx(own["reproducibility"].mean())
        everywhere = (own["n_seeds_found"] == own["n_other_seeds"]).mean()
        assert metrics["found_in_every_seed"] == pytest.approx(everywhere)
        counts = {
            f"kind.{kind.replace(',', '')}": n for kind, n in own["kind"].value_counts().items()
        }
        assert {name: metrics[name] for name in counts} == counts
    names = {model.name for model in client_of(study).search_registered_models()}
    assert names == {f"husai-{group.replace(' ', '-')}" for group in table["group"]}


def test_logged_model_holds_no_pickle_and_predicts(study, monkeypatch):
    parent = runs_of(study, parent=True)[-1]  # the session of the whole study
    client = client_of(study)
    models = client.search_logged_models([parent.info.experiment_id])
    (model,) = [model for model in models if model.name == "transformer"]
    folder = Path(model.artifact_location.removeprefix("file://"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: f"sqlite:///{study / 'mlflow.db'}")
    loaded = mlflow.pyfunc.load_model(str(folder))
    examples = pd.read_parquet(next((study / "dataset" / "examples.parquet").glob("*/*")))
    tokens = examples.filter(regex=r"^token_\d+$").to_numpy()
    predicted = loaded.predict(tokens)[:, :17].argmax(axis=1)
    evaluation = json.loads((study / "transformer" / "evaluation.json").read_text())
    test = (examples["split"] == "test").to_numpy()
    accuracy = (predicted == examples["answer"].to_numpy())[test].mean()
    assert accuracy == pytest.approx(evaluation["test_accuracy"])


def test_a_second_session_is_a_second_run_and_trains_nothing_again(study):
    before = {p.name: p.read_bytes() for p in (study / "saes" / "trained").iterdir()}
    first = {r.info.run_id for r in runs_of(study, parent=True)}
    run(study, pipeline_names=["sae_training"])
    after = {p.name: p.read_bytes() for p in (study / "saes" / "trained").iterdir()}
    # the seconds it took are in the file: equal bytes were not trained again
    assert after == before
    runs = runs_of(study, parent=True)
    assert len(runs) == len(first) + 1
    assert {r.info.status for r in runs} == {"FINISHED"}


def test_the_plan_of_a_campaign_that_runs_is_not_overwritten(study):
    from husai.storage import locked

    plan = (study / "saes" / "plan.parquet").read_bytes()
    # a lock of another open file is as good as another process's
    with (
        locked(study / "saes" / "campaign"),
        pytest.raises(StudyError, match=r"process .* works on this campaign"),
    ):
        run(study, {"campaign": {"plan": {"d_sae": [8]}}}, pipeline_names=["sae_training"])
    assert (study / "saes" / "plan.parquet").read_bytes() == plan


def test_external_saes_are_compared_with_the_trained_ones(study):
    from husai.campaign.records import gather_records
    from husai.compare.files import load_saes
    from husai.pipelines.consistency_analysis.nodes import compare
    from husai.storage import TensorFile

    paths = sorted((study / "saes" / "trained").glob("topk-d16-k3-s*"))
    plan = pd.read_parquet(study / "saes" / "plan.parquet").query("group == 'topk d16 k3'")
    read: list[str] = []

    def reader(path: Path) -> Callable[[], TensorFile]:
        def load() -> TensorFile:
            read.append(path.stem)
            return TensorFile.from_bytes(path.read_bytes(), "")

        return load

    trained = {path.stem: reader(path) for path in paths}
    activations = {
        path.stem: reader(path) for path in (study / "activations").glob("*.safetensors")
    }
    config = ConsistencyConfig(null_draws=2, code_null_draws=2)
    records = gather_records(plan, trained, {"theirs": load_saes(paths)}, activations)
    groups = compare(records, config, pd.DataFrame())[0]
    # every file that the plan names, and no other, once
    assert sorted(read) == sorted([*trained, "blocks.0.hook_resid_post@-1"])
    scores = groups.query("space == 'full' and not signed").set_index(["group", "score"])["mean"]
    # the same files by another way: the same scores
    for score in ("pw_mcc", "mmcs", "shared_fraction", "code_jaccard"):
        assert scores["theirs", score] == pytest.approx(scores["topk d16 k3", score])
    record = records.external[0]
    own = records.first.records[0]
    assert record.motion == pytest.approx(own.motion)
    assert own.plateau is not None
    assert record.converged is own.converged is False


def test_one_seed_is_marked_as_not_defined_and_does_not_stop_the_run(study):
    from husai.pipelines.consistency_analysis import nodes
    from husai.storage import TensorFile

    def partitions(folder: Path) -> dict[str, Any]:
        return {
            path.stem: lambda path=path: TensorFile.from_bytes(path.read_bytes(), "")
            for path in folder.glob("*.safetensors")
        }

    plan = pd.read_parquet(study / "saes" / "plan.parquet").query("seed == 0")
    saes, activations = partitions(study / "saes" / "trained"), partitions(study / "activations")
    config = ConsistencyConfig(null_draws=2, code_null_draws=2, symmetry_draws=1)
    records = nodes.gather(plan, saes, {}, activations, config)
    compared = nodes.compare(records, config, pd.DataFrame())
    groups, pairs, features, coverage, kinds, others, summary = compared
    assert groups["mean"].isna().all()
    assert (groups["reason"] == "one seed: no pair to compare").all()
    assert jsonschema.Draft202012Validator(summary_schema()).is_valid(summary)
    statistics = pd.read_parquet(study / "activations" / "statistics.parquet")
    settings, matched, contrasts, needed, published, orderings = nodes.tabulate_settings(
        plan, groups, pairs, {"saes": lambda: others["saes"]}, statistics, config
    )
    assert (matched["reason"] != "").all()
    assert contrasts.empty
    assert needed["reason"].str.contains("one seed").all()
    assert (orderings["reason"] != "").all()
    ours = published["source"] == "this study"
    assert published.loc[ours, "value"].isna().all()
    trajectories = nodes.follow_training(records, groups, config)
    assert trajectories["reason"].str.contains("one seed").all()
    correlates = nodes.correlate_features(features, config)
    assert (correlates["reason"] != "").all()
    for figure in (
        nodes.plot_scores(groups),
        nodes.plot_seeds(pairs),
        nodes.plot_reproducibility(features, kinds, config),
        nodes.plot_settings(settings),
        nodes.plot_trajectories(trajectories),
        nodes.plot_similarity(coverage, kinds, records),
    ):
        assert len(figure.texts) == 1
        assert not figure.axes


def test_an_incomplete_partition_is_trained_again(study):
    from husai.sae import load_sae

    path = next((study / "saes" / "trained").iterdir())
    whole = load_sae(path)
    path.write_bytes(path.read_bytes()[:1000])
    run(study, pipeline_names=["sae_training"])
    # alone in its bank now, not one of three: equal up to the order of float32 sums
    np.testing.assert_allclose(load_sae(path).W_dec, whole.W_dec, atol=1e-4)


def test_a_failed_run_is_marked_with_its_traceback(study, tmp_path):
    import shutil

    shutil.copytree(study, tmp_path / "copy", ignore=shutil.ignore_patterns("ml*"))
    path = next((tmp_path / "copy" / "activations").glob("*resid_post*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Exception, match="not a complete safetensors file"):
        run(tmp_path / "copy", pipeline_names=["sae_training"])
    (failed,) = runs_of(tmp_path / "copy", parent=True)
    assert failed.info.status == "FAILED"
    assert "not a complete safetensors file" in failed.data.tags["error"]
    artifacts = client_of(tmp_path / "copy").list_artifacts(failed.info.run_id)
    assert "traceback.txt" in {item.path for item in artifacts}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"task": {"modulus": 1}}, r"task\.modulus = 1"),
        ({"task": {"train_fraction": 0.9}}, r"train_fraction.* sum"),
        ({"task": {"modolus": 7}}, r"task\.modolus = 7: no such field"),
        ({"tusk": {"modulus": 7}}, r"tusk = .*no such parameter"),
        ({"transformer": {"n_heads": 3}}, r"n_heads = 3 does not divide d_model = 32"),
        ({"transformer": {"d_vocab": 114}}, r"d_vocab = 114"),
        ({"activations": {"hook_names": ["blocks.0.hook_resid"]}}, "no hook 'blocks.0.hook_resid'"),
        ({"activations": {"positions": [5]}}, r"positions: 5 is outside the context of 3"),
        ({"campaign": {"plan": {"d_sae": [2]}}}, r"k: 3 is more than d_sae = 2"),
        ({"campaign": {"plan": {"hook_name": "blocks.0.hook_mlp_out"}}}, "is not extracted"),
        ({"activations": {"untrained": False}}, r"campaign\.plan\.untrained: 'grid', but"),
        ({"campaign": {"compute": {"backend": "slurm"}}}, r"campaign\.compute\.backend = 'slurm'"),
        ({"sae_training": {"batch_size": 5000}}, r"batch_size: 5000 is more than the 260 rows"),
        ({"sae_training": {"steps": -1}}, r"sae_training\.steps = -1"),
    ],
)
def test_bad_input_is_one_error_before_anything_runs(tmp_path, params, message):
    with pytest.raises(StudyError, match=message):
        run(tmp_path, params)
    assert not runs_of(tmp_path, parent=True)
    assert list(tmp_path.rglob("*.parquet")) == []

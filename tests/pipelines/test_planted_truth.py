"""The calibration study on tiny worlds, through its nodes as Kedro runs them."""

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import ParquetDataset
from pydantic import ValidationError
from scipy import stats

from husai.calibration.config import PlantedTruthConfig
from husai.calibration.scores import SCORES, StudyTables, score_study
from husai.calibration.study import plan_study, study_rows, train_study
from husai.calibration.verdicts import TRUTHS, calibrate_study, gate_outcomes
from husai.campaign import CampaignFolders, results
from husai.consistency import convergence_gate, pw_mcc
from husai.datasets import DirectoryHandle, PlannedPartitionedDataset
from husai.errors import InputError
from husai.hooks.study import StudyConfigLoader
from husai.pipelines.planted_truth import create_pipeline
from husai.sae.trained import read_sae
from husai.settings import CONFIG_LOADER_ARGS
from husai.tasks import planted_dictionary, synth_sae_bench_world

ROOT = Path(__file__).parents[2]
SEEDS = [3, 5, 8]
STUDY: dict[str, Any] = {
    "worlds": {
        "lines": {
            "world": {"n_features": 12, "d_in": 8, "firing": {"kind": "uniform_k", "k": 2}},
            "d_sae": [12, 16],
        },
        "twin": {
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
    "architectures": {"topk": {"k": [2]}, "relu": {"l1_coefficient": [1.0]}},
    "learning_rate": 0.01,
    "seeds": SEEDS,
    "draws": 3,
    "lengths": [40, 120, 360],
    "n_rows": 1500,
    "n_eval_rows": 400,
    "training": {"batch_size": 64},
    "compute": {"processes": 0},
    "n_resamples": 50,
}
TABLES = ("plan", "settings", "runs", "features", "planes", "calibration", "detectors", "gate")


def study_config(**changes):
    return PlantedTruthConfig.model_validate({**copy.deepcopy(STUDY), **changes})


def run_study(folder, config):
    """Run the pipeline in a folder as Kedro does, and return its outputs."""
    catalog = DataCatalog(
        {
            "params:planted_truth": MemoryDataset(config, copy_mode="assign"),
            "planted_campaign_folder": DirectoryHandle(path=str(folder)),
            "planted_saes": PlannedPartitionedDataset(
                path=str(folder / "trained"),
                plan=str(folder / "plan.parquet"),
                filename_suffix=".safetensors",
                dataset={"type": "husai.datasets.TensorDataset"},
            ),
            **{
                f"planted_{name}": ParquetDataset(filepath=str(folder / f"{name}.parquet"))
                for name in TABLES
            },
            # the runner lets go of what it holds in memory once the last node has read it
            "planted_summary": JSONDataset(filepath=str(folder / "summary.json")),
            "planted_figure": MemoryDataset(copy_mode="assign"),
            "planted_page": MemoryDataset(),
        }
    )
    SequentialRunner().run(create_pipeline(), catalog)
    return {
        name: catalog.load(f"planted_{name}") for name in (*TABLES, "summary", "figure", "page")
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("planted")


@pytest.fixture(scope="module")
def study(folder):
    return run_study(folder, study_config())


@pytest.fixture(scope="module")
def trained(study, folder):
    return {i: read_sae(folder / "trained" / f"{i}.safetensors") for i in study["plan"]["sae_id"]}


def test_the_results_table_reads_its_folder_like_any_campaign(study, folder):
    table = results(folder)
    assert table["sae_id"].tolist() == sorted(study["plan"]["sae_id"])
    assert (table["status"] == "done").all()
    assert (table["attempts"] == 1).all()
    planned = study["plan"].set_index("sae_id").loc[table["sae_id"]]
    assert table["group"].tolist() == planned["group"].tolist()
    assert table["training.steps"].tolist() == planned["steps"].tolist()
    assert table["metric.fvu"].notna().all()


def test_the_plan_has_every_combination_once():
    worlds = {**STUDY["worlds"], "lines": {**STUDY["worlds"]["lines"], "d_sae": [8, 12, 16]}}
    plan = plan_study(study_config(dead_latents=["none", "auto"], worlds=worlds))
    assert len(plan) == (3 + 1 + 1) * 2 * 2 * 3 * 3 * 3
    assert plan["sae_id"].is_unique
    assert (plan.groupby("group")["seed"].apply(sorted).map(tuple) == tuple(SEEDS)).all()
    assert (plan.groupby("group")["group_digest"].nunique() == 1).all()
    assert plan["group_digest"].nunique() == plan["group"].nunique()
    assert (plan["init_seed"] == plan["seed"]).all()
    for row in plan.to_dict("records"):
        own = json.loads(row["training"])
        assert own["steps"] == row["steps"] == 20 * own["eval_interval"]
        assert own["dead_latents"] == row["dead_latents"]
        assert row["hook_name"] == f"planted.{row['world']}.{row['draw']}"
    regimes = plan[plan["world"] == "lines"].groupby("d_sae")["regime"].unique()
    assert regimes.map(list).to_dict() == {8: ["compressive"], 12: ["matched"], 16: ["redundant"]}


def test_draws_are_independent_and_held_out_rows_are_new():
    config = study_config()
    worlds = [config.drawn(n, d) for n, d in itertools.product(("lines", "twin"), range(3))]
    dictionaries = [planted_dictionary(world).dictionary for world in worlds]
    for one, other in itertools.combinations(dictionaries, 2):
        assert np.abs(one @ other.T).max() < 0.999
    assert config.drawn("lines", 1) == study_config(draws=5).drawn("lines", 1)
    rows = study_rows(plan_study(config), config)
    assert set(rows) == {f"planted.{n}.{d}@0" for n in config.worlds for d in range(3)}
    data = planted_dictionary(config.drawn("lines", 0))
    ours = rows["planted.lines.0@0"].values.numpy()
    held_out, _ = data.sample(config.n_eval_rows, start=config.n_rows)
    seen = {row.tobytes() for row in ours}
    assert not any(row.tobytes() in seen for row in held_out)


def test_every_length_of_training_is_a_run_of_its_own(study, trained):
    for row in study["plan"].to_dict("records"):
        sae = trained[row["sae_id"]]
        assert sae.metrics["steps"] == row["steps"]
        assert len(sae.history) == 20
        assert sae.snapshots  # what the gate looks at
    settings = study["settings"]
    assert len(settings) == study["plan"]["group"].nunique()
    assert settings[[*SCORES, *TRUTHS, "l0", "true_l0"]].notna().all(axis=None)
    # at the longest length more is recovered than at the shortest, and more than by chance
    by_length = settings[settings["n_planes"] == 0].groupby("steps")
    assert by_length["gt_mcc"].mean().is_monotonic_increasing
    longest = settings[settings["steps"] == 360]
    assert (longest["gt_mcc"] > longest["gt_mcc_null"]).all()


def test_scores_equal_those_computed_from_the_files(study, trained):
    settings = study["settings"].set_index("group")
    for group, part in study["plan"].groupby("group"):
        rows = [trained[i].W_dec.double().numpy() for i in part["sae_id"]]
        brute = np.mean([pw_mcc(a, b) for a, b in itertools.combinations(rows, 2)])
        assert settings.loc[group, "pw_mcc"] == pytest.approx(brute)
        snapshots = [trained[i].snapshots for i in part["sae_id"]]
        gate = convergence_gate(snapshots, int(0.8 * part["steps"].iloc[0]))
        assert settings.loc[group, "converged"] == pytest.approx(
            np.mean([bool(settled) for settled in gate.settled])
        )
        moved = [1 - trained[i].metrics["cosine_to_init"] for i in part["sae_id"]]
        assert settings.loc[group, "moved_from_init"] == pytest.approx(np.mean(moved))
    topk = settings[settings["architecture"] == "topk"]
    np.testing.assert_allclose(topk["l0"], 2, atol=0.1)
    lines = topk[topk["world"] == "lines"]
    np.testing.assert_allclose(lines["true_l0"], 2)
    assert (lines["l0_regime"] == "about").all()


def test_verdicts_are_given_only_for_comparable_scores(study):
    settings = study["settings"]
    matched = settings["regime"] == "matched"
    assert (settings["verdict"][~matched] == "not comparable").all()
    assert settings["excess"][~matched].isna().all()
    assert (settings["verdict_reason"][~matched] != "").all()
    assert settings.loc[matched, ["excess", "excess_low", "excess_high"]].notna().all(axis=None)
    assert "not comparable" not in set(settings["verdict"][matched])


def test_calibration_is_over_draws(study):
    calibration, settings = study["calibration"], study["settings"]
    assert set(calibration["score"]) == set(SCORES)
    assert set(calibration["truth"]) == set(TRUTHS)
    # two worlds of lines x three draws, whatever is trained on them
    whole = calibration[calibration["slice"] == "all"]
    assert (whole["n_clusters"] == 6).all()
    lines = settings[settings["n_planes"] == 0]
    row = whole.set_index(["settings", "truth", "score"]).loc["all lengths", "frr_0.9", "mmcs"]
    expected = stats.spearmanr(lines["mmcs"], lines["frr_0.9"]).statistic
    assert row["rank_correlation"] == pytest.approx(expected)
    assert row["low"] <= row["rank_correlation"] <= row["high"]
    longest = whole[whole["settings"] == "longest"]
    assert (longest["n"] == (2 + 1) * 2 * 3).all()
    within = whole[whole["settings"] == "within runs"]
    assert within["n"].max() == (2 + 1) * 2 * 3
    # a world has three draws: no interval, and why
    worlds = calibration[calibration["slice"] == "world"]
    assert set(worlds["value"]) == {"lines", "twin"}
    assert worlds["low"].isna().all()
    assert (worlds["reason"] != "").all()
    assert set(calibration["slice"]) == {
        "all", "world", "architecture", "regime", "l0_regime", "steps"
    }  # fmt: skip


def test_a_score_that_does_not_vary_has_no_correlation(study):
    flat = study["settings"].assign(mmcs=0.5)
    tables = StudyTables(flat, study["runs"], study["features"], study["planes"])
    calibration = calibrate_study(tables, study_config()).calibration
    mine = calibration[calibration["score"] == "mmcs"]
    assert mine["rank_correlation"].isna().all()
    assert (mine["reason"] != "").all()


def test_the_gate_has_one_outcome_per_sae_and_length(study, trained):
    outcomes = gate_outcomes(study["runs"], study_config())
    assert len(outcomes) == 3 * 2 * 3 * 2 * 3  # widths, architectures, draws, lengths, seeds
    assert set(outcomes["steps"]) == {40, 120}
    assert "circles" not in set(outcomes["world"])
    plan = study["plan"].set_index(["run", "seed", "steps"])["sae_id"]
    for row in outcomes.sample(10, random_state=0).to_dict("records"):
        world = study_config().drawn(row["world"], row["draw"])
        truth = planted_dictionary(world).dictionary.astype(float)
        longest = trained[plan[row["run"], row["seed"], 360]]
        brute = pw_mcc(longest.W_dec.double().numpy(), truth)
        assert row["final_gt_mcc"] == pytest.approx(brute)
    gates = study["gate"].set_index(["gate", "threshold"])
    assert gates.index[gates["in_use"]].tolist() == [("motion and plateau", 0.01)]
    assert (gates["n"] == len(outcomes)).all()
    gate = gates.loc["loss slope"]
    both, motion = gates.loc["motion and plateau"], gates.loc["motion"]
    assert (both["false_pass_n"] <= motion["false_pass_n"]).all()
    moved = (outcomes["motion"] < 0.1) & (outcomes["plateau"] < 0.02)
    assert both.loc[0.1, "false_pass_n"] == moved.sum()
    passed = outcomes["loss_slope"].abs() < 1.0
    settled = (outcomes["gt_mcc"] - outcomes["final_gt_mcc"]).abs() <= 0.02
    assert gate.loc[1.0, "false_pass_n"] == passed.sum()
    assert gate.loc[1.0, "false_hold_n"] == settled.sum()
    if passed.any():
        assert gate.loc[1.0, "false_pass"] == pytest.approx((~settled[passed]).mean())


def test_detectors_name_the_unit_of_their_intervals(study):
    detectors = study["detectors"].set_index(["world", "regime"])
    assert detectors.loc[("all", "all"), "cluster"] == "world draw"
    assert detectors.loc[("all", "all"), "n_clusters"] == 6
    assert detectors.loc[("lines", "matched"), "cluster"] == "group"
    assert detectors.loc[("lines", "matched"), "n_clusters"] == 2 * 3
    assert detectors.loc[("all", "all"), "n"] == 2 * 3 * 3 * (12 + 16 + 12)
    known = detectors[detectors["precision"].notna()]
    np.testing.assert_allclose(known["stable_but_wrong"], 1 - known["precision"])
    np.testing.assert_allclose(known["stable_but_wrong_low"], 1 - known["precision_high"])


def test_planes(study):
    planes = study["planes"]
    assert set(planes["world"]) == {"circles"}
    assert len(planes) == 2 * 3 * 3 * 3
    assert set(planes["seed"]) == set(SEEDS)
    topk = planes[(planes["architecture"] == "topk") & (planes["steps"] == 360)]
    # a plane is found although its axes, whose phase is a convention, are found by chance
    assert topk["plane_recall"].mean() > topk["axis_recovery"].mean()
    assert topk["plane_recall"].mean() > topk["plane_recall_null"].mean()
    assert topk["axis_recovery"].mean() == pytest.approx(
        topk["axis_recovery_chance"].mean(), abs=0.15
    )
    # only latents that are a true line count as one
    features = study["features"]
    data = planted_dictionary(study_config().drawn("circles", 1))
    row = topk[topk["draw"] == 1].iloc[0]
    mine = features[(features["group"] == row["group"]) & (features["seed"] == row["seed"])]
    on_line = data.plane_of_feature[mine["feature"]] < 0
    line = mine[on_line & (mine["truth_similarity"] >= 0.9)]
    expected = line["reproducibility"].mean()
    assert row["reproducibility_on_lines"] == pytest.approx(expected, nan_ok=True)


def test_the_study_has_a_summary_and_a_figure(study, tmp_path):
    summary = study["summary"]
    assert json.loads(json.dumps(summary, allow_nan=False))["n_saes"] == len(study["plan"])
    assert (summary["n_failed"], summary["n_draws"]) == (0, 9)
    assert sum(summary["verdicts"].values()) == (study["settings"]["steps"] == 360).sum()
    figure = study["figure"]
    assert len(figure.axes) == 6
    figure.savefig(tmp_path / "figure.png")
    settings = study["settings"]
    longest = settings[(settings["n_planes"] == 0) & (settings["steps"] == 360)]
    filled: list[float] = []
    hollow: list[float] = []
    for collection in figure.axes[0].collections:
        if collection.get_sizes()[0] == 16:
            faces = hollow if not len(collection.get_facecolors()) else filled
            faces += collection.get_offsets()[:, 0].tolist()
    converged = longest["converged"] == 1
    np.testing.assert_allclose(sorted(filled), sorted(longest["pw_mcc_corrected"][converged]))
    np.testing.assert_allclose(sorted(hollow), sorted(longest["pw_mcc_corrected"][~converged]))


def test_the_page_agrees_with_the_tables(study):
    page, summary = study["page"], study["summary"]
    assert f"{summary['n_saes']} SAEs (0 failed) on {summary['n_draws']} draws of 3 worlds" in page
    assert summary["device_seconds"] > 0
    everything = study["calibration"]
    row = everything[
        (everything["slice"] == "all")
        & (everything["settings"] == "longest")
        & (everything["truth"] == "gt_mcc")
        & (everything["score"] == "mmcs")
    ].iloc[0]
    line = next(line for line in page.splitlines() if line.startswith("| mmcs |"))
    assert line.split("|")[2].strip().startswith(f"{row['rank_correlation']:.2f}")
    gate = study["gate"]
    in_use = gate[gate["in_use"]].iloc[0]
    passed = f"{in_use['false_pass_n']} of {in_use['n']}"
    assert f"| **motion and plateau** | **0.01** | {passed} |" in page
    assert "nan" not in page.lower()


def test_a_failed_sae_does_not_change_the_others(study, trained):
    config, plan = study_config(), study["plan"]
    plan = plan[(plan["world"] == "circles") & (plan["steps"] == 360)]
    group = plan["group"].iloc[0]
    members = plan[plan["group"] == group].set_index("seed")["sae_id"]
    broken = {**trained, members[3]: replace(trained[members[3]], failure="loss is nan")}
    tables = score_study(plan, broken, config)
    runs, before = (t.set_index("sae_id") for t in (tables.runs, study["runs"]))
    before = before.loc[runs.index]
    assert runs.loc[members[3], "failure"] == "loss is nan"
    assert runs.loc[members[3], ["gt_mcc", "loss_slope"]].isna().all()
    # the plateau is of the seeds that are there
    gated = ["plateau", "converged"]
    pd.testing.assert_frame_equal(
        runs.drop(members[3]).drop(columns=gated),
        before.drop(members[3]).drop(columns=gated),
        check_dtype=False,
    )
    for table in (tables.features, tables.planes):
        assert set(table[table["group"] == group]["seed"]) == {5, 8}
    here, whole = (
        t[t["group"] == group].set_index("seed") for t in (tables.planes, study["planes"])
    )
    columns = ["axis_recovery", "plane_recall", "gt_mcc"]
    pd.testing.assert_frame_equal(here[columns], whole.loc[[5, 8], columns])
    row = tables.settings.set_index("group").loc[group]
    assert row["n_seeds"] == 2
    rows = [trained[members[s]].W_dec.double().numpy() for s in (5, 8)]
    assert row["pw_mcc"] == pytest.approx(pw_mcc(*rows))


def test_no_group_with_two_trained_saes_is_an_error(study, trained):
    plan = study["plan"]
    broken = {
        row["sae_id"]: replace(
            trained[row["sae_id"]], failure=None if row["seed"] == 3 else "loss is nan"
        )
        for row in plan.to_dict("records")
    }
    with pytest.raises(InputError, match="no group of seeds has two SAEs"):
        score_study(plan, broken, study_config())


def test_a_second_run_trains_nothing_and_an_edited_world_is_trained_again(tmp_path):
    small = {
        "architectures": {"topk": {"k": [2]}},
        "worlds": {name: STUDY["worlds"][name] for name in ("lines", "twin")},
        "lengths": [20, 40],
        "draws": 1,
    }
    config = study_config(**small)
    first = run_study(tmp_path, config)
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "trained").iterdir()}
    second = run_study(tmp_path, config)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "trained").iterdir()} == files
    pd.testing.assert_frame_equal(first["settings"], second["settings"])
    # a file that is lost is trained again, and so is what was trained on another world
    lost = tmp_path / "trained" / f"{first['plan']['sae_id'][0]}.safetensors"
    assert lost.name.startswith("lines")
    lost.unlink()
    worlds = copy.deepcopy(small["worlds"])
    worlds["twin"]["world"]["noise_std"] = 0.3
    third = run_study(tmp_path, study_config(**{**small, "worlds": worlds}))
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "trained").iterdir()}
    assert now.keys() == files.keys()
    changed = {name for name in files if now[name] != files[name]} - {lost.name}
    assert changed == {name for name in files if name.startswith("twin")}
    # what was trained on the other world is set aside, not overwritten
    aside = list((tmp_path / "campaign" / "quarantine").iterdir())
    assert len(aside) == len(changed)
    for name in ("settings", "runs"):
        same = first[name]["world"] == "lines"
        # the lost one is what it was, but for how long that took
        pd.testing.assert_frame_equal(
            *(t[name][same].drop(columns="device_seconds") for t in (third, first))
        )
    same = first["settings"]["world"] == "lines"
    assert (third["settings"]["gt_mcc"] != first["settings"]["gt_mcc"])[~same].all()


def test_failures_do_not_stop_the_study(tmp_path):
    # a learning rate at which every loss overflows
    config = study_config(
        worlds={"lines": {**STUDY["worlds"]["lines"], "d_sae": [12]}},
        draws=1,
        lengths=[40],
        learning_rate=1e30,
    )
    plan = plan_study(config)
    folders = CampaignFolders(tmp_path / "trained", tmp_path / "checkpoints", tmp_path / "campaign")
    saes = dict(train_study(plan, config, folders, progress=False))
    assert saes.keys() == set(plan["sae_id"])
    assert all(sae.failure for sae in saes.values())
    with pytest.raises(InputError, match="learning_rate"):
        score_study(plan, saes, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"snapshot_interval": 100}}, "training.snapshot_interval"),
        ({"training": {"steps": 100}}, "training.steps: leave it out; the study uses lengths"),
        ({"training": {"dead_latents": "none"}}, "training.dead_latents"),
        ({"training": {"convergence_window": 21}}, "convergence_window: 21"),
        ({"lengths": [100, 50]}, "lengths"),
        ({"lengths": [10, 50]}, "lengths"),
        ({"architectures": {"topk": {}}}, "exactly one"),
        ({"seeds": [0]}, "seeds"),
        ({"seeds": [0, 0]}, "seeds: .*twice"),
        ({"worlds": {"a world": STUDY["worlds"]["lines"]}}, "'a world'"),
        ({"worlds": {"lines": None}}, "worlds"),
    ],
)
def test_bad_parameters_are_named(change, message):
    with pytest.raises(ValidationError, match=message):
        study_config(**change)


def test_impossible_saes_are_named():
    with pytest.raises(InputError, match=r"world lines, topk of 12 latents: .*k: 13"):
        plan_study(study_config(architectures={"topk": {"k": [13]}}))


def test_the_base_configuration_is_valid():
    path = ROOT / "conf" / "base" / "parameters_planted_truth.yml"
    text = path.read_text()
    config = PlantedTruthConfig(**yaml.safe_load(text)["planted_truth"])
    plan = plan_study(config)
    assert f"{len(plan)} SAEs" in text
    from husai.tasks import synth_sae_bench_world

    assert config.worlds["bench"].world == synth_sae_bench_world(128, 32)
    # each regime in more than one law, and enough draws for an interval
    lines = plan[plan["world"] != "circles"]
    for _, part in lines.groupby("regime"):
        assert part["world"].nunique() > 1
        assert part["cluster"].nunique() >= 5


def test_test_environment_is_small():
    options: dict[str, Any] = {**CONFIG_LOADER_ARGS}
    loader = StudyConfigLoader(str(ROOT / "conf"), env="test", **options)
    plan = plan_study(PlantedTruthConfig(**loader["parameters"]["planted_truth"]))
    assert plan["steps"].sum() < 50_000


def test_the_full_benchmark_is_a_configuration():
    options: dict[str, Any] = {**CONFIG_LOADER_ARGS}
    loader = StudyConfigLoader(str(ROOT / "conf"), env="synthsaebench", **options)
    config = PlantedTruthConfig(**loader["parameters"]["planted_truth"])
    assert list(config.worlds) == ["synth_sae_bench_16k"]
    assert config.worlds["synth_sae_bench_16k"].world == synth_sae_bench_world()
    plan = plan_study(config)
    assert set(plan["d_sae"]) == {4096}
    assert set(plan["k"]) == {25}
    # 200 million rows
    assert config.lengths[-1] * config.training.batch_size == pytest.approx(200e6, rel=1e-4)

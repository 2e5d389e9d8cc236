"""A study's name gives it a folder of its own, and a run says what it changes in a study."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro_datasets.json import JSONDataset

from husai.hooks.checks import StudyError
from husai.hooks.selection import NamedPipeline
from husai.hooks.study import NamedStudy, StudyConfigLoader, _check_writable
from husai.settings import CONFIG_LOADER_ARGS
from husai.studies import Study, delete_files, find_study, now, read_study, studies_table

PROJECT = Path(__file__).parents[2]


def places(env: str | None, params: dict[str, Any]) -> tuple[str, str, str]:
    """Name of the study, its folder, and that of its activations."""
    options: dict[str, Any] = dict(CONFIG_LOADER_ARGS)
    loader = StudyConfigLoader(PROJECT / "conf", env, params, **options)
    StudyConfigLoader(PROJECT / "conf", "test", {"study": "another"}, **options)
    found = loader["globals"]
    assert found["data_root"] == "data"  # one store of MLflow for all that is in it
    name = loader["parameters"]["campaign"]["name"]
    return name, found["study_dir"], found["data_dir"]


@pytest.mark.parametrize(
    ("env", "params", "expected"),
    [
        (None, {}, ("home", "data", "data")),
        ("base", {}, ("home", "data", "data")),
        (None, {"study": "a"}, ("a", "data/studies/a", "data/studies/a")),
        (None, {"campaign": {"name": "a"}}, ("a", "data/studies/a", "data/studies/a")),
        ("own", {}, ("own", "data/own", "data/own")),
        ("team", {}, ("home", "data", "data")),  # tracked elsewhere, in the same folder
        ("own", {"study": "b"}, ("b", "data/own/studies/b", "data/own/studies/b")),
        # a campaign reads the activations of the home study
        ("campaign", {}, ("grid", "data/campaign", "data")),
        ("campaign", {"study": "c"}, ("c", "data/campaign/studies/c", "data")),
    ],
)
def test_a_name_gives_a_folder_of_its_own(monkeypatch, env, params, expected):
    monkeypatch.delenv("HUSAI_DATA_DIR", raising=False)
    assert places(env, params) == expected


ENVIRONMENTS = sorted(path.name for path in (PROJECT / "conf").iterdir() if path.is_dir())


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_in_every_environment_a_name_gives_a_folder(monkeypatch, env):
    monkeypatch.delenv("HUSAI_DATA_DIR", raising=False)
    options: dict[str, Any] = dict(CONFIG_LOADER_ARGS)
    loader = StudyConfigLoader(PROJECT / "conf", env, {"study": "mine"}, **options)
    assert loader["globals"]["study_dir"].endswith("/studies/mine")
    assert loader["parameters"]["campaign"]["name"] == "mine"


@pytest.mark.parametrize(
    ("env", "params", "folder"),
    [
        ("own", {}, "data/own"),
        ("own", {"study": "b"}, "data/own/studies/b"),
        ("campaign", {}, "data/campaign"),
        ("test", {}, "data/test"),
    ],
)
def test_a_session_reads_and_writes_in_that_folder(monkeypatch, env, params, folder):
    """After all hooks, some of which read the configuration of other environments."""
    monkeypatch.delenv("HUSAI_DATA_DIR", raising=False)
    bootstrap_project(PROJECT)
    session: Any
    with KedroSession.create(PROJECT, env=env, runtime_params=params) as session:
        catalog = session.load_context().config_loader["catalog"]
    assert catalog["study_report"]["filepath"] == f"{folder}/reporting/home_study.md"
    assert catalog["sae_plan"]["filepath"] == f"{folder}/saes/plan.parquet"


@pytest.mark.parametrize("name", ["", "../up", "a b", 3, "x" * 65])
def test_a_name_that_cannot_be_a_folder_name_is_refused(name):
    with pytest.raises(StudyError, match=r"^study = ") as error:
        StudyConfigLoader(PROJECT / "conf", None, {"study": name}, **CONFIG_LOADER_ARGS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sae_training: [1, 2", r"configuration \(parameters\): .*parameters\.yml"),
        ("sae_training: ${nothing}", "configuration .*nothing"),
        ("sae_training:\n\tsteps: 3", "configuration .*parameters"),
    ],
)
def test_a_configuration_file_that_cannot_be_read_gives_an_error_of_one_line(
    tmp_path, text, message
):
    for env in ("base", "local"):
        (tmp_path / env).mkdir()
    (tmp_path / "base" / "parameters.yml").write_text(text)
    loader = StudyConfigLoader(tmp_path, None, {}, **CONFIG_LOADER_ARGS)
    with pytest.raises(StudyError, match=message) as error:
        loader["parameters"]
    assert "\n" not in str(error.value)
    with pytest.raises(StudyError, match="this folder does not exist"):
        StudyConfigLoader(tmp_path / "nowhere", None, {}, **CONFIG_LOADER_ARGS)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"cannot be written \(.*file is a file\)"):
        _check_writable(tmp_path / "file" / "data" / "studies")
    _check_writable(tmp_path / "not" / "there" / "yet")


def test_an_empty_environment_variable_is_ignored(monkeypatch):
    monkeypatch.setenv("HUSAI_DATA_DIR", "")
    assert places(None, {}) == ("home", "data", "data")


def node(name: str, inputs: list[str], output: str) -> Pipeline:
    return Pipeline(
        [Node(lambda *given: 0, inputs=inputs, outputs=output, name=name)],
        namespace=name,
        prefix_datasets_with_namespace=False,
    )


WHOLE = sum(
    (
        node("train", ["params:training"], "saes"),
        node("compare", ["saes", "params:consistency"], "scores"),
        node("write", ["scores"], "page"),
    ),
    Pipeline([]),
)


class Runs:
    """Runs of a study in a folder, as the hook sees them."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder

    def run(
        self, part: Pipeline, ended: str = "finished", name: str = "s", **groups: dict[str, Any]
    ) -> None:
        catalog = DataCatalog(
            {
                **{
                    one: JSONDataset(filepath=str(self.folder / one / "a.json"))
                    for one in ("saes", "scores", "page")
                },
                **{f"params:{group}": MemoryDataset(value) for group, value in groups.items()},
            }
        )
        hook = NamedStudy()
        hook._folder, hook._root, hook._name = self.folder, self.root, name
        hook.before_pipeline_run({}, part, catalog)
        for output in part.all_outputs():
            catalog.save(output, 1)
        if ended == "finished":
            hook.after_pipeline_run()
        elif ended == "failed":
            hook.on_pipeline_error()


@pytest.fixture
def runs(tmp_path, monkeypatch):
    bootstrap_project(PROJECT)
    monkeypatch.setitem(pipelines, "__default__", WHOLE)
    folder = tmp_path / "studies" / "s"
    runs = Runs(tmp_path, folder)
    runs.run(WHOLE, training={"steps": 9}, consistency={"draws": 1})
    return runs


def test_the_file_of_a_study_records_its_runs_and_how_they_ended(runs):
    study = read_study(runs.folder)
    assert study is not None
    assert (study.name, study.environment, study.root) == ("s", "base", "../..")
    assert study.parts == ("page", "saes", "scores")
    assert study.parameters == {"training": {"steps": 9}, "consistency": {"draws": 1}}
    (row,) = studies_table(runs.root).to_dict("records")
    assert (row["name"], row["state"], row["saes"], row["planned"]) == ("s", "finished", 0, 0)
    runs.run(WHOLE, "failed", training={"steps": 9}, consistency={"draws": 1})
    assert studies_table(runs.root)["state"].tolist() == ["failed"]
    runs.run(WHOLE, "killed", training={"steps": 9}, consistency={"draws": 1})
    assert studies_table(runs.root)["state"].tolist() == ["running"]
    study = read_study(runs.folder)
    assert study is not None
    here, pid, began = study.process.split(":")
    gone = study.model_copy(update={"process": f"{here}:{pid}:{int(began) - 10_000}"})
    gone.write(runs.folder)
    assert studies_table(runs.root)["state"].tolist() == ["interrupted"]


def test_a_second_run_beside_the_first_does_not_end_it(runs, monkeypatch):
    runs.run(WHOLE, "killed", training={"steps": 9}, consistency={"draws": 1})
    monkeypatch.setattr("husai.hooks.study.this_process", lambda: "elsewhere:1:0")
    runs.run(WHOLE, "failed", training={"steps": 9}, consistency={"draws": 1})
    assert studies_table(runs.root)["state"].tolist() == ["running"]


def test_the_same_parameters_again_give_no_warning(runs, caplog):
    with caplog.at_level(logging.WARNING):
        runs.run(WHOLE, training={"steps": 9}, consistency={"draws": 1})
    assert not caplog.records


def test_changed_parameters_give_a_list_of_what_is_made_again_and_what_stays(runs, caplog):
    with caplog.at_level(logging.WARNING):
        runs.run(node("train", ["params:training"], "saes"), training={"steps": 5})
    (record,) = caplog.records
    said = record.getMessage()
    assert "study 's': changed since" in said
    assert "training.steps 9 -> 5" in said
    assert "makes again: train (" in said
    assert "Still made with the old parameters: compare, write." in said
    assert "--params study=NAME" in said
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        runs.run(WHOLE, training={"steps": 5}, consistency={"draws": 2})
    said = caplog.records[0].getMessage()
    assert "consistency.draws 1 -> 2" in said
    assert "steps" not in said
    assert "makes again: compare, write (" in said
    assert "old parameters" not in said


def test_a_name_that_belongs_to_another_study_is_refused(runs):
    with pytest.raises(StudyError, match=r"has study 's' .* not 't' .*studies delete s"):
        runs.run(WHOLE, name="t", training={}, consistency={})
    elsewhere = Runs(runs.root, runs.root / "own")
    with pytest.raises(StudyError, match=r"study 's': .*studies/s has this name; give another"):
        elsewhere.run(WHOLE, training={}, consistency={})
    assert not (runs.root / "own").exists()


def test_deleting_removes_what_its_runs_wrote_and_nothing_else(runs):
    (runs.folder / "mine.txt").write_text("mine")
    delete_files(find_study(runs.root, "s"))
    assert [path.name for path in runs.folder.rglob("*.*")] == ["mine.txt"]
    runs.run(WHOLE, training={}, consistency={})
    (runs.folder / "mine.txt").unlink()
    delete_files(find_study(runs.root, "s"))
    assert not runs.folder.exists()


def test_a_file_that_names_things_outside_deletes_nothing_there(runs):
    (runs.root / "precious").write_text("x")
    study = read_study(runs.folder)
    assert study is not None
    study.model_copy(update={"parts": ("../../precious", "..", "/", "saes")}).write(runs.folder)
    delete_files(find_study(runs.root, "s"))
    assert (runs.root / "precious").exists()
    assert not (runs.folder / "saes").exists()


def test_errors_of_a_user_give_one_line(tmp_path):
    from husai.errors import InputError

    with pytest.raises(InputError, match=r"nowhere: no such folder; run a study first"):
        studies_table(tmp_path / "nowhere")
    assert studies_table(tmp_path).empty
    with pytest.raises(InputError, match=r"study 'x': not found in .*; the studies there: none"):
        find_study(tmp_path, "x")
    about = {
        "environment": "base",
        "root": ".",
        "command": "",
        "started": now(),
        "process": "h:0:0",
    }
    for folder in ("a", "b"):
        Study(name="twice", **about).write(tmp_path / folder)
    with pytest.raises(InputError, match=r"study 'twice': more than one .*/a, .*/b\); choose"):
        find_study(tmp_path, "twice")
    (tmp_path / "a" / "study.json").write_text('{"name": "../.."}')
    with pytest.raises(InputError, match=r"study\.json: .*remove this file"):
        studies_table(tmp_path)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"from_nodes": ["train.trian"]}, r"node 'train\.trian' .*did you mean train\.train\?"),
        ({"to_nodes": ["compra"]}, r"did you mean compare\.compare\?"),
        ({"node_names": ["write"]}, r"did you mean write\.write\?"),
        ({"tags": ["x"]}, r"tag 'x' does not exist"),
        ({"from_inputs": ["sae"]}, r"dataset 'sae' .*did you mean saes\?"),
        ({"to_outputs": ["scroes"]}, r"did you mean scores\?"),
        ({"node_namespaces": ["trane"]}, r"did you mean train\?"),
        (
            {"node_names": ["train.train"], "to_outputs": ["scores"], "from_inputs": ["page"]},
            "no",
        ),
    ],
)
def test_a_misspelt_selection_gives_an_error_of_one_line(selection, message):
    # as Kedro puts the pipelines of a run together
    whole = Pipeline([]) + NamedPipeline(WHOLE.nodes) + NamedPipeline([])
    with pytest.raises(StudyError, match=message) as error:
        whole.filter(**selection)
    assert "\n" not in str(error.value)
    assert len(whole.filter(from_nodes=["train.train"]).nodes) == 3

"""A chain of datasets: a dataset made from an older version of its input is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from kedro_datasets.partitions import PartitionedDataset

from husai.hooks.checks import StudyError
from husai.hooks.errors import PlainErrors
from husai.hooks.lineage import Lineage


def stage(name: str, inputs: list[str], output: str) -> Pipeline:
    def double(*values):
        return {"part": {"v": [values and sum(len(str(v)) for v in values)]}}

    def once(value):
        return {"v": value["v"] * 2}

    def count(parts):
        return {"v": sorted((name, load()["v"]) for name, load in parts.items())}

    work = {"first": once, "second": double, "third": count}[name]
    return Pipeline(
        [Node(work, inputs=inputs, outputs=output, name=name)],
        namespace=name,
        prefix_datasets_with_namespace=False,
    )


FIRST = stage("first", ["seed"], "model")
SECOND = stage("second", ["model"], "parts")
THIRD = stage("third", ["parts"], "table")


class Study:
    """A data folder and its catalog."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = {"type": "json.JSONDataset"}
        self.catalog = lambda: DataCatalog(
            {
                "seed": JSONDataset(filepath=str(folder / "seed.json")),
                "model": JSONDataset(filepath=str(folder / "model.json")),
                "parts": PartitionedDataset(
                    path=str(folder / "parts"), dataset=file, filename_suffix=".json"
                ),
                "table": JSONDataset(filepath=str(folder / "table.json")),
            }
        )
        self.seed("1")

    def seed(self, value: str) -> None:
        (self.folder / "seed.json").write_text(f'{{"v": [{value}]}}')

    def run(self, *parts: Pipeline) -> None:
        pipeline, catalog = sum(parts, Pipeline([])), self.catalog()
        manager = _create_hook_manager()
        manager.register(Lineage())
        manager.hook.before_pipeline_run(run_params={}, pipeline=pipeline, catalog=catalog)
        SequentialRunner().run(pipeline, catalog, manager)
        manager.hook.after_pipeline_run(
            run_params={}, run_result={}, pipeline=pipeline, catalog=catalog
        )


# two nodes with a dataset between them that is kept in memory alone
THIRD_IN_TWO = Pipeline(
    [
        Node(lambda parts: [load()["v"] for _, load in sorted(parts.items())], "parts", "kept"),
        Node(lambda kept: {"v": kept}, "kept", "table"),
    ],
    namespace="third",
    prefix_datasets_with_namespace=False,
)
READ_TABLE = Pipeline([Node(lambda table: {"v": 1}, inputs="table", outputs="end", name="end")])


@pytest.fixture
def study(tmp_path: Path) -> Study:
    study = Study(tmp_path)
    study.run(FIRST, SECOND, THIRD)
    return study


def test_matching_data_are_read_in_separate_runs_and_in_one_run(study):
    study.run(THIRD)
    study.run(SECOND)
    study.run(THIRD)
    study.run(FIRST, SECOND, THIRD)


def test_a_changed_source_is_refused_two_stages_on_until_all_is_made_again(study):
    study.seed("2")
    study.run(FIRST)
    with pytest.raises(StudyError, match=r"parts: made from .*model\.json with fingerprint "):
        study.run(THIRD)
    study.run(SECOND)
    study.run(THIRD)


def test_the_error_gives_the_command_that_makes_it_again(study):
    study.seed("234")
    study.run(FIRST)
    with pytest.raises(StudyError, match=r"make it again: kedro run --pipelines=second$"):
        study.run(THIRD)


def test_a_file_that_replaces_a_result_is_accepted_as_input_with_a_warning(study, caplog):
    (study.folder / "parts" / "part.json").write_text('{"v": [7]}')
    study.run(THIRD)  # it makes the table from it
    assert f"{study.folder / 'parts'}: changed since it was written" in caplog.text
    assert "kedro run --pipelines=second" in caplog.text
    assert "7" in (study.folder / "table.json").read_text()


def test_the_same_content_made_again_is_the_same_input(study):
    study.run(FIRST)
    study.run(THIRD)


def test_results_of_the_same_run_are_checked_when_they_are_read(study):
    study.seed("234")
    with pytest.raises(StudyError, match="make it again"):
        study.run(FIRST, THIRD)


def test_the_command_names_everything_that_is_out_of_date_in_order(study):
    study.seed("234")
    study.run(FIRST)
    # the table is out of date because the parts are, though it was made from these very parts
    with pytest.raises(StudyError, match=r"make it again: kedro run --pipelines=second,third$"):
        study.run(READ_TABLE)
    study.run(SECOND, THIRD)
    study.run(READ_TABLE)


def test_for_a_file_replaced_by_hand_both_remedies_are_given(study):
    (study.folder / "parts" / "part.json").write_text('{"v": [7]}')
    ways = (
        r"to continue with the present file: kedro run --from-inputs=parts; "
        r"to overwrite it: kedro run --pipelines=second,third$"
    )
    with pytest.raises(StudyError, match=ways):
        study.run(READ_TABLE)
    # what the first one names runs, and leaves the file as it is
    study.run(sum((FIRST, SECOND, THIRD), Pipeline([])).from_inputs("parts"))
    assert (study.folder / "parts" / "part.json").read_text() == '{"v": [7]}'
    study.run(READ_TABLE)


def test_data_that_passed_through_memory_are_traced_back_to_files(study):
    study.run(THIRD_IN_TWO)
    study.run(READ_TABLE)
    study.seed("234")
    study.run(FIRST, SECOND)
    with pytest.raises(StudyError, match=r"table\.json: .*: kedro run --pipelines=third$"):
        study.run(READ_TABLE)
    study.run(THIRD_IN_TWO)
    study.run(READ_TABLE)


def test_a_run_that_fails_on_a_changed_file_names_it(study):
    lineage = Lineage()
    errors = PlainErrors(lineage)
    arguments = {"run_params": {"env": "test"}, "catalog": study.catalog()}
    errors.on_pipeline_error(error=KeyError("v"), **arguments)  # nothing changed: a bug of ours
    (study.folder / "parts" / "part.json").write_text('{"w": [7]}')
    lineage.before_pipeline_run(pipeline=THIRD, **arguments)
    errors.on_pipeline_error(error=OSError("disk"), **arguments)
    words = r"parts: changed since it was written, .*KeyError: 'v'.*--pipelines=second --env=test$"
    with pytest.raises(StudyError, match=words):
        errors.on_pipeline_error(error=KeyError("v"), **arguments)

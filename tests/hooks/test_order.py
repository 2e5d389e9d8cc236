"""Missing inputs of a run: the error gives the command that makes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import Node, Pipeline
from kedro_datasets.json import JSONDataset

from husai.errors import CampaignStopped, InputError
from husai.hooks.checks import StudyError
from husai.hooks.errors import PlainErrors, StoppedError
from husai.hooks.lineage import Lineage
from husai.hooks.order import check_environment, check_inputs, check_known, unread_parameters


def step(name: str, inputs: list[str], output: str) -> Pipeline:
    return Pipeline([Node(lambda *given: 0, inputs=inputs, outputs=output, name=name)])


PIPELINES = {
    "first": step("one", ["params:task"], "a"),
    "second": step("two", ["a", "given"], "b"),
    "third": step("three", ["a", "b", "params:plan"], "c"),
}


@pytest.fixture
def catalog(tmp_path: Path) -> DataCatalog:
    files = {name: JSONDataset(filepath=str(tmp_path / f"{name}.json")) for name in "abc"}
    return DataCatalog({**files, "given": JSONDataset(filepath=str(tmp_path / "given.json"))})


def test_the_command_makes_missing_data_in_the_order_needed(catalog):
    with pytest.raises(InputError, match=r"^a, b: not made yet; .*--pipelines=first,second --env"):
        check_inputs(PIPELINES["third"], catalog, PIPELINES, " --env=test")
    catalog.save("a", 1)
    with pytest.raises(InputError, match=r"^b: not made yet; make it .*--pipelines=second$"):
        check_inputs(PIPELINES["third"], catalog, PIPELINES, "")
    catalog.save("b", 1)
    check_inputs(PIPELINES["third"], catalog, PIPELINES, "")
    # what no pipeline makes is the user's to give, or optional
    check_inputs(PIPELINES["second"], catalog, PIPELINES, "")
    whole = sum(PIPELINES.values(), Pipeline([]))
    check_inputs(whole, catalog, PIPELINES, "")


def test_if_two_pipelines_make_it_the_one_of_the_environment_is_named(catalog):
    both = {**PIPELINES, "another": step("other", ["params:task"], "a")}
    for own in ("first", "another"):
        pipelines = {**both, "__default__": PIPELINES["second"] + both[own]}
        with pytest.raises(InputError, match=rf"--pipelines={own}$"):
            check_inputs(PIPELINES["second"], catalog, pipelines, "")


def test_if_several_pipelines_make_it_the_one_of_the_study_is_named(catalog):
    other = {"another": step("another", [], "a"), **PIPELINES}
    with pytest.raises(InputError, match="--pipelines=another"):
        check_inputs(PIPELINES["second"], catalog, other, "")
    study = {**other, "__default__": sum(PIPELINES.values(), Pipeline([]))}
    with pytest.raises(InputError, match="--pipelines=first"):
        check_inputs(PIPELINES["second"], catalog, study, "")


def test_typing_errors_are_named_with_the_nearest_name(tmp_path):
    for name in ("base", "test", "campaign"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"environment 'tst' does not exist; did you mean test\?"):
        check_environment("tst", str(tmp_path), "base")
    check_environment("test", str(tmp_path), "base")
    check_environment(None, str(tmp_path), "base")
    with pytest.raises(InputError, match=r"pipeline 'frist' does not exist; did you mean first\?"):
        check_known("pipeline", ["frist"], list(PIPELINES))
    with pytest.raises(InputError, match=r"pipeline 'xyz' .*choose from first, second, third"):
        check_known("pipeline", ["xyz"], list(PIPELINES))


def test_parameters_that_nothing_reads_are_listed():
    assert unread_parameters({"plan": {}, "task.modulus": 3}, PIPELINES["third"]) == ["task"]
    assert unread_parameters({}, PIPELINES["third"]) == []


def tell(error: Exception, catalog: DataCatalog) -> None:
    PlainErrors(Lineage()).on_pipeline_error(error, {"env": "test"}, catalog)


def test_errors_of_datasets_are_one_line_with_the_file(catalog, tmp_path):
    (tmp_path / "given.json").write_text('{"torn')
    with pytest.raises(DatasetError) as torn:
        catalog.load("given")
    with pytest.raises(StudyError, match=r"^given: .*given\.json cannot be read \(JSON") as raised:
        tell(torn.value, catalog)
    assert "\n" not in str(raised.value)

    def wrapped(cause: Exception) -> DatasetError:
        error = DatasetError("given: Failed")
        error.__cause__ = cause
        return error

    with pytest.raises(StudyError, match=r"^k: wrong$"):
        tell(wrapped(InputError("k:\n wrong")), catalog)
    with pytest.raises(StoppedError, match=r"^full$"):
        tell(wrapped(CampaignStopped("full")), catalog)
    # what a user did not cause keeps its traceback
    tell(RuntimeError("ours"), catalog)
    tell(DatasetError("Failed while saving"), catalog)

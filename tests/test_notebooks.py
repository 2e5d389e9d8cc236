"""The notebooks are committed with their outputs, and are small enough to read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("[0-9]_*.ipynb"))


def runner() -> Any:
    spec = importlib.util.spec_from_file_location("run_notebooks", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cell(source: str) -> dict[str, Any]:
    return {"cell_type": "code", "source": source.splitlines(keepends=True), "outputs": []}


def test_there_are_five_notebooks() -> None:
    assert [name[0] for name in NOTEBOOKS] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_has_the_outputs_of_its_cells_and_is_small(name: str) -> None:
    path = FOLDER / name
    assert path.stat().st_size < runner().LARGEST, f"python notebooks/run.py {name}"
    code = [one for one in json.loads(path.read_text())["cells"] if one["cell_type"] == "code"]
    assert [one["execution_count"] for one in code] == list(range(1, len(code) + 1))
    shown = [output for one in code for output in one["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert all(output["output_type"] in ("stream", "display_data") for output in shown)


def test_outputs_of_cells_are_kept() -> None:
    notebook = {
        "cells": [
            cell("x = 6\nprint(x * 7)"),
            {"cell_type": "markdown", "source": ["words"]},
            cell("import pandas as pd\npd.DataFrame({'a': [x]})"),
        ]
    }
    first, words, last = runner().run_notebook(notebook)["cells"]
    assert "".join(first["outputs"][0]["text"]) == "42\n"
    assert words == notebook["cells"][1]
    assert "text/html" in last["outputs"][0]["data"]
    assert last["execution_count"] == 2


def test_each_of_several_notebooks_keeps_its_own_pictures(tmp_path: Path) -> None:
    drawn = cell(
        "%matplotlib inline\nfrom matplotlib.figure import Figure\n"
        "figure = Figure(figsize=(1, 1))\nfigure.subplots()\nfigure"
    )
    paths = [tmp_path / f"{name}.ipynb" for name in "ab"]
    for path in paths:
        path.write_text(json.dumps({"cells": [drawn]}))
    runner().run_apart([str(path) for path in paths], tmp_path)
    for path in paths:
        (output,) = json.loads(path.read_text())["cells"][0]["outputs"]
        assert list(output["data"]) == ["image/png"], path.name


def test_a_failing_cell_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="cell 2 of the notebook failed: division by zero"):
        runner().run_notebook({"cells": [cell("x = 0"), cell("1 / x")]})
    capsys.readouterr()


def test_the_computation_by_hand_agrees_with_the_library() -> None:
    """The third notebook needs no study: it is run here."""
    path = FOLDER / "3_nulls_and_intervals.ipynb"
    cells = runner().run_notebook(json.loads(path.read_text()))["cells"]
    lines = [
        line.strip()
        for one in cells
        for output in one.get("outputs", ())
        for line in output.get("text", ())
    ]
    by_hand, library = (
        [line.removeprefix(who).strip() for line in lines if line.startswith(f"{who} ")]
        for who in ("by hand", "library")
    )
    assert len(by_hand) == 2
    assert by_hand == library


def test_features_of_shipped_saes_need_no_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fifth notebook runs from the package alone, and has the tables that were saved."""
    monkeypatch.setenv("HUSAI_DATA_DIR", "no study is here")
    notebook = json.loads((FOLDER / "5_shipped_saes.ipynb").read_text())
    again = runner().run_notebook(notebook)["cells"]

    def tables(cells: list[Any]) -> list[str]:
        outputs = [output["data"] for one in cells for output in one.get("outputs", ())]
        return ["".join(data["text/html"]) for data in outputs if "text/html" in data]

    assert len(tables(again)) == 4
    assert tables(again) == tables(notebook["cells"])

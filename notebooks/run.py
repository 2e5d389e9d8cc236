"""Run the notebooks on a study and save their outputs in them.

    python notebooks/run.py                     # all notebooks, on the study in ../data
    python notebooks/run.py --study FOLDER 1_first_look.ipynb

Each notebook runs in a Python process of its own. It needs only IPython, and no notebook sees what
another has left: matplotlib tells IPython only once per process how to show figures, so a second
notebook in the same process would have no pictures. Jupyter opens them as usual.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from husai.storage import atomic_path

FOLDER = Path(__file__).parent
LARGEST = 150_000
"""Bytes of a notebook, outputs included: more than that nobody reads."""


def run_notebook(notebook: dict[str, Any]) -> dict[str, Any]:
    """Run the code cells of a notebook, in order, in one fresh namespace.

    Parameters
    ----------
    notebook
        As read from its JSON.

    Returns
    -------
    dict
        The notebook with the outputs of each cell.

    Raises
    ------
    RuntimeError
        When a cell fails; the cause is the cell's own error.
    """
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    class Shell(InteractiveShell):
        """A shell without windows: ``%matplotlib inline`` needs none."""

        def enable_gui(self, gui: Any = None) -> None:
            """Nothing to enable."""

    shell = Shell.instance(user_ns={})  # the current shell: what is shown is captured from that
    try:
        cells = _run_cells(notebook["cells"], shell, capture_output)
    finally:
        Shell.clear_instance()
    return {**notebook, "cells": cells}


def _run_cells(notebook: list[Any], shell: Any, capture_output: Any) -> list[Any]:
    cells, count = [], 0
    for cell in notebook:
        if cell["cell_type"] != "code":
            cells.append(cell)
            continue
        count += 1
        # within the trap, since a cell that sets it anew would show its value on the terminal
        with shell.display_trap, capture_output() as captured:
            result = shell.run_cell("".join(cell["source"]), store_history=False)
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            raise RuntimeError(f"cell {count} of the notebook failed: {error}") from error
        outputs = [_stream(captured.stdout)] if captured.stdout else []
        outputs += [_display(one.data) for one in captured.outputs]
        cells.append({**cell, "execution_count": count, "outputs": outputs})
    return cells


def _stream(text: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}


def _display(data: dict[str, Any]) -> dict[str, Any]:
    """Write what a cell shows as notebooks keep it: pictures as base64, texts as lines."""
    kept = {}
    for kind, value in data.items():
        if isinstance(value, bytes):
            value = base64.b64encode(value).decode()
        kept[kind] = value if kind == "image/png" else str(value).splitlines(keepends=True)
    if "image/png" in kept:
        kept = {"image/png": kept["image/png"]}
    return {"output_type": "display_data", "data": kept, "metadata": {}}


@contextmanager
def study_at(folder: Path) -> Iterator[None]:
    """Let notebooks read a study's folder."""
    before = os.environ.get("HUSAI_DATA_DIR")
    os.environ["HUSAI_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["HUSAI_DATA_DIR"]
        else:
            os.environ["HUSAI_DATA_DIR"] = before


def main() -> None:
    """Run notebooks and write them with their outputs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("notebooks", nargs="*", help="names of notebooks; all when none is given")
    parser.add_argument("--study", type=Path, default=FOLDER.parent / "data", help="its folder")
    given = parser.parse_args()
    names = given.notebooks or sorted(path.name for path in FOLDER.glob("*.ipynb"))
    study = given.study.resolve()
    if len(names) > 1:
        run_apart(names, study)
        return
    for name in names:
        path = FOLDER / name
        start = time.perf_counter()
        with study_at(study):
            done = run_notebook(json.loads(path.read_text(encoding="utf-8")))
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n")
        seconds = time.perf_counter() - start
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB, {seconds:.0f} s", flush=True)


def run_apart(names: Sequence[str], study: Path) -> None:
    """Run notebooks one after the next, each in a process of its own."""
    for name in names:
        command = [sys.executable, __file__, "--study", str(study), str(FOLDER / name)]
        if subprocess.run(command, cwd=FOLDER, check=False).returncode:
            sys.exit(f"{name} failed; the notebooks before it are written")


if __name__ == "__main__":
    main()

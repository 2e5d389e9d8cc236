"""A Kedro hook that prints the main finding at the end of a run, and where to see more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from kedro.framework.hooks import hook_impl

from husai.provenance import without_secrets

if TYPE_CHECKING:
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline

PAGE, SENTENCE = "study_report", "study_sentence"


class RunEnding:
    """Prints the study's main sentence, the path of its page, and two commands that show more."""

    @hook_impl(trylast=True)  # after the messages of all other hooks
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Print this if the run wrote the page."""
        if PAGE not in pipeline.all_outputs():
            return
        from husai.hooks.order import typed_options

        dataset: Any = catalog.get(PAGE)
        page = Path(dataset._filepath)
        sentence = catalog.load(SENTENCE)
        options = typed_options(run_params)
        click.echo(f"\n{sentence}\n")
        click.echo(f"The page: {shortened(page)}")
        click.echo(f"Figures, tables and pipelines in the browser: {kedro()} viz run{options}")
        click.echo(f"Every run and SAE in the browser: {_runs()}")


def _runs() -> str:
    """Return where the runs can be seen: the address of their server, or a command."""
    import mlflow

    server = mlflow.get_tracking_uri()
    return without_secrets(server) if server.startswith("http") else "make ui"


def kedro() -> str:
    """Return the ``kedro`` command to type, with its folder if that is in the current folder."""
    beside = shortened(Path(sys.executable).parent / "kedro")
    return "kedro" if Path(beside).is_absolute() else beside


def shortened(path: Path) -> str:
    """Return a path relative to the current folder if it lies in it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)

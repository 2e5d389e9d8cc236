"""``husai studies``: list the studies, and delete one."""

from __future__ import annotations

from pathlib import Path

import click

from husai.commands.shared import OK


@click.group(invoke_without_command=True)
@click.option(
    "--data",
    type=Path,
    metavar="FOLDER",
    help="Folder of all data.  [default: HUSAI_DATA_DIR, or data]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list, one entry per study.")
@click.pass_context
def studies(context: click.Context, data: Path | None, as_json: bool) -> int:
    """List the studies: name, folder, last run, state, SAEs of the plan.

    kedro run --params study=NAME gives a study its name; without one it has the name of its
    environment.
    """
    from husai.studies import data_folder, studies_table

    context.obj = data or Path(data_folder())
    if context.invoked_subcommand is not None:
        return OK
    table = studies_table(context.obj)
    if as_json:
        click.echo(table.to_json(orient="records", indent=1))
    elif table.empty:
        click.echo(f"{context.obj}: no study yet; kedro run makes one")
    else:
        counts = zip(table["saes"], table["planned"], strict=True)
        shown = table.assign(saes=[f"{there} of {planned}" for there, planned in counts])
        click.echo(shown.drop(columns="planned").to_string(index=False, justify="left"))
    return OK


@studies.command()
@click.argument("name", metavar="NAME")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(data: Path, name: str, yes: bool) -> int:
    """Delete a study: its files and its runs in MLflow."""
    from husai.errors import InputError
    from husai.studies import check_idle, delete_files, files_of_study, find_study, sae_run_ids
    from husai.tracking.studies import client_below, delete_runs, study_runs

    found = find_study(data, name)
    check_idle(found)
    client = client_below(found.root)
    runs = [] if client is None else study_runs(client, name, sae_run_ids(found))
    files = files_of_study(found)
    click.echo(f"study '{name}': {len(runs)} MLflow runs, and")
    for path in files:
        click.echo(f"  {path}")
    if not yes:
        try:
            click.confirm("Delete them?", abort=True)
        except click.Abort as error:
            raise InputError(
                f"study '{name}': nothing is deleted; to delete without a question, give --yes"
            ) from error
    if client is not None:  # files last: if this fails, they still say which runs to delete
        delete_runs(client, runs)
    delete_files(found)
    click.echo(f"deleted: study '{name}'")
    if client is not None and runs:
        click.echo(
            "MLflow only marks runs as deleted; to remove them: "
            f"mlflow gc --backend-store-uri {client.tracking_uri}"
        )
    return OK

"""The studies of a data folder: their names, files and last runs, and deleting one.

A study's folder holds ``study.json``, which every run in it writes. The study of an environment
has the environment's folder; a study with a name has the folder ``studies/NAME`` below it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from pydantic import Field, ValidationError

from husai.boundary import read_json
from husai.campaign.folders import PLAN, RUNS
from husai.campaign.store import SUFFIX
from husai.config import Config, Name, flatten, problems
from husai.errors import InputError
from husai.processes import is_gone
from husai.storage import atomic_path, locked, read_lines

FILE = "study.json"

FOLDER = "studies"
"""Folder of the studies that have names."""

PARAMETER = "study"
"""The parameter that names a study: ``--params study=NAME``."""

LINEAGE = ".made"
"""Folder of the records that say from what each file was made, beside the files."""


NEUTRAL = ("campaign.compute.", "campaign.budget.", "campaign.max_failures", "campaign.name")
"""Parameters that change where and at what cost something is made, but not the result."""


class Study(Config):
    """The content of ``study.json``."""

    name: Name
    environment: str
    root: str
    """Folder of MLflow's store, relative to the study's folder."""
    command: str
    started: str
    ended: str | None = None
    state: Literal["running", "finished", "failed"] = "running"
    process: str
    parts: tuple[str, ...] = ()
    """Files and folders in the study's folder that its runs have written."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Values of every group of parameters at the last run that read it."""

    def write(self, folder: Path) -> None:
        """Write ``study.json`` into the study's folder, whole or not at all."""
        with atomic_path(folder / FILE) as temporary:
            temporary.write_text(self.model_dump_json(indent=1) + "\n")

    @property
    def how_it_stands(self) -> str:
        """Return its state; ``interrupted`` if the process that was running it has ended."""
        gone = self.state == "running" and is_gone(self.process)
        return "interrupted" if gone else self.state


class FoundStudy(NamedTuple):
    """A study and the folder it lies in."""

    folder: Path
    study: Study

    @property
    def root(self) -> Path:
        """The folder of MLflow's store."""
        return (self.folder / self.study.root).resolve()


def now() -> str:
    """The time, as studies write it: UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read_study(folder: Path) -> Study | None:
    """Read ``study.json`` from a folder; None if there is no such file.

    Raises
    ------
    InputError
        When the file cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise InputError(
            f"{path}: {problems(error)[0]}; remove this file: the next run writes it again"
        ) from error


def data_folder(default: str = "data") -> str:
    """Return the folder of all data: ``HUSAI_DATA_DIR`` if it is set, or the environment's own."""
    return os.environ.get("HUSAI_DATA_DIR") or default


def find_studies(root: Path) -> list[FoundStudy]:
    """Find the studies in a folder of data: its own, those of environments, those with names.

    Raises
    ------
    InputError
        When there is no such folder, or a file of a study cannot be read.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; run a study first, or give --data FOLDER")
    found = [
        FoundStudy(folder, study)
        for folder in dict.fromkeys(_places(root))
        if (study := read_study(folder)) is not None
    ]
    return sorted(found, key=lambda one: (one.study.name, one.folder))


def _places(root: Path) -> Iterator[Path]:
    homes = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    yield from homes
    for home in homes:
        if (home / FOLDER).is_dir():
            yield from sorted(path for path in (home / FOLDER).iterdir() if path.is_dir())


def find_study(root: Path, name: str) -> FoundStudy:
    """Find the study with a name.

    Raises
    ------
    InputError
        When there is no such study, or more than one.
    """
    found = find_studies(root)
    named = [one for one in found if one.study.name == name]
    if not named:
        names = sorted({one.study.name for one in found})
        raise InputError(
            f"study '{name}': not found in {root}; the studies there: {', '.join(names) or 'none'}"
        )
    if len(named) > 1:
        places = ", ".join(str(one.folder) for one in named)
        raise InputError(
            f"study '{name}': more than one has this name ({places}); choose with --data FOLDER"
        )
    return named[0]


def studies_table(root: Path) -> pd.DataFrame:
    """Make a table of the studies in a folder of data.

    Returns
    -------
    DataFrame
        ``name``, ``environment``, ``folder``, ``last_run`` (UTC), ``state``, ``saes`` (how many of
        the plan are there), ``planned``, ``page`` (its path, or empty).
    """
    rows = []
    for folder, study in find_studies(root):
        planned = _planned(folder / "saes" / PLAN)
        trained = {path.stem for path in (folder / "saes" / "trained").glob(f"*{SUFFIX}")}
        page = folder / "reporting" / "home_study.md"
        rows.append(
            {
                "name": study.name,
                "environment": study.environment,
                "folder": str(folder),
                "last_run": study.started,
                "state": study.how_it_stands,
                "saes": len(trained & planned),
                "planned": len(planned),
                "page": str(page) if page.is_file() else "",
            }
        )
    columns = ["name", "environment", "folder", "last_run", "state", "saes", "planned", "page"]
    return pd.DataFrame(rows, columns=columns)


def _planned(plan: Path) -> set[str]:
    try:
        return set(pd.read_parquet(plan, columns=["sae_id"])["sae_id"])
    except (OSError, ValueError):  # there is no plan yet, or it cannot be read
        return set()


def sae_run_ids(found: FoundStudy) -> list[str]:
    """Return the ids of the MLflow runs of a study's SAEs that are recorded in its folder."""
    lines = read_lines(found.folder / "saes" / "campaign" / RUNS)
    return list(dict.fromkeys(str(line["run_id"]) for line in lines if "run_id" in line))


def files_of_study(found: FoundStudy) -> list[Path]:
    """List the files and folders that deleting a study removes."""
    folder, study = found
    # only entries of the folder itself, whatever study.json says
    parts = [part for part in study.parts if part == Path(part).name and part != ".."]
    paths = [folder / part for part in (*parts, LINEAGE, FILE)]
    return [path for path in paths if path.exists()]


def check_idle(found: FoundStudy) -> None:
    """Raise an error if a process works on a study.

    Raises
    ------
    InputError
        When one does; the message names the process.
    """
    if found.study.how_it_stands == "running":
        raise InputError(
            f"study '{found.study.name}': process {found.study.process} works on it; stop this "
            "process before you delete the study"
        )


def delete_files(found: FoundStudy) -> None:
    """Remove the files that a study's runs have written, and its folder if it is then empty.

    Raises
    ------
    InputError
        When a process works on the study.
    """
    check_idle(found)
    folder, study = found
    with locked(folder / "saes" / "campaign", f"study '{study.name}'"):
        for path in files_of_study(found):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def changed_groups(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, list[tuple[str, Any, Any]]]:
    """List the parameters that changed and may change results, by group.

    Parameters
    ----------
    before, after
        Group to its values; groups that only one of the two has are left out.

    Returns
    -------
    dict
        Group to its changed fields: dotted name, value before, value after (None: not there).
    """
    found: dict[str, list[tuple[str, Any, Any]]] = {}
    for group in sorted(before.keys() & after.keys()):
        old, new = (dict(flatten(values[group], group)) for values in (before, after))
        fields = [
            (name, old.get(name), new.get(name))
            for name in dict.fromkeys([*old, *new])
            if old.get(name) != new.get(name) and not name.startswith(NEUTRAL)
        ]
        if fields:
            found[group] = fields
    return found

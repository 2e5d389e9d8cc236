"""A Kedro hook that records what every file was made from, and refuses files that do not fit.

When a node has saved a dataset, a record beside it has the fingerprint of the dataset and those of
its inputs. Before a run reads a dataset that it does not make itself, the records are followed
back to the first inputs. If an input has changed since it was read, the run is refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from kedro.io import AbstractVersionedDataset
from kedro_datasets.partitions import PartitionedDataset

from husai.errors import InputError
from husai.hooks.checks import StudyError
from husai.hooks.order import typed_options
from husai.provenance import fingerprint_files
from husai.storage import atomic_path
from husai.studies import LINEAGE

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node


@dataclass(frozen=True)
class Made:
    """The record of a dataset: its fingerprint, and what it was made from.

    Attributes
    ----------
    fingerprint
        Fingerprint of the dataset's files.
    inputs
        For each dataset that was read, its fingerprint at that time.
    pipeline
        The pipeline that makes it.
    """

    fingerprint: str
    inputs: dict[str, str]
    pipeline: str


class Lineage:
    """Records what datasets are made from, and refuses those that do not fit together."""

    def __init__(self) -> None:
        self._catalog: DataCatalog | None = None
        self._options = ""
        self.changed: dict[Path, str] = {}
        """Inputs of this run that were changed after they were written, with their pipelines."""
        self._made_here: set[str] = set()
        self._read_for: dict[str, dict[str, str]] = {}
        self._ended: list[tuple[Node, dict[str, str]]] = []

    @hook_impl(tryfirst=True)  # before MLflow's hook opens a run
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Check the datasets that the run reads and does not make."""
        self._options = typed_options(run_params)
        self._catalog = catalog
        self._made_here = {name for node in pipeline.nodes for name in node.outputs}
        self._read_for = {}
        self._ended = []
        self._check(sorted(pipeline.inputs()), frozenset())
        replaced = ((self._location(name), self._replaced(name)) for name in pipeline.inputs())
        self.changed = {path: maker for path, maker in sorted(replaced, key=str) if path and maker}
        for path, maker in self.changed.items():
            logger.warning(
                "%s: changed since it was written, by hand or by damage; the run uses it as it is "
                "now. To make it again: kedro run --pipelines=%s%s",
                *(path, maker, self._options),
            )

    @hook_impl
    def before_dataset_loaded(self, dataset_name: str) -> None:
        """Check again a dataset that was made from one that this run has just made."""
        self._write()
        if dataset_name not in self._made_here:
            self._check([dataset_name], self._made_here)

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Remember what a node read; its outputs are saved after this.

        A dataset that stays in memory has no record; a node that reads it counts as a reader of
        the files that it was made from.
        """
        read: dict[str, str] = {}
        for name in node.inputs:
            found = self._fingerprint(name)
            read |= {name: found} if found else self._read_for.get(name, {})
        self._read_for |= {name: read for name in node.outputs if self._location(name) is None}
        self._ended.append((node, read))

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Write the last node's records."""
        self._write()

    def _write(self) -> None:
        """Write the records of the nodes that have ended, whose outputs are saved now."""
        for node, inputs in self._ended:
            pipeline = str(node.namespace or "").split(".")[0]
            for name in node.outputs:
                path, found = self._record(name), self._fingerprint(name)
                if path is None or not found:
                    continue
                with atomic_path(path) as temporary:
                    temporary.write_text(json.dumps(asdict(Made(found, inputs, pipeline))))
        self._ended = []

    def _check(self, names: Iterable[str], only: frozenset[str] | set[str]) -> None:
        """Follow datasets back; refuse them if an input changed (one of ``only``, if given)."""
        outdated: dict[str, list[str]] = {}
        seen: set[str] = set()
        for name in names:
            self._follow(name, only, outdated, seen)
        changed = [(name, source) for name, sources in outdated.items() for source in sources]
        if not changed:
            return
        again = dict.fromkeys(filter(None, map(self._pipeline, outdated)))
        dataset, source = changed[0]
        made = self._made(dataset)
        assert made is not None  # since it is out of date
        message = (
            f"{self._location(dataset)}: made from {self._location(source)} with fingerprint "
            f"{made.inputs[source]}, which now has fingerprint {self._fingerprint(source)}; "
        )
        # for each input that was replaced by hand, the pipeline that would overwrite it
        replaced = {source: self._replaced(source) for _, source in changed}
        replaced = {source: pipeline for source, pipeline in replaced.items() if pipeline}
        if replaced:
            again = dict.fromkeys([*replaced.values(), *again])
            raise StudyError(
                f"{message}to continue with the present file: kedro run "
                f"--from-inputs={','.join(replaced)}{self._options}; to overwrite it: kedro run "
                f"--pipelines={','.join(again)}{self._options}"
            )
        raise StudyError(
            f"{message}make it again: kedro run --pipelines={','.join(again)}{self._options}"
        )

    def _follow(
        self,
        name: str,
        only: frozenset[str] | set[str],
        outdated: dict[str, list[str]],
        seen: set[str],
    ) -> None:
        """Add a dataset and what it was made from to ``outdated``, if they are, earliest first."""
        made = self._made(name)
        if made is None or name in seen:
            return
        seen.add(name)
        changed = []
        for source, then in made.inputs.items():
            self._follow(source, only, outdated, seen)
            now = self._fingerprint(source)
            if now and now != then and (not only or source in only):
                changed.append(source)
        if changed or any(source in outdated for source in made.inputs):
            outdated[name] = changed

    def _replaced(self, name: str) -> str:
        """Return the pipeline that made a dataset, if its content was changed since; else empty."""
        path = self._record(name)
        if path is None or not path.is_file() or self._made(name) is not None:
            return ""
        try:
            return Made(**json.loads(path.read_text())).pipeline
        except (ValueError, TypeError):
            return ""

    def _pipeline(self, name: str) -> str:
        made = self._made(name)
        return "" if made is None else made.pipeline

    def _made(self, name: str) -> Made | None:
        """Return a dataset's record; None without one, or if the dataset was changed since."""
        path = self._record(name)
        if path is None or not path.is_file():
            return None
        try:
            made = Made(**json.loads(path.read_text()))
        except (ValueError, TypeError):
            return None
        return made if made.fingerprint == self._fingerprint(name) else None

    def _record(self, name: str) -> Path | None:
        place = self._location(name)
        return None if place is None else place.parent / LINEAGE / f"{name}.json"

    def _location(self, name: str) -> Path | None:
        """Return the path of a dataset on disk; None if it is not on disk."""
        dataset = self._dataset(name)
        if isinstance(dataset, PartitionedDataset):
            return Path(dataset._path)
        if isinstance(dataset, AbstractVersionedDataset):
            return Path(dataset._filepath)
        return None

    def _fingerprint(self, name: str) -> str:
        """Return the fingerprint of a dataset's files; empty without files."""
        dataset = self._dataset(name)
        if isinstance(dataset, PartitionedDataset):
            folder, suffix = Path(dataset._path), dataset._filename_suffix
            try:
                planned = getattr(dataset, "planned", lambda: None)()
            except (FileNotFoundError, InputError):  # an unreadable plan is reported later
                planned = []
            files = (
                sorted(folder.rglob(f"*{suffix}"))
                if planned is None
                else [folder / f"{partition}{suffix}" for partition in sorted(planned)]
            )
        elif isinstance(dataset, AbstractVersionedDataset) and dataset.exists():
            files = [Path(dataset._get_load_path())]
        else:
            return ""
        # some datasets exist without a file, and are then empty
        return fingerprint_files([path for path in files if path.is_file()])

    def _dataset(self, name: str) -> Any:
        if self._catalog is None or name.startswith("params:") or name == "parameters":
            return None
        return self._catalog.get(name)

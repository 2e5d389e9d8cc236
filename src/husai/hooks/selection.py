"""Kedro's pipeline, with an error in one line for a misspelt node, tag or dataset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kedro.pipeline import Pipeline

from husai.errors import InputError
from husai.hooks.checks import StudyError
from husai.hooks.order import check_known


class NamedPipeline(Pipeline):
    """Kedro's pipeline; names that select a part of it are checked first.

    Kedro fails for unknown names of ``--nodes`` and similar options before any hook sees them, so
    they are checked here. Kedro adds the pipelines of a run to an empty one; the sum is also of
    this class.
    """

    def __add__(self, other: Any) -> NamedPipeline:
        """Join two pipelines."""
        return NamedPipeline(super().__add__(other).nodes)

    def __radd__(self, other: Any) -> NamedPipeline:
        """Join two pipelines; Python calls the method of the subclass first."""
        return NamedPipeline(super().__radd__(other).nodes)

    def filter(
        self,
        tags: Iterable[str] | None = None,
        from_nodes: Iterable[str] | None = None,
        to_nodes: Iterable[str] | None = None,
        node_names: Iterable[str] | None = None,
        from_inputs: Iterable[str] | None = None,
        to_outputs: Iterable[str] | None = None,
        node_namespaces: Iterable[str] | None = None,
    ) -> Pipeline:
        """Return the part that the command line selects.

        Raises
        ------
        StudyError
            With the nearest name, for a name that is not in the pipeline.
        """
        nodes = [node.name for node in self.nodes]
        namespaces = {node.namespace for node in self.nodes if node.namespace}
        selected = (
            ("tag", tags, {tag for node in self.nodes for tag in node.tags}),
            ("node", from_nodes, nodes),
            ("node", to_nodes, nodes),
            ("node", node_names, nodes),
            ("dataset", from_inputs, self.datasets()),
            ("dataset", to_outputs, self.all_outputs()),
            ("namespace", node_namespaces, namespaces),
        )
        try:
            for what, given, known in selected:
                check_known(what, given or (), known)
        except InputError as error:
            raise StudyError(str(error)) from error
        try:
            return super().filter(
                tags=tags,
                from_nodes=from_nodes,
                to_nodes=to_nodes,
                node_names=node_names,
                from_inputs=from_inputs,
                to_outputs=to_outputs,
                node_namespaces=node_namespaces,
            )
        except ValueError as error:  # all names are known, and no node is in all selections
            raise StudyError(f"nothing to run: {error}") from error

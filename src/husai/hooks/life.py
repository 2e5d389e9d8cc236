"""A Kedro hook that prints every few seconds what the run is doing, and returns freed memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from husai.memory import return_memory
from husai.progress import Heartbeat, step

if TYPE_CHECKING:
    from kedro.pipeline.node import Node


class SignOfLife:
    """Runs a heartbeat from the start of a run to its end, with the name of the running node."""

    def __init__(self) -> None:
        self._heartbeat = Heartbeat()
        self._now = ExitStack()

    @hook_impl(trylast=True)  # after the hooks that may refuse the run
    def before_pipeline_run(self) -> None:
        """Start the heartbeat."""
        self._heartbeat.start()
        self._doing("starting")

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Show the name of the node that runs.

        What earlier nodes freed goes back to the system first: a node may start more processes.
        """
        return_memory()
        self._doing(_short(node))

    @hook_impl(trylast=True)
    def after_node_run(self, node: Node, outputs: Mapping[str, Any]) -> None:
        """Show that the results of the node are saved and recorded.

        A node that yields its results one by one still runs while they are saved.
        """
        if any(isinstance(output, Iterator) for output in outputs.values()):
            return
        self._doing(f"saving and recording the results of {_short(node)}")

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Stop the heartbeat."""
        self._stop()

    @hook_impl(trylast=True)
    def on_pipeline_error(self) -> None:
        """Stop the heartbeat."""
        self._stop()

    def _doing(self, text: str) -> None:
        self._now.close()
        self._now.enter_context(step(text))

    def _stop(self) -> None:
        self._now.close()
        self._heartbeat.stop()


def _short(node: Node) -> str:
    return node.name.split(".")[-1]

"""A run never goes silent, as a Kedro hook: it says what it is doing every few seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from husai.progress import Heartbeat, step

if TYPE_CHECKING:
    from kedro.pipeline.node import Node


class SignOfLife:
    """Runs a heartbeat from the start of a run to its end, and names the node that works."""

    def __init__(self) -> None:
        self._heartbeat = Heartbeat()
        self._now = ExitStack()

    @hook_impl(trylast=True)  # Kedro tells no hook when another one refuses the run
    def before_pipeline_run(self) -> None:
        """Start."""
        self._heartbeat.start()
        self._doing("starting")

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """A node works."""
        self._doing(_short(node))

    @hook_impl(trylast=True)
    def after_node_run(self, node: Node, outputs: Mapping[str, Any]) -> None:
        """It has ended: what it gave is saved, and the tracking server told.

        A node that gives its results one by one works on while they are saved.
        """
        if any(isinstance(output, Iterator) for output in outputs.values()):
            return
        self._doing(f"saving and recording what {_short(node)} gave")

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Stop."""
        self._stop()

    @hook_impl(trylast=True)
    def on_pipeline_error(self) -> None:
        """Stop."""
        self._stop()

    def _doing(self, text: str) -> None:
        self._now.close()
        self._now.enter_context(step(text))

    def _stop(self) -> None:
        self._now.close()
        self._heartbeat.stop()


def _short(node: Node) -> str:
    return node.name.split(".")[-1]

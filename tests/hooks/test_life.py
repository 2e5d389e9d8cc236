"""A run names the node that works when nothing else is shown."""

from __future__ import annotations

import logging
import time

from kedro.pipeline import Node

from husai import progress
from husai.hooks.life import SignOfLife


def test_a_node_that_shows_nothing_is_named_until_the_run_ends(monkeypatch, caplog):
    monkeypatch.setattr(progress, "SILENCE_SECONDS", 0.08)
    caplog.set_level(logging.INFO, "husai.progress")
    node = Node(lambda: 1, inputs=None, outputs="x", name="compare_saes", namespace="analysis")
    for end in ("after_pipeline_run", "on_pipeline_error"):
        caplog.clear()
        life = SignOfLife()
        life.before_pipeline_run()
        life.before_node_run(node)
        wait_for(caplog, "compare_saes … ")
        life.after_node_run(node, {"x": iter([1])})  # still at work, result by result
        caplog.clear()
        wait_for(caplog, "compare_saes … ")
        life.after_node_run(node, {"x": 1})
        wait_for(caplog, "saving and recording the results of compare_saes … ")
        getattr(life, end)()
        said = len(caplog.messages)
        time.sleep(0.2)
        assert len(caplog.messages) == said
    assert progress._LIFE.steps == []


def wait_for(caplog, words):
    limit = time.monotonic() + 20
    while not any(said.startswith(words) for said in caplog.messages):
        assert time.monotonic() < limit
        time.sleep(0.01)

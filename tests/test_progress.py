"""Long work shows a progress bar or log lines."""

from __future__ import annotations

import logging
import time

import pytest

from husai import progress
from husai.progress import Heartbeat, progress_bar, step
from husai.progress import heartbeat as alive


@pytest.fixture
def heartbeat(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(progress, "SILENCE_SECONDS", 0.08)
    caplog.set_level(logging.INFO, "husai.progress")
    beating = Heartbeat()
    beating.start()
    yield beating
    beating.stop()


def wait_for(found, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not found() and time.monotonic() < end:
        time.sleep(0.01)
    assert found()


def test_work_without_output_is_named(heartbeat, caplog):
    with step("compare"), step("nulls of one group"):
        wait_for(lambda: caplog.messages)
    assert caplog.messages[0].startswith("compare, nulls of one group … ")


def test_without_a_name_nothing_is_logged(heartbeat, caplog):
    time.sleep(0.3)
    assert caplog.messages == []


def test_a_drawn_bar_counts_as_output(heartbeat, caplog, capsys):
    # in a log file it writes its next line after seconds; until then it is not silence
    with step("train"), progress_bar(10, "train") as bar:
        bar.update(1)
        time.sleep(0.3)
    assert caplog.messages == []


def test_the_message_stops_with_the_work(heartbeat, caplog):
    heartbeat.stop()
    heartbeat.stop()  # once more is no error
    with step("compare"):
        time.sleep(0.3)
    assert caplog.messages == []


def test_a_task_has_its_own_heartbeat(monkeypatch, caplog):
    monkeypatch.setattr(progress, "SILENCE_SECONDS", 0.08)
    caplog.set_level(logging.INFO, "husai.progress")
    with alive("opening"):
        wait_for(lambda: caplog.messages)
    said = len(caplog.messages)
    assert caplog.messages[0].startswith("opening … ")
    time.sleep(0.3)
    assert len(caplog.messages) == said

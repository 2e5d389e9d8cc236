"""The live view of a campaign: its numbers add up, also when banks are divided or lost."""

from __future__ import annotations

import pytest

from husai.campaign.progress_view import ProgressView


def make_view(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> ProgressView:
    monkeypatch.setattr("husai.campaign.progress_view.time.monotonic", lambda: clock[0])
    return ProgressView(
        {"a": 60.0, "b": 40.0},
        {"a": 3, "b": 2},
        name="c",
        done=1,
        failed=0,
        currency="EUR",
        show=False,
    )


def test_time_left_is_the_remaining_work_at_the_rate_so_far(monkeypatch):
    clock = [0.0]
    view = make_view(monkeypatch, clock)
    assert view.seconds_left() is None
    # half of it was in a checkpoint
    view.progress("a", 0.5)
    clock[0] = 10.0
    assert view.seconds_left() is None
    view.progress("a", 0.75)
    # 15 of 100 in 10 seconds, 55 are left
    assert view.seconds_left() == pytest.approx(55 / 1.5)
    assert "1 done · 3 running · 2 waiting · 0 failed" in view.text()
    view.ended("a", 2, 1)
    assert view.seconds_left() == pytest.approx(40 / 3)
    assert "3 done · 0 running · 2 waiting · 1 failed" in view.text()


def test_progress_of_a_divided_bank_is_the_sum_of_its_halves(monkeypatch):
    clock = [0.0]
    view = make_view(monkeypatch, clock)
    view.progress("a", 0.0)
    clock[0] = 10.0
    view.progress("a", 0.5)
    view.replace("a", {"a1": (20.0, 1), "a2": (40.0, 2)})
    # what the whole bank had done counts no more
    assert view.seconds_left() is None
    assert "1 done · 0 running · 5 waiting · 0 failed" in view.text()
    view.progress("a1", 0.0)
    view.progress("a1", 0.5)
    assert view.seconds_left() == pytest.approx(90.0)
    view.replace("a1", {})
    view.progress("b", 0.5)
    view.ended("b", 2, 0)
    view.close()
    assert "3 done · 0 running · 2 waiting" in view.text()

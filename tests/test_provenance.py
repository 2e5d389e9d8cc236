"""The command that made a result is recorded as it was typed."""

from __future__ import annotations

import sys

import pytest

from husai.provenance import command_line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/somewhere/bin/kedro", "run", "--env=test"], "kedro run --env=test"),
        # as Kedro has it under `python -m kedro`
        (["python -m kedro", "run"], "python -m kedro run"),
        (["/lib/husai/__main__.py", "compare", "a b"], "husai compare 'a b'"),
        (["kedro", "run", "--params", "x=a b"], "kedro run --params 'x=a b'"),
        (["kedro", "--params=u=http://me:pw123456@h/"], "kedro --params=u=http://***@h/"),
    ],
)
def test_the_command_is_recorded_as_typed(monkeypatch, words, expected):
    monkeypatch.setattr(sys, "argv", words)
    assert command_line() == expected

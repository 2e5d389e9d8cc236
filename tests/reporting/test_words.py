"""Words on the page never contradict intervals and p-values, on random numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.reporting.test_report import sentence, tables, with_kinds, written

from husai.consistency import NullDistribution, seed_interval
from husai.consistency.inference.intervals import SeedInterval
from husai.consistency.study.groups import Verdict, chance_verdict
from husai.reporting.config import ReportingConfig
from husai.reporting.first_screen import no_better, verdict

LEVEL = 0.95


def drawn(seed: int, perfect: float = 1.0) -> tuple[SeedInterval, NullDistribution]:
    """A random group's interval and null: near one another and far, of many and of few draws."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 8))
    level, spread = rng.uniform(0.2, 0.9), 10 ** rng.uniform(-3, -0.5)
    a = spread * rng.standard_normal(n)
    W = np.clip(level + a[:, None] + a[None, :], 0, 1)
    null = rng.uniform(0.2, 0.9) if rng.random() < 0.5 else level + rng.normal(0, 2 * spread)
    values = null + 10 ** rng.uniform(-3, -1) * rng.standard_normal(int(rng.choice([5, 40, 200])))
    independent = bool(rng.random() < 0.9)
    kind = NullDistribution("permuted", "pw_mcc", False, values, independent, perfect)
    return seed_interval(W, bounds=(0, 1)), kind


@pytest.mark.parametrize("perfect", [1.0, 0.0])
def test_a_verdict_never_contradicts_its_interval_or_p_value(perfect: float) -> None:
    seen = set()
    for seed in range(600):
        interval, null = drawn(seed, perfect)
        said = chance_verdict(interval, null, LEVEL)
        seen.add(said)
        assert interval.mean is not None
        p = null.p_value(interval.mean)
        ends = interval.low, interval.high
        if said == "unclear":
            continue
        assert p is not None
        assert ends[0] is not None
        assert ends[1] is not None
        inside = ends[0] <= null.mean <= ends[1]
        assert not inside, seed
        better = null.mean < ends[0] if null.perfect > null.mean else null.mean > ends[1]
        assert (said == "above") == better
        assert (p <= 1 - LEVEL) if said == "above" else (p >= LEVEL)
    assert seen == {"above", "below", "unclear"}


def test_few_draws_cannot_reach_a_small_level() -> None:
    interval = seed_interval(np.full((4, 4), 0.9), bounds=(0, 1))
    few = NullDistribution("permuted", "pw_mcc", False, np.full(10, 0.3) + np.arange(10) / 1e3)
    assert few.p_value(0.9) == pytest.approx(1 / 11)
    assert chance_verdict(interval, few, LEVEL) == "unclear"


def random_groups(seed: int) -> tuple[pd.DataFrame, dict[str, Verdict]]:
    """Groups of a page with random intervals and nulls, and the verdict of each."""
    given = tables().groups
    first = given[given["score"].eq("pw_mcc") & given["space"].eq("full")].iloc[0]
    rows: list[dict[str, Any]] = []
    verdicts: dict[str, Verdict] = {}
    for at in range(6):
        interval, null = drawn(100 * seed + at)
        name = f"g{at}"
        verdicts[name] = chance_verdict(interval, null, LEVEL)
        row = {**first.to_dict(), "group": name, "mean": interval.mean, "low": interval.low}
        row |= {"high": interval.high, "permuted_mean": null.mean, "permuted_sd": null.sd}
        assert interval.mean is not None
        row |= {"permuted_p": null.p_value(interval.mean), "against_permuted": verdicts[name]}
        rows += [
            {**row, "score": score, "space": space}
            for score in ("pw_mcc", "mmcs")
            for space in ("full", "data")
        ]
    return pd.DataFrame(rows), verdicts


@pytest.mark.parametrize("seed", range(12))
def test_the_page_names_only_groups_that_its_tables_support(seed: int) -> None:
    groups, verdicts = random_groups(seed)
    known = groups.query("score == 'pw_mcc' and space == 'full'").set_index("group")
    text = written(found=replace(tables(), groups=groups)).text
    with_interval = known.index[known["low"].notna()]
    if not len(with_interval):
        assert "no interval here" in text
        return
    found = re.search(
        r"to base a claim on, in (\d+) of (\d+) settings(?: \(([^)]*)\))?, and below it in (\d+)"
        r"(?: \(([^)]*)\))?:",
        text,
    )
    assert found is not None
    above, total, above_names, below, below_names = found.groups()
    assert int(total) == len(with_interval)
    for word, count, names in (("above", above, above_names), ("below", below, below_names)):
        named = [one.removesuffix(" †") for one in names.split(", ")] if names else []
        assert len(named) == int(count)
        expected = [name for name in with_interval if verdicts[str(name)] == word]
        assert named == expected
        for name in named:
            row = known.loc[name]
            assert not row["low"] <= row["permuted_mean"] <= row["high"]
            assert (row["permuted_p"] <= 0.05) == (word == "above")


@pytest.mark.parametrize("seed", range(40))
def test_the_beginning_of_the_page_agrees_with_its_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mean = rng.uniform(0.2, 0.95)
    low, high = mean - rng.uniform(0.001, 0.3), min(mean + rng.uniform(0.001, 0.3), 1.0)
    null, everywhere = rng.uniform(0.2, 0.95), rng.uniform(0, 1)
    changes = {"reproducibility": mean, "low": low, "high": high, "null_mean": null}
    got = written(found=with_kinds(**changes, found_everywhere=everywhere))
    said = verdict({**changes, "found_everywhere": everywhere}, ReportingConfig())
    first = sentence(got.text, 1)
    clear = low > null
    assert (said != "not") == clear
    assert ("clearly above chance" in first) == (not clear)
    assert ("these come back" in got.sentence) == (said == "back")
    assert ("not shown that" in got.sentence) == (not clear)
    if not clear:
        worse = "less than permuted features"
        assert (worse in first) == (high < null) == (no_better(changes) == "less than")
        assert "found in every other seed" not in first
    for text in (first, got.sentence):
        assert not ("above permuted" in text and "better than permuted" in text)

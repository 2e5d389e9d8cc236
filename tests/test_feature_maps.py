"""The features shown in the documents are chosen correctly, on a table with known answers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd

SCRIPT = Path(__file__).parents[1] / "docs" / "feature_maps.py"
SPEC = importlib.util.spec_from_file_location("feature_maps", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
feature_maps = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(feature_maps)

IDS = ["topk-d4-k2-s0-aaaaaa", "topk-d4-k2-s1-bbbbbb", "topk-d4-k2-s2-cccccc"]


def cards() -> pd.DataFrame:
    """Answers 1 and 2 in all three seeds, 3 in two, 4 in one; and a better one of another kind."""
    having = {"answer = 1": 3, "answer = 2": 3, "answer = 3": 2, "answer = 4": 1}
    least = {"answer = 1": 0.9, "answer = 2": 0.95, "answer = 3": 0.4, "answer = 4": 0.1}
    rows = [
        {"id": one, "latent": n, "kind": "answer", "label": label, "similarity_min": least[label]}
        for n, (label, count) in enumerate(having.items())
        for one in IDS[:count]
    ]
    other = {"id": IDS[0], "latent": 9, "kind": "other", "label": "b = 1", "similarity_min": 0.99}
    return pd.DataFrame([*rows, other])


def test_the_recurring_example_is_the_answer_with_the_best_worst_partner():
    assert feature_maps.comes_back(cards())["label"] == "answer = 2"


def test_the_lost_example_is_missing_in_exactly_one_seed():
    feature, missing = feature_maps.lost(cards())
    assert feature["label"] == "answer = 3"
    expected = [("answer = 3", IDS[2]), ("answer = 4", IDS[1]), ("answer = 4", IDS[2])]
    assert list(missing.itertuples(index=False, name=None)) == expected


def test_means_of_answers_find_the_part_that_depends_on_the_answer():
    modulus = 5
    a, b = np.divmod(np.arange(modulus**2), modulus)
    answer = np.eye(modulus)[(a + b) % modulus]
    operand = np.eye(modulus)[a]
    means = feature_maps.answer_means(np.hstack([answer, operand]), modulus)
    np.testing.assert_allclose(means[:, :modulus], np.eye(modulus) - 1 / modulus, atol=1e-12)
    np.testing.assert_allclose(means[:, modulus:], 0, atol=1e-12)


def test_the_seed_is_read_from_the_name():
    assert [feature_maps.seed_of(one) for one in IDS] == [0, 1, 2]
    assert feature_maps.seed_of("relu-d128-l1_4-relu-s5-815749") == 5

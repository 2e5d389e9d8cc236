"""Labels of latents against brute force, planted codes and exact values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import sparse

from husai.consistency.analyses import explanation
from husai.consistency.analyses.explanation import (
    class_scores,
    explain_latents,
    family_r2,
    read_out,
    regressor_r2,
)
from husai.consistency.analyses.kinds import (
    class_gt_mcc_nulls,
    class_means,
    coverage,
    covered_by_chance,
    reproducibility_by_kind,
)
from husai.consistency.analyses.labels import (
    Classes,
    class_labels,
    modular_labels,
    plane_labels,
    table_labels,
    wave_labels,
)
from husai.consistency.inference.references import given, isotropic, permuted
from husai.consistency.scores.decoder import gt_mcc
from husai.errors import InputError

Floats = NDArray[np.float64]
P = 11


def grid() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    a, b = np.divmod(np.arange(P * P), P)
    return a, b, (a + b) % P


def steps(code: Floats, member: NDArray[np.bool_]) -> tuple[float, float]:
    """Average precision and best F1, threshold by threshold."""
    precision_sum, best, before = 0.0, 0.0, 0.0
    for threshold in np.unique(code)[::-1]:
        taken = code >= threshold
        hit = (taken & member).sum()
        recall = hit / member.sum()
        precision_sum += (recall - before) * hit / taken.sum()
        best = max(best, 2 * hit / (taken.sum() + member.sum()))
        before = recall
    return precision_sum, best


@pytest.mark.parametrize("at_once", [2**21, 30])  # all latents together, and a few at a time
def test_scores_of_classes_are_those_of_brute_force_ties_and_several_classes_a_row(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(explanation, "_FIRINGS_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (60, 5)) * (rng.random((60, 5)) < 0.5)  # many ties
    codes[:, 4] = 0
    pairs = rng.integers(0, 6, (60, 2))
    labels = class_labels("token", pairs)
    got = class_scores(codes.astype(float), labels)
    for j in range(5):
        code = codes[:, j].astype(float)
        for c in range(6):
            member = (pairs == c).any(axis=1)
            average_precision, best = steps(code, member)
            assert got.average_precision[j, c] == pytest.approx(average_precision)
            assert got.f1_best[j, c] == pytest.approx(best)
            fires = code > 0
            f1 = 2 * (fires & member).sum() / (fires.sum() + member.sum())
            assert got.f1_fires[j, c] == pytest.approx(f1)
            r2 = 0.0
            if fires.any():
                r = np.corrcoef(code, member)[0, 1]
                r2 = max(r, 0.0) ** 2
            assert got.r2[j, c] == pytest.approx(r2)


def test_regressions_are_those_of_least_squares_on_any_rows() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, P, 40)  # no complete circle: the waves are not orthogonal
    codes = np.clip(rng.standard_normal((40, 3)), 0.0, None)
    got = regressor_r2(codes, wave_labels("v", values, P))
    for k in range(1, P // 2 + 1):
        angle = 2 * np.pi * k * values / P
        design = np.stack([np.ones(40), np.cos(angle), np.sin(angle)], axis=1)
        for j in range(3):
            rest = codes[:, j] - design @ np.linalg.lstsq(design, codes[:, j])[0]
            assert got[j, k - 1] == pytest.approx(1 - rest.var() / codes[:, j].var())


def test_every_planted_meaning_is_found() -> None:
    a, b, c = grid()
    rng = np.random.default_rng(2)
    jitter = rng.uniform(0.8, 1.2, len(a))
    wave = np.clip(np.cos(2 * np.pi * 3 * (c - 4.3) / P), 0, None)
    planted = np.stack(
        [
            (c == 7) * jitter,
            (a == 2) * jitter,
            ((a == 5) | (b == 5)) * jitter,
            wave,
            rng.random(len(a)) * (rng.random(len(a)) < 0.2),
            np.zeros(len(a)),
        ],
        axis=1,
    )
    got = explain_latents(planted, modular_labels(a, b, c, P)).latents
    assert got["kind"].tolist() == ["answer", "operand", "operand", "wave", "other", "dead"]
    assert got["label"].tolist()[:4] == [
        "answer = 7",
        "a = 2",
        "token = 5",
        "wave of answer, k = 3",
    ]
    assert got["average_precision"][:3].tolist() == pytest.approx([1, 1, 1])
    # a wave ranks the answer at its peak first: ranks alone would call it a class
    ranks = class_scores(planted[:, 3:4], class_labels("answer", c))
    assert ranks.average_precision.max() == pytest.approx(1.0)
    assert ranks.r2.max() < 0.5 < got["r2"][3]


def test_a_latent_for_several_answers_is_of_the_answer_kind() -> None:
    a, b, c = grid()
    # the quadratic residues of 11: a difference set, whose spectrum is flat, so no wave fits
    planted = np.isin(c, [1, 3, 4, 5, 9]) * np.random.default_rng(8).uniform(0.9, 1.1, len(c))
    got = explain_latents(planted[:, None], modular_labels(a, b, c, P)).latents
    assert got["kind"][0] == "answer, several"
    assert got["family_r2"][0] > 0.95 > 0.5 > got["r2"][0]


def test_the_share_of_a_whole_family_is_adjusted_least_squares() -> None:
    rng = np.random.default_rng(9)
    pairs = rng.integers(0, 5, (80, 2))
    codes = np.clip(rng.standard_normal((80, 40)), 0, None)
    labels = class_labels("token", pairs)
    got = family_r2(codes, labels)
    design = np.c_[np.ones(80), labels.members.toarray()]
    rest = codes - design @ np.linalg.lstsq(design, codes)[0]
    rank = np.linalg.matrix_rank(design) - 1
    expected = 1 - rest.var(axis=0) / codes.var(axis=0) * 79 / (79 - rank)
    np.testing.assert_allclose(got, np.clip(expected, 0, 1), atol=1e-9)
    assert expected.mean() == pytest.approx(0.0, abs=0.03)  # noise explains nothing on average


def test_forced_weak_firings_lower_f1_of_firing_but_not_the_best_f1() -> None:
    _, _, c = grid()
    code = (c == 3) * 5.0 + np.random.default_rng(3).random(len(c)) * 0.1
    got = class_scores(code[:, None], class_labels("answer", c))
    assert got.f1_best[0, 3] == got.average_precision[0, 3] == 1.0
    assert got.f1_fires[0, 3] < 0.3
    covered = coverage(got)
    assert (covered.f1_best, covered.f1_fires, covered.r2, covered.n_classes) == (1, 0, 1, P)


def test_codes_in_blocks_and_sparse_are_the_same() -> None:
    _, _, c = grid()
    codes = np.random.default_rng(4).random((len(c), 3))
    codes[codes < 0.6] = 0
    labels = class_labels("answer", c)
    whole = class_scores(codes, labels)
    for other in (sparse.csr_array(codes), lambda: iter([codes[:50], codes[50:]])):
        again = class_scores(other, labels)
        for one, two in zip(whole, again, strict=True):
            np.testing.assert_allclose(one, two)


def test_waves_of_multiplication_are_in_the_exponents() -> None:
    a, b = np.divmod(np.arange(49), 7)
    answer = a * b % 7
    log = np.array([-1, 0, 2, 1, 4, 5, 3])  # of 0 … 6 to the base 3, a primitive root of 7
    code = np.where(answer > 0, 1 + np.cos(2 * np.pi * 2 * log[answer] / 6), 0.0)
    got = explain_latents(
        code[answer > 0][:, None], [wave_labels("answer", log[answer[answer > 0]], 6)]
    ).latents
    assert got["label"][0] == "answer, k = 2"
    assert got["r2"][0] == pytest.approx(1.0)
    families = modular_labels(a, b, answer, 7, "multiplication")
    waves = next(f for f in families if f.family == "wave of answer")
    assert regressor_r2(code[:, None], waves)[0].argmax() == 1  # type: ignore[arg-type]


def test_labels_of_a_table_by_the_type_of_its_columns() -> None:
    table = pd.DataFrame(
        {
            "topic": ["x", "y", None, "x"],
            "token": [3, 3, 5, -1],
            "flag": [True, False, False, True],
            "length": [0.5, 1.5, 1.0, 2.0],
        }
    )
    families = table_labels(table)
    assert [type(f).__name__ for f in families] == ["Classes"] * 3 + ["Regressors"]
    assert families[0].names == ("topic = x", "topic = y")
    assert isinstance(families[1], Classes)
    np.testing.assert_array_equal(families[1].members.toarray(), [[1, 0], [1, 0], [0, 1], [0, 0]])
    code = np.array([[0.0], [2.0], [1.0], [3.0]])
    assert explain_latents(code, families).latents["label"][0] == "length"
    with pytest.raises(InputError, match="more than 1"):
        table_labels(table, max_classes=1)


def planted_classes(seed: int) -> tuple[Floats, Classes, Floats]:
    """Rows that are class directions with noise; returns rows, labels and directions."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((P, 30))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    _, _, c = grid()
    rows = 5 * directions[c] + 0.1 * rng.standard_normal((len(c), 30))
    return rows, class_labels("answer", c), directions - directions.mean(axis=0)


def test_a_dictionary_of_class_means_is_recognised_against_chance() -> None:
    rows, labels, directions = planted_classes(5)
    means = class_means(rows, labels)
    score = gt_mcc(directions, means, signed=True)
    assert score > 0.999
    families = {"answer": means, "turned": means[::-1]}
    nulls = class_gt_mcc_nulls(permuted([directions]), len(directions), families, n_draws=50)
    assert nulls["answer"].p_value(score) == pytest.approx(1 / 51)
    # each family sees the same dictionaries: the order of its classes changes nothing
    assert nulls["turned"].values == pytest.approx(nulls["answer"].values)
    rates = np.full(P, 1 / P)
    truth = coverage(class_scores(read_out(directions, rows, rates), labels))
    assert truth.f1_best == truth.average_precision == P
    chance = covered_by_chance(isotropic(30), rows, rates, [labels], n_draws=4)
    assert chance["answer"].shape == (4,)
    assert chance["answer"].mean() < P / 2  # ranks have a chance level of their own


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
def test_fast_coverage_by_chance_equals_the_full_computation(threshold: float) -> None:
    """The short way gives what scoring every latent against every class gives."""
    rows, labels, directions = planted_classes(6)
    rng = np.random.default_rng(1)
    other = class_labels("other", rng.integers(0, 3, len(rows)))
    rates = rng.uniform(0.02, 0.6, P)
    # half the truth and half noise, so that some classes are covered and some are not
    reference = given([directions + 2 * rng.standard_normal((P, 30)) for _ in range(3)], "x", "y")
    found = covered_by_chance(
        reference, rows, rates, [labels, other], threshold=threshold, n_draws=5, seed=2
    )
    for family in (labels, other):
        expected = []
        for draw in range(5):
            (drawn,) = reference.draw(np.random.default_rng([2, draw]), (P,))
            scores = class_scores(read_out(drawn, rows, rates), family)
            expected.append(coverage(scores, threshold=threshold).f1_best)
        assert found[family.family].tolist() == expected
        assert threshold > 0.3 or max(expected) > 0


def test_read_out_fires_at_the_rate_that_is_asked_for() -> None:
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((200, 4)) + 3
    codes = read_out(np.eye(4), rows, [0.0, 0.1, 0.5, 1.0])
    np.testing.assert_array_equal(np.diff(codes.indptr), [0, 20, 100, 200])
    assert codes.data.min() > 0


def test_the_parts_of_the_mixture_add_up_to_the_mean() -> None:
    features = pd.DataFrame(
        {
            "kind": ["answer"] * 3 + ["other"] * 5,
            "reproducibility": [0.98, 0.99, 0.97, 0.7, 0.8, 0.6, 0.75, 0.95],
            "n_seeds_found": [2, 2, 2, 1, 1, 0, 1, 2],
            "n_other_seeds": 2,
        }
    )
    parts = reproducibility_by_kind(features)
    assert parts["kind"].tolist() == ["answer", "other"]
    mean = (parts["share"] * parts["reproducibility"]).sum()
    assert mean == pytest.approx(features["reproducibility"].mean())
    assert parts["found_everywhere"].tolist() == [1.0, pytest.approx(0.2)]
    assert parts["share_of_everywhere"].tolist() == [0.75, 0.25]
    assert parts["orphan_fraction"].tolist() == [0.0, pytest.approx(0.2)]
    two = pd.concat([features.assign(group="g"), features.assign(group="h")])
    assert reproducibility_by_kind(two, by=["group"])["group"].tolist() == ["g", "g", "h", "h"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: class_labels("x", [0.5, 1.5]), "whole numbers"),
        (lambda: class_labels("x", [-1, -1]), "no row has a class"),
        (lambda: wave_labels("x", [1, 2], 5, frequencies=[3]), "frequencies"),
        (lambda: plane_labels(np.eye(3), np.ones((1, 2, 4))), "planes"),
        (lambda: modular_labels([0], [0, 1], [0], 5), "answers, a and b"),
        (lambda: table_labels(pd.DataFrame({"x": [np.nan, 1.0]})), "NaN"),
        (lambda: explain_latents(np.eye(3), []), "at least one"),
        (lambda: class_scores(np.eye(3), class_labels("x", [0, 1])), "3 rows"),
        (lambda: class_scores(-np.eye(2), class_labels("x", [0, 1])), "negative"),
        (lambda: read_out(np.eye(2), np.eye(2), [0.5]), "rates"),
        (lambda: class_means(np.eye(3), class_labels("x", [0, 1])), "rows"),
        (lambda: reproducibility_by_kind(pd.DataFrame({"kind": []})), "missing"),
    ],
)
def test_input_that_cannot_be_scored_is_an_error(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()

"""Reference dictionaries keep what they declare, and score like others that share only that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from husai.consistency import encoder_in_data_metric, null_scores, pw_mcc, shared_fraction
from husai.consistency.inference.references import (
    Reference,
    data_aware,
    data_rows,
    given,
    isotropic,
    joint_null,
    kmeans,
    permuted,
    phase,
    score_reference,
)
from husai.errors import InputError
from husai.matching.match import unit_rows

Rows = NDArray[np.float64]


def flat_world(n: int, d: int, seed: int, spectrum: Rows | None = None) -> list[Rows]:
    """Two independent dictionaries of one law."""
    rng = np.random.default_rng(seed)
    scale = np.ones(d) if spectrum is None else spectrum
    return [unit_rows(rng.standard_normal((n, d)) * scale) for _ in range(2)]


def test_isotropic_and_data_aware_references_have_the_distributions_of_null_scores() -> None:
    covariance = np.diag([4.0, 1.0, 0.2, 0.0, 0.0])
    for kind, reference in (("isotropic", isotropic(5)), ("data_aware", data_aware(covariance))):
        mine = score_reference(reference, (9, 7), n_draws=5, seed=3)["pw_mcc"]
        other = null_scores(
            9,
            7,
            5,
            kind=kind,
            covariance=covariance,
            n_draws=5,
            seed=3,
        )["pw_mcc"]
        np.testing.assert_array_equal(mine.values, other.values)


def test_permuted_keeps_spectrum_and_marginals_and_breaks_the_features() -> None:
    spectrum = 1.0 / np.arange(1, 13)
    world = flat_world(150, 12, 0, spectrum)
    a, b = permuted(world).draw(np.random.default_rng(1), (150, 150))
    pooled, drawn = np.concatenate(world), np.concatenate([a, b])
    before = np.linalg.eigvalsh(pooled.T @ pooled / len(pooled))
    after = np.linalg.eigvalsh(drawn.T @ drawn / len(drawn))
    np.testing.assert_allclose(after, before, atol=0.03)
    # and nothing of the features themselves is left
    independent = pw_mcc(world[0], world[1])
    assert pw_mcc(a, world[0]) == pytest.approx(independent, abs=0.03)


@pytest.mark.parametrize("spectrum", [None, 1.0 / np.arange(1, 33) ** 0.7], ids=["flat", "steep"])
def test_permuted_scores_equal_those_of_independent_dictionaries(
    spectrum: Rows | None,
) -> None:
    world = flat_world(96, 32, 2, spectrum)
    null = score_reference(permuted(world), (96, 96), n_draws=60)["pw_mcc"]
    truth = np.mean([pw_mcc(*flat_world(96, 32, seed, spectrum)) for seed in range(10, 20)])
    assert null.mean == pytest.approx(truth, abs=0.03)


def test_half_shared_dictionaries_are_above_the_permuted_null_and_below_the_data_aware_one() -> (
    None
):
    # activations of a steeper spectrum than the dictionary's: what a few strong features make
    rng = np.random.default_rng(4)
    a, b = flat_world(128, 32, 5)
    b[:64] = a[:64]
    rates = 1.0 / np.arange(1, 129) ** 2.5
    rows = (rng.random((4000, 128)) < rates) * rng.exponential(1.0, (4000, 128)) @ a
    aware = score_reference(data_aware(np.cov(rows.T)), (128, 128), n_draws=20)["pw_mcc"]
    null = score_reference(permuted([a, b]), (128, 128), n_draws=60)["pw_mcc"]
    score = pw_mcc(a, b)
    assert null.mean + 5 * (null.sd or 0.0) < score < aware.mean
    assert null.p_value(score) == pytest.approx(1 / 61)


def test_the_phase_reference_rotates_only_inside_the_planes() -> None:
    rng = np.random.default_rng(6)
    planes = np.eye(6)[:4].reshape(2, 2, 6)
    planes[1, 0] += 0.2 * planes[0, 0]  # planes of a real model are not exactly orthogonal
    inside = unit_rows(rng.standard_normal((8, 4)) @ planes.reshape(-1, 6))
    outside = np.eye(6)[4:]
    world = [np.concatenate([inside, outside])] * 2
    (turned,) = phase(world, planes).draw(rng, (10,))
    np.testing.assert_allclose(turned[8:], outside, atol=1e-12)
    assert np.abs(turned[:8] - inside).max() > 0.1
    # a feature of one plane stays in that plane: its span is the same
    one = phase([np.eye(6)[:2]], np.eye(6)[:4].reshape(2, 2, 6))
    (turned,) = one.draw(rng, (2,))
    np.testing.assert_allclose(np.abs(turned[:, 2:]).max(), 0.0, atol=1e-12)
    np.testing.assert_allclose(turned @ turned.T, np.eye(2), atol=1e-12)


def test_data_rows_and_kmeans_come_from_the_data() -> None:
    rng = np.random.default_rng(7)
    centres = 10 * rng.standard_normal((5, 8))
    rows = np.repeat(centres, 40, axis=0) + 0.01 * rng.standard_normal((200, 8)) + 3.0
    (drawn,) = data_rows(rows).draw(rng, (30,))
    centred = unit_rows(rows - rows.mean(axis=0))
    assert (np.abs(drawn @ centred.T).max(axis=1) > 1 - 1e-9).all()
    # five clean clusters: what is found does not depend on the start but for merged clusters
    clustered = score_reference(kmeans(rows, 40, n_runs=3), (40, 40), n_draws=4)["pw_mcc"]
    assert clustered.mean > 0.9
    assert clustered.p_value(1.0) is None  # a few runs are no independent draws


def test_given_dictionaries_are_drawn_unchanged_and_never_twice() -> None:
    inits = [np.eye(4)[:2], np.eye(4)[2:]]
    reference = given(inits, "init", "the initial weights")
    for seed in range(5):
        a, b = reference.draw(np.random.default_rng(seed), (2, 2))
        assert np.abs(a @ b.T).max() == 0.0


def test_draws_are_the_same_for_any_number_of_workers() -> None:
    reference = permuted(flat_world(12, 5, 8))
    one = score_reference(reference, (12, 12), n_draws=6)["pw_mcc"]
    two = score_reference(reference, (12, 12), n_draws=6, workers=3)["pw_mcc"]
    np.testing.assert_array_equal(one.values, two.values)


def test_the_data_metric_is_the_correlation_of_pre_activations() -> None:
    rng = np.random.default_rng(9)
    rows = rng.standard_normal((500, 4)) @ rng.standard_normal((4, 6))  # rank 4 of 6
    encoder = rng.standard_normal((5, 6))
    covariance = np.cov(rows.T, bias=True)
    seen = unit_rows(encoder_in_data_metric(encoder, covariance))
    np.testing.assert_allclose(seen @ seen.T, np.corrcoef(encoder @ rows.T), atol=1e-9)
    # whatever the encoder carries where the data do not vary changes nothing
    blind = np.linalg.svd(covariance)[2][4:]
    moved = encoder + 100 * rng.standard_normal((5, 2)) @ blind
    np.testing.assert_allclose(
        unit_rows(encoder_in_data_metric(moved, covariance)), seen, atol=1e-6
    )


def test_joint_null_is_far_below_shared_saes_and_near_independent_ones() -> None:
    decoders = flat_world(48, 12, 10)
    rng = np.random.default_rng(11)
    encoders = [W + 0.2 * rng.standard_normal(W.shape) for W in decoders]
    null = joint_null(decoders, encoders, threshold=0.5, n_draws=60)
    independent = shared_fraction(
        decoders[0], encoders[0], decoders[1], encoders[1], threshold=0.5
    ).fraction
    assert 0.0 < null.mean < 0.6
    assert abs(independent - null.mean) < 4 * (null.sd or 0.0)
    same = shared_fraction(
        decoders[0], encoders[0], decoders[0], encoders[0], threshold=0.5
    ).fraction
    assert null.p_value(same) == pytest.approx(1 / 61)
    # the joint event asks for more than the decoder's half
    half = score_reference(permuted(decoders), (48, 48), n_draws=20, signed=True)["pw_mcc"]
    assert null.mean <= half.mean


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: isotropic(0), "d: 0"),
        (lambda: permuted([]), "none given"),
        (lambda: permuted([np.eye(3), np.eye(4)]), "dimensions"),
        (lambda: permuted([np.zeros((2, 3))]), "every row is zero"),
        (lambda: phase([np.eye(3)], np.ones((1, 2, 3))), "not independent"),
        (lambda: data_rows(np.ones((3, 2))), "do not vary"),
        (lambda: kmeans(np.eye(3), 7), "centroids"),
        (lambda: given([np.eye(2)], "init", ""), "at least two"),
        (lambda: encoder_in_data_metric(np.eye(3), np.eye(2)), "W_enc"),
        (lambda: joint_null([np.eye(3)], [np.ones((3, 2))]), "shapes"),
        (lambda: score_reference(isotropic(3), (2, 2), scores=["mcc"]), "not known"),
        (lambda: score_reference(isotropic(3), (2, 2), n_draws=0), "n_draws"),
        (lambda: isotropic(3).draw(np.random.default_rng(0), (0,)), "sizes"),
        (lambda: data_rows(np.eye(3)).draw(np.random.default_rng(0), (9,)), "data rows"),
    ],
)
def test_references_that_cannot_be_drawn_are_an_error(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_reference_declares_what_it_keeps() -> None:
    references: list[Reference] = [
        isotropic(3),
        data_aware(np.eye(3)),
        permuted([np.eye(3)]),
        data_rows(np.eye(3)),
    ]
    assert len({reference.keeps for reference in references}) == len(references)

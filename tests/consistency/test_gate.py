"""The gate on decoders whose motion is known, and on SAEs that were trained."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from husai.consistency.analyses.gate import convergence_gate, decay_start, decoder_motion
from husai.errors import InputError
from husai.sae import SAEConfig, train_bank
from husai.sae.config import BankTrainingConfig
from husai.sae.schedule import step_table

Floats = NDArray[np.float64]


def turned(angle: float, n: int = 4) -> Floats:
    """``n`` features of the plane, all turned by an angle, each still near its own axis."""
    rows = np.zeros((n, 2 * n))
    rows[np.arange(n), 2 * np.arange(n)] = np.cos(angle)
    rows[np.arange(n), 2 * np.arange(n) + 1] = np.sin(angle)
    return rows


def test_motion_is_one_minus_cosine_per_500_steps() -> None:
    assert decoder_motion(turned(0.0), turned(0.3), 500) == pytest.approx(1 - np.cos(0.3))
    assert decoder_motion(turned(0.0), turned(0.3), 250) == pytest.approx(2 * (1 - np.cos(0.3)))
    assert decoder_motion(turned(0.0), -turned(0.0), 500) == pytest.approx(0.0)
    half = np.where(np.arange(4)[:, None] < 2, turned(0.3), turned(0.0))
    live = [True, True, False, False]
    assert decoder_motion(turned(0.0), half, 500, live) == pytest.approx(1 - np.cos(0.3))


def test_only_steps_before_the_decay_count() -> None:
    # moving until the decay freezes it at 2,000: the loss is flat, the SAE is not settled
    frozen = {step: turned(0.2 * min(step, 2000) / 500) for step in range(0, 3001, 500)}
    got = convergence_gate([frozen, frozen], 2000)
    assert (got.step, got.before, got.half_step) == (2000, 1500, 1000)
    assert got.motion[0] == pytest.approx(1 - np.cos(0.2))
    assert got.plateau == pytest.approx(0.0)  # the two move together
    assert got.settled == (False, False)
    assert convergence_gate([frozen, frozen], 3000).settled == (True, True)


def test_seeds_that_stop_moving_while_the_score_changes_are_not_settled() -> None:
    still = {step: turned(0.0) for step in (500, 1000, 1500, 2000)}
    late = {500: turned(1.0), 1000: turned(1.0), 1500: turned(0.0), 2000: turned(0.0)}
    got = convergence_gate([still, late], 2000)
    assert got.motion == pytest.approx((0.0, 0.0))
    assert got.plateau == pytest.approx(1 - np.cos(1.0), abs=1e-9)
    assert got.settled == (False, False)


def test_unknown_results_are_none_with_a_reason() -> None:
    one = convergence_gate([{500: turned(0.0), 1000: turned(0.0)}], 1000)
    assert one.settled == (True,)
    assert one.plateau is None
    assert "one SAE" in one.reason
    none = convergence_gate([{0: turned(0.0), 3000: turned(0.0)}], 2400)
    assert none.settled == (None,)
    assert "snapshot_interval" in none.reason
    with pytest.raises(InputError, match="no SAE"):
        convergence_gate([], 10)
    with pytest.raises(InputError, match="live"):
        convergence_gate([{1: turned(0.0)}], 10, live=[])
    with pytest.raises(InputError, match="no feature"):
        decoder_motion(turned(0.0), turned(0.0), 1, [False] * 4)
    with pytest.raises(InputError, match="decay_fraction"):
        decay_start({"steps": 10})


def test_a_dead_sae_has_no_verdict_and_does_not_affect_its_group() -> None:
    still = {step: turned(0.0) for step in (500, 1000, 1500, 2000)}
    got = convergence_gate([still] * 3, 2000, live=[[True] * 4, [False] * 4, [True] * 4])
    assert got.settled == (True, None, True)
    assert got.motion == (0.0, None, 0.0)
    assert got.plateau == pytest.approx(0.0)
    assert "1 of 3" in got.reason


@pytest.mark.parametrize(("steps", "fraction"), [(3000, 0.2), (1000, 0.0), (7, 0.5), (40, 0.3)])
def test_the_decay_starts_where_the_schedule_says(steps: int, fraction: float) -> None:
    training = BankTrainingConfig(steps=steps, decay_fraction=fraction, warmup_steps=0)
    rate = step_table([SAEConfig(d_sae=4, k=1)], training, 0, steps).learning_rate[:, 0]
    start = decay_start(training.model_dump())
    assert (rate[: start + 1] == rate[0]).all()
    assert (rate[start + 1 :] < rate[0]).all()


def test_a_trained_sae_settles_and_a_short_run_does_not() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((8, 12))
    codes = (rng.random((2000, 8)) < 0.15) * rng.uniform(1, 2, (2000, 8))
    rows = (codes @ truth).astype(np.float32)

    def settled(steps: int) -> tuple[bool | None, ...]:
        training = BankTrainingConfig(
            steps=steps, batch_size=256, snapshot_interval=steps // 10, eval_interval=steps
        )
        saes = train_bank(
            rows, [SAEConfig(d_sae=8, k=2, init_seed=seed) for seed in range(2)], training
        )
        return convergence_gate(
            [{step: W.numpy() for step, W in sae.snapshots.items()} for sae in saes],
            decay_start(saes[0].provenance["training"]),
        ).settled

    assert settled(50) == (False, False)
    assert settled(4000) == (True, True)

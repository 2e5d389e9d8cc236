"""Whether an SAE has settled: the motion of its decoder, and the plateau of the score.

The slope of the loss over the last evaluations falls into the learning-rate decay and measures
the schedule: with the rate at zero, nothing moves. So both questions are asked *before* the decay
starts, of the decoders that training keeps on the way (``snapshot_interval``).

No gate sees a cliff that comes later: rerun some SAEs at twice the length and say how many moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from husai.consistency.config import LEAST_CHANGE, LEAST_MOTION
from husai.consistency.scores.decoder import pw_mcc
from husai.errors import InputError
from husai.matching.match import unit_rows

MOTION_STEPS = 500
"""Steps over which motion is counted."""

Snapshots = Mapping[int, ArrayLike]


@dataclass(frozen=True)
class Gate:
    """The result of the gate for the SAEs of one group.

    Attributes
    ----------
    motion
        For each SAE, mean over its live features of ``1 - |cos|`` between its last two decoders
        before the decay, per 500 steps; None where there are not two.
    plateau
        ``|PW(t) - PW(t/2)|`` of the mean pair score, t the last step before the decay; None with
        one SAE or where a snapshot is missing.
    step, half_step, before
        t, the snapshot used for t/2, and the one before t from which motion is counted.
    settled
        For each SAE: motion below ``least_motion``, and the plateau below ``least_change`` where
        there is one; None where motion is not known.
    reason
        Why something is None.
    """

    motion: tuple[float | None, ...]
    plateau: float | None
    step: int | None
    half_step: int | None
    before: int | None
    settled: tuple[bool | None, ...]
    reason: str


def decay_start(training: Mapping[str, Any]) -> int:
    """Step at which the learning rate starts to fall, from a training configuration.

    Parameters
    ----------
    training
        With ``steps`` and ``decay_fraction``, as ``BankTrainingConfig`` has them and an SAE's
        file holds under ``provenance["training"]``.

    Raises
    ------
    InputError
        When one of the two is missing.
    """
    try:
        steps, fraction = float(training["steps"]), float(training["decay_fraction"])
    except KeyError as missing:
        raise InputError(
            f"training: {missing} is not known; give steps and decay_fraction"
        ) from None
    return int(np.floor(steps * (1 - fraction) + 1e-9))


def decoder_motion(
    before: ArrayLike, after: ArrayLike, steps: int, live: ArrayLike | None = None
) -> float:
    """Mean ``1 - |cos|`` of each feature with itself, per 500 steps.

    Parameters
    ----------
    before, after
        ``[n, d]`` decoders ``steps`` apart, the same features in the same order.
    steps
        Steps between them.
    live
        ``[n]`` features that count: a dead one does not move and says nothing. All by default.

    Raises
    ------
    InputError
        When shapes differ, steps is below 1, or no feature is live.
    """
    one, two = unit_rows(before, "before"), unit_rows(after, "after")
    if one.shape != two.shape or steps < 1:
        raise InputError(
            f"before {one.shape}, after {two.shape}, steps {steps}; give one SAE at two steps"
        )
    moved: NDArray[np.float64] = 1 - np.abs((one * two).sum(axis=1))
    if live is not None:
        moved = moved[np.asarray(live, dtype=bool)]
    if not len(moved):
        raise InputError("live: no feature is live")
    return float(moved.mean()) * MOTION_STEPS / steps


def convergence_gate(
    snapshots: Sequence[Snapshots],
    decay_step: int,
    *,
    live: Sequence[ArrayLike] | None = None,
    least_motion: float = LEAST_MOTION,
    least_change: float = LEAST_CHANGE,
) -> Gate:
    """Ask of the SAEs of one group whether they have settled.

    Motion is taken between the last snapshot at or before ``decay_step`` and the one nearest to
    500 steps earlier; the plateau between the last and the one nearest to half of its step.

    Parameters
    ----------
    snapshots
        For each SAE: step to decoder ``[n, d]``, as ``TrainedSAE.snapshots`` holds them.
    decay_step
        First step of the learning-rate decay, from :func:`decay_start`.
    live
        For each SAE ``[n]`` features that fire at the end. Of an SAE without one nothing is known.
    least_motion, least_change
        What counts as settled.

    Raises
    ------
    InputError
        When no SAE is given or ``live`` does not fit.
    """
    if not snapshots:
        raise InputError("snapshots: no SAE; give at least one")
    if live is not None and len(live) != len(snapshots):
        raise InputError(f"live: for {len(live)} SAEs, snapshots of {len(snapshots)}")
    n = len(snapshots)
    common = set.intersection(*(set(one) for one in snapshots))
    steps = sorted(step for step in common if 0 < step <= decay_step)
    if len(steps) < 2:
        reason = (
            f"{len(steps)} snapshots before the learning-rate decay at step {decay_step}; two "
            "are needed, lower snapshot_interval"
        )
        return Gate((None,) * n, None, None, None, None, (None,) * n, reason)
    t = steps[-1]
    before = min(steps[:-1], key=lambda step: abs(t - MOTION_STEPS - step))
    half = min(steps[:-1], key=lambda step: abs(t / 2 - step))
    masks = [None if live is None else np.asarray(live[i], dtype=bool) for i in range(n)]
    alive = [i for i, mask in enumerate(masks) if mask is None or mask.any()]
    motion = tuple(
        decoder_motion(one[before], one[t], t - before, masks[i]) if i in alive else None
        for i, one in enumerate(snapshots)
    )
    plateau = None
    if len(alive) > 1:
        now, then = (
            _mean_pair_score(
                [W if (mask := masks[i]) is None else W[mask] for i, W in decoders.items()]
            )
            for decoders in (
                {i: np.asarray(snapshots[i][step]) for i in alive} for step in (t, half)
            )
        )
        plateau = abs(now - then)
    flat = plateau is None or plateau < least_change
    settled = tuple(None if value is None else value < least_motion and flat for value in motion)
    reason = ""
    if len(alive) < n:
        reason = f"{n - len(alive)} of {n} SAEs have no live feature"
    elif n == 1:
        reason = "one SAE: no pair, so no plateau of the score"
    return Gate(motion, plateau, t, half, before, settled, reason)


def _mean_pair_score(decoders: Sequence[NDArray[Any]]) -> float:
    pairs = [
        pw_mcc(decoders[i], decoders[j])
        for i in range(len(decoders))
        for j in range(i + 1, len(decoders))
    ]
    return float(np.mean(pairs))

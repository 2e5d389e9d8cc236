"""The gate: whether an SAE has settled, by the motion of its decoder and the plateau of the score.

The last evaluations of the loss lie in the learning-rate decay, where the slope of the loss only
shows the schedule: at rate zero nothing moves. So both measures are taken *before* the decay
starts, from decoders that training saves on the way (``snapshot_interval``).

No gate can tell whether an SAE would change much later: train some SAEs twice as long and report
how many changed.
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
"""Motion is given per this many steps."""

Snapshots = Mapping[int, ArrayLike]


@dataclass(frozen=True)
class Gate:
    """The result of the gate for the SAEs of one group.

    Attributes
    ----------
    motion
        For each SAE, mean over its live features of ``1 - |cos|`` between two decoders before the
        decay, per 500 steps; None where there are not two, or no live feature.
    plateau
        ``|PW(t) - PW(t/2)|`` of the mean pair score, t the last snapshot before the decay; None
        with one SAE or where a snapshot is missing.
    step, half_step, before
        The steps of the snapshots used: t, the one for t/2, and the one that motion starts from.
    settled
        For each SAE, whether motion is below ``least_motion`` and the plateau, if there is one,
        below ``least_change``; None where motion is not known.
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
        A mapping with ``steps`` and ``decay_fraction``: the fields of ``BankTrainingConfig``,
        which an SAE's file has under ``provenance["training"]``.

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
    """Mean ``1 - |cos|`` between the features of one SAE at two steps, per 500 steps.

    Parameters
    ----------
    before, after
        ``[n, d]`` decoders ``steps`` apart, the same features in the same order.
    steps
        Number of steps between them.
    live
        ``[n]`` bool: the features to average over. Dead ones do not move and should be left out.
        All by default.

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
    """Decide for each SAE of one group whether it has settled.

    Motion is measured between the last snapshot at or before ``decay_step`` and the one nearest
    to 500 steps earlier; the plateau between the last and the one nearest to half of its step.

    Parameters
    ----------
    snapshots
        For each SAE, its decoders ``[n, d]`` by step, as in ``TrainedSAE.snapshots``.
    decay_step
        First step of the learning-rate decay, from :func:`decay_start`.
    live
        For each SAE ``[n]`` bool: features that fire at the end. An SAE without any is not judged.
    least_motion, least_change
        A settled SAE has less motion, and a settled group a smaller change of its score.

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

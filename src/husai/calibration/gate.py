"""How often a convergence gate is wrong, compared with the result of much longer training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from husai.calibration.clusters import ClusteredShare, clustered_share
from husai.errors import InputError


@dataclass(frozen=True)
class GateCalibration:
    """The errors of a convergence gate.

    Attributes
    ----------
    false_pass
        Share of the SAEs that passed which had not settled.
    false_hold
        Share of the settled SAEs which did not pass.
    n
        Number of SAEs.
    tolerance
        Largest change of recovery that counts as none.
    """

    false_pass: ClusteredShare
    false_hold: ClusteredShare
    n: int
    tolerance: float


def gate_calibration(
    passed: ArrayLike,
    recovery: ArrayLike,
    final_recovery: ArrayLike,
    cluster: Sequence[Any],
    *,
    tolerance: float = 0.02,
    level: float = 0.95,
) -> GateCalibration:
    """Compare the verdict of a convergence gate with the result of longer training.

    An SAE is settled when its true recovery (for example GT-MCC) is within ``tolerance`` of that
    of the same SAE, with the same seeds, trained for much longer. The gate does not use the truth.

    Parameters
    ----------
    passed
        ``[n]`` bool: whether the gate called this SAE converged.
    recovery, final_recovery
        ``[n]`` true recovery of the SAE, and of the same SAE trained for longer.
    cluster
        ``[n]`` the cluster of each SAE, for example the draw of its world.
    tolerance
        Largest change that counts as none.
    level
        Confidence level.

    Raises
    ------
    InputError
        When lengths differ or values are not finite.
    """
    gate = np.asarray(passed, dtype=bool)
    now, end = (np.asarray(v, dtype=np.float64) for v in (recovery, final_recovery))
    if not (gate.shape == now.shape == end.shape == (len(cluster),)):
        raise InputError("passed, recovery, final_recovery, cluster: lengths differ")
    if not np.isfinite([now, end]).all():
        raise InputError("recovery, final_recovery: a value is NaN or infinite")
    settled = np.abs(end - now) <= tolerance
    of_passed = [key for key, through in zip(cluster, gate, strict=True) if through]
    of_settled = [key for key, still in zip(cluster, settled, strict=True) if still]
    return GateCalibration(
        false_pass=clustered_share(~settled[gate], of_passed, level=level),
        false_hold=clustered_share(~gate[settled], of_settled, level=level),
        n=len(gate),
        tolerance=tolerance,
    )

"""Fixtures: planted SAEs, with features that every seed has and features of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

from husai.consistency import SAERecord
from husai.features import FeatureGroup, feature_group

N_SHARED, N_OWN, D, P = 12, 8, 16, 13


@dataclass(frozen=True)
class Planted:
    """SAEs that share features; ``truth[s]`` is the planted feature of each latent, -1 for own."""

    group: FeatureGroup
    truth: list[NDArray[np.int64]]
    rows: NDArray[np.float32]


def planted_records(
    n_saes: int = 3, seed: int = 0
) -> tuple[list[SAERecord], list[NDArray[np.int64]], NDArray[np.float32]]:
    """Shared features have the same direction and the same codes in every SAE."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((N_SHARED, D))
    # one of p classes of answers each: what a latent of the modular task does
    a, b = np.divmod(np.arange(P * P), P)
    answers = (a + b) % P
    shared = (answers[:, None] == np.arange(N_SHARED)) * rng.uniform(1, 2, (P * P, N_SHARED))
    records, truth = [], []
    for s in range(n_saes):
        own = rng.standard_normal((N_OWN, D))
        codes = np.where(rng.random((P * P, N_OWN)) < 0.1, rng.uniform(1, 2, (P * P, N_OWN)), 0)
        order = rng.permutation(N_SHARED + N_OWN)
        made: dict[str, Any] = {
            "W_dec": np.concatenate([directions, own])[order].astype(np.float32),
            "codes": sparse.csr_array(np.concatenate([shared, codes], axis=1)[:, order]),
        }
        records.append(SAERecord(f"sae {s}", "topk", s, k=2.0, **made))
        truth.append(np.where(order < N_SHARED, order, -1))
    rows = (shared @ directions + 0.1 * rng.standard_normal((P * P, D))).astype(np.float32)
    return records, truth, rows


@pytest.fixture(scope="session")
def planted() -> Planted:
    records, truth, rows = planted_records()
    return Planted(feature_group(records), truth, rows)

"""The table of features: for each latent of each SAE, its similarity to its partners."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from husai.consistency.config import ConsistencyConfig
from husai.consistency.inference.seeds import Matches, align_seeds
from husai.consistency.scores.rows import row_cosines
from husai.consistency.study.record import LiveSAE


def feature_table(
    name: str, live: Sequence[LiveSAE], space: str, matches: Matches, config: ConsistencyConfig
) -> pd.DataFrame:
    """Make the table ``features`` for one group, a row per SAE and live latent.

    Parameters
    ----------
    name
        Name of the group.
    live
        Its SAEs, as they are in the space.
    space
        Name of the space.
    matches
        The absolute matches of all pairs; empty columns where some are missing.
    config
        The threshold at which a feature counts as found.
    """
    aligned = None
    if len(live) > 1 and len(matches) == len(live) * (len(live) - 1) // 2:
        aligned = align_seeds(matches, threshold=config.shared_threshold).features
    tables = []
    for position, one in enumerate(live):
        record = one.record
        table = pd.DataFrame(
            {
                "group": name,
                "id": record.id,
                "latent": one.index,
                "space": space,
                "n_other_seeds": 0,
            }
        )
        if aligned is not None:
            own = aligned[aligned["seed"] == position].drop(columns=["seed", "feature"])
            table = table.drop(columns="n_other_seeds").join(own.reset_index(drop=True))
        if record.firing_rate is not None:
            table["firing_rate"] = np.asarray(record.firing_rate, dtype=np.float64)[one.index]
        if one.init is not None:
            # absolute, since a row and its negative count as one direction
            table["cosine_to_init"] = np.abs(row_cosines(one.decoder, one.init))
        if one.encoder_cosine is not None:
            table["cosine_to_encoder"] = one.encoder_cosine
        table["converged"] = pd.array([record.converged] * len(table), dtype="boolean")
        tables.append(table)
    return pd.concat(tables, ignore_index=True)

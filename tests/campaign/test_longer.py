"""Longer training of a part of the SAEs: which are chosen, and which of them moved."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from husai.campaign import plan_saes
from husai.campaign.config import LongerConfig
from husai.campaign.longer import longer_plan, moved_table, moved_text
from husai.campaign.plan import PlanConfig, records, row_config, row_training
from husai.consistency import ConsistencyConfig, pw_mcc
from husai.errors import InputError
from husai.sae import BankTrainingConfig, TrainedSAE, train_bank

TRAINING = BankTrainingConfig(
    steps=40, batch_size=64, eval_interval=20, snapshot_interval=8, warmup_steps=0
)


def plan() -> pd.DataFrame:
    return plan_saes(
        PlanConfig.model_validate(
            {
                "architectures": {"topk": {"k": [2]}},
                "d_sae": [6, 8],
                "seeds": [0, 1, 2, 3, 4],
                "untrained": "grid",
                "training_by_width": {8: {"steps": 20}},
            }
        )
    )


def trained(rows: pd.DataFrame) -> dict[str, TrainedSAE]:
    values = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    return {
        str(row["sae_id"]): train_bank(values, [row_config(row)], row_training(row, TRAINING))[0]
        for row in records(rows)
    }


def test_a_random_part_is_trained_for_longer_with_the_same_seeds() -> None:
    given = plan()
    chosen = longer_plan(given, TRAINING, LongerConfig(share=0.3, factor=2.0, seed=1))
    assert len(chosen) == 3  # of the ten of the trained model
    assert (chosen["model"] == "trained").all()
    assert set(chosen["short_id"]) <= set(given["sae_id"])
    assert not set(chosen["sae_id"]) & set(given["sae_id"])
    for row in records(chosen):
        (before,) = records(given[given["sae_id"] == row["short_id"]])
        assert row_config(row) == row_config(before)
        assert row_training(row, TRAINING).steps == 2 * row_training(before, TRAINING).steps
        assert json.loads(row["training"])["steps"] == 2 * (20 if row["d_sae"] == 8 else 40)
    again = longer_plan(given, TRAINING, LongerConfig(share=0.3, factor=2.0, seed=1))
    pd.testing.assert_frame_equal(chosen, again)
    with pytest.raises(InputError, match="no SAE"):
        longer_plan(given[given["model"] == "untrained"], TRAINING, LongerConfig())


def test_an_unchanged_sae_has_not_moved_and_a_rotated_one_has() -> None:
    given = plan().query("model == 'trained' and d_sae == 6")
    chosen = longer_plan(given, TRAINING, LongerConfig(share=0.5))
    saes = trained(given)
    short, long = chosen["short_id"], chosen["sae_id"]
    same = dict(zip(long, (saes[one] for one in short), strict=True))
    table = moved_table(given, chosen, saes, same, ConsistencyConfig())
    assert not table["moved"].any()
    np.testing.assert_allclose(table["own_cosine"], 1.0)
    np.testing.assert_array_equal(table["pw_mcc"], table["pw_mcc_longer"])
    assert (table["converged"] == False).all()  # noqa: E712 - forty steps settle nothing
    first = saes[short.iloc[0]]
    others = [saes[one] for one in given["sae_id"] if one != short.iloc[0]]
    live = [one.W_dec[one.density > 0].numpy() for one in (first, *others)]
    assert table["pw_mcc"].iloc[0] == pytest.approx(
        np.mean([pw_mcc(live[0], other) for other in live[1:]])
    )
    moved = {name: replace(sae, W_dec=sae.W_dec.roll(1, 0)) for name, sae in same.items()}
    table = moved_table(given, chosen, saes, moved, ConsistencyConfig())
    assert table["moved"].all()  # the same directions, by other latents
    failed = {name: replace(sae, failure="the loss was not finite") for name, sae in same.items()}
    none = moved_table(given, chosen, saes, failed, ConsistencyConfig())
    assert none.empty
    assert "no SAE" in moved_text(none)
    assert moved_text(table) == (
        "3 of 3 SAEs moved when they were trained for longer; of the 0 that pass the gate, 0"
    )

"""SAEs of the untrained model: compared as those of the trained one, where the answer is known."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from husai.activations import Activations
from husai.consistency import ConsistencyConfig
from husai.language import study


def test_permuted_saes_come_back_whole_and_random_ones_do_not(monkeypatch, random_sae):
    saes = {f"p{seed}": random_sae(seed, permuted=True) for seed in (1, 2, 3)}
    saes |= {f"r{seed}": random_sae(seed) for seed in (1, 2, 3)}
    plan = pd.DataFrame({"sae_id": list(saes)})
    plan["group"] = [("same" if one[0] == "p" else "other") + " untrained" for one in saes]
    rows = Activations(torch.zeros(1, 16), torch.zeros(1), "hook", "all")
    hooks = [study.HookSAEs(plan, saes, rows, ("hook", "all"))]
    monkeypatch.setattr(study, "saes_by_hook", lambda *_: iter(hooks))
    groups, features = study.compare_untrained(plan, {}, {}, ConsistencyConfig())
    groups = groups.set_index("group")
    assert groups.loc["same untrained", "mean"] == pytest.approx(1)
    other = groups.loc["other untrained"]
    assert other["low"] <= other["mean"] <= other["high"] < 0.9
    by_group = features.groupby("group")
    assert by_group.size().tolist() == [3 * 48] * 2
    found = by_group["n_seeds_found"].mean()
    assert found["same untrained"] == 2
    assert found["other untrained"] < 1
    # with one-to-one matches of equal widths, the score is the features' mean
    mean = by_group["reproducibility"].mean()
    assert mean["other untrained"] == pytest.approx(other["mean"])


def test_without_an_untrained_model_the_tables_are_empty(monkeypatch):
    monkeypatch.setattr(study, "saes_by_hook", lambda *_: iter(()))
    groups, features = study.compare_untrained(pd.DataFrame(), {}, {}, ConsistencyConfig())
    assert groups.empty
    assert features.empty

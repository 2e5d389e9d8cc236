"""Fixtures: a study so small that a campaign over it takes less than a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from husai.activations import Activations
from husai.campaign import (
    CampaignConfig,
    CampaignFolders,
    plan_saes,
    run_campaign,
)
from husai.sae import BankTrainingConfig, TrainedSAE, save_sae
from husai.sae.trained import read_sae

ROWS = torch.randn(240, 8, generator=torch.Generator().manual_seed(0))
ACTIVATIONS = {"h@-1": Activations(ROWS, torch.zeros(240, dtype=torch.int64), "h", -1)}
TRAINING = BankTrainingConfig(
    steps=40, batch_size=32, eval_interval=20, checkpoint_interval=10, device="cpu"
)


def make_config(**changes: Any) -> CampaignConfig:
    fields: dict[str, Any] = {
        "plan": {
            "hook_name": "h",
            "architectures": {"topk": {"k": [2]}, "relu": {"l1_coefficient": [1.0]}},
            "d_sae": [8, 12],
            "seeds": [0, 1, 2],
        },
        "compute": {"processes": 0},
    }
    return CampaignConfig.model_validate({**fields, **changes})


class Campaign:
    """A campaign's folders, and a way to start it."""

    def __init__(self, folder: Path) -> None:
        self.folders = CampaignFolders(
            folder / "trained", folder / "checkpoints", folder / "campaign"
        )

    def start(
        self,
        config: CampaignConfig | None = None,
        training: BankTrainingConfig = TRAINING,
        stop_after: int | None = None,
        on_sae: Callable[[str], None] = lambda sae_id: None,
    ) -> list[str]:
        """Run it as Kedro does, save every SAE, and return the ids of those that were trained."""
        config = config or make_config()
        trained: list[str] = []
        campaign = run_campaign(
            self.plan(config), ACTIVATIONS, training, config, self.folders, progress=False
        )
        for sae_id, sae in campaign:
            on_sae(sae_id)
            save_sae(sae, self.path(sae_id))
            trained.append(sae_id)
            if stop_after is not None and len(trained) >= stop_after:
                campaign.close()  # type: ignore[attr-defined]
                break
        return trained

    def plan(self, config: CampaignConfig) -> pd.DataFrame:
        return plan_saes(config.plan)

    def path(self, sae_id: str) -> Path:
        return self.folders.store / f"{sae_id}.safetensors"

    def saes(self) -> dict[str, TrainedSAE]:
        return {path.stem: read_sae(path) for path in sorted(self.folders.store.glob("*.safet*"))}


def assert_same_weights(one: dict[str, TrainedSAE], two: dict[str, TrainedSAE]) -> None:
    assert one.keys() == two.keys()
    for sae_id, sae in one.items():
        other = two[sae_id]
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_dec_init", "density"):
            assert torch.equal(getattr(sae, name), getattr(other, name)), (sae_id, name)
        pd.testing.assert_frame_equal(sae.history, other.history, check_exact=True)


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return Campaign(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainedSAE]:
    """The SAEs of a campaign that nothing happened to."""
    campaign = Campaign(tmp_path_factory.mktemp("undisturbed"))
    assert len(campaign.start()) == 12
    return campaign.saes()

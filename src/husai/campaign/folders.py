"""Where a campaign works: its folders and the names of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LEDGER, CALIBRATIONS, FAILURES, QUARANTINE = (
    "ledger.jsonl",
    "calibrations.json",
    "failures.csv",
    "quarantine",
)

PLAN = "plan.parquet"

RUNS = "runs.jsonl"
"""The MLflow run of each SAE; tracking writes this file beside the ledger."""


@dataclass(frozen=True)
class CampaignFolders:
    """Where a campaign works.

    Attributes
    ----------
    store
        Trained SAEs, ``<sae_id>.safetensors``: what is here is not trained again.
    checkpoints
        Checkpoints of the banks; on a disk that all nodes see, where there are several.
    campaign
        Ledger, measured costs, failures, lock, and what was moved out of the store.
    """

    store: Path
    checkpoints: Path
    campaign: Path

    @classmethod
    def below(cls, folder: Path) -> CampaignFolders:
        """Give the folders as the catalog lays them out below a campaign's own."""
        return cls(folder / "trained", folder / "checkpoints", folder / "campaign")

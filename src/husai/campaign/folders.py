"""The folders of a campaign and the names of its files."""

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
    """The folders that a campaign reads and writes.

    Attributes
    ----------
    store
        Trained SAEs, ``<sae_id>.safetensors``; an SAE in it is not trained again.
    checkpoints
        Checkpoints of the banks; with several nodes, on a disk that all of them see.
    campaign
        Ledger, measured costs, failures, lock, and what was moved out of the store.
    """

    store: Path
    checkpoints: Path
    campaign: Path

    @classmethod
    def below(cls, folder: Path) -> CampaignFolders:
        """Return the folders inside a campaign's folder, named as in the catalog."""
        return cls(folder / "trained", folder / "checkpoints", folder / "campaign")

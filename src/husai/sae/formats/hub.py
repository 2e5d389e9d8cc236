"""SAEs on the Hugging Face hub: ``hf://OWNER/REPO/FOLDER`` and SAELens release names."""

from __future__ import annotations

from pathlib import Path


def local_path(path: str | Path) -> Path:
    """Where ``path`` lies on this machine."""
    return Path(path)

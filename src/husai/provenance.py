"""What made a result: versions and the commit."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

NAMED_PACKAGES = ("husai", "numpy", "scipy", "torch", "transformer-lens", "kedro", "mlflow")


def git_commit(folder: str | Path) -> dict[str, str | bool]:
    """Give the commit checked out in a folder and whether the tree differs from it.

    Returns
    -------
    dict
        ``commit`` and ``dirty``; empty when the folder is in no git repository.
    """

    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}


def versions() -> dict[str, str]:
    """Give the versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in NAMED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

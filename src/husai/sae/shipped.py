"""Trained SAEs that are shipped with the project: settings of the home study, several seeds each.

``husai://SETTING/SEED`` names one wherever an SAE is read from a path, and ``husai://SETTING`` all
seeds of a setting. ``docs/ship.py`` writes the files and their card, ``shipped/README.md``.
"""

from __future__ import annotations

from pathlib import Path

from husai.errors import InputError

FOLDER = Path(__file__).parent / "shipped"
ADDRESS = "husai://"
SUFFIX = ".safetensors"


def shipped_saes(folder: Path = FOLDER) -> list[str]:
    """List the addresses of all shipped SAEs, for instance ``husai://topk_256/seed0``."""
    return [
        f"{ADDRESS}{path.parent.name}/{path.stem}" for path in sorted(folder.glob(f"*/*{SUFFIX}"))
    ]


def shipped_path(address: str, folder: Path = FOLDER) -> Path:
    """Return the file of a shipped SAE, or the folder of all seeds of a setting.

    Raises
    ------
    InputError
        When there is none at this address.
    """
    known = shipped_saes(folder)
    settings = list(dict.fromkeys(one.rpartition("/")[0] for one in known))
    wanted = address.rstrip("/")
    name = wanted.removeprefix(ADDRESS)
    if wanted in settings:
        return folder / name
    if wanted in known:
        return folder / f"{name}{SUFFIX}"
    seeds = [one for one in known if one.startswith(f"{wanted.rpartition('/')[0]}/")]
    raise InputError(
        f"{address}: no such SAE is shipped; use one of {', '.join(seeds or settings) or 'none'}"
    )

"""Find SAEs at addresses: of the Hugging Face hub, of SAELens' list, and those shipped with HUSAI.

``hf://OWNER/REPO/FOLDER`` and ``saelens://RELEASE/ID`` are downloaded, ``husai://SETTING/SEED`` is
a file of the package. Downloads go through `huggingface_hub`, with the user's cache, tokens and
offline mode (``HF_HUB_OFFLINE=1``).
"""

from __future__ import annotations

import os
import re
from importlib import util
from pathlib import Path
from typing import Any

from husai.boundary import reading
from husai.errors import InputError
from husai.sae.formats.reading import Hints
from husai.sae.shipped import ADDRESS as SHIPPED
from husai.sae.shipped import shipped_path

HUB, SAELENS = "hf://", "saelens://"

DIRECTORY = "HUSAI_SAELENS_DIRECTORY"
"""Environment variable that names a copy of SAELens' ``pretrained_saes.yaml``."""

_ADDRESS = re.compile(
    r"hf://(?P<repo>[\w.\-]+/[\w.\-]+?)(?:@(?P<revision>[^/]+))?(?:/(?P<inside>.+?))?/?"
)


def is_address(path: str | Path) -> bool:
    """Whether a path is an address and not a place on this machine."""
    return str(path).startswith((HUB, SAELENS, SHIPPED))


def local_path(path: str | Path) -> Path:
    """Return the path on this machine; files on the hub are downloaded to its cache.

    Raises
    ------
    InputError
        When the address is wrong, or there are no such files on the hub or in the cache.
    """
    return resolve(path)[0]


def resolve(path: str | Path) -> tuple[Path, Hints]:
    """As :func:`local_path`, with the hints that SAELens' list of releases gives.

    Raises
    ------
    InputError
        As :func:`local_path`.
    """
    address = str(path)
    if address.startswith(SAELENS):
        hub, hints = _release(address)
        return _download(hub), hints
    if address.startswith(HUB):
        return _download(address), Hints()
    if address.startswith(SHIPPED):
        return shipped_path(address), Hints()
    return Path(path), Hints()


def _download(address: str) -> Path:
    found = _ADDRESS.fullmatch(address)
    if found is None or found["inside"] is None:
        raise InputError(
            f"{address}: expected hf://OWNER/REPO/FOLDER or hf://OWNER/REPO@REVISION/FOLDER; "
            "FOLDER is '.' for the whole repository"
        )
    inside = "" if found["inside"] == "." else found["inside"]
    if ".." in inside.split("/"):
        raise InputError(f"{address}: '..' leads out of the repository; remove it")
    from huggingface_hub import snapshot_download

    try:
        root = snapshot_download(
            found["repo"],
            revision=found["revision"],
            # the configuration of a run is above its SAEs, and names the model
            allow_patterns=[inside, f"{inside}/*", "config.json"] if inside else None,
        )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{address}: not downloaded: {reason[:300]}") from error
    place = Path(root) / inside
    if not place.exists():
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        where = "in the cache, and HF_HUB_OFFLINE is set" if offline else "in the repository"
        raise InputError(f"{address}: no {inside} {where}")
    return place


def _release(address: str) -> tuple[str, Hints]:
    """Look up the hub address of ``saelens://RELEASE/ID``, and the input scale of that SAE."""
    release, _, sae_id = address.removeprefix(SAELENS).partition("/")
    place = _directory(address)
    with reading(place):
        import yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is optional, and fast
        known: dict[str, Any] = yaml.load(place.read_text(encoding="utf-8"), Loader=loader)
        if release not in known:
            raise InputError(f"{address}: {place.name} has no release {release!r}; check its name")
        about = known[release]
        entries = {str(entry["id"]): entry for entry in about["saes"]}
        if sae_id not in entries:
            shown = ", ".join(list(entries)[:5]) + (", ..." if len(entries) > 5 else "")
            raise InputError(f"{address}: release {release} in {place.name} has the ids {shown}")
        entry = entries[sae_id]
        scale = entry.get("norm_scaling_factor")
        hints = Hints(input_scale=None if scale is None else float(scale))
        return f"{HUB}{about['repo_id']}/{entry['path']}", hints


def _directory(address: str) -> Path:
    """Find SAELens' list of releases: in the installed package, or where a variable says."""
    named = os.environ.get(DIRECTORY)
    if named:
        return Path(named)
    package = util.find_spec("sae_lens")
    if package is not None and package.origin is not None:
        return Path(package.origin).with_name("pretrained_saes.yaml")
    raise InputError(
        f"{address}: release names are listed in SAELens' pretrained_saes.yaml; install sae-lens, "
        f"set {DIRECTORY} to a copy of that file, or give the folder: hf://OWNER/REPO/FOLDER"
    )

"""Provenance of a result: versions, commit and command, with all secrets removed."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

NAMED_PACKAGES = ("husai", "numpy", "scipy", "torch", "transformer-lens", "kedro", "mlflow")

HIDDEN = "***"

_IN_URL = re.compile(r"(?<=://)[^/\s]+@")
_IN_QUERY = re.compile(r"(?i)([?&](?:[a-z_]*(?:password|token|secret|signature|key))=)[^&\s'\"]+")
_SECRET_NAME = re.compile(r"(PASSWORD|TOKEN|SECRET|SECRET_ACCESS_KEY|API_KEY)$")
_SHORTEST_SECRET = 6
"""Shorter secrets are not hidden, because they would be found inside ordinary words."""


def without_secrets(text: str) -> str:
    """Hide secrets: user and password in URLs, and the values of secret environment variables.

    Secret environment variables are those whose names end in ``PASSWORD``, ``TOKEN``,
    ``SECRET``, ``SECRET_ACCESS_KEY`` or ``API_KEY``.
    """
    text = _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_URL.sub(f"{HIDDEN}@", text))
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    return text


class SecretsFormatter(logging.Formatter):
    """A formatter that removes secrets from what another formatter writes.

    Parameters
    ----------
    inner
        The other formatter.
    """

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        """Write the record, its traceback included."""
        return without_secrets(self._inner.format(record))


def hide_secrets_in_logs() -> None:
    """Make every handler of the root logger hide secrets."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler.formatter, SecretsFormatter):
            handler.setFormatter(SecretsFormatter(handler.formatter))


_fingerprints: dict[tuple[str, int, int], str] = {}


def fingerprint_files(paths: Sequence[Path]) -> str:
    """Hash the names and contents of files to sixteen hex digits; empty for no files.

    A process reads a file again only if its size or time has changed.
    """
    if not paths:
        return ""
    total = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        key = str(path), stat.st_size, stat.st_mtime_ns
        if key not in _fingerprints:
            with path.open("rb") as file:
                _fingerprints[key] = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.name} {_fingerprints[key]}\n".encode())
    return total.hexdigest()[:16]


def command_line() -> str:
    """Return the command that runs as it was typed, without its folder and without secrets."""
    name = Path(sys.argv[0])
    program = name.parent.name if name.name == "__main__.py" else name.name
    # ``python -m kedro`` puts these words in the place of the program's name
    words = program.split() if program.startswith("python -m ") else [program]
    return without_secrets(shlex.join([*words, *sys.argv[1:]]))


def git_commit(folder: str | Path) -> dict[str, str | bool]:
    """Return the commit that is checked out in a folder, and whether the tree differs from it.

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
    """Return the versions of Python and of the packages on which the numbers depend."""
    found = {"python": platform.python_version()}
    for name in NAMED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

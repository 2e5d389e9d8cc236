"""What made a result: versions, commit and command; and how secrets are kept out of it."""

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
"""A shorter value of such a variable would be found in the middle of ordinary words."""


def without_secrets(text: str) -> str:
    """Hide secrets: user and password in URLs, and the values of secret environment variables.

    These are the values of the environment variables whose names end in ``PASSWORD``, ``TOKEN``,
    ``SECRET``, ``SECRET_ACCESS_KEY`` or ``API_KEY``.
    """
    text = _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_URL.sub(f"{HIDDEN}@", text))
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    return text


class SecretsFormatter(logging.Formatter):
    """Writes what another formatter writes of a log's record, without secrets.

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
    """Have every handler of the root logger write without secrets."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler.formatter, SecretsFormatter):
            handler.setFormatter(SecretsFormatter(handler.formatter))


_fingerprints: dict[tuple[str, int, int], str] = {}


def fingerprint_files(paths: Sequence[Path]) -> str:
    """Give sixteen hex digits of the names and contents of some files; empty for none.

    A file that has neither changed its size nor its time is read once in a process.
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
    """Give the command that runs, as it was typed, without its folder and without secrets."""
    name = Path(sys.argv[0])
    program = name.parent.name if name.name == "__main__.py" else name.name
    # ``python -m kedro`` puts these words, spaces and all, where the program's name belongs
    words = program.split() if program.startswith("python -m ") else [program]
    return without_secrets(shlex.join([*words, *sys.argv[1:]]))


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

"""Build the sdist and the wheel, install each in a fresh environment, and test it there.

    make release-check
    python .ci/release_check.py [ARCHIVE...]    # with existing archives

Versions are those of requirements.lock, so that new releases of other projects change nothing.
Everything happens in a temporary folder outside the repository, except the archives in ``dist``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
SMOKE = Path(__file__).with_name("smoke.py")
PROJECT_FILES = ("Makefile", "conf/base/globals.yml", "requirements.lock", "tests/conftest.py")


def run(*words: str | Path, cwd: Path) -> None:
    """Run a command, say how long it took, and stop with its output when it fails."""
    began = time.perf_counter()
    done = subprocess.run(
        words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}")
    said = " ".join(Path(word).name for word in words[1:])
    print(f"  {time.perf_counter() - began:.0f} s: {said}", flush=True)


def build(folder: Path) -> list[Path]:
    """Build the sdist, and the wheel from the sdist."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT, cwd=folder)
    wheel, sdist = sorted(DIST.iterdir(), key=lambda path: path.suffix, reverse=True)
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in PROJECT_FILES if name not in inside]
    if missing:
        sys.exit(f"{sdist.name} is not a whole project: it lacks {', '.join(missing)}")
    return [wheel, sdist]


def check(archive: Path, folder: Path) -> None:
    """Install an archive in an environment of its own and try it from an empty folder."""
    started = time.perf_counter()
    environment, empty = folder / "environment", folder / "empty"
    venv.create(environment, with_pip=True)
    empty.mkdir()
    python = environment / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    lock = ROOT / "requirements.lock"
    run(*pip, "install", "--quiet", "--no-compile", "--constraint", lock, archive, cwd=empty)
    run(*pip, "check", cwd=empty)
    version = archive.name.removesuffix(".tar.gz").split("-")[1]
    run(python, "-I", SMOKE, version, cwd=empty)
    size = sum(path.stat().st_size for path in environment.rglob("*") if path.is_file()) / 2**20
    if archive.suffix == ".whl":
        run(
            *pip,
            "install",
            "--quiet",
            "--no-compile",
            "--constraint",
            lock,
            f"{archive}[lm]",
            cwd=empty,
        )
        run(python, "-I", SMOKE, version, "lm", cwd=empty)
    print(
        f"{archive.name}: {archive.stat().st_size / 2**20:.1f} MiB, installed with all it needs "
        f"{size:.0f} MiB, tried in {time.perf_counter() - started:.0f} s",
        flush=True,
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="husai-release-") as temporary:
        archives = [Path(name).resolve() for name in sys.argv[1:]] or build(Path(temporary))
        for archive in archives:
            folder = Path(temporary) / archive.suffix[1:]
            folder.mkdir()
            check(archive, folder)
    print("release check passed")

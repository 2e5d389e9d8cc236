"""A release has one version everywhere, and the lock file has every required package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import husai
from husai.errors import InputError, needs

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins(name: str) -> dict[str, str]:
    """The packages of a lock file with their versions."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in pairs}


LOCK = pins("requirements.lock")
LOCKED = [*PROJECT["dependencies"], *EXTRAS["lm"], *EXTRAS["project"], *EXTRAS["dev"]]


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+) \((\d{4}-\d{2}-\d{2})\)$", changes, re.MULTILINE)
    assert newest is not None
    assert citation["version"] == newest[1] == husai.__version__
    assert str(citation["date-released"]) == newest[2]


@pytest.mark.parametrize("wanted", [one for one in LOCKED if not one.startswith("husai")])
def test_the_lock_file_has_every_required_package(wanted: str) -> None:
    asked = Requirement(wanted)
    assert asked.specifier.contains(LOCK[canonicalize_name(asked.name)])


def test_extras_name_one_another() -> None:
    named = [Requirement(one) for extra in EXTRAS.values() for one in extra if "husai" in one]
    assert named
    assert all(one.extras <= EXTRAS.keys() for one in named)


@pytest.mark.parametrize(("extra", "advice"), [("lm", "husai[lm]'"), ("project", "repository")])
def test_a_missing_package_gives_one_line_that_says_what_to_do(extra: str, advice: str) -> None:
    needs("numpy", extra)
    with pytest.raises(InputError, match="absent_package is not installed") as caught:
        needs("absent_package", extra)
    assert str(caught.value).endswith(advice)
    assert "\n" not in str(caught.value)
    assert extra in EXTRAS

"""A release has one version everywhere, and the lock file has every required package.

The image of the team's server is read as well: Docker is not needed for that.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
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


TEAM = ROOT / "conf" / "team"
DOCKERFILE = (TEAM / "Dockerfile").read_text(encoding="utf-8").splitlines()


def copied() -> dict[str, str]:
    """Each file that the image copies from the repository, with its place in the image."""
    found: dict[str, str] = {}
    for line in DOCKERFILE:
        if line.startswith("COPY "):
            *sources, target = line.split()[1:]
            assert target.endswith("/")
            found |= {source: target + Path(source).name for source in sources}
    return found


def test_the_image_copies_files_that_exist_and_are_let_through() -> None:
    assert len(copied()) == 3
    assert all((ROOT / source).is_file() for source in copied())
    ignored = (TEAM / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in ignored if not line.startswith("#")]
    assert rules[0] == "*"
    assert {line.removeprefix("!") for line in rules[1:]} == set(copied())


def test_the_image_uses_and_starts_what_it_copied() -> None:
    (entry,) = (line for line in DOCKERFILE if line.startswith("ENTRYPOINT "))
    assert json.loads(entry.removeprefix("ENTRYPOINT "))[-1] in copied().values()
    (install,) = (line for line in DOCKERFILE if "pip install" in line)
    assert set(re.findall(r"/server/\S+", install)) <= set(copied().values())
    (base,) = (line.split()[1] for line in DOCKERFILE if line.startswith("FROM "))
    version = re.fullmatch(r"python:(3\.\d+)-slim", base)
    assert version is not None
    assert version[1] in SpecifierSet(PROJECT["requires-python"])


def test_every_package_of_the_server_has_one_version() -> None:
    lines = (TEAM / "requirements.txt").read_text(encoding="utf-8").splitlines()
    asked = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert asked
    for one in asked:
        exact = [part.operator for part in one.specifier] == ["=="]
        assert exact or canonicalize_name(one.name) in LOCK, one.name


def test_the_server_gets_the_variables_that_it_reads() -> None:
    compose = yaml.safe_load((TEAM / "compose.yml").read_text(encoding="utf-8"))
    server, database = compose["services"]["server"], compose["services"]["database"]
    folder = (TEAM / server["build"]["context"]).resolve()
    assert folder == ROOT
    assert (folder / server["build"]["dockerfile"]).is_file()
    read = set(re.findall(r"HUSAI_[A-Z]+", (TEAM / "serve.sh").read_text(encoding="utf-8")))
    in_image = re.findall(r"(HUSAI_[A-Z]+)=", "\n".join(DOCKERFILE))
    given = {*in_image, *server["environment"]}
    assert {"HUSAI_STORE", "HUSAI_ARTIFACTS"} <= given <= read
    own = database["environment"]
    assert server["environment"]["HUSAI_STORE"] == (
        f"postgresql://{own['POSTGRES_USER']}:${{POSTGRES_PASSWORD}}@database/{own['POSTGRES_DB']}"
    )
    named = {place.partition(":")[0] for one in (server, database) for place in one["volumes"]}
    assert named == set(compose["volumes"])

"""Links of the documents work, all pages are in the menu, and every score and null is explained."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from husai.consistency.inference.nulls import NULL_KINDS
from husai.consistency.scores.registry import SCORES

ROOT = Path(__file__).parents[1]
SITE = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks" / "results").rglob("*.md"),
        *(ROOT / "notebooks").glob("*.md"),
        *(ROOT / "src" / "husai").rglob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ]
)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def name_of(path: Path) -> str:
    """A file's name from the folder of the project."""
    return path.relative_to(ROOT).as_posix()


def words_of(path: Path) -> str:
    """Return the text of a page without code."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


@cache
def anchors(path: Path) -> frozenset[str]:
    """The headings of a page as the site and code hosts write them in links."""
    titles = re.findall(r"^#+ (.+)$", words_of(path), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles]
    return frozenset(re.sub(r"[-\s]+", "-", title) for title in plain)


def broken_links(path: Path) -> list[str]:
    """Return the links of a page whose target does not exist."""
    found = []
    for target, anchor in LINK.findall(words_of(path)):
        to = (path.parent / target).resolve() if target else path
        if not to.exists() or (anchor and to.suffix == ".md" and anchor not in anchors(to)):
            found.append(f"{target}{f'#{anchor}' if anchor else ''}")
    return found


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    assert broken_links(path) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    other, page = tmp_path / "other.md", tmp_path / "page.md"
    other.write_text("# `One` thing, and more\n\n```\n# no heading\n```\n")
    page.write_text("[a](other.md#one-thing-and-more) [b](other.md#no-heading) [c](gone.md)")
    assert broken_links(page) == ["other.md#no-heading", "gone.md"]


def menu(entries: Any) -> list[str]:
    """The pages of the site's menu, in order."""
    if isinstance(entries, str):
        return [entries]
    if isinstance(entries, dict):
        entries = list(entries.values())
    return [page for entry in entries for page in menu(entry)]


def test_every_page_is_in_the_menu_once_and_exists() -> None:
    pages = menu(SITE["nav"])
    assert len(pages) == len(set(pages))
    folder = ROOT / "docs"
    documents = {p.relative_to(folder).as_posix() for p in PAGES if p.is_relative_to(folder)}
    outside = {page for page in pages if (ROOT / page).is_file()}
    missing = documents - set(pages)
    assert set(pages) - outside <= documents
    # results are led to by the pages that speak of them
    assert all(page.startswith("results/") for page in missing), missing


def identifiers() -> list[tuple[str, str]]:
    """Return the modules that the reference pages show, with their pages."""
    pages = (ROOT / "docs" / "reference").glob("*.md")
    shown = [
        (path.name, re.findall(r"^::: (\S+)", path.read_text(), re.MULTILINE)) for path in pages
    ]
    return [(page, module) for page, modules in shown for module in modules]


@pytest.mark.parametrize(("page", "module"), identifiers())
def test_the_reference_shows_every_module(page: str, module: str) -> None:
    assert importlib.import_module(module).__doc__


def section(page: str, name: str) -> str:
    """The part of a page under the heading that names something in backticks."""
    text = (ROOT / "docs" / "concepts" / page).read_text(encoding="utf-8")
    parts = re.split(r"^##+ ", text, flags=re.MULTILINE)
    return next((part for part in parts if f"`{name}`" in part.splitlines()[0]), "")


@pytest.mark.parametrize("name", SCORES)
def test_every_score_has_its_formula_and_its_limits(name: str) -> None:
    assert "Mislead" in section("scores.md", name)


@pytest.mark.parametrize("name", NULL_KINDS)
def test_every_null_is_explained(name: str) -> None:
    assert section("chance.md", name)


def test_every_group_of_parameters_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "parameters.md").read_text(encoding="utf-8")
    used = {
        name
        for path in (ROOT / "src" / "husai" / "pipelines").rglob("pipeline.py")
        for name in re.findall(r'"params:(\w+)"', path.read_text(encoding="utf-8"))
    }
    assert len(used) > 10
    explained = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert used <= {name for title in explained for name in title.split(", ")}

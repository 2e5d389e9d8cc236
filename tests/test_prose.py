"""Texts that people read are in plain English, and name no machine and no package index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "docs", "conf", "notebooks", "benchmarks", "paper", ".ci")
FILES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "Makefile", "mkdocs.yml"),
    *("pyproject.toml", "requirements.lock", "requirements-docs.lock"),
)
KINDS = {".py", ".pyi", ".md", ".j2", ".yml", ".ipynb", ".typ"}

BANNED = {
    "write 'an SAE'": r"\b[Aa] SAE\b",
    "usual word order": r"Read it so|is no field|that come back of|comes back of",
    "write 'fix this'": r"\bput (it|that) right\b",
    "write 'continues'": r"\bit goes on\b|\bgoes on (from|where|as)\b",
    "write 'is recorded' or 'by default'": r"\b(is|are|be|unless) told\b|\btold to\b",
    "write 'unchanged'": r"as it is, and",
    "write 'not learned structure'": r"agreement with nothing|left of its start",
    "write 'per'": r"\b(rows|latents|units|nats|SAEs|draws) a (row|step|pair|batch|token|bank)\b",
    "write 'if there are more'": r"[;,] of more\b|\bof more (rows|features) a\b|more of them are",
    "write 'averaged'": r"\bmeaned\b",
    "write 'almost nothing'": r"\bnext to nothing\b|\basks nobody\b",
    "no path of one machine": r"(?<![\w.\]])/(work|tmp|root|home)/",
    "no address of a package index": r"index-url|pypi[.]o" r"rg|python" r"hosted|artifactory",
}


def texts() -> list[Path]:
    found = [ROOT / name for name in FILES]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.suffix in KINDS]
    # what a run wrote stays as it was written
    return [path for path in found if "results" not in path.parts]


TEXTS = {path: path.read_text(encoding="utf-8") for path in texts()}


@pytest.mark.parametrize("rule", BANNED)
def test_no_text_has_a_forbidden_form(rule: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{text[: match.start()].count(chr(10)) + 1}: {match[0]!r}"
        for path, text in TEXTS.items()
        for match in re.finditer(BANNED[rule], text)
    ]
    assert not found, f"{rule}: {'; '.join(found)}"


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("write 'an SAE'", "gives a SAE its name"),
        ("write 'fix this'", "put it right"),
        ("write 'continues'", "and it goes on"),
        ("write 'per'", "k units a row"),
        ("write 'if there are more'", "rows shown; of more a random part"),
        ("no path of one machine", "kept in /" + "tmp/x"),
        ("no address of a package index", "--index-url=https://host/simple"),
    ],
)
def test_the_rules_find_forbidden_forms(rule: str, text: str) -> None:
    assert re.search(BANNED[rule], text)


def test_every_parameter_has_a_meaning_that_can_be_read_alone() -> None:
    """A meaning is no continuation of the field's name (``seed``: "of the draws")."""
    page = TEXTS[ROOT / "docs/reference/parameters.md"]
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len(rows) > 100
    wrong = {row[0]: row[-1] for row in rows if re.match(r"$|(of|that|by|for) ", row[-1], re.I)}
    assert not wrong


@pytest.mark.parametrize(
    "path", [path for path in TEXTS if path.suffix == ".md"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", TEXTS[path]):
        assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"

"""The glossary explains every term that pages and tables show."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from husai.calibration.scores import SCORES as CALIBRATED
from husai.consistency.inference.nulls import NULL_KINDS
from husai.consistency.scores.registry import SCORES
from husai.consistency.study.geometry import _MEASURES
from husai.figures.style import NULLS
from husai.reporting import calibration_page
from husai.reporting.page import TRUTH_MEASURES

ROOT = Path(__file__).parents[1]
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
CELLS = [line.split(" | ")[0].strip("| ") for line in GLOSSARY.splitlines() if line[:2] == "| "]
TERMS = [
    one.strip()
    for cell in CELLS
    for one in re.sub(r" \(`[^`]*`\)", "", cell).split(",")
    if one != "term"
]
NAMES = [name for cell in CELLS for name in re.findall(r"\(`([^`]*)`\)", cell)]

# words of everyday use, which need no explanation
PLAIN = {
    "found",
    "first context",
    "second context",
    *("model", "rows", "features", "seeds", "groups", "score", "value", "source", "paper"),
    *("architecture", "architectures", "sparsity", "SAEs", "minus", "mean norm", "pass"),
    *("seconds per SAE", "dimensions", "symmetry", "parameter", "default", "note"),
}
# columns that say in words what a term of the glossary says
SAME = {
    "isotropic null": "isotropic",
    "data-aware null": "data-aware",
    "permuted null": "permuted",
    "above isotropic": "above a null",
    "above data-aware": "above a null",
    "above permuted": "above a null",
    "median reproducibility": "reproducibility",
    "PW-MCC by step": "PW-MCC",
}


def headers() -> list[str]:
    """Titles of the columns of all tables in the pages' templates, but for those filled in."""
    found = []
    for path in sorted((ROOT / "src/husai/reporting/templates").glob("*.j2")):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
        for line, rule in itertools.pairwise(lines):
            if rule.startswith("|---"):
                fixed = re.sub(r"\{% for.*?endfor %\}|\{\{.*?\}\}", "", line)
                found += [cell.strip() for cell in fixed.strip("|").split("|") if cell.strip()]
    return [re.sub(r" in +dimensions$", "", title) for title in found]


def term(name: str) -> str:
    """How a column or a score of this name is called."""
    return SCORES[name].term if name in SCORES else name.replace("_", " ")


def test_no_term_is_explained_twice() -> None:
    assert len(TERMS) == len(set(TERMS))
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_explained_under_its_name_and_its_title(name: str) -> None:
    assert name in NAMES
    assert SCORES[name].term in TERMS


@pytest.mark.parametrize("kind", sorted({*NULL_KINDS, *NULLS}))
def test_every_null_is_explained(kind: str) -> None:
    assert kind in NAMES
    assert kind.replace("_", "-") in TERMS


def test_the_gate_is_explained() -> None:
    assert {"gate", "converged", "†", "slope"} <= set(TERMS)


def test_the_templates_have_columns() -> None:
    assert {"group", "FVU", "settled but held back"} <= set(headers())


@pytest.mark.parametrize("title", sorted(set(headers())))
def test_every_column_of_a_page_is_explained(title: str) -> None:
    assert title in PLAIN or SAME.get(title, title) in TERMS


@pytest.mark.parametrize(
    "name",
    [*_MEASURES, *calibration_page.PLANE_COLUMNS, *calibration_page.ARCHITECTURE_COLUMNS],
)
def test_every_measure_that_becomes_a_column_is_explained(name: str) -> None:
    assert term(name) in TERMS


@pytest.mark.parametrize("name", CALIBRATED)
def test_every_calibrated_score_is_explained(name: str) -> None:
    assert term(re.sub("_(signed|corrected)$", "", name)) in TERMS


@pytest.mark.parametrize("title", TRUTH_MEASURES.values())
def test_every_measure_of_the_true_planes_is_explained(title: str) -> None:
    assert title in TERMS

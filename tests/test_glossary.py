"""The glossary explains what the pages show."""

from __future__ import annotations

from pathlib import Path

import pytest

from husai.figures.style import NULLS, SCORE_NAMES
from husai.reporting.page import TRUTH_MEASURES

GLOSSARY = (Path(__file__).parents[1] / "docs" / "glossary.md").read_text()
TERMS = [
    term.strip()
    for line in GLOSSARY.splitlines()
    if line.startswith("| ")
    for term in line.split(" | ")[0].strip("| ").split(",")
]


def test_no_term_is_explained_twice() -> None:
    terms = [term for term in TERMS if term != "term"]
    assert len(terms) == len(set(terms))


@pytest.mark.parametrize("kind", NULLS)
def test_every_null_that_a_figure_draws_is_explained(kind: str) -> None:
    assert kind.replace("_", "-") in TERMS


@pytest.mark.parametrize("name", ["pw_mcc", "mmcs", "matched_fraction", "shared_fraction"])
def test_the_main_scores_are_explained(name: str) -> None:
    assert SCORE_NAMES[name] in TERMS


@pytest.mark.parametrize("title", TRUTH_MEASURES.values())
def test_every_measure_of_the_true_planes_is_explained(title: str) -> None:
    assert title.removesuffix(" of axes") in TERMS


@pytest.mark.parametrize(
    "name",
    [
        "participation_ratio",
        "nearest_cosine",
        "encoder_cosine",
        "never_coactive",
        "coactivation_bits",
    ],
)
def test_every_measure_of_geometry_that_needs_it_is_explained(name: str) -> None:
    assert name.replace("_", " ") in TERMS

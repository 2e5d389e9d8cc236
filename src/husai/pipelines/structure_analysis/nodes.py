"""Nodes that measure the geometry and the symmetries of dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from husai.consistency.config import ConsistencyConfig
from husai.pipelines.hints import Figure, SAERecord, StudyRecords
from husai.reporting.config import ReportingConfig
from husai.storage import TensorFiles


def gather(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    external_saes: Mapping[str, Sequence[SAERecord]],
    activations: TensorFiles,
) -> StudyRecords:
    """Read the plan's SAEs and rows, and encode the rows, once for all nodes."""
    from husai.campaign.records import gather_records

    return gather_records(sae_plan, saes, external_saes, activations)


def measure_geometry(study: StudyRecords, consistency: ConsistencyConfig) -> pd.DataFrame:
    """Make the table of geometry: measures of each group, beside their nulls."""
    from husai.campaign.comparison import study_geometry

    return study_geometry(study, consistency)


def find_symmetries(study: StudyRecords, consistency: ConsistencyConfig) -> pd.DataFrame:
    """Make the table of symmetries: which map a dictionary to itself or to another seed's."""
    from husai.campaign.comparison import study_symmetries

    return study_symmetries(study, consistency)


def plot_symmetries(symmetries: pd.DataFrame) -> Figure:
    """Draw the scores of each symmetry, within dictionaries and between seeds."""
    from husai.figures.geometry import symmetry_figure

    return symmetry_figure(symmetries)


def plot_examples(study: StudyRecords) -> tuple[Figure, Figure, Figure]:
    """Draw geometry, firing and true circles for one SAE of each architecture."""
    from husai.figures.study import example_figures

    return example_figures(study)


def write_page(
    geometry: pd.DataFrame,
    symmetries: pd.DataFrame,
    origin: dict[str, Any],
    reporting: ReportingConfig,
) -> str:
    """Write the page about the structure of dictionaries in Markdown."""
    from husai.reporting.structure_page import structure_page

    return structure_page(geometry, symmetries, origin, reporting)

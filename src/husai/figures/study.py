"""Figures of a study's own SAEs: which SAEs are drawn, and what is said if there are none."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from husai.campaign.records import StudyRecords, example_saes
from husai.consistency import (
    match_features,
    plane_recovery,
    sparsity_pattern,
)
from husai.consistency.scores.subspace import data_metric
from husai.consistency.study.record import live_sae
from husai.figures.features import similarity_figure
from husai.figures.geometry import (
    activation_figure,
    circle_figure,
    geometry_figure,
)
from husai.figures.style import not_available


def own_hook(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the study's own hook, the first in the table: other hooks are other data."""
    return table[table["hook"] == table["hook"].iloc[0]] if len(table) else table


def main_pair_figure(group: str, study: StudyRecords) -> Figure:
    """Draw how well the features of a group's first two seeds match."""
    found = [record for record in study.first.records if record.group == group][:2]
    if len(found) < 2:
        return not_available(f"{group}: one SAE, no pair to compare")
    one, two = found
    return similarity_figure(
        one.W_dec,
        two.W_dec,
        match_features(one.W_dec, two.W_dec),
        names=(f"{group}, seed {one.seed}", f"seed {two.seed}"),
        unconverged=not (one.converged and two.converged),
    )


def example_figures(study: StudyRecords) -> tuple[Figure, Figure, Figure]:
    """Draw geometry, firing and true circles of one SAE of each architecture."""
    chosen = {name: study.record(sae_id) for name, sae_id in example_saes(study).items()}
    open_ones = [name for name, sae in chosen.items() if not sae.converged]
    metric = data_metric(study.first.covariance)
    live = {name: live_sae(sae, "drop", metric=metric) for name, sae in chosen.items()}
    geometry = geometry_figure(
        {name: (sae.decoder, sae.encoder_cosine) for name, sae in live.items()},
        unconverged=open_ones,
    )
    patterns = {
        name: sparsity_pattern(sae.codes) for name, sae in chosen.items() if sae.codes is not None
    }
    firing = activation_figure(patterns, unconverged=open_ones)
    rows = study.first.rows
    if rows.planes is None:
        return geometry, firing, not_available("no ground truth is known at this hook")
    planes = rows.planes.numpy()
    circles = circle_figure(
        {name: plane_recovery(sae.W_dec, planes) for name, sae in chosen.items()},
        plane_names=rows.plane_names,
        unconverged=open_ones,
    )
    return geometry, firing, circles

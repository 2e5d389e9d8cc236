"""Groups of features of a study: what splits and merges across widths, spans and planes."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd

from husai.campaign.features import study_features
from husai.errors import InputError
from husai.features import FeatureGroup, FeaturesConfig, combination_table
from husai.features.combinations import VERDICTS, Place, share_table
from husai.features.planes import SPANNED, plane_table, span_table
from husai.storage import TensorFiles

_WIDTH = re.compile(r" d(\d+)")


@dataclass(frozen=True)
class GroupTables:
    """What is found of groups of features.

    Attributes
    ----------
    shares
        A row per measure (``codes``: is a latent's activation explained by one or a few of another
        SAE's latents; ``decoder``: is its direction in their span), pair of widths and verdict:
        see :func:`husai.features.combinations.share_table`.
    combinations
        A row per feature and other SAE: :func:`husai.features.combination_table`.
    planes, counts
        :func:`husai.features.planes.plane_table`, of the SAEs of every width apart.
    """

    shares: pd.DataFrame
    combinations: pd.DataFrame
    planes: pd.DataFrame
    counts: pd.DataFrame


def widths_of(plan: pd.DataFrame, group: str) -> list[str]:
    """Name the groups that differ from one in their width alone, from narrow to wide.

    Raises
    ------
    InputError
        When the group is not in the plan.
    """
    own = plan[plan["group"] == group]
    if own.empty:
        raise InputError(f"{group}: the plan has no such group")
    same = plan[
        (plan["model"] == own["model"].iloc[0])
        & (plan["hook_name"] == own["hook_name"].iloc[0])
        & (plan["position"] == own["position"].iloc[0])
        & (plan["group"].str.replace(_WIDTH, "", regex=True) == _WIDTH.sub("", group))
    ]
    return list(same.sort_values("d_sae", kind="stable")["group"].unique())


def measured_groups(
    plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    group: str,
    config: FeaturesConfig,
) -> GroupTables:
    """Measure what no single latent matches, within a width and across widths.

    Parameters
    ----------
    plan, saes, activations
        Of the study.
    group
        Its main group; those that differ from it in their width alone are looked at too.
    config
        Least R² of an explanation, seed, threads, level.
    """
    names = widths_of(plan, group)
    studies = [study_features(plan, saes, activations, name) for name in names]
    members = [one for study in studies for one in study.group.live]
    codes = [one for study in studies for one in study.group.codes or ()]
    # combinations need no match between SAEs, and there are many pairs
    every = FeatureGroup(" and ".join(names), members, {}, codes)
    places = {one.record.id: Place(f"{one.record.d_sae}", one.record.seed) for one in every.live}
    combined = combination_table(
        every, least_r2=config.label_r2, seed=config.seed, workers=config.workers
    )
    null = combined.assign(
        verdict=(combined["r2_null"] >= config.label_r2).map({True: "explained", False: "not"})
    )
    decoders = [one.decoder for one in every.live]
    spanned = span_table(every.ids, decoders, seed=config.seed)
    shares = [
        share_table(table, places, verdicts, config.level).assign(measure=measure)
        for measure, table, verdicts in (
            ("codes", combined, VERDICTS),
            ("codes, rows in random order", null, ("explained",)),
            ("decoder", spanned, SPANNED),
        )
    ]
    planes, counts = [], []
    for study in studies:
        live = study.group.live
        found, counted = plane_table(
            study.group.ids, [one.decoder for one in live], seed=config.seed
        )
        width = live[0].record.d_sae
        planes.append(found.assign(d_sae=width))
        counts.append(counted.assign(d_sae=width))
    return GroupTables(
        pd.concat(shares, ignore_index=True),
        combined,
        pd.concat(planes, ignore_index=True),
        pd.concat(counts, ignore_index=True),
    )

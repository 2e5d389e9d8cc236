"""The features of a study's main group: its SAEs and rows, and what is known of the rows."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from husai.activations import Activations
from husai.campaign.comparison import addition_modulus
from husai.campaign.plan import plan_keys
from husai.campaign.records import gather_records, study_hooks
from husai.consistency.analyses.labels import Labels
from husai.consistency.study.labels import candidate_labels, main_group
from husai.errors import InputError
from husai.features import (
    FeatureCards,
    FeatureGroup,
    FeaturesConfig,
    RowFacts,
    ambiguity_tables,
    feature_cards,
    feature_group,
    functional_consistency,
    modular_readout,
)
from husai.features.readouts import Readout
from husai.sae.trained import TrainedSAE
from husai.storage import TensorFile, TensorFiles
from husai.transformer.model import TrainedTransformer


@dataclass(frozen=True)
class StudyFeatures:
    """The main group of a study, ready for its feature page.

    Attributes
    ----------
    group
        Its SAEs, matched.
    saes
        The same SAEs as they were trained.
    rows
        What they read.
    families
        Candidates for what a latent means on these rows.
    facts
        What a page can show of the rows.
    """

    group: FeatureGroup
    saes: list[TrainedSAE]
    rows: Activations
    families: tuple[Labels, ...]
    facts: RowFacts


def chosen_group(plan: pd.DataFrame, coverage: pd.DataFrame, kinds: pd.DataFrame) -> str:
    """Choose the group whose features a study shows.

    That of :func:`husai.consistency.study.labels.main_group`; without labels the widest group of
    the grid.
    """
    hook = study_hooks(plan)[0]
    own = plan[(pd.Series(plan_keys(plan), index=plan.index) == hook)]
    at_hook = [
        table[(table["hook"] == hook) & table["group"].isin(own["group"])] if len(table) else table
        for table in (coverage, kinds)
    ]
    found = main_group(*at_hook) if len(at_hook[1]) else None
    if found is not None:
        return found[1]
    return str(own.sort_values(["variant", "d_sae"], ascending=[True, False])["group"].iloc[0])


def study_features(
    plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    group: str,
    *,
    labels: pd.DataFrame | None = None,
    contexts: pd.DataFrame | None = None,
) -> StudyFeatures:
    """Read one group's SAEs and rows, encode the rows, and match the features.

    Parameters
    ----------
    plan, saes, activations
        Of the study.
    group
        Its name in the plan.
    labels
        Labels of the rows that the user brought, a column each.
    contexts
        The text around each row, see :func:`husai.features.pictures.check_contexts`.

    Raises
    ------
    InputError
        When fewer than two of its SAEs are there.
    """
    study = gather_records(plan[plan["group"] == group], saes, {}, activations)
    own = study.first
    if len(own.records) < 2:
        raise InputError(f"{group}: {len(own.records)} SAE trained; features need two to compare")
    labels = labels if labels is not None and len(labels.columns) else None
    labelled = candidate_labels(own.rows, labels)
    return StudyFeatures(
        feature_group(own.records, name=group),
        [study.saes[one.id] for one in own.records],
        own.rows,
        () if labelled is None else labelled.families,
        RowFacts(addition_modulus(own.rows), labels, contexts),
    )


def study_readout(study: StudyFeatures, transformer: TensorFile | None) -> Readout | str:
    """What the study's transformer makes of the rows, or why that is not known."""
    if transformer is None:
        return "Function is not measured: there is no transformer."
    trained = TrainedTransformer.from_parts(transformer.tensors, transformer.header)
    try:
        return modular_readout(trained, study.rows)
    except InputError as error:
        return f"Function is not measured: {error}."


def measured_cards(
    study: StudyFeatures, readout: Readout | str, config: FeaturesConfig
) -> tuple[FeatureCards, pd.DataFrame]:
    """Give the cards of a study's main group with all that is measured of its features.

    Returns
    -------
    cards
        What is known of each feature.
    function
        Strata of :class:`husai.features.FunctionTables`; empty without a readout.
    """
    cards = feature_cards(study.group, study.families, config)
    features, partners, note = ambiguity_tables(cards, config)
    cards = cards.join(features, partners, [note])
    if isinstance(readout, str):
        return cards.join(notes=[readout]), pd.DataFrame()
    found = functional_consistency(cards, study.rows.values.numpy(), readout, config)
    return cards.join(found.features, found.partners, [found.note]), found.strata

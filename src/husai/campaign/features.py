"""The features of a study's main group: gathered, measured, and made into a consensus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from husai.activations import Activations
from husai.campaign.comparison import addition_modulus
from husai.campaign.plan import plan_keys
from husai.campaign.records import gather_records, study_hooks
from husai.consistency.analyses.labels import Labels
from husai.consistency.inference.intervals import mean_interval
from husai.consistency.inference.seeds import partner_similarity
from husai.consistency.study.labels import candidate_labels, main_group
from husai.errors import InputError
from husai.features import (
    FeatureCards,
    FeatureGroup,
    FeaturesConfig,
    FunctionTables,
    RowFacts,
    build_consensus,
    code_identifiability,
    combination_table,
    consensus_recurrence,
    feature_cards,
    feature_group,
    functional_consistency,
    known_cards,
    modular_readout,
    new_seed_calibration,
    sampled_function,
    single_class,
)
from husai.features.config import ConsensusConfig
from husai.features.consensus import ConsensusResult, yardsticks
from husai.features.readouts import Readout
from husai.features.returning import CURVE
from husai.language import LanguageModelConfig, ReadingConfig, load_language_model
from husai.language.outputs import TokenOutputs
from husai.sae.trained import TrainedSAE
from husai.storage import TensorFile, TensorFiles
from husai.text import Tokens
from husai.transformer.model import TrainedTransformer


@dataclass(frozen=True)
class StudyFeatures:
    """The main group of a study, ready for its feature page.

    Attributes
    ----------
    group
        Its SAEs, matched.
    saes
        The same SAEs as trained objects.
    rows
        The activations that they read.
    families
        Labels of these rows that may explain a latent.
    facts
        What the page can show about the rows.
    """

    group: FeatureGroup
    saes: list[TrainedSAE]
    rows: Activations
    families: tuple[Labels, ...]
    facts: RowFacts


def chosen_group(plan: pd.DataFrame, coverage: pd.DataFrame, kinds: pd.DataFrame) -> str:
    """Choose the group whose features a study shows.

    It is that of :func:`husai.consistency.study.labels.main_group`; without labels, the widest
    group of the grid.
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
    labels: pd.DataFrame | Mapping[str, Any] | None = None,
    contexts: pd.DataFrame | Mapping[str, Any] | None = None,
) -> StudyFeatures:
    """Read one group's SAEs and rows, encode the rows, and match the features.

    Parameters
    ----------
    plan, saes, activations
        The plan of the study, its SAEs and its activations.
    group
        Name of the group in the plan.
    labels
        Labels of the user's own rows, a column each; none when empty.
    contexts
        The text around each row, see :func:`husai.features.pictures.check_contexts`; none when
        empty.

    Raises
    ------
    InputError
        When fewer than two of its SAEs were trained.
    """
    study = gather_records(plan[plan["group"] == group], saes, {}, activations)
    own = study.first
    if len(own.records) < 2:
        raise InputError(f"{group}: {len(own.records)} SAE trained; features need at least two")
    labels, contexts = (
        None if table is None or not len(table) else pd.DataFrame(table)
        for table in (labels, contexts)
    )
    labelled = candidate_labels(own.rows, labels)
    return StudyFeatures(
        feature_group(own.records, name=group),
        [study.saes[one.id] for one in own.records],
        own.rows,
        () if labelled is None else labelled.families,
        RowFacts(addition_modulus(own.rows), labels, contexts),
    )


def study_readout(study: StudyFeatures, transformer: TensorFile | None) -> Readout | str:
    """Return the transformer's output as a function of the rows, or why it is not known."""
    if transformer is None:
        return (
            "Function is not measured: there is no transformer of a modular task. In a language "
            "model the pipeline language_function measures it on a sample."
        )
    trained = TrainedTransformer.from_parts(transformer.tensors, transformer.header)
    try:
        return modular_readout(trained, study.rows)
    except InputError as error:
        return f"Function is not measured: {error}."


def language_function(
    study: StudyFeatures,
    tokens: Tokens,
    language_model: LanguageModelConfig,
    reading: ReadingConfig,
    config: FeaturesConfig,
) -> FunctionTables:
    """Compare what partners do in the language model that the main group reads, on samples.

    Parameters
    ----------
    study
        From :func:`study_features`; its rows are the held-out ones of the text.
    tokens, language_model, reading
        The text, the model, and what was read of it.
    config
        How many features and rows are sampled.
    """
    rows, values = study.rows, study.rows.values.numpy()
    model = load_language_model(language_model, trained=rows.trained)
    place = (rows.hook_name, rows.position)
    outputs = TokenOutputs(model, tokens, place, reading, values)
    names = tuple(f"dimension {i}" for i in range(outputs.unchanged.shape[1]))
    readout = Readout(outputs, names, "rows", unchanged=outputs.unchanged)
    return sampled_function(
        feature_cards(study.group, study.families, config), values, readout, config
    )


@dataclass(frozen=True)
class MeasuredFeatures:
    """All measurements of the features of a study's main group.

    Attributes
    ----------
    cards
        What is known about each feature.
    function
        The table ``strata`` of :class:`husai.features.FunctionTables`; empty without a readout.
    reliability
        How reliable the predicted probability is that a new seed has a feature; empty with fewer
        than four SAEs.
    combinations
        The table :func:`husai.features.combination_table` of a few latents together.
    identifiability
        The second table of :func:`husai.features.code_identifiability`.
    """

    cards: FeatureCards
    function: pd.DataFrame
    reliability: pd.DataFrame
    combinations: pd.DataFrame
    identifiability: pd.DataFrame


def measured_features(
    study: StudyFeatures, readout: Readout | str, config: FeaturesConfig
) -> MeasuredFeatures:
    """Measure everything about the features of a study's main group.

    Parameters
    ----------
    study
        From :func:`study_features`.
    readout
        From :func:`study_readout`.
    config
        What is measured.
    """
    values = study.rows.values.numpy()
    cards, reliability = known_cards(study.group, study.families, config)
    function = pd.DataFrame()
    if isinstance(readout, str):
        cards = cards.join(notes=[readout])
    else:
        found = functional_consistency(cards, values, readout, config)
        function = found.strata
        cards = cards.join(found.features, found.partners, [found.note])
    agreement, saes = code_identifiability(cards, values, seed=config.seed)
    combined = combination_table(
        study.group, least_r2=config.label_r2, seed=config.seed, workers=config.workers
    )
    return MeasuredFeatures(cards.join(agreement), function, reliability, combined, saes)


@dataclass(frozen=True)
class StudyConsensus:
    """The consensus of a study's main group, and what it is worth.

    Attributes
    ----------
    result
        The consensus SAE, its directions, and what it keeps beside dictionaries as large; the
        table also has the further shares that the configuration asks for.
    worth
        The same over SAEs: :func:`worth_summary`.
    recurrence
        Of the consensus of half of the seeds in that of the others:
        :func:`husai.features.consensus_recurrence`; empty below six.
    calibration
        Of the probability of coming back, learned from the first half of the seeds and asked of
        the others: :func:`husai.features.new_seed_calibration`; empty below six.
    """

    result: ConsensusResult
    worth: pd.DataFrame
    recurrence: pd.DataFrame
    calibration: pd.DataFrame


_LEAST_HALVES = 6


def study_consensus(
    study: StudyFeatures,
    readout: Readout | str,
    config: ConsensusConfig,
    features: FeaturesConfig,
) -> StudyConsensus:
    """Make the consensus of a study's main group, measure it, and ask whether it recurs.

    Parameters
    ----------
    study, readout
        From :func:`study_features` and :func:`study_readout`.
    config
        What enters, and how the encoder is fitted.
    features
        Threshold and level of the probability of coming back.
    """
    by = yardsticks(
        study.rows.values.numpy(),
        config,
        None if isinstance(readout, str) else readout,
        single_class(study.families),
    )
    result = build_consensus(study.group, by, config)
    others = [
        build_consensus(
            study.group, by, config.model_copy(update={"min_share": share}), whole=False
        ).table
        for share in config.shares
        if share != config.min_share
    ]
    result = replace(result, table=pd.concat([result.table, *others], ignore_index=True))
    live = study.group.live
    recurrence = calibration = pd.DataFrame()
    if len(live) >= _LEAST_HALVES:
        recurrence = consensus_recurrence(
            [one.decoder for one in live], config, level=features.level
        )
        similarity = partner_similarity(study.group.matches, [len(one.index) for one in live])
        thresholds = sorted({features.threshold, *CURVE})
        calibration = new_seed_calibration(
            similarity, len(live) // 2, thresholds, level=features.level
        )
    return StudyConsensus(
        result, worth_summary(result.table, features.level), recurrence, calibration
    )


def worth_summary(table: pd.DataFrame, level: float) -> pd.DataFrame:
    """Give what each dictionary keeps over the SAEs that it was taken from.

    Returns
    -------
    pandas.DataFrame
        A row per ``min_share`` and ``dictionary``: ``n_saes``, and the mean of each measure with
        ``_low`` and ``_high``, Student's t over SAEs; none where there is one only.
    """
    measures = [
        name
        for name in ("n_latents", "l0", "variance_kept", "loss_recovered", "probe_accuracy")
        if name in table
    ]
    rows = []
    for (share, name), part in table.groupby(["min_share", "dictionary"], sort=False):
        row: dict[str, Any] = {"min_share": share, "dictionary": name, "n_saes": len(part)}
        for measure in measures:
            bounds = (0.0, 1.0) if measure == "probe_accuracy" else None
            found = mean_interval(part[measure], level=level, bounds=bounds)
            row |= {measure: found.mean, f"{measure}_low": found.low, f"{measure}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)

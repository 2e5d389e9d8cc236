"""Evaluate, probe and describe all SAEs of a plan in the language model that they read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from husai.activations import Activations, activation_key, load_activations
from husai.config import Position, as_position
from husai.consistency import SCORES, ConsistencyConfig, SAERecord, seed_interval
from husai.consistency.study.features import feature_table
from husai.consistency.study.pairs import score_pair
from husai.consistency.study.record import live_group
from husai.language.config import (
    ContextsConfig,
    EvaluationConfig,
    LanguageModelConfig,
    ProbesConfig,
    ReadingConfig,
)
from husai.language.contexts import contexts_table, logit_effects
from husai.language.evaluation import (
    density_histogram,
    model_metrics,
    reconstruction_metrics,
    rows_per_context,
    saebench_results,
)
from husai.language.extraction import held_out_contexts
from husai.language.model import LanguageModel, load_language_model
from husai.language.probes import ProbeTables, Task, probe_saes, probe_tasks
from husai.sae import TrainedSAE, load_trained
from husai.storage import TensorFiles
from husai.text import TextConfig, Tokens

if TYPE_CHECKING:
    import torch


class HookSAEs(NamedTuple):
    """The SAEs of one hook of one model: their rows of the plan, the SAEs, the held-out rows."""

    plan: pd.DataFrame
    saes: dict[str, TrainedSAE]
    rows: Activations
    place: tuple[str, Position]


def saes_by_hook(
    plan: pd.DataFrame, saes: TensorFiles, activations: TensorFiles, model: str
) -> Iterator[HookSAEs]:
    """Yield the SAEs whose training did not fail, hook by hook.

    Parameters
    ----------
    plan, saes, activations
        Plan, SAE files and activation files of the study.
    model
        ``trained`` or ``untrained``: the model whose activations the SAEs read.
    """
    own = plan[plan["model"] == model]
    for (hook, position), part in own.groupby(["hook_name", "position"], sort=False):
        loaded = load_trained(saes, part["sae_id"].tolist(), snapshots=False)
        whole = {sae_id: sae for sae_id, sae in loaded.items() if sae.failure is None}
        place = (str(hook), as_position(position))
        rows = load_activations(activations, activation_key(*place, model))
        yield HookSAEs(part[part["sae_id"].isin(list(whole))], whole, rows, place)


def evaluate_plan(
    plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    tokens: Tokens,
    language_model: LanguageModelConfig,
    reading: ReadingConfig,
    config: EvaluationConfig,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, dict[str, Any]]]:
    """Measure every SAE by the metrics of SAEBench's core evaluation.

    Parameters
    ----------
    plan, saes, activations
        Plan, SAE files and activation files of the study.
    tokens
        The text.
    language_model, reading, config
        Parameters of the model, of what is read, and of the evaluation.

    Returns
    -------
    metrics
        A row for each SAE. Losses with reconstructions are measured on the trained model only.
    densities
        From :func:`husai.language.evaluation.density_histogram`.
    saebench
        For each SAE the content of its SAEBench file.
    """
    found: list[pd.DataFrame] = []
    files: dict[str, dict[str, Any]] = {}
    densities: dict[str, torch.Tensor] = {}
    model = load_language_model(language_model)
    for which in ("trained", "untrained"):
        for hook in saes_by_hook(plan, saes, activations, which):
            values = hook.rows.values
            metrics = {one: reconstruction_metrics(sae, values) for one, sae in hook.saes.items()}
            table = pd.DataFrame(metrics).T.rename_axis("sae_id").reset_index()
            if which == "trained" and hook.place[1] != "mean":
                spliced = model_metrics(
                    model, tokens, hook.place, hook.saes, reading, config, values.mean(0)
                )
                table = table.merge(spliced, on="sae_id")
            named = hook.plan[["sae_id", "group", "architecture", "d_sae", "seed", "model"]]
            found.append(named.merge(table, on="sae_id"))
            context = held_out_contexts(tokens, hook.place[1], reading)
            densities |= {one: sae.density for one, sae in hook.saes.items()}
            for row in table.to_dict("records"):
                sae_id = str(row["sae_id"])
                about = {
                    "sae_id": sae_id,
                    "model": dict(model.about),
                    "hook": f"{hook.place[0]}@{hook.place[1]}",
                    "trained": which == "trained",
                    "evaluation": config.model_dump(mode="json"),
                }
                known = {str(name): value for name, value in row.items()}
                sae = hook.saes[sae_id]
                files[sae_id] = saebench_results(
                    sae, known, about, rows_per_context(sae, values, context)
                )
    return pd.concat(found, ignore_index=True), density_histogram(densities), files


def probe_plan(
    plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    text: TextConfig,
    language_model: LanguageModelConfig,
    reading: ReadingConfig,
    config: ProbesConfig,
    level: float,
) -> ProbeTables:
    """Probe labelled texts with every SAE, each in the model that it reads.

    Parameters
    ----------
    plan, saes, activations
        Plan, SAE files and activation files of the study.
    text
        The labelled texts.
    language_model, reading, config
        Parameters of the model, of what is read, and of the probes.
    level
        Confidence level of the intervals.
    """
    found: list[ProbeTables] = []
    tasks: list[Task] = []
    for which in ("trained", "untrained"):
        model: LanguageModel | None = None
        for hook in saes_by_hook(plan, saes, activations, which):
            model = model or load_language_model(language_model, trained=which == "trained")
            tasks = tasks or list(probe_tasks(text, config, model))
            tables = probe_saes(
                model, tasks, hook.plan, hook.saes, hook.place, reading, config, level=level
            )
            at = {"hook": f"{hook.place[0]}@{hook.place[1]}", "model": which}
            found.append(
                ProbeTables(
                    *(t.assign(**at) for t in (tables.probes, tables.summary, tables.stability))
                )
            )
    return ProbeTables(
        *(
            pd.concat([getattr(one, name) for one in found], ignore_index=True)
            for name in ("probes", "summary", "stability")
        )
    )


def describe_plan(
    plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    tokens: Tokens,
    documents: pd.DataFrame,
    language_model: LanguageModelConfig,
    reading: ReadingConfig,
    config: ContextsConfig,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Find the contexts that activate every latent most, and its effect on the logits.

    Parameters
    ----------
    plan, saes, activations
        Plan, SAE files and activation files of the study.
    tokens, documents
        The text.
    language_model, reading, config
        Parameters of the model, of what is read, and of the contexts.

    Returns
    -------
    contexts
        See :func:`husai.language.contexts.contexts_table`, with each latent's ``density``.
    effects
        See :func:`husai.language.contexts.logit_effects`.
    """
    model = load_language_model(language_model)
    contexts, effects = [], []
    for hook in saes_by_hook(plan, saes, activations, "trained"):
        contexts.append(
            contexts_table(
                model,
                tokens,
                documents,
                hook.saes,
                hook.rows.values,
                hook.place,
                reading,
                config,
            )
        )
        effects.append(logit_effects(model, hook.saes, config))
    densities = _densities(plan, saes)
    table = pd.concat(contexts, ignore_index=True).merge(densities, on=["sae_id", "latent"])
    return table, pd.concat(effects, ignore_index=True)


def compare_untrained(
    plan: pd.DataFrame, saes: TensorFiles, activations: TensorFiles, config: ConsistencyConfig
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare SAEs of the model with new initial weights, as SAEs of the trained model are.

    Parameters
    ----------
    plan, saes, activations
        Plan, SAE files and activation files of the study.
    config
        Parameters of the comparison.

    Returns
    -------
    groups
        A row for each group, whose name ends in ``untrained``: mean PW-MCC over pairs of seeds
        with its interval, ``mean``, ``low``, ``high``. Empty if there are no such SAEs.
    features
        A row for each SAE and live latent, with the columns of the same table for the trained
        model.
    """
    members = {
        str(name): {one: hook.saes[one] for one in part["sae_id"]}
        for hook in saes_by_hook(plan, saes, activations, "untrained")
        for name, part in hook.plan.groupby("group", sort=False)
    }
    return compare_seeds(members, config)


def compare_seeds(
    members: Mapping[str, Mapping[str, TrainedSAE]], config: ConsistencyConfig
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Match the seeds of every group with one another: PW-MCC, and reproducibility of features.

    Parameters
    ----------
    members
        For each group its SAEs by name, which differ in their seed.
    config
        Parameters of the comparison.

    Returns
    -------
    groups, features
        See :func:`compare_untrained`.
    """
    groups: list[dict[str, Any]] = []
    features: list[pd.DataFrame] = []
    score = SCORES["pw_mcc"]
    for name, own in members.items():
        live = live_group([_record(sae, one, name) for one, sae in own.items()], config)
        W = np.zeros((len(live), len(live)))
        matches = {}
        for s, t in combinations(range(len(live)), 2):
            pair = score_pair(live[s], live[t], config, scores=[score])
            W[s, t] = W[t, s] = pair.values[score.name, False].value
            matches[s, t] = pair.matches[False]
        features.append(feature_table(name, live, "full", matches, config))
        if len(live) > 1:
            interval = seed_interval(W, level=config.level, bounds=(0.0, 1.0))
            ends = {"mean": interval.mean, "low": interval.low, "high": interval.high}
            groups.append({"group": name, "n_seeds": len(live), **ends})
    return pd.DataFrame(groups), pd.concat(features) if features else pd.DataFrame()


def _record(sae: TrainedSAE, sae_id: str, group: str) -> SAERecord:
    return SAERecord(
        id=sae_id,
        architecture=sae.config.architecture,
        seed=sae.config.init_seed,
        W_dec=sae.W_dec.numpy(),
        firing_rate=sae.density.numpy(),
        group=group,
    )


def _densities(plan: pd.DataFrame, saes: TensorFiles) -> pd.DataFrame:
    density = {
        str(one): load_trained(saes, [one], snapshots=False)[one].density.numpy()
        for one in plan["sae_id"]
    }
    return pd.concat(
        [
            pd.DataFrame({"sae_id": one, "latent": range(len(values)), "density": values})
            for one, values in density.items()
        ],
        ignore_index=True,
    )

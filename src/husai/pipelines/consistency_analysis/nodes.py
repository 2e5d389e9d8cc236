"""Nodes that measure which features come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from husai.campaign.plan import UNTRAINED, plan_keys
from husai.consistency.config import ConsistencyConfig
from husai.errors import InputError
from husai.pipelines.activation_extraction.nodes import load_activations
from husai.pipelines.sae_training.nodes import load_saes
from husai.provenance import git_commit, versions
from husai.storage import TensorFile

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from husai.consistency import SAERecord
    from husai.consistency.compare import ComparedSAE
    from husai.sae import TrainedSAE
else:
    # Kedro resolves the hints of every node; these are slow to import
    Figure = ComparedSAE = SAERecord = TrainedSAE = object


def compare(
    sae_plan: pd.DataFrame,
    saes: Mapping[str, Callable[[], TensorFile]],
    external_saes: Mapping[str, Sequence[ComparedSAE]],
    activations: Mapping[str, Callable[[], TensorFile]],
    consistency: ConsistencyConfig,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, pd.DataFrame], dict[str, Any]]:
    """Compare the SAEs of every group across their seeds, beside every null."""
    from husai.consistency import activation_covariance, consistency_report

    trained = sae_plan[sae_plan["model"] == "trained"]
    rows = load_activations(activations, plan_key(trained))
    report = consistency_report(
        sae_records(trained, saes, rows.values)
        + external_records(external_saes, rows.values.numpy()),
        consistency,
        covariance=activation_covariance(rows.values.numpy()),
        planes=None if rows.planes is None else rows.planes.numpy(),
        untrained=untrained_records(sae_plan, saes, activations),
    )
    summary = {
        **report.summary,
        "metrics": group_metrics(report.groups),
        "provenance": {
            "plan": sae_plan["sae_id"].tolist(),
            "activations": {"key": rows.key, "fingerprint": rows.fingerprint},
            "config": consistency.model_dump(mode="json"),
            "versions": versions(),
            **git_commit(Path(__file__).parent),
        },
    }
    tables = report.tables()
    named = [tables.pop(name) for name in ("groups", "pairs", "features")]
    return named[0], named[1], named[2], tables, summary


def group_metrics(groups: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Give each group's scores and their excess over chance, by name, for tracking."""
    metrics: dict[str, dict[str, float]] = {}
    wanted = groups[groups["score"].isin(["pw_mcc", "mmcs", "shared_fraction"])]
    for row in wanted.to_dict("records"):
        name = f"{row['score']}{'_signed' if row['signed'] else ''}_{row['space']}"
        found = metrics.setdefault(row["group"], {})
        for label, column in (
            (name, "mean"),
            (f"{name}_above_isotropic", "isotropic_corrected"),
            (f"{name}_above_data_aware", "data_aware_corrected"),
        ):
            if pd.notna(row[column]):
                found[label] = float(row[column])
    return metrics


def plot_scores(groups: pd.DataFrame) -> Figure:
    """Draw every group's PW-MCC with its interval and nulls."""
    from husai.figures.consistency import scores_figure

    return scores_figure(groups)


def plot_seeds(pairs: pd.DataFrame) -> Figure:
    """Draw PW-MCC of every pair of seeds as heat maps."""
    from husai.figures.consistency import seed_matrix_figure

    return seed_matrix_figure(pairs)


def plot_reproducibility(features: pd.DataFrame, consistency: ConsistencyConfig) -> Figure:
    """Draw how well each feature comes back against how often it fires."""
    from husai.figures.consistency import reproducibility_figure

    return reproducibility_figure(features, threshold=consistency.shared_threshold)


def plot_similarity(
    groups: pd.DataFrame, sae_plan: pd.DataFrame, saes: Mapping[str, Callable[[], TensorFile]]
) -> Figure:
    """Draw two seeds' matched similarities, for the group that is furthest above chance."""
    from husai.consistency import match_features
    from husai.figures.consistency import similarity_figure

    chosen = groups.query("score == 'pw_mcc' and not signed and space == 'full'")
    chosen = chosen[chosen["group"].isin(sae_plan["group"])]
    best = chosen.sort_values("isotropic_corrected")["group"].iloc[-1]
    of_group = sae_plan[sae_plan["group"] == best]
    one, two = list(load_saes(of_group, saes).values())[:2]
    A, B = one.W_dec.numpy(), two.W_dec.numpy()
    ids = of_group["sae_id"].tolist()
    return similarity_figure(
        A,
        B,
        match_features(A, B),
        names=(ids[0], ids[1]),
        unconverged=not (one.metrics["converged"] and two.metrics["converged"]),
    )


def plan_key(sae_plan: pd.DataFrame) -> str:
    """Name the one hook and position that the plan's SAEs are trained on."""
    keys = sorted(set(plan_keys(sae_plan)))
    if len(keys) != 1:
        raise InputError(
            f"the plan's SAEs read {len(keys)} different hooks or positions; features of "
            "different spaces cannot be matched, compare one hook at a time"
        )
    return keys[0]


def untrained_records(
    sae_plan: pd.DataFrame,
    saes: Mapping[str, Callable[[], TensorFile]],
    activations: Mapping[str, Callable[[], TensorFile]],
) -> list[SAERecord]:
    """Give the SAEs of the untrained model, under the names of the groups they are a null of."""
    untrained = sae_plan[sae_plan["model"] == "untrained"]
    if untrained.empty:
        return []
    rows = load_activations(activations, plan_key(untrained))
    names = untrained["group"].str.removesuffix(UNTRAINED)
    return sae_records(untrained.assign(group=names), saes, rows.values)


def sae_records(
    sae_plan: pd.DataFrame, saes: Mapping[str, Callable[[], TensorFile]], rows: torch.Tensor
) -> list[SAERecord]:
    """Give the comparison what it needs to know of every planned SAE that did not fail."""
    from husai.consistency import SAERecord

    groups = dict(zip(sae_plan["sae_id"], sae_plan["group"], strict=True))
    seeds = dict(zip(sae_plan["sae_id"], sae_plan["seed"], strict=True))
    records = []
    for sae_id, sae in load_saes(sae_plan, saes).items():
        if sae.failure is not None:
            continue
        records.append(
            SAERecord(
                id=sae_id,
                group=groups[sae_id],
                architecture=sae.config.architecture,
                seed=int(seeds[sae_id]),
                k=sae.config.k,
                l1_coefficient=sae.config.l1_coefficient,
                W_dec=sae.W_dec.numpy(),
                W_enc=sae.W_enc.numpy(),
                W_dec_init=sae.W_dec_init.numpy(),
                firing_rate=sae.density.numpy(),
                codes=partial(_code_blocks, sae, rows),
                converged=bool(sae.metrics["converged"]),
                cosine_to_init=sae.metrics["cosine_to_init"],
                l0=sae.metrics["l0"],
                fvu=sae.metrics["fvu"],
            )
        )
    return records


def external_records(
    external_saes: Mapping[str, Sequence[ComparedSAE]], rows: NDArray[np.float32]
) -> list[SAERecord]:
    """Give the comparison what is known of SAEs trained elsewhere; convergence is not."""
    from husai.consistency import SAERecord

    records = []
    for group, members in external_saes.items():
        for seed, sae in enumerate(members):
            codes = None if sae.encode is None else partial(_encoded_blocks, sae.encode, rows)
            records.append(
                SAERecord(
                    id=f"{group}: {sae.id}",
                    group=group,
                    architecture="external",
                    seed=seed,
                    W_dec=sae.W_dec,
                    W_enc=sae.W_enc,
                    converged=sae.converged,
                    codes=codes,
                )
            )
    return records


def _encoded_blocks(
    encode: Callable[[NDArray[Any]], NDArray[Any]], rows: NDArray[np.float32]
) -> Iterator[NDArray[Any]]:
    for start in range(0, len(rows), 4096):
        yield encode(rows[start : start + 4096])


def _code_blocks(sae: TrainedSAE, rows: torch.Tensor) -> Iterator[NDArray[np.float32]]:
    """Encode the rows block by block: all codes of all SAEs would not fit in memory."""
    import torch

    for block in torch.split(rows, 4096):
        yield sae.encode(block).numpy()

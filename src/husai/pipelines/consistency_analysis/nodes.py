"""Nodes that measure which features come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from husai.activations import activation_key
from husai.consistency import (
    ConsistencyConfig,
    SAERecord,
    activation_covariance,
    consistency_report,
)
from husai.errors import InputError
from husai.pipelines.activation_extraction.nodes import load_activations
from husai.pipelines.sae_training.nodes import load_saes
from husai.provenance import git_commit, versions
from husai.storage import TensorFile


def compare(
    sae_plan: pd.DataFrame,
    saes: Mapping[str, Callable[[], TensorFile]],
    activations: Mapping[str, Callable[[], TensorFile]],
    consistency: ConsistencyConfig,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Compare the SAEs of every group across their seeds, beside every null."""
    rows = load_activations(activations, plan_key(sae_plan))
    report = consistency_report(
        sae_records(sae_plan, saes),
        consistency,
        covariance=activation_covariance(rows.values.numpy()),
    )
    summary = {
        **report.summary,
        "provenance": {
            "plan": sae_plan["sae_id"].tolist(),
            "activations": {"key": rows.key, "fingerprint": rows.fingerprint},
            "config": consistency.model_dump(mode="json"),
            "versions": versions(),
            **git_commit(Path(__file__).parent),
        },
    }
    return report.saes, report.pairs, report.groups, report.features, summary


def plan_key(sae_plan: pd.DataFrame) -> str:
    """Name the one hook and position that the plan's SAEs are trained on."""
    places = sae_plan[["hook_name", "position"]].drop_duplicates()
    if len(places) != 1:
        raise InputError(
            f"the plan's SAEs read {len(places)} different hooks or positions; features of "
            "different spaces cannot be matched, compare one hook at a time"
        )
    return activation_key(places["hook_name"].iloc[0], int(places["position"].iloc[0]))


def sae_records(
    sae_plan: pd.DataFrame, saes: Mapping[str, Callable[[], TensorFile]]
) -> list[SAERecord]:
    """Give the comparison what it needs to know of every planned SAE that did not fail."""
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
                converged=bool(sae.metrics["converged"]),
                cosine_to_init=sae.metrics["cosine_to_init"],
                l0=sae.metrics["l0"],
                fvu=sae.metrics["fvu"],
            )
        )
    return records

"""The calibration study: SAEs trained on planted worlds, and every score held to the truth.

Scores that a user without truth can compute stand in one row with what was truly recovered, for
every world, architecture, width, sparsity, dead-latent method and step of training.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from husai.campaign.plan import config_cells, row_config
from husai.consistency import (
    cycle_consistency,
    gt_mcc,
    match_all,
    mmcs,
    null_scores,
    plane_null,
    plane_recovery,
    pw_mcc,
)
from husai.consistency.calibration import (
    calibrate_scores,
    excess_consistency,
    feature_recovery,
    gate_calibration,
    reproducibility_as_detector,
    reproducible_features,
    truth_scores,
)
from husai.pipelines.planted_truth.config import PlantedTruthConfig
from husai.sae.config import BankTrainingConfig, SAEConfig
from husai.tasks import PlantedData, planted_dictionary

if TYPE_CHECKING:
    from husai.sae import TrainedSAE

SETTING = ("world", "architecture", "d_sae", "sparsity", "dead_latents")
"""What names a group of SAEs that differ in their seeds alone."""

SCORES = (
    "pw_mcc",
    "pw_mcc_signed",
    "pw_mcc_corrected",
    "mmcs",
    "reproducible_share",
    "cycle_consistency",
    "moved_from_init",
    "explained_variance",
)
"""What a user without truth can compute."""


def plan_study(config: PlantedTruthConfig) -> pd.DataFrame:
    """Lay out the study, a row for every SAE."""
    rows = []
    for (name, study), (architecture, grid), dead in itertools.product(
        config.worlds.items(), config.architectures.items(), config.dead_latents
    ):
        for d_sae, sparsity, seed in itertools.product(study.d_sae, grid.settings(), config.seeds):
            kind, value = next(iter(sparsity.items()))
            sae = SAEConfig(
                architecture=architecture,
                d_sae=d_sae,
                init_seed=seed,
                learning_rate=config.learning_rate,
                **sparsity,
            )
            label = f"{kind.removesuffix('_coefficient')}={value:g}"
            group = f"{name} {architecture} d{d_sae} {label} {dead}"
            rows.append(
                {
                    "sae_id": f"{group.replace(' ', '-').replace('=', '_')}-s{seed}",
                    "group": group,
                    "world": name,
                    "sparsity": label,
                    "dead_latents": dead,
                    "seed": seed,
                    **config_cells(sae),
                }
            )
    return pd.DataFrame(rows)


def train_study(plan: pd.DataFrame, config: PlantedTruthConfig) -> Iterator[tuple[str, TrainedSAE]]:
    """Train every planned SAE; those of one world and shape train together."""
    from husai.sae import train_bank

    for (world, dead), part in plan.groupby(["world", "dead_latents"], sort=False):
        data = planted_dictionary(config.worlds[str(world)].world)
        rows, _ = data.sample(config.n_rows)
        held_out, _ = data.sample(config.n_eval_rows, start=config.n_rows)
        training = config.training.model_copy(update={"dead_latents": dead})
        for _, bank in part.groupby(["architecture", "d_sae"], sort=False):
            saes = train_bank(
                rows,
                [row_config(row) for row in bank.to_dict("records")],  # type: ignore[arg-type]
                training,
                eval_rows=held_out,
                progress=True,
            )
            yield from zip(bank["sae_id"], saes, strict=True)


# ---------------------------------------------------------------------------------------------
# Scores beside the truth
# ---------------------------------------------------------------------------------------------


def score_study(
    plan: pd.DataFrame, saes: Mapping[str, TrainedSAE], config: PlantedTruthConfig
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Score every group at every step beside what it truly recovered.

    Returns
    -------
    settings
        A row per group and step: the scores of :data:`SCORES`, true recovery, excess consistency
        with its verdict.
    features
        A row per latent at the end: reproducibility over seeds and similarity to the truth.
    planes
        A row per SAE of a world with planes: one-dimensional and plane-aware recovery.
    checkpoints
        A row per SAE and evaluated step: the slope the convergence gate looks at, and its GT-MCC.
    """
    settings, features, planes, checkpoints = [], [], [], []
    for world, in_world in plan.groupby("world", sort=False):
        data = planted_dictionary(config.worlds[str(world)].world)
        rows, true_codes = data.sample(config.n_eval_rows, start=config.n_rows)
        truth = data.dictionary.astype(np.float64)
        for group, part in in_world.groupby("group", sort=False):
            trained = [saes[sae_id] for sae_id in part["sae_id"] if not saes[sae_id].failure]
            if len(trained) < 2:
                continue
            names = {column: part[column].iloc[0] for column in SETTING}
            names |= {"group": group, "run": f"{names['world']} {names['architecture']} "}
            names["run"] += str(names["d_sae"])
            for step in (*config.score_steps, config.training.steps):
                final = step == config.training.steps
                row = {**names, "step": step, "final": final, "planes": len(data.planes)}
                row |= _scores_at(trained, truth, step, config)
                if final:
                    row |= _detectors(trained, truth, rows, true_codes)
                settings.append(row)
            table = reproducible_features([_rows(sae) for sae in trained], truth)
            table = table.assign(**{name: names[name] for name in (*SETTING, "group")})
            features.append(table)
            if len(data.planes):
                planes += [{**names, **row} for row in _plane_rows(trained, table, data, config)]
            for sae_id, sae in zip(part["sae_id"], trained, strict=False):
                checkpoints += [
                    {**names, "sae_id": sae_id, **row}
                    for row in _checkpoints(sae, truth, config.training)
                ]
    return (
        pd.DataFrame(settings),
        pd.concat(features, ignore_index=True),
        pd.DataFrame(planes, columns=None if planes else [*SETTING, "seed"]),
        pd.DataFrame(checkpoints, columns=None if checkpoints else [*SETTING, "sae_id", "slope"]),
    )


def _rows(sae: TrainedSAE, step: int | None = None) -> NDArray[np.float64]:
    W = sae.W_dec if step is None else sae.snapshots.get(step, sae.W_dec)
    return W.double().numpy()


def _scores_at(
    saes: Sequence[TrainedSAE], truth: NDArray[np.float64], step: int, config: PlantedTruthConfig
) -> dict[str, Any]:
    dictionaries = [_rows(sae, step) for sae in saes]
    starts = [sae.W_dec_init.double().numpy() for sae in saes]
    S, (d_sae, d_in) = len(saes), dictionaries[0].shape
    W, signed, means = np.eye(S), [], []
    for i, j in itertools.combinations(range(S), 2):
        W[i, j] = W[j, i] = pw_mcc(dictionaries[i], dictionaries[j])
        signed.append(pw_mcc(dictionaries[i], dictionaries[j], signed=True))
        means.append(mmcs(dictionaries[i], dictionaries[j]).mean)
    recovered = pd.DataFrame([truth_scores(D, truth) for D in dictionaries])
    pw_null, gt_null = _chance(d_sae, d_sae, d_in), _chance(d_sae, len(truth), d_in)
    excess = excess_consistency(W, recovered["gt_mcc"], pw_null=pw_null, gt_null=gt_null)
    similar = reproducible_features(dictionaries, truth)
    pw = float(W[~np.eye(S, dtype=bool)].mean())
    cosine = [
        float((np.sum(D * D0, axis=1) / np.linalg.norm(D, axis=1)).mean())
        for D, D0 in zip(dictionaries, starts, strict=True)
    ]
    history = [sae.history[sae.history["step"] == step] for sae in saes]
    explained = [float(h["explained_variance"].iloc[-1]) for h in history if len(h)]
    return {
        "n_seeds": S,
        "pw_mcc": pw,
        "pw_mcc_signed": float(np.mean(signed)),
        "pw_mcc_null": pw_null,
        "pw_mcc_corrected": (pw - pw_null) / (1 - pw_null),
        "mmcs": float(np.mean(means)),
        "reproducible_share": float((similar["reproducibility"] >= config.threshold).mean()),
        "cycle_consistency": cycle_consistency(match_all(dictionaries)).fraction if S > 2 else None,
        "moved_from_init": 1 - float(np.mean(cosine)),
        "explained_variance": float(np.mean(explained)) if explained else None,
        "l0": float(np.mean([h["l0"].iloc[-1] for h in history])) if explained else None,
        **{str(name): float(value) for name, value in recovered.mean().items()},
        "gt_mcc_null": gt_null,
        "excess": excess.excess,
        "excess_low": excess.low,
        "excess_high": excess.high,
        "verdict": excess.verdict,
    }


@cache
def _chance(n_a: int, n_b: int, d: int) -> float:
    return null_scores(n_a, n_b, d, scores=("pw_mcc",), n_draws=10)["pw_mcc"].mean


def _detectors(
    saes: Sequence[TrainedSAE],
    truth: NDArray[np.float64],
    rows: NDArray[np.float32],
    true_codes: Any,
) -> dict[str, float]:
    import torch

    x = torch.from_numpy(rows)
    table = pd.DataFrame(
        [
            truth_scores(_rows(sae), truth, codes=sae.encode(x).numpy(), true_codes=true_codes)
            for sae in saes
        ]
    )
    dead = float(np.mean([sae.metrics["inactive_fraction"] for sae in saes]))
    detectors = table[["precision", "recall", "f1"]].mean()
    return {str(name): float(value) for name, value in detectors.items()} | {"dead_fraction": dead}


def _plane_rows(
    saes: Sequence[TrainedSAE],
    features: pd.DataFrame,
    data: PlantedData,
    config: PlantedTruthConfig,
) -> Iterator[dict[str, Any]]:
    """What one-dimensional and plane-aware scores say of each SAE of a world with planes."""
    truth = data.dictionary.astype(np.float64)
    on_plane = data.plane_of_feature >= 0
    for s, sae in enumerate(saes):
        D = _rows(sae)
        recovery = feature_recovery(D, truth, thresholds=[config.threshold])
        found = plane_recovery(D, data.planes, threshold=config.threshold)
        chance = plane_null(len(D), data.planes, threshold=config.threshold, n_draws=20, seed=0)
        mine = features[features["seed"] == s].set_index("latent")["reproducibility"]
        place = found.features.set_index("feature")["in_plane"].reindex(mine.index)
        inside = place.fillna(False).to_numpy(dtype=bool)
        recovered = recovery.similarity >= config.threshold
        yield {
            "seed": s,
            "axis_recovery": float(recovered[on_plane].mean()),
            "line_recovery": float(recovered[~on_plane].mean()) if (~on_plane).any() else None,
            "gt_mcc": gt_mcc(D, truth),
            "plane_recall": found.recall,
            "plane_recall_null": chance.mean("recall"),
            "plane_covered": found.covered,
            "plane_purity": found.mean_purity,
            "features_a_plane": float(found.planes["n_features"].mean()),
            "reproducibility_in_plane": float(mine[inside].mean()) if inside.any() else None,
            "reproducibility_elsewhere": float(mine[~inside].mean()) if (~inside).any() else None,
        }


def _checkpoints(
    sae: TrainedSAE, truth: NDArray[np.float64], training: BankTrainingConfig
) -> Iterator[dict[str, Any]]:
    """What the gate sees at every evaluated step, beside GT-MCC then and at the end."""
    from husai.sae.train import loss_slope

    end = gt_mcc(_rows(sae), truth)
    for i in range(training.convergence_window, len(sae.history) + 1):
        step = int(sae.history["step"].iloc[i - 1])
        if step not in sae.snapshots or step >= training.steps:
            continue
        slope = loss_slope(sae.history.iloc[:i], training.convergence_window)
        yield {
            "step": step,
            "slope": slope,
            "gt_mcc": gt_mcc(_rows(sae, step), truth),
            "final_gt_mcc": end,
        }


# ---------------------------------------------------------------------------------------------
# What the scores are worth
# ---------------------------------------------------------------------------------------------


def calibrate_study(
    settings: pd.DataFrame,
    features: pd.DataFrame,
    planes: pd.DataFrame,
    checkpoints: pd.DataFrame,
    config: PlantedTruthConfig,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Rank correlations, the gate and the detectors of truth, from the study's tables.

    Worlds with planes are left out of the rank correlations: their one-dimensional truth is not
    identifiable (phase within a plane is free), which ``planes`` shows by itself.

    Returns
    -------
    calibration
        Rank correlation of every score with GT-MCC, over all settings and within slices.
    detectors
        A row per world: reproducibility as a test for truth; ``stable_but_wrong`` is the share
        of the reproduced latents that are not true.
    gate
        A row per threshold of the convergence gate: its errors over all checkpoints.
    summary
        The main numbers, JSON-ready.
    """
    lines = settings[settings["planes"] == 0]
    final = lines[lines["final"]]
    within = ["world", "architecture", "sparsity", "d_sae"]
    parts = [
        calibrate_scores(part, list(SCORES), within=columns, n_resamples=config.n_resamples).assign(
            settings=name
        )
        for name, part, columns in (
            ("all steps", lines, ["step"]),
            ("trained", final, within),
        )
        if len(part)
    ]
    rows = []
    for world, part in features.groupby("world", sort=False):
        found = reproducibility_as_detector(
            part, reproducible=config.threshold, true=config.threshold
        )
        precision = found["precision"]
        wrong = None if precision is None else 1 - precision
        rows.append({"world": world, **found, "stable_but_wrong": wrong})
    detectors = pd.DataFrame(rows)
    limits = sorted({*GATE_SLOPES, config.training.convergence_slope})
    gate = pd.DataFrame([{"slope": slope, **_gate(checkpoints, config, slope)} for slope in limits])
    verdicts = settings[settings["final"]]["verdict"].value_counts()
    calibration = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    overall = calibration[
        (calibration["settings"] == "trained") & (calibration["slice"] == "all")
    ].set_index("score")
    summary = {
        "n_groups": int(settings["group"].nunique()),
        "rank_correlation": {
            str(score): _plain(value) for score, value in overall["rank_correlation"].items()
        },
        "verdicts": {str(name): int(count) for name, count in verdicts.items()},
        "stable_but_wrong": {str(row["world"]): _plain(row["stable_but_wrong"]) for row in rows},
        "gate": {
            str(row["slope"]): {str(name): _plain(value) for name, value in row.items()}
            for row in gate.to_dict("records")
        },
    }
    if len(planes):
        columns = ["axis_recovery", "line_recovery", "plane_recall", "plane_covered"]
        summary["planes"] = {name: _plain(value) for name, value in planes[columns].mean().items()}
    return calibration, detectors, gate, summary


GATE_SLOPES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Thresholds at which the gate is calibrated, besides the one in use."""


def _gate(
    checkpoints: pd.DataFrame, config: PlantedTruthConfig, slope: float
) -> dict[str, float | int | None]:
    """The gate's errors at one threshold of the slope."""
    found = gate_calibration(
        checkpoints["slope"].abs() < slope,
        checkpoints["gt_mcc"],
        checkpoints["final_gt_mcc"],
        checkpoints["sae_id"].tolist(),
        tolerance=config.gate_tolerance,
    )
    return {
        "false_pass": found.false_pass_rate,
        "low": found.low,
        "high": found.high,
        "false_hold": found.false_hold_rate,
        "n_passed": found.n_passed,
        "n_saes_passed": found.n_saes_passed,
        "n_checkpoints": found.n_checkpoints,
    }


def _plain(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)

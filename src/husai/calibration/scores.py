"""The tables of scores of the planted-truth study, each row beside its true recovery."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from husai.calibration.config import PlantedTruthConfig
from husai.calibration.detectors import reproducible_features
from husai.calibration.excess import ExcessConsistency, excess_consistency
from husai.calibration.study import SETTING
from husai.consistency import cycle_consistency, null_scores, plane_null, plane_recovery
from husai.consistency.analyses.gate import convergence_gate, decay_start
from husai.consistency.analyses.truth import axis_recovery_chance
from husai.consistency.config import ComparisonConfig
from husai.consistency.scores.code_scores import UnitCodes
from husai.consistency.scores.codes import (
    Codes,
    sparse_codes,
    whole_codes,
)
from husai.consistency.scores.pair import PreparedPair, Side, nearest_features
from husai.consistency.scores.registry import SCORES as REGISTRY
from husai.consistency.scores.registry import of_truth
from husai.consistency.scores.rows import direction_rows
from husai.consistency.study.groups import score_matrix, values_of
from husai.consistency.study.pairs import ScoredPair, score_pair
from husai.consistency.study.record import LiveSAE, SAERecord, live_codes, live_sae
from husai.errors import InputError
from husai.tasks import PlantedData, planted_dictionary

if TYPE_CHECKING:
    import torch

    from husai.sae import TrainedSAE

PAIR_SCORES = (
    ("pw_mcc", False),
    ("pw_mcc", True),
    ("mmcs", False),
    ("shared_fraction", True),
    ("code_correlation", False),
    ("code_jaccard", False),
)
"""The scores of pairs that are computed, each with its sign convention."""

SCORES: Mapping[str, str] = {
    "pw_mcc": REGISTRY["pw_mcc"].term,
    "pw_mcc_signed": f"{REGISTRY['pw_mcc'].term}, signed",
    "pw_mcc_corrected": f"{REGISTRY['pw_mcc'].term}, corrected for chance",
    "mmcs": REGISTRY["mmcs"].term,
    "reproducible_share": "share of features reproduced",
    "cycle_consistency": "cycle consistency",
    **{name: REGISTRY[name].term for name, _ in PAIR_SCORES[3:]},
    "moved_from_init": "distance from init",
    "explained_variance": "explained variance",
}
"""The scores that can be computed without the truth, with their names in figures."""

COMPARISON = ComparisonConfig()
"""How the SAEs are compared: the defaults of every comparison."""

L0_ABOUT = (0.8, 1.25)
"""An SAE's L0 counts as about right if its ratio to the true mean L0 lies between these."""

NAMES = (*SETTING, "group", "run", "cluster", "regime")
"""Columns of the plan that the tables keep."""


@dataclass(frozen=True)
class StudyTables:
    """Scores and true recovery of the study's SAEs.

    Attributes
    ----------
    settings
        A row per group with two SAEs or more: the scores of :data:`SCORES`, true recovery,
        ``l0``, ``true_l0`` and ``l0_regime``, ``converged`` (share of the seeds that passed the
        gate), excess consistency with its verdict.
    runs
        A row per planned SAE: true recovery, ``loss_slope``, ``motion`` and ``plateau`` (see
        :mod:`husai.consistency.analyses.gate`), ``converged``, and ``failure`` (empty, or why
        there are no numbers).
    features
        A row per latent: reproducibility over seeds and similarity to the truth.
    planes
        A row per SAE of a world with planes: one-dimensional and plane-aware recovery.
    """

    settings: pd.DataFrame
    runs: pd.DataFrame
    features: pd.DataFrame
    planes: pd.DataFrame


@dataclass(frozen=True)
class _World:
    """One draw of a world, with rows that no SAE was trained on.

    ``truth`` is its dictionary with the true codes of these rows, ``true_l0`` the mean number of
    true features in a row.
    """

    data: PlantedData
    truth: Side
    rows: torch.Tensor
    true_l0: float


@dataclass(frozen=True)
class _TrainedOne:
    """An SAE whose training did not fail, with its own measurements."""

    live: LiveSAE
    measured: dict[str, float]

    @property
    def seed(self) -> int:
        """The seed of its initial weights."""
        return self.live.record.seed

    @property
    def W_dec(self) -> NDArray[np.floating[Any]]:
        """``[d_sae, d]``."""
        return self.live.record.W_dec


def score_study(
    plan: pd.DataFrame, saes: Mapping[str, TrainedSAE], config: PlantedTruthConfig
) -> StudyTables:
    """Score every group, and measure its true recovery.

    Parameters
    ----------
    plan
        From :func:`husai.calibration.study.plan_study`.
    saes
        All SAEs of the plan by ``sae_id``.
    config
        Parameters of the study.

    Raises
    ------
    InputError
        When no group has two SAEs whose training did not fail.
    """
    settings, runs, features, planes = [], [], [], []
    for _, here in plan.groupby("cluster", sort=False):
        world = _held_out(str(here["world"].iloc[0]), int(here["draw"].iloc[0]), config)
        for _, part in here.groupby("group", sort=False):
            names = {column: part[column].iloc[0] for column in NAMES}
            names["n_planes"] = len(world.data.planes)
            survivors = []
            # one loop over id, seed and SAE, so that a failed SAE does not shift the others
            for sae_id, seed in zip(part["sae_id"], part["seed"], strict=True):
                row = {**names, "sae_id": sae_id, "seed": seed, "failure": saes[sae_id].failure}
                if saes[sae_id].failure is None:
                    survivors.append(_measure(int(seed), saes[sae_id], world, config))
                    row |= {**survivors[-1].measured, "failure": ""}
                runs.append(row)
            _add_gate(runs[-len(part) :], survivors, saes)
            if len(survivors) < 2:
                continue
            scored = {
                (i, j): score_pair(
                    survivors[i].live,
                    survivors[j].live,
                    COMPARISON,
                    scores=[REGISTRY[name] for name in dict(PAIR_SCORES)],
                )
                for i, j in itertools.combinations(range(len(survivors)), 2)
            }
            matches = {at: pair.matches[False] for at, pair in scored.items()}
            table = reproducible_features(
                [survivor.W_dec for survivor in survivors],
                world.truth.decoder,
                seeds=[survivor.seed for survivor in survivors],
                matches=matches,
            )
            features.append(table.assign(**names))
            settings.append({**names, **_group_scores(survivors, scored, table, world, config)})
            if len(world.data.planes):
                rows = _plane_rows(survivors, table, world, config)
                planes += [{**names, **row} for row in rows]
    if not settings:
        raise InputError(
            "planted_truth: no group of seeds has two SAEs whose training did not fail; lower "
            "planted_truth.learning_rate, or see failures.csv of the campaign"
        )
    return StudyTables(
        settings=pd.DataFrame(settings),
        runs=pd.DataFrame(runs),
        features=pd.concat(features, ignore_index=True),
        planes=pd.DataFrame(planes, columns=None if planes else [*NAMES, "seed"]),
    )


def _held_out(name: str, draw: int, config: PlantedTruthConfig) -> _World:
    import torch

    data = planted_dictionary(config.drawn(name, draw))
    rows, codes = data.sample(config.n_eval_rows, start=config.n_rows)
    truth = Side(
        direction_rows(data.dictionary.astype(np.float64)),
        codes=UnitCodes(sparse.csc_array(codes)),
    )
    true_l0 = float(codes.nnz / codes.shape[0])
    return _World(data, truth, torch.from_numpy(rows), true_l0)


def _measure(seed: int, sae: TrainedSAE, world: _World, config: PlantedTruthConfig) -> _TrainedOne:
    """Measure one SAE on the held-out rows, and score it against the truth."""
    from husai.sae.metrics import evaluate

    record = SAERecord(
        id=str(seed),
        architecture=sae.config.architecture,
        seed=seed,
        W_dec=sae.W_dec.double().numpy(),
        W_enc=sae.W_enc.double().numpy(),
        codes=sparse_codes([sae.encode(world.rows).numpy()]),
    )
    live = live_sae(record, codes=live_codes(record, COMPARISON))
    metrics, _ = evaluate(sae, world.rows)
    measured = {
        **scores_of_truth(live.side, world.truth),
        "explained_variance": metrics["explained_variance"],
        "l0": metrics["l0"],
        "dead_fraction": metrics["dead_fraction"],
        "moved_from_init": 1 - metrics["cosine_to_init"],
        "loss_slope": sae.metrics["loss_slope"],
        "device_seconds": float(sae.provenance["campaign"]["device_seconds"]),
    }
    return _TrainedOne(live, measured)


def _add_gate(
    rows: list[dict[str, Any]], survivors: Sequence[_TrainedOne], saes: Mapping[str, TrainedSAE]
) -> None:
    """Add the measures and the verdict of the gate to a group's runs and to its survivors."""
    known = [row for row in rows if not row["failure"]]
    if not known:
        return
    own = [saes[row["sae_id"]] for row in known]
    gate = convergence_gate(
        [sae.snapshots for sae in own], decay_start(own[0].provenance["training"])
    )
    for row, survivor, motion, settled in zip(
        known, survivors, gate.motion, gate.settled, strict=True
    ):
        found = {
            "motion": np.nan if motion is None else motion,
            "plateau": np.nan if gate.plateau is None else gate.plateau,
            "converged": float(bool(settled)),
        }
        row.update(found)
        survivor.measured.update(found)


def scores_of_truth(sae: Side, truth: Side) -> dict[str, float]:
    """All scores of one SAE against the truth by name; names of signed ones end in ``_signed``.

    Parameters
    ----------
    sae, truth
        The SAE and the true dictionary, both with codes of the same rows or both without.

    Raises
    ------
    InputError
        When one has codes and the other has none, or they do not fit together.
    """
    if (sae.codes is None) != (truth.codes is None):
        raise InputError("codes, true_codes: give both or neither")
    pair = PreparedPair(sae, truth, COMPARISON)
    return {
        f"{score.name}{'_signed' if signed else ''}": float(value)
        for score in of_truth(codes=pair.has_codes)
        for signed in score.signs
        if (value := score.of(pair, signed).value) is not None
    }


def truth_scores(
    W_dec: ArrayLike,
    truth: ArrayLike,
    *,
    codes: Codes | None = None,
    true_codes: Codes | None = None,
) -> dict[str, float]:
    """Compute :func:`scores_of_truth` from plain arrays.

    Parameters
    ----------
    W_dec, truth
        ``[d_sae, d]`` and ``[n_true, d]``.
    codes, true_codes
        ``[n_rows, d_sae]`` and ``[n_rows, n_true]`` of the same rows; both or neither.

    Raises
    ------
    InputError
        When inputs do not fit together.
    """
    made = [
        Side(
            direction_rows(rows),
            codes=None if given is None else UnitCodes(sparse.csc_array(whole_codes(given))),
        )
        for rows, given in ((W_dec, codes), (truth, true_codes))
    ]
    return scores_of_truth(*made)


def _group_scores(
    survivors: Sequence[_TrainedOne],
    scored: Mapping[tuple[int, int], ScoredPair],
    features: pd.DataFrame,
    world: _World,
    config: PlantedTruthConfig,
) -> dict[str, Any]:
    """Make the row of one group: scores over its seeds, and the mean recovery of its SAEs."""
    S, (d_sae, d_in) = len(survivors), survivors[0].W_dec.shape
    W = score_matrix(values_of(scored, "pw_mcc", False), S)
    of_pairs = {
        f"{name}{'_signed' if (name, signed) == ('pw_mcc', True) else ''}": _mean_known(
            values_of(scored, name, signed).values()
        )
        for name, signed in PAIR_SCORES
    }
    measured = pd.DataFrame([survivor.measured for survivor in survivors])
    means = {str(name): float(value) for name, value in measured.mean().items()}
    n_true = len(world.truth.decoder)
    pw_null, gt_null = _chance(d_sae, d_sae, d_in), _chance(d_sae, n_true, d_in)
    excess = excess_consistency(
        W,
        measured["gt_mcc"],
        n_latents=d_sae,
        n_true=n_true,
        pw_null=pw_null,
        gt_null=gt_null,
    )
    if len(world.data.planes):
        reason = "the truth has planes: GT-MCC depends on the phase of their axes, a convention"
        excess = ExcessConsistency(None, None, None, "not comparable", excess.level, S, reason)
    pw = of_pairs["pw_mcc"]
    ratio = means["l0"] / world.true_l0
    low, high = L0_ABOUT
    return {
        "n_seeds": S,
        "pw_mcc_null": pw_null,
        "pw_mcc_corrected": (pw - pw_null) / (1 - pw_null),
        "reproducible_share": float((features["reproducibility"] >= config.threshold).mean()),
        "cycle_consistency": _cycle(scored) if S > 2 else None,
        **of_pairs,
        **means,
        "gt_mcc_null": gt_null,
        "true_l0": world.true_l0,
        "l0_regime": "below" if ratio < low else "above" if ratio > high else "about",
        "excess": excess.excess,
        "excess_low": excess.low,
        "excess_high": excess.high,
        "verdict": excess.verdict,
        "verdict_reason": excess.reason,
    }


def _mean_known(values: Iterable[float | None]) -> float:
    """Mean of the values that are defined; NaN if none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def _cycle(scored: Mapping[tuple[int, int], ScoredPair]) -> float:
    return cycle_consistency({at: pair.matches[False] for at, pair in scored.items()}).fraction


@cache
def _chance(n_a: int, n_b: int, d: int) -> float:
    return null_scores(n_a, n_b, d, scores=("pw_mcc",), n_draws=10)["pw_mcc"].mean


def _plane_rows(
    survivors: Sequence[_TrainedOne],
    features: pd.DataFrame,
    world: _World,
    config: PlantedTruthConfig,
) -> Iterator[dict[str, Any]]:
    """Yield one-dimensional and plane-aware scores of each SAE of a world with planes."""
    on_plane = world.data.plane_of_feature >= 0
    for survivor in survivors:
        W = survivor.W_dec
        near = nearest_features(W, world.truth.decoder)
        found = plane_recovery(W, world.data.planes, threshold=config.threshold)
        chance = _plane_chance(W.shape, world, config)
        mine = features[features["seed"] == survivor.seed].set_index("latent")
        reproducibility = mine["reproducibility"]
        place = found.features.set_index("feature")["in_plane"].reindex(mine.index)
        inside = place.eq(True).to_numpy()
        # latents that are neither in a plane nor near a true line are left out of both means
        line = ~on_plane[mine["feature"]] & (mine["truth_similarity"] >= config.threshold)
        recovered = near.b_similarity >= config.threshold
        yield {
            "seed": survivor.seed,
            "axis_recovery": float(recovered[on_plane].mean()),
            "axis_recovery_chance": axis_recovery_chance(found),
            "line_recovery": float(recovered[~on_plane].mean()) if (~on_plane).any() else None,
            "gt_mcc": survivor.measured["gt_mcc"],
            "plane_recall": found.recall,
            "plane_recall_null": chance,
            "plane_covered": found.covered,
            "plane_purity": found.mean_purity,
            "features_a_plane": float(found.planes["n_features"].mean()),
            "reproducibility_in_plane": _mean(reproducibility[inside]),
            "reproducibility_on_lines": _mean(reproducibility[line]),
        }


def _mean(values: pd.Series) -> float | None:
    return float(values.mean()) if len(values) else None


def _plane_chance(shape: tuple[int, ...], world: _World, config: PlantedTruthConfig) -> float:
    null = plane_null(shape[0], world.data.planes, threshold=config.threshold, n_draws=20, seed=0)
    return null.mean("recall")

"""The calibration study's plan, and its training as a campaign.

A draw of a world (its dictionary and its rows) is what is independent; everything trained on it
shares them. SAEs are trained for several lengths, each a run of its own, so that every score is
of complete SAEs at the end of their training.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd
from pydantic import ValidationError

from husai.activations import Activations
from husai.calibration.config import EVALUATIONS, PlantedTruthConfig
from husai.campaign import CampaignFolders, run_campaign
from husai.campaign.plan import SEED_FIELDS, config_cells
from husai.errors import InputError
from husai.sae.config import SAEConfig
from husai.tasks import planted_dictionary

if TYPE_CHECKING:
    from husai.sae import TrainedSAE

SETTING = ("world", "draw", "architecture", "d_sae", "sparsity", "dead_latents", "steps")
"""Columns that name a group of SAEs which differ in their seeds only."""

POSITION = 0


def hook_name(world: str, draw: int) -> str:
    """Name the rows of one draw of a world as a campaign names activations."""
    return f"planted.{world}.{draw}"


def plan_study(config: PlantedTruthConfig) -> pd.DataFrame:
    """Lay out the study, a row for every SAE.

    Returns
    -------
    pandas.DataFrame
        The columns of :func:`husai.campaign.plan_saes`; those of :data:`SETTING`; ``run`` (the
        setting without its length), ``cluster`` (world and draw: what is independent) and
        ``regime``. Names hold no digest: an SAE trained with other parameters or on another world
        keeps its name, so that the campaign finds it, sets it aside and trains it again.

    Raises
    ------
    InputError
        When a combination is not a valid SAE, or two rows have one name.
    """
    rows = []
    for (world, study), draw, (architecture, grid), dead in itertools.product(
        config.worlds.items(),
        range(config.draws),
        config.architectures.items(),
        config.dead_latents,
    ):
        for d_sae, sparsity, steps, seed in itertools.product(
            study.d_sae, grid.settings(), config.lengths, config.seeds
        ):
            kind, value = next(iter(sparsity.items()))
            try:
                sae = SAEConfig(
                    architecture=architecture,
                    d_sae=d_sae,
                    init_seed=seed,
                    learning_rate=config.learning_rate,
                    **sparsity,
                )
            except ValidationError as error:
                problem = error.errors()[0]["msg"]
                raise InputError(
                    f"planted_truth: world {world}, {architecture} of {d_sae} latents: {problem}"
                ) from error
            label = f"{kind.removesuffix('_coefficient')}={value:g}"
            training = {
                "steps": steps,
                "eval_interval": steps // EVALUATIONS,
                # the decoders that the convergence gate looks at
                "snapshot_interval": steps // EVALUATIONS,
                "dead_latents": dead,
            }
            run = f"{world}.{draw} {architecture} d{d_sae} {label} {dead}"
            group = f"{run} {steps} steps"
            same = {
                **sae.model_dump(mode="json", exclude=set(SEED_FIELDS)),
                **training,
                "hook_name": hook_name(world, draw),
            }
            rows.append(
                {
                    "sae_id": f"{run} {steps} s{seed}".replace(" ", "-").replace("=", "_"),
                    "group": group,
                    "group_digest": _digest(same),
                    "seed": seed,
                    "hook_name": hook_name(world, draw),
                    "position": POSITION,
                    "model": "trained",
                    "variant": "",
                    "training": json.dumps(training, sort_keys=True),
                    "world": world,
                    "draw": draw,
                    "cluster": f"{world}.{draw}",
                    "regime": config.regime(world, d_sae),
                    "run": run,
                    "sparsity": label,
                    "dead_latents": dead,
                    "steps": steps,
                    **config_cells(sae),
                }
            )
    plan = pd.DataFrame(rows)
    repeated = plan.loc[plan["sae_id"].duplicated(), "sae_id"]
    if len(repeated):
        raise InputError(f"planted_truth: the same SAE is planned twice: {repeated.iloc[0]}")
    return plan


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:6]


def study_rows(plan: pd.DataFrame, config: PlantedTruthConfig) -> dict[str, Activations]:
    """Give the training rows of every draw in the plan, by the key the campaign looks for."""
    import torch

    found = {}
    for world, draw in plan[["world", "draw"]].drop_duplicates().itertuples(index=False):
        world_config = config.drawn(world, draw)
        values, _ = planted_dictionary(world_config).sample(config.n_rows)
        activations = Activations(
            values=torch.from_numpy(values),
            split=torch.zeros(config.n_rows, dtype=torch.int64),
            hook_name=hook_name(world, draw),
            position=POSITION,
            model=world_config.model_dump(mode="json"),
        )
        found[activations.key] = activations
    return found


def train_study(
    plan: pd.DataFrame,
    config: PlantedTruthConfig,
    folders: CampaignFolders,
    *,
    progress: bool = True,
) -> Iterator[tuple[str, TrainedSAE]]:
    """Train every planned SAE that is not there yet; see :func:`husai.campaign.run_campaign`."""
    yield from run_campaign(
        plan,
        study_rows(plan, config),
        config.training,
        config.campaign(),
        folders,
        progress=progress,
    )

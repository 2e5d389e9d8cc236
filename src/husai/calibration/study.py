"""The plan of the planted-truth study, and its training as a campaign.

The draws of a world (dictionary and rows) are independent; SAEs trained on the same draw are not.
SAEs are trained for several lengths, each in a run of its own, so that every score is of an SAE at
the end of its training.
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
"""Columns that identify a group: SAEs that differ only in their seeds."""

POSITION = 0
"""Position in the keys of planted activations, which have no positions."""


def hook_name(world: str, draw: int) -> str:
    """Return the hook name under which a campaign finds the rows of one draw of a world."""
    return f"planted.{world}.{draw}"


def plan_study(config: PlantedTruthConfig) -> pd.DataFrame:
    """Plan the study, a row for every SAE.

    Returns
    -------
    pandas.DataFrame
        The columns of :func:`husai.campaign.plan_saes`; those of :data:`SETTING`; ``run`` (the
        setting without its length), ``cluster`` (world and draw) and ``regime``. Ids have no
        digest, so an SAE trained with other parameters or on another world has the same id, and
        the campaign finds the old one, sets it aside and trains it again.

    Raises
    ------
    InputError
        When a combination is not a valid SAE, or two rows have the same id.
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
                # the decoders from which the convergence gate is computed
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
    """Return the training rows of every draw in the plan, by the key of the activations."""
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
    """Train every planned SAE that is missing; see :func:`husai.campaign.run_campaign`.

    Parameters
    ----------
    plan
        From :func:`plan_study`.
    config
        Parameters of the study.
    folders
        Where the campaign keeps its files.
    progress
        Whether to show a progress bar.

    Yields
    ------
    sae_id, sae
        Every SAE of the plan.
    """
    yield from run_campaign(
        plan,
        study_rows(plan, config),
        config.training,
        config.campaign(),
        folders,
        progress=progress,
    )

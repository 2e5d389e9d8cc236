"""The plan: a table with one row for every SAE to train."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pandas as pd
from pydantic import Field, ValidationError, model_validator

from husai.config import Config
from husai.errors import InputError
from husai.sae.config import SAEConfig

# what tells the SAEs of a group apart is their seeds alone
SEED_FIELDS = ("init_seed", "data_seed")


class ArchitectureGrid(Config):
    """The sparsities at which one architecture is trained.

    Exactly one of the fields is given: ``k`` for the TopK kinds, ``l1_coefficient`` for ReLU,
    ``l0_coefficient`` for JumpReLU. Each value makes a group of SAEs at every width.
    """

    k: tuple[int, ...] = Field(default=(), description="active latents a row")
    l1_coefficient: tuple[float, ...] = Field(default=(), description="weights of the L1 term")
    l0_coefficient: tuple[float, ...] = Field(default=(), description="weights of the L0 term")

    @model_validator(mode="after")
    def _one_sparsity(self) -> ArchitectureGrid:
        given = [name for name in type(self).model_fields if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of k, l1_coefficient and l0_coefficient, with at least one "
                f"value; given: {', '.join(given) or 'none'}"
            )
        return self

    def settings(self) -> Iterator[dict[str, Any]]:
        """Yield one mapping of SAE fields for each sparsity."""
        for name in type(self).model_fields:
            yield from ({name: value} for value in getattr(self, name))


class PlanConfig(Config):
    """A grid: architecture x width x sparsity x seed."""

    hook_name: str = Field(default="blocks.0.hook_resid_post", description="activations trained on")
    position: int = Field(default=-1, description="their token position")
    architectures: dict[str, ArchitectureGrid] = Field(min_length=1)
    d_sae: tuple[int, ...] = Field(min_length=1, description="widths")
    seeds: tuple[int, ...] = Field(min_length=1, description="one SAE of every group for each")
    vary: Literal["init", "data", "both"] = Field(
        default="init",
        description="what the seeds change: initial weights, the order of the rows, or both; the "
        "other seed stays fixed_seed",
    )
    fixed_seed: int = Field(default=0, description="the seed of whatever does not vary")
    options: dict[str, Any] = Field(
        default_factory=dict, description="further SAEConfig fields, equal for all SAEs"
    )


def plan_saes(config: PlanConfig) -> pd.DataFrame:
    """Lay out the grid as a table.

    Returns
    -------
    DataFrame
        One row a SAE: ``sae_id`` (readable, and unique to the whole configuration), ``group``
        (its readable name, equal for SAEs that differ only in their seeds), ``group_digest``
        (of everything but the seeds), ``seed``, ``hook_name``, ``position``, and the fields of
        :class:`husai.sae.SAEConfig`.

    Raises
    ------
    InputError
        When a combination is no valid SAE (k above d_sae, an unknown architecture or option) or
        two rows are the same; the message names the field and the value.
    """
    plan = pd.DataFrame(
        [
            _row(config, architecture, d_sae, sparsity, seed)
            for architecture, grid in config.architectures.items()
            for d_sae in config.d_sae
            for sparsity in grid.settings()
            for seed in config.seeds
        ]
    )
    repeated = plan.loc[plan["sae_id"].duplicated(), "sae_id"].unique()
    if len(repeated):
        raise InputError(f"campaign.plan: the same SAE is planned twice: {', '.join(repeated)}")
    return plan


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Give the rows of a table as mappings from column to value."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def config_cells(config: SAEConfig) -> dict[str, Any]:
    """Give a configuration as cells of a row, which :func:`row_config` reads back.

    Lists become text: the cells are plain values, which viewers of tables can show.
    """
    dump = config.model_dump(mode="json")
    return {key: json.dumps(v) if isinstance(v, list) else v for key, v in dump.items()}


def row_config(row: Mapping[str, Any]) -> SAEConfig:
    """Build the SAE configuration of one row of the plan."""
    fields = {}
    for name in SAEConfig.model_fields:
        value = row[name]
        # a column with gaps comes back from a table as floats with NaN
        value = None if pd.isna(value) else value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        elif isinstance(value, str) and value.startswith("["):
            value = json.loads(value)
        fields[name] = value
    return SAEConfig.model_validate(fields)


def _row(
    config: PlanConfig, architecture: str, d_sae: int, sparsity: dict[str, Any], seed: int
) -> dict[str, Any]:
    fields = {
        "architecture": architecture,
        "d_sae": d_sae,
        "init_seed": seed if config.vary in ("init", "both") else config.fixed_seed,
        "data_seed": seed if config.vary in ("data", "both") else config.fixed_seed,
        **sparsity,
        **config.options,
    }
    try:
        sae = SAEConfig.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or architecture}: {item['msg']}"
            for item in error.errors()
        )
        raise InputError(f"campaign.plan: {architecture} with {fields}: {problems}") from error
    where = {"hook_name": config.hook_name, "position": config.position}
    content = {**sae.model_dump(mode="json"), **where}
    kind, value = next(iter(sparsity.items()))
    label = f"k{value}" if kind == "k" else f"{kind.removesuffix('_coefficient')}_{value:g}"
    name = f"{architecture} d{d_sae} {label}"
    same = {key: value for key, value in content.items() if key not in SEED_FIELDS}
    return {
        "sae_id": f"{name.replace(' ', '-')}-s{seed}-{_digest(content)}",
        "group": name,
        "group_digest": _digest(same),
        "seed": seed,
        **where,
        **config_cells(sae),
    }


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:6]

"""The plan: a table with one row for every SAE to train."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd
from pydantic import Field, ValidationError, field_validator, model_validator

from husai.activations.rows import activation_key
from husai.campaign.random_search import RandomSearch, draw_samples
from husai.config import (
    Config,
    Hook,
    Latents,
    Listed,
    Name,
    Position,
    Seed,
    as_position,
    problems,
    short_text,
)
from husai.errors import InputError
from husai.sae.config import BankTrainingConfig, SAEConfig

# the SAEs of a group differ in their seeds only
SEED_FIELDS = ("init_seed", "data_seed")

MAX_PLANNED = 200_000
"""Most SAEs of one plan."""

# how a group's name shows its sparsity
_SPARSITY = {"k": "k", "l1_coefficient": "l1_", "l0_coefficient": "l0_"}

KEPT_COLUMNS = ("group", "variant", "seed", "hook_name", "position", "model")
"""Columns of the plan that are also kept in an SAE's file."""


class ArchitectureGrid(Config):
    """The sparsity settings at which one architecture is trained.

    Give exactly one of the fields: ``k`` for the TopK architectures, ``l1_coefficient`` for ReLU,
    ``l0_coefficient`` for JumpReLU. Each value makes a group of SAEs at every width.
    """

    k: Listed[Latents] = Field(default=(), description="active latents per row")
    l1_coefficient: Listed[float] = Field(default=(), description="weights of the L1 term")
    l0_coefficient: Listed[float] = Field(default=(), description="weights of the L0 term")

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


Vary = Literal["init", "data", "both"]
VARIED: Mapping[Vary, tuple[str, ...]] = {
    "init": ("init_seed",),
    "data": ("data_seed",),
    "both": SEED_FIELDS,
}
Model = Literal["trained", "untrained"]

UNTRAINED = " untrained"  # ending of the names of groups on the untrained model


class Variant(Config):
    """One setting outside the grid, trained with every seed: a group of its own."""

    architecture: str = Field(description="as in the grid")
    d_sae: Latents = Field(description="width")
    vary: Vary | None = Field(
        default=None, description="what the seeds change; left out: as in the plan"
    )
    hook_name: Hook | None = Field(
        default=None, description="activations; left out: as in the plan"
    )
    position: Position | None = Field(
        default=None, description="token position; left out: as in the plan"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="its sparsity and further SAEConfig fields"
    )
    training: dict[str, Any] = Field(
        default_factory=dict, description="BankTrainingConfig fields that differ for this setting"
    )


class PlanConfig(Config):
    """A grid (architecture x width x sparsity), variants outside it, a random search; x seed."""

    hook_name: Hook = Field(
        default="blocks.0.hook_resid_post", description="activations trained on"
    )
    position: Position = Field(
        default=-1, description="token position of the activations, all or mean"
    )
    architectures: dict[Name, ArchitectureGrid] = Field(
        default_factory=dict, description="architectures of the grid; a null removes one"
    )
    d_sae: Listed[Latents] = Field(default=(), description="widths of the grid")
    seeds: Listed[Seed] = Field(min_length=1, description="one SAE of every group for each")
    vary: Vary = Field(
        default="init",
        description="what the seeds change: initial weights, the order of the rows, or both; the "
        "other seed stays fixed_seed",
    )
    fixed_seed: Seed = Field(default=0, description="value of the seed that does not vary")
    options: dict[str, Any] = Field(
        default_factory=dict, description="further SAEConfig fields, equal for all SAEs"
    )
    variants: dict[Name, Variant] = Field(
        default_factory=dict, description="settings outside the grid, by name; a null removes one"
    )
    random: RandomSearch | None = Field(default=None, description="settings drawn at random")
    training_by_width: dict[Latents, dict[str, Any]] = Field(
        default_factory=dict,
        description="BankTrainingConfig fields that differ for the grid's SAEs of a width, e.g. "
        "more steps for the widest",
    )
    untrained: Literal["none", "grid", "all"] = Field(
        default="none",
        description="settings that are also trained on the activations of the model at its "
        "initial weights, the comparison of arXiv 2501.17727",
    )
    untrained_d_sae: Listed[Latents] | None = Field(
        default=None, description="widths of the settings for untrained; left out: all"
    )
    untrained_architectures: Listed[Name] | None = Field(
        default=None, description="architectures of the settings for untrained; left out: all"
    )

    @field_validator("architectures", "variants", mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        # an environment or --params can only add to a mapping, so a null removes an entry
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return {name: entry for name, entry in value.items() if entry is not None}
        return value

    @model_validator(mode="after")
    def _something(self) -> PlanConfig:
        if bool(self.architectures) != bool(self.d_sae):
            missing = "d_sae" if self.architectures else "architectures"
            raise ValueError(f"{missing}: none given; a grid needs architectures and d_sae")
        if not (self.architectures or self.variants or self.random):
            raise ValueError("nothing to train: give architectures and d_sae, variants, or random")
        return self


@dataclass(frozen=True)
class _Setting:
    """One group of the plan: everything that its SAEs have in common."""

    name: str
    fields: dict[str, Any]
    vary: Vary
    variant: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    model: Model = "trained"
    hook_name: str | None = None
    position: Position | None = None


def plan_saes(config: PlanConfig) -> pd.DataFrame:
    """Make the plan: a table of all SAEs of the grid, the variants and the random search.

    Returns
    -------
    DataFrame
        One row per SAE: ``sae_id`` (readable, and different for different configurations),
        ``group`` (readable name, the same for SAEs that differ only in their seeds),
        ``group_digest`` (of everything except the seeds), ``seed``, ``hook_name``, ``position``,
        ``model`` (whether the activations are those of the trained or the untrained model),
        ``variant`` (its name, empty in the grid), ``training`` (JSON: the fields of
        :class:`husai.sae.BankTrainingConfig` that differ for this SAE), and the fields of
        :class:`husai.sae.SAEConfig`.

    Raises
    ------
    InputError
        When a combination is not a valid SAE (k above d_sae, an unknown architecture), two rows are
        the same, or a field sets the seed that should vary; the message names the field and the
        value.
    """
    _check_seeds(config)
    _check_size(config)
    plan = pd.DataFrame(
        [_row(config, setting, seed) for setting in _all_settings(config) for seed in config.seeds]
    )
    repeated = plan.loc[plan["sae_id"].duplicated(), "sae_id"].unique()
    if len(repeated):
        raise InputError(f"campaign.plan: the same SAE is planned twice: {', '.join(repeated)}")
    digests = plan.groupby("group")["group_digest"].nunique()
    if (digests > 1).any():
        raise InputError(
            f"campaign.plan: two groups have the same name, {digests[digests > 1].index[0]}; give "
            "the variants other names"
        )
    return plan


def plan_keys(plan: pd.DataFrame) -> list[str]:
    """Return the keys of the activations that each row of a plan is trained on."""
    places = zip(plan["hook_name"], plan["position"], plan["model"], strict=True)
    return [activation_key(hook, as_position(at), model) for hook, at, model in places]


def _check_size(config: PlanConfig) -> None:
    """Refuse a plan with too many SAEs before any of it is made."""
    grid = sum(len(list(entry.settings())) for entry in config.architectures.values())
    settings = grid * len(config.d_sae) + len(config.variants)
    settings += 0 if config.random is None else config.random.samples
    n_saes = settings * len(config.seeds)
    if n_saes > MAX_PLANNED:
        raise InputError(
            f"campaign.plan: {n_saes} SAEs; plan at most {MAX_PLANNED} in one campaign"
        )


def _check_seeds(config: PlanConfig) -> None:
    """Refuse fields that set the seed that should vary: all SAEs of a group would be equal."""
    shared: dict[str, Mapping[str, Any]] = {"options": config.options}
    places: list[tuple[Vary, dict[str, Mapping[str, Any]]]] = []
    if config.architectures:
        places.append((config.vary, shared))
    for name, variant in config.variants.items():
        own = {**shared, f"variants.{name}.options": variant.options}
        places.append((variant.vary or config.vary, own))
    if config.random is not None:
        drawn = {
            name: distribution.model_dump(exclude_none=True)
            for name, distribution in config.random.fields.items()
        }
        places.append((config.vary, {**shared, "random.fields": drawn}))
    for vary, fields in places:
        for place, values in fields.items():
            for seed in VARIED[vary]:
                if seed in values:
                    raise InputError(
                        f"campaign.plan.{place}.{seed}: {values[seed]} is given, but this is the "
                        f"seed that varies (vary: {vary}); leave it out, or vary the other seed"
                    )


def _all_settings(config: PlanConfig) -> Iterator[_Setting]:
    yield from _settings(config)
    if config.untrained == "none":
        return
    only = {"d_sae": config.untrained_d_sae, "architecture": config.untrained_architectures}
    for setting in _settings(config):
        if any(allowed and setting.fields[name] not in allowed for name, allowed in only.items()):
            continue
        if config.untrained == "all" or not setting.variant:
            yield replace(setting, name=setting.name + UNTRAINED, model="untrained")


def _settings(config: PlanConfig) -> Iterator[_Setting]:
    names: Counter[str] = Counter()
    for architecture, grid in config.architectures.items():
        for d_sae in config.d_sae:
            for sparsity in grid.settings():
                fields = {
                    "architecture": architecture,
                    "d_sae": d_sae,
                    **sparsity,
                    **config.options,
                }
                training = config.training_by_width.get(d_sae, {})
                names[_name(fields)] += 1
                yield _Setting(_name(fields), fields, config.vary, training=training)
    variants = {
        name: {
            "architecture": variant.architecture,
            "d_sae": variant.d_sae,
            **config.options,
            **variant.options,
        }
        for name, variant in config.variants.items()
    }
    names.update(_name(fields) for fields in variants.values())
    for name, variant in config.variants.items():
        fields = variants[name]
        # the variant's name is added only if architecture, width and sparsity are not unique
        plain = _says_all(config, variant) and names[_name(fields)] == 1
        yield _Setting(
            _name(fields) if plain else f"{_name(fields)} {name}",
            fields,
            variant.vary or config.vary,
            name,
            variant.training,
            hook_name=variant.hook_name,
            position=variant.position,
        )
    if config.random is None:
        return
    for number, sample in enumerate(draw_samples(config.random)):
        fields = {**config.options}
        training = {}
        for key, value in sample.items():
            if key.startswith("training."):
                training[key.removeprefix("training.")] = value
            else:
                fields[key] = value
        yield _Setting(
            f"{_name(fields)} random{number}", fields, config.vary, f"random{number}", training
        )


def _says_all(config: PlanConfig, variant: Variant) -> bool:
    """Whether a variant differs from the grid only in architecture, width and sparsity."""
    elsewhere = variant.hook_name is not None or variant.position is not None
    trained = variant.training or variant.vary not in (None, config.vary)
    return not (elsewhere or trained) and set(variant.options) <= set(_SPARSITY)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as mappings from column to value."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def config_cells(config: SAEConfig) -> dict[str, Any]:
    """Return a configuration as cells of a row of the plan; :func:`row_config` reads them back.

    Lists become text, so that all cells are plain values that viewers of tables can show.
    """
    dump = config.model_dump(mode="json")
    return {key: json.dumps(v) if isinstance(v, list) else v for key, v in dump.items()}


def row_config(row: Mapping[str, Any]) -> SAEConfig:
    """Build the SAE configuration of one row of the plan."""
    fields = {}
    for name in SAEConfig.model_fields:
        if name not in row:
            continue  # the plan is older than the field
        value = row[name]
        # a column with missing values is read from a table as floats with NaN
        value = None if pd.isna(value) else value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        elif isinstance(value, str) and value.startswith("["):
            value = json.loads(value)
        fields[name] = value
    return SAEConfig.model_validate(fields)


def row_training(row: Mapping[str, Any], shared: BankTrainingConfig) -> BankTrainingConfig:
    """Return the training parameters of one row: the shared ones with the changes of the row."""
    own = json.loads(row["training"]) if "training" in row else {}
    if not own:
        return shared
    try:
        return BankTrainingConfig.model_validate({**shared.model_dump(), **own})
    except ValidationError as error:
        raise InputError(
            f"campaign.plan: {row['sae_id']}: training: {'; '.join(problems(error))}"
        ) from error


def _row(config: PlanConfig, setting: _Setting, seed: int) -> dict[str, Any]:
    fields = {
        **{
            name: seed if name in VARIED[setting.vary] else config.fixed_seed
            for name in SEED_FIELDS
        },
        **setting.fields,
    }
    try:
        sae = SAEConfig.model_validate(fields)
        BankTrainingConfig.model_validate(setting.training)
    except ValidationError as error:
        training = short_text(dict(setting.training), 300) if setting.training else ""
        given = f"{setting.name} with {short_text(fields, 300)} {training}".strip()
        raise InputError(f"campaign.plan: {given}: {'; '.join(problems(error))}") from error
    where = {
        "hook_name": setting.hook_name or config.hook_name,
        "position": config.position if setting.position is None else setting.position,
    }
    content = {**sae.model_dump(mode="json"), **where}
    if sae.baseline == "none":
        # so that ids stay the same as before there were baselines
        del content["baseline"]
    if setting.training:
        content["training"] = dict(setting.training)
    if setting.model != "trained":
        content["model"] = setting.model
    same = {key: value for key, value in content.items() if key not in SEED_FIELDS}
    if setting.vary != config.vary:
        # the same setting, but another seed varies: a separate group
        same["vary"] = setting.vary
    return {
        "sae_id": f"{setting.name.replace(' ', '-')}-s{seed}-{_digest(content)}",
        "group": setting.name,
        "group_digest": _digest(same),
        "seed": seed,
        **where,
        "model": setting.model,
        "variant": setting.variant,
        "training": json.dumps(dict(setting.training), sort_keys=True),
        **config_cells(sae),
    }


def _name(fields: Mapping[str, Any]) -> str:
    """Architecture, width and sparsity in a readable form."""
    # the fields are validated later, so that any value is possible here
    parts = [str(fields.get("architecture", "")), f"d{_value(fields.get('d_sae', ''))}"]
    for key, short in _SPARSITY.items():
        if fields.get(key) is not None:
            parts.append(f"{short}{_value(fields[key])}")
    return " ".join(parts)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else short_text(value)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:6]

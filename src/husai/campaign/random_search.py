"""Random search: settings drawn from distributions over the fields of an SAE."""

from __future__ import annotations

import math
import zlib
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from husai.campaign.expressions import Condition, Value
from husai.config import Config, Seed
from husai.errors import InputError

SIGNIFICANT_DIGITS = 4
"""Significant digits of a drawn real number, so that tables show the exact value."""

MAX_REJECTIONS = 1000
"""After so many refused draws of one sample, the constraints count as impossible."""

MAX_SAMPLES = 100_000

_Bound = Annotated[int, Field(ge=-(2**62), le=2**62)]


class Distribution(Config):
    """The distribution of one field: exactly one of the four kinds."""

    uniform: tuple[float, float] | None = Field(default=None, description="real, low to high")
    log_uniform: tuple[float, float] | None = Field(
        default=None, description="real, its logarithm uniform; low above 0"
    )
    integer: tuple[_Bound, _Bound] | None = Field(
        default=None, description="whole, low to high, both included"
    )
    choice: tuple[Value, ...] | None = Field(default=None, description="one of these")
    when: str | None = Field(
        default=None,
        description="condition on earlier fields, e.g. architecture == 'relu'; the field is left "
        "out if it does not hold",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Distribution:
        kinds = ("uniform", "log_uniform", "integer", "choice")
        given = [name for name in kinds if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(kinds)}; given: {', '.join(given) or 'none'}"
            )
        for name in ("uniform", "log_uniform", "integer"):
            bounds = getattr(self, name)
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ValueError(f"{name}: {list(bounds)}; the first must be below the second")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform: {list(self.log_uniform)}; both must be above 0")
        if self.choice is not None and not self.choice:
            raise ValueError("choice: empty; give at least one value")
        return self

    def draw(self, generator: np.random.Generator) -> Value:
        """Draw one value."""
        if self.choice is not None:
            return self.choice[int(generator.integers(len(self.choice)))]
        if self.integer is not None:
            return int(generator.integers(self.integer[0], self.integer[1], endpoint=True))
        if self.uniform is not None:
            return _rounded(generator.uniform(*self.uniform))
        assert self.log_uniform is not None
        low, high = (math.log(bound) for bound in self.log_uniform)
        return _rounded(math.exp(generator.uniform(low, high)))


class RandomSearch(Config):
    """Settings drawn at random; each is trained with every seed of the plan."""

    samples: int = Field(gt=0, le=MAX_SAMPLES, description="number of settings drawn")
    seed: Seed = Field(default=0, description="seed of these draws only")
    fields: dict[str, Distribution] = Field(
        min_length=1,
        description="SAEConfig fields, and training.NAME for those of BankTrainingConfig; drawn "
        "in this order",
    )
    constraints: tuple[str, ...] = Field(
        default=(),
        description="conditions on the fields, e.g. k <= d_sae / 4; a condition on a field that "
        "was left out holds",
    )

    @model_validator(mode="after")
    def _conditions_are_readable(self) -> RandomSearch:
        order = [_written(name) for name in self.fields]
        for text in self.constraints:
            _check_names(text, Condition.parse(text).names - set(order))
        for place, (name, distribution) in enumerate(self.fields.items()):
            if distribution.when is None:
                continue
            named = Condition.parse(distribution.when).names
            _check_names(distribution.when, named - set(order))
            for later in order[place:]:
                if later in named:
                    raise ValueError(
                        f"fields.{name}: its condition '{distribution.when}' names {later}, which "
                        f"is not drawn before {name}; write {later} above it"
                    )
        return self


def draw_samples(search: RandomSearch) -> list[dict[str, Value]]:
    """Draw the settings of a random search.

    A value depends on the seed of the search, the number of the sample and the name of the field.
    So more samples, or a further field that no constraint uses, do not change the first samples.

    Returns
    -------
    list of dict
        One mapping of field to value for each sample.

    Raises
    ------
    InputError
        When a condition cannot be evaluated, or is never met.
    """
    return [_draw_sample(search, number) for number in range(search.samples)]


def _draw_sample(search: RandomSearch, number: int) -> dict[str, Value]:
    for attempt in range(MAX_REJECTIONS):
        sample: dict[str, Value] = {}
        for name, distribution in search.fields.items():
            when = distribution.when
            if when is not None and not _holds(when, sample, vacuous=False):
                continue
            # zlib.crc32 is the same in every process; hash() of a string is not
            key = [search.seed, number, attempt, zlib.crc32(name.encode())]
            sample[name] = distribution.draw(np.random.default_rng(key))
        if all(_holds(one, sample, vacuous=True) for one in search.constraints):
            return sample
    raise InputError(
        f"campaign.plan.random.constraints: {list(search.constraints)} refused "
        f"{MAX_REJECTIONS} draws of sample {number}; loosen them or narrow the fields"
    )


def _holds(text: str, sample: dict[str, Value], *, vacuous: bool) -> bool:
    """Whether a condition holds; ``vacuous`` if it uses a field that the sample does not have."""
    condition = Condition.parse(text)
    values = {_written(name): value for name, value in sample.items()}
    if not condition.names <= values.keys():
        return vacuous
    try:
        return condition.holds({name: values[name] for name in condition.names})
    except ValueError as error:
        raise InputError(f"campaign.plan.random: {error}") from error


def _check_names(text: str, unknown: frozenset[str] | set[str]) -> None:
    if unknown:
        raise ValueError(f"condition '{text}': no field {', '.join(sorted(unknown))} is drawn")


def _written(name: str) -> str:
    """Return the name of a field in conditions, where a name cannot have a dot."""
    return name.replace(".", "_")


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")

"""The base of every parameter group."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

T = TypeVar("T")


def _as_list(value: Any) -> Any:
    if isinstance(value, str):
        return value.split()
    return (value,) if isinstance(value, int | float) else value


Listed = Annotated[tuple[T, ...], BeforeValidator(_as_list)]
"""A list that may be given as one value or as words: the command line has no lists, since
``kedro run --params`` cuts what it is given at every comma. E.g. ``campaign.plan.d_sae=16 64``."""


class Config(BaseModel):
    """A frozen group of parameters in which an unknown key is an error.

    Every group of parameters in the project derives from it, so that a typo is reported with the
    field's name before any work starts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

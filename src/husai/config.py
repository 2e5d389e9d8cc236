"""The base of every parameter group, and the types that their fields share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

T = TypeVar("T")


MANY_POSITIONS = ("all", "mean")


def _as_list(value: Any) -> Any:
    if isinstance(value, str):
        return value.split()
    return (value,) if isinstance(value, int | float) else value


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("give a number, not true or false")
    return value


def _a_position(value: Any) -> Any:
    # before pydantic tries it against the words: they fail on an integer of thousands of digits
    if value in MANY_POSITIONS or (type(value) is int and abs(value) <= 10**6):
        return value
    raise ValueError("give a token position, negative from the end; or all, or mean")


def check_name(name: str) -> str:
    """Give a name back that may be part of file names, tags and queries.

    Raises
    ------
    ValueError
        When it is empty or too long, or holds more than letters, digits, points, _ and -.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ValueError(
            "use 1 to 64 letters, digits, '.', '_' and '-', the first a letter or a digit"
        )
    return name


def _check_hook(hook: str) -> str:
    name, at, position = hook.partition("@")
    if at and position not in MANY_POSITIONS and not re.fullmatch(r"-?\d{1,6}", position):
        raise ValueError("after '@' comes a token position, e.g. hook_embed@0; or all, or mean")
    check_name(name)
    return hook


Listed = Annotated[tuple[T, ...], BeforeValidator(_as_list)]
"""A list that may be given as one value or as words: the command line has no lists, since
``kedro run --params`` cuts what it is given at every comma. E.g. ``campaign.plan.d_sae=16 64``."""

_Whole = Annotated[int, BeforeValidator(_no_truth_value)]

Seed = Annotated[_Whole, Field(ge=0, lt=2**32)]
"""A seed that every generator in use takes: Python's, NumPy's and torch's."""

Count = Annotated[_Whole, Field(ge=1, le=10**9)]
"""How many: steps, epochs, rows, draws."""

CountFromZero = Annotated[_Whole, Field(ge=0, le=10**9)]
"""How many, and there may be none."""

Latents = Annotated[_Whole, Field(ge=1, le=2**24)]
"""Latents of an SAE or features of a world; the widest SAE published has 2^24."""

ModelWidth = Annotated[_Whole, Field(ge=1, le=2**16)]
"""A width inside a model: of its residual stream, an MLP, a head, activations."""

Threads = Annotated[_Whole, Field(ge=1, le=1024)]
"""Threads or processes of one machine."""

Position = Annotated[int | Literal["all", "mean"], BeforeValidator(_a_position)]
"""A token position, negative from the end; or all of a context, or their mean."""

Name = Annotated[str, AfterValidator(check_name)]
"""A name that becomes part of file names and tags."""

HOME_STUDY = "home"
"""Name of the study in the folder of all data, unless it is given another."""

Hook = Annotated[str, AfterValidator(_check_hook)]
"""A hook as TransformerLens names it, with a token position behind ``@`` or without."""


def as_position(value: Any) -> Position:
    """Give a position back from a table or a header, where it may have become another type."""
    if value == "all":
        return "all"
    return "mean" if value == "mean" else int(value)


class Config(BaseModel):
    """A frozen group of parameters in which an unknown key is an error.

    Every group of parameters in the project derives from it, so that a typo is reported with the
    field's name before any work starts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings and models with dotted names."""
    if hasattr(values, "model_dump"):
        values = values.model_dump(mode="json")
    if isinstance(values, Mapping):
        if not values and prefix:
            yield prefix, "{}"
        for key, value in values.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values


def problems(error: ValidationError, group: str = "") -> list[str]:
    """Say what is wrong with a group of parameters, one line per problem.

    Parameters
    ----------
    error
        What validating it raised.
    group
        The group's name, put before that of each field.

    Returns
    -------
    list of str
        ``group.field = value: what is wrong``, without pydantic's link and line breaks.
    """
    lines = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in (*([group] if group else []), *item["loc"]))
        message = " ".join(item["msg"].removeprefix("Value error, ").split())
        if item["type"] == "extra_forbidden":
            message = "no such field"
        # a check of the whole group names its fields itself; its input is all of them
        given = item["input"]
        value = "" if isinstance(given, dict | BaseModel) else f" = {short_text(given)}"
        lines.append(f"{field}{value}: {message}".removeprefix(": ").strip())
    return lines


def short_text(value: Any, most: int = 80) -> str:
    """Give a value as Python writes it, on one line and cut to ``most`` characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}…"

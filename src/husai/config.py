"""The base class of every parameter group, and the types that their fields share."""

from __future__ import annotations

import re
import sys
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
    # before pydantic compares it with the words: that fails on an integer of thousands of digits
    if value in MANY_POSITIONS or (type(value) is int and abs(value) <= 10**6):
        return value
    raise ValueError("give a token position, negative from the end; or all, or mean")


def check_name(name: str) -> str:
    """Return a name after checking that it can be part of file names, tags and queries.

    Raises
    ------
    ValueError
        When it is empty or too long, or has characters other than letters, digits, points, _ and -.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ValueError(
            "use 1 to 64 letters, digits, '.', '_' and '-', the first a letter or a digit"
        )
    return name


def _check_hook(hook: str) -> str:
    name, at, position = hook.partition("@")
    if at and position not in MANY_POSITIONS and not re.fullmatch(r"-?\d{1,6}", position):
        raise ValueError("write a token position after '@', e.g. hook_embed@0; or all, or mean")
    check_name(name)
    return hook


Listed = Annotated[tuple[T, ...], BeforeValidator(_as_list)]
"""A list that may be given as one value or as words: ``kedro run --params`` splits its argument at
every comma, so that lists are written with spaces there: ``campaign.plan.d_sae=16 64``."""

_Whole = Annotated[int, BeforeValidator(_no_truth_value)]

Seed = Annotated[_Whole, Field(ge=0, lt=2**32)]
"""A seed that is valid for all generators in use: Python's, NumPy's and torch's."""

Count = Annotated[_Whole, Field(ge=1, le=10**9)]
"""A number of steps, epochs, rows, draws, at least 1."""

CountFromZero = Annotated[_Whole, Field(ge=0, le=10**9)]
"""A number of steps, epochs, rows, draws, which may be 0."""

Latents = Annotated[_Whole, Field(ge=1, le=2**24)]
"""Number of latents of an SAE or features of a world; the widest published SAE has 2^24."""

ModelWidth = Annotated[_Whole, Field(ge=1, le=2**16)]
"""A width inside a model: of its residual stream, an MLP, a head, activations."""

Threads = Annotated[_Whole, Field(ge=1, le=1024)]
"""Number of threads or processes on one machine."""

Position = Annotated[int | Literal["all", "mean"], BeforeValidator(_a_position)]
"""A token position, negative from the end; or all of a context, or their mean."""

Name = Annotated[str, AfterValidator(check_name)]
"""A name that becomes part of file names and tags."""

HOME_STUDY = "home"
"""Name of the default study, whose folder is the data folder itself."""

Hook = Annotated[str, AfterValidator(_check_hook)]
"""A hook as TransformerLens names it, with or without a token position after ``@``."""


def as_position(value: Any) -> Position:
    """Convert a position read from a table or a header, which may have another type there."""
    if value == "all":
        return "all"
    return "mean" if value == "mean" else int(value)


class Config(BaseModel):
    """A frozen group of parameters in which an unknown key is an error.

    All parameter groups of the project derive from this class, so that a typo is reported with
    the field's name before any work starts.
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
    """Describe what is wrong with a group of parameters, one line per problem.

    Parameters
    ----------
    error
        The error that pydantic raised.
    group
        The group's name, which is put before the name of each field.

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
        # the message of a check of the whole group names its fields itself
        given = item["input"]
        value = "" if isinstance(given, dict | BaseModel) else f" = {short_text(given)}"
        lines.append(f"{field}{value}: {message}".removeprefix(": ").strip())
    return lines


def too_large(value: Any, place: str = "") -> Iterator[str]:
    """Yield the places of integers beyond the range of float64 in nested parameters.

    No field takes such a number, and pydantic cannot write the longest of them in its messages.
    """
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from too_large(entry, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from too_large(entry, f"{place}.{index}")
    elif isinstance(value, int) and value.bit_length() > sys.float_info.max_exp:
        yield place


def short_text(value: Any, most: int = 80) -> str:
    """Write a value as Python does, on one line and cut to ``most`` characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}…"

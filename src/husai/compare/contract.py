"""Checks that SAEs read the same activations (their contracts), as far as their files say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from husai.errors import InputError

if TYPE_CHECKING:
    from husai.consistency.study.record import SAERecord

# Hugging Face's names for the residual stream and for the output of an MLP, with the names that
# TransformerLens has for them.
_HOOKS = (
    (re.compile(r"(?:model\.)?layers\.(\d+)(?:\.output)?"), "blocks.{}.hook_resid_post"),
    (re.compile(r"(?:model\.)?layers\.(\d+)\.mlp(?:\.output)?"), "blocks.{}.hook_mlp_out"),
    (re.compile(r"(?:transformer\.)?h\.(\d+)"), "blocks.{}.hook_resid_post"),
)
_MODELS = {"gpt2-small": "gpt2"}
_SAME_SCALE = 0.05
"""Two input scales count as equal up to this relative difference."""

FIELDS = ("model", "hook", "hook_out", "layer", "position", "scale", "reshape")


def check_contracts(
    saes: Sequence[SAERecord], *, strict: bool = False, any_space: bool = False
) -> list[str]:
    """Find contradictions between the SAEs about what they read.

    Parameters
    ----------
    saes
        The SAEs of one comparison, loaded by `husai.compare.files`.
    strict
        Whether to raise an error on any contradiction.
    any_space
        Whether to allow decoder rows of different activations.

    Returns
    -------
    mismatches
        One sentence for each contradiction.

    Raises
    ------
    InputError
        When their decoder rows are directions of different activations, or with ``strict`` on any
        contradiction.
    """
    contracts = {sae.id: sae.origin["contract"] for sae in saes if "contract" in sae.origin}
    if not any_space:
        check_spaces(contracts)
    found = mismatches(contracts)
    if found and strict:
        raise InputError("; ".join(found))
    return found


def mismatches(contracts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """List the contradictions between SAEs about what they read, one sentence each.

    Parameters
    ----------
    contracts
        For each SAE by name, the fields of its `husai.sae.formats.Contract`; a field that is None
        is not known and contradicts nothing.
    """
    found: dict[str, str] = {}
    for field in FIELDS:
        if field == "layer" and "hook" in found:
            continue  # the different hooks are reported already
        stated = {n: c[field] for n, c in contracts.items() if c.get(field) is not None}
        groups: list[tuple[Any, list[str]]] = []
        for name, value in stated.items():
            same = next((names for other, names in groups if _same(field, value, other)), None)
            if same is None:
                groups.append((value, [name]))
            else:
                same.append(name)
        if len(groups) > 1:
            parts = ", ".join(f"{_some(names)}: {value}" for value, names in groups)
            found[field] = f"{field} differs ({parts})"
    return list(found.values())


def check_spaces(contracts: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that the decoder rows of all SAEs are directions of the same activations.

    Parameters
    ----------
    contracts
        As in :func:`mismatches`.

    Raises
    ------
    InputError
        When the decoder of one SAE writes to other activations than another SAE reads.
    """
    known = {n: c for n, c in contracts.items() if c.get("space", "unknown") != "unknown"}
    for (a, one), (b, other) in combinations(known.items(), 2):
        if one["space"] == other["space"] or _written_is_read(one, other):
            continue
        writes = a if one["space"] != "input" else b
        what = "several layers" if "layers" in (one["space"], other["space"]) else "its output"
        raise InputError(
            f"{writes}: its decoder rows are directions of {what}, those of "
            f"{b if writes == a else a} are not; give --any-space to compare them nevertheless"
        )


def _written_is_read(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    spaces = {one["space"]: one, other["space"]: other}
    if set(spaces) != {"input", "output"}:
        return False
    read, written = spaces["input"].get("hook"), spaces["output"].get("hook_out")
    return read is not None and written is not None and _same("hook", read, written)


def _same(field: str, a: Any, b: Any) -> bool:
    if field in ("hook", "hook_out"):
        return _hook(str(a)) == _hook(str(b))
    if field == "model":
        return _model(str(a)) == _model(str(b))
    if field == "scale":
        return _scale(str(a), str(b))
    return bool(a == b)


def _hook(name: str) -> str:
    for pattern, form in _HOOKS:
        match = pattern.fullmatch(name)
        if match:
            return form.format(match.group(1))
    return name


def _model(name: str) -> str:
    # some names of pretrained models end in -pt
    short = name.rsplit("/", 1)[-1].lower().removesuffix("-pt")
    return _MODELS.get(short, short)


def _scale(a: str, b: str) -> bool:
    try:
        x, y = float(a), float(b)
    except ValueError:
        return a == b
    return abs(x - y) <= _SAME_SCALE * max(x, y)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

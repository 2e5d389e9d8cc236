"""Read activations from the small transformer, by hook name and position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from husai.activations.rows import Activations, check_activations
from husai.config import Config, Count, Hook
from husai.errors import InputError
from husai.progress import progress_bar

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge


OWN_HOOK = "rows"
"""Hook name of the user's own rows."""


class ExtractionConfig(Config):
    """Which activations to read from the model, or the file of the user's own rows.

    A path alone sets ``file``: ``kedro run --env=own --params activations=rows.npy``.
    """

    file: str | None = Field(
        default=None,
        min_length=1,
        description="file of your own rows, for --env=own, which has no transformer; its formats "
        "are those of husai.activations.read_rows",
    )
    hook_names: tuple[Hook, ...] = Field(
        default=("blocks.0.hook_resid_post",),
        min_length=1,
        description="TransformerLens hooks; NAME is read at all of positions, NAME@POSITION only "
        "at this position",
    )
    positions: tuple[int, ...] = Field(
        default=(-1,), min_length=1, description="token positions; negative: counted from the end"
    )
    untrained: bool = Field(default=False, description="read the model at its initial weights too")
    chunk_size: Count = Field(default=4096, description="inputs in one forward pass")

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"file": value, "hook_names": (OWN_HOOK,)}
        if isinstance(value, int | float | list | tuple):
            raise ValueError("give the path of a file with your rows")
        return value

    @field_validator("hook_names", "positions")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        repeated = sorted({value for value in values if values.count(value) > 1})
        if repeated:
            raise ValueError(f"given more than once: {repeated}; remove the repeats")
        return values

    def hook_positions(self) -> list[tuple[str, int]]:
        """Every hook with every position at which it is read.

        Raises
        ------
        InputError
            When the text after the @ is not a number, or a hook is read twice at one position.
        """
        found: list[tuple[str, int]] = []
        for entry in self.hook_names:
            name, at, position = entry.partition("@")
            try:
                own = (int(position),) if at else self.positions
            except ValueError:
                raise InputError(
                    f"activations.hook_names: '{entry}': give a token position after the @"
                ) from None
            found += [(name, one) for one in own]
        repeated = sorted({f"{name}@{at}" for name, at in found if found.count((name, at)) > 1})
        if repeated:
            raise InputError(f"activations.hook_names: given twice: {repeated}; remove one")
        return found


def check_extraction(model: TransformerBridge, n_ctx: int, config: ExtractionConfig) -> None:
    """Check that every hook exists in the model and every position in its context.

    Raises
    ------
    InputError
        When one does not; the message names the field, the value, and what exists instead.
    """
    known = model.hook_dict
    hook_positions = config.hook_positions()
    for name in dict.fromkeys(name for name, _ in hook_positions):
        if name not in known:
            last = name.split(".")[-1]
            alike = [hook for hook in sorted(known) if hook.split(".")[-1] == last]
            alike = alike or get_close_matches(name, known, n=6, cutoff=0.0)
            raise InputError(
                f"activations.hook_names: no hook '{name}' in the model; the closest of "
                f"{len(known)} are: {', '.join(alike)}"
            )
    for _, position in hook_positions:
        if not -n_ctx <= position < n_ctx:
            raise InputError(
                f"activations.positions: {position} is outside the context of {n_ctx} tokens; "
                f"give {-n_ctx} to {n_ctx - 1}"
            )
    if len({(name, position % n_ctx) for name, position in hook_positions}) < len(hook_positions):
        raise InputError(
            f"activations.positions: {[position for _, position in hook_positions]} gives one of "
            f"the {n_ctx} positions twice; remove one"
        )


def extract_activations(
    model: TransformerBridge,
    tokens: torch.Tensor,
    split: torch.Tensor,
    config: ExtractionConfig,
    model_description: Mapping[str, Any],
    progress: bool = True,
) -> Iterator[Activations]:
    """Run the model on the tokens in chunks and keep the activations at the hooks.

    Axes after (batch, position), such as heads, are flattened into one.

    Parameters
    ----------
    model
        A TransformerLens bridge.
    tokens
        Integer tensor ``[n_rows, n_ctx]``.
    split
        Integer tensor ``[n_rows]``, kept beside the rows.
    config
        Hooks, positions, chunk size.
    model_description
        Stored in the header of every result.
    progress
        Show a progress bar.

    Yields
    ------
    Activations
        One for every hook and position, in their order.

    Raises
    ------
    InputError
        When a hook does not exist, does not fire, has no position axis, or gives non-finite
        values.
    """
    import torch

    n_rows, n_ctx = tokens.shape
    check_extraction(model, n_ctx, config)
    device = next(model.parameters()).device
    chunks: dict[tuple[str, int], list[torch.Tensor]] = {
        hook_position: [] for hook_position in config.hook_positions()
    }
    wanted = {name for name, _ in chunks}
    with (
        torch.no_grad(),
        progress_bar(n_rows, "extract activations", "row", disable=not progress) as bar,
    ):
        for batch in torch.split(tokens, config.chunk_size):
            _, cache = model.run_with_cache(
                batch.to(device), names_filter=lambda name: name in wanted
            )
            for name, position in chunks:
                value = _hook_value(cache, name, batch)
                rows = value[:, position].reshape(len(batch), -1)
                chunks[name, position].append(rows.to("cpu", torch.float32))
            bar.update(len(batch))
    for name, position in list(chunks):
        values = torch.cat(chunks.pop((name, position)))
        activations = Activations(values, split, name, position, model_description)
        yield check_activations(activations, activations.key)


def _hook_value(cache: Mapping[str, torch.Tensor], name: str, batch: torch.Tensor) -> torch.Tensor:
    if name not in cache:
        raise InputError(
            f"activations.hook_names: '{name}' exists in the model but gives nothing in this "
            "configuration; choose another hook"
        )
    value = cache[name]
    if value.ndim < 3 or value.shape[:2] != batch.shape:
        raise InputError(
            f"activations.hook_names: '{name}' gives shape {list(value.shape)}, which does not "
            "begin with [batch, position]; choose a hook on the residual stream, the "
            "attention's values or outputs, or the MLP"
        )
    return value

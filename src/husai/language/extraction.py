"""Run a model over tokens and store its activations: one pass for all hooks, shard by shard."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from husai.activations import Activations, ActivationStore, activation_key
from husai.config import Position
from husai.errors import InputError
from husai.language.config import ReadingConfig
from husai.language.model import LanguageModel, check_hooks
from husai.progress import progress_bar
from husai.text import Tokens

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

ALL_OF_A_CONTEXT = -1
"""Place of a row that is the mean of a context's tokens."""


class RowPlaces(NamedTuple):
    """Token of each row of activations: ``[n_rows]`` number of its context, and place in it."""

    context: NDArray[np.int64]
    place: NDArray[np.int64]


def kept_tokens(tokens: Tokens, reading: ReadingConfig) -> NDArray[np.bool_]:
    """Mark ``[n_contexts, context]`` tokens whose activations may be rows; padding never may."""
    if reading.special_tokens:
        return np.arange(tokens.ids.shape[1]) < tokens.length[:, None]
    return tokens.ordinary


def row_places(tokens: Tokens, position: Position, reading: ReadingConfig) -> RowPlaces:
    """Find the token of each row, in the rows' order.

    Parameters
    ----------
    tokens
        The text.
    position
        ``all``, ``mean``, or a number that counts the kept tokens of a context, from the end where
        it is negative. A context that is too short for it has no row.
    reading
        Which tokens are kept.
    """
    kept = kept_tokens(tokens, reading)
    if position == "all":
        return RowPlaces(*np.nonzero(kept))
    counts = kept.sum(1)
    if position == "mean":
        contexts = np.flatnonzero(counts)
        return RowPlaces(contexts, np.full(len(contexts), ALL_OF_A_CONTEXT))
    wanted = position if position >= 0 else counts + position
    found = np.flatnonzero((wanted >= 0) & (wanted < counts))
    number = np.broadcast_to(wanted, counts.shape)[found]
    order = np.cumsum(kept[found], axis=1) - 1
    return RowPlaces(found, np.argmax((order == number[:, None]) & kept[found], axis=1))


def held_out_contexts(
    tokens: Tokens, position: Position, reading: ReadingConfig
) -> NDArray[np.int64]:
    """Return ``[n_held_out]`` numbers of the held-out rows' contexts, in the rows' order."""
    context = row_places(tokens, position, reading).context
    return context[context >= len(tokens) - tokens.n_held_out]


def extract_stores(
    model: LanguageModel,
    tokens: Tokens,
    reading: ReadingConfig,
    folder: Path,
    *,
    trained: bool = True,
    progress: bool = True,
) -> dict[str, ActivationStore]:
    """Read all hooks in one pass over the tokens, and write a store for each.

    An interrupted run can be continued: shards that exist are not read again, and the finished
    stores have the same bytes as without the interruption.

    Parameters
    ----------
    model, tokens, reading
        The model, the text, and what is read.
    folder
        Folder in which each hook has a folder for its store.
    trained
        False for a model with new initial weights.
    progress
        Show a progress bar with tokens per second and the time left.

    Returns
    -------
    dict
        :func:`husai.activations.activation_key` of hook and position to the store.

    Raises
    ------
    InputError
        When a hook does not exist, the contexts are too long for the model, or the disk is too
        small.
    """
    places = reading.places()
    check_hooks(model, [name for name, _ in places])
    if tokens.ids.shape[1] > model.context:
        raise InputError(
            f"text.context: {tokens.ids.shape[1]} tokens, but the model reads at most "
            f"{model.context}; lower it"
        )
    kept = kept_tokens(tokens, reading)
    rows = {place: row_places(tokens, place[1], reading) for place in places}
    names = [name for name, _ in places]
    widths = {name: int(v.shape[2]) for name, v in _first_values(model, tokens, names).items()}
    stores: dict[tuple[str, Position], ActivationStore] = {}
    for name, position in places:
        key = activation_key(name, position, "trained" if trained else "untrained")
        about = {
            "model": dict(model.about),
            "hook": f"{name}@{position}",
            "special_tokens": reading.special_tokens,
            # batches of another size give other rounding errors
            "batch_tokens": reading.batch_tokens,
            "shard_contexts": reading.shard_contexts,
            "text": {**tokens.about, "fingerprint": tokens.fingerprint},
        }
        store = ActivationStore.create(folder / key, widths[name], reading.dtype, about)
        if not store.finished:
            store.check_space(len(rows[name, position].context))
        stores[name, position] = store
    n_shards = -(-len(tokens) // reading.shard_contexts)
    # also of a finished store, whose shards may have been torn or deleted since
    if not all(store.has(number) for store in stores.values() for number in range(n_shards)):
        _fill(model, tokens, kept, reading, stores, rows, progress)
    for place, store in stores.items():
        first_held_out = len(tokens) - tokens.n_held_out
        store.finish(int((rows[place].context >= first_held_out).sum()))
    return {store.folder.name: store for store in stores.values()}


def _first_values(
    model: LanguageModel, tokens: Tokens, names: list[str]
) -> dict[str, torch.Tensor]:
    import torch

    length = int(tokens.length[0])
    ids = torch.from_numpy(tokens.ids[:1, :length].astype(np.int64))
    return model.values(ids, torch.ones_like(ids), names)


def _fill(
    model: LanguageModel,
    tokens: Tokens,
    kept: NDArray[np.bool_],
    reading: ReadingConfig,
    stores: Mapping[tuple[str, Position], ActivationStore],
    rows: Mapping[tuple[str, Position], RowPlaces],
    progress: bool,
) -> None:
    """Write the missing shards; each holds the rows of a range of contexts."""
    import torch

    size = reading.shard_contexts
    n_shards = -(-len(tokens) // size)
    missing = [
        number
        for number in range(n_shards)
        if not all(store.has(number) for store in stores.values())
    ]
    done = int(tokens.length.sum()) - sum(
        int(tokens.length[number * size : (number + 1) * size].sum()) for number in missing
    )
    if done:
        logger.info("%d of %d shards exist; reading the others", n_shards - len(missing), n_shards)
    names = [name for name, _ in stores]
    with progress_bar(
        int(tokens.length.sum()), "read activations", "token", initial=done, disable=not progress
    ) as bar:
        for number in missing:
            span = slice(number * size, (number + 1) * size)
            values = contexts_values(model, tokens, span, names, reading.batch_tokens, bar)
            for place, store in stores.items():
                own = rows[place]
                chosen = (own.context >= span.start) & (own.context < span.stop)
                context = torch.from_numpy(own.context[chosen] - span.start)
                if place[1] == "mean":
                    weight = torch.from_numpy(kept[span]).float()
                    total = torch.einsum("cpd,cp->cd", values[place[0]], weight)
                    found = (total / weight.sum(1, keepdim=True).clamp_min(1))[context]
                else:
                    found = values[place[0]][context, torch.from_numpy(own.place[chosen])]
                store.write(number, found)


def contexts_values(
    model: LanguageModel,
    tokens: Tokens,
    span: slice,
    names: list[str],
    batch_tokens: int,
    bar: Any = None,
) -> dict[str, torch.Tensor]:
    """Read hooks of a range of contexts.

    Contexts of similar length are read together, cut to the longest of them.

    Parameters
    ----------
    model, tokens
        The model and the text.
    span
        Range of contexts.
    names
        Names of the hooks.
    batch_tokens
        Most tokens of one forward pass.
    bar
        Progress bar that counts tokens, or None.

    Returns
    -------
    dict
        For each hook ``[n, context, d]`` float32 on the CPU, 0 at padding.
    """
    import torch

    found: dict[str, torch.Tensor] = {}
    for chosen, ids, attention in batches(tokens, span, batch_tokens):
        for name, value in model.values(ids, attention, names).items():
            if name not in found:
                n = len(tokens.ids[span])
                found[name] = torch.zeros(n, tokens.ids.shape[1], value.shape[2])
            found[name][chosen, : ids.shape[1]] = value.to("cpu", torch.float32)
        if bar is not None:
            bar.update(int(attention.sum()))
    return found


def batches(
    tokens: Tokens, span: slice, batch_tokens: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield batches of contexts of similar length.

    Which contexts are in a batch depends only on the lengths in the span and on ``batch_tokens``.

    Yields
    ------
    numbers
        ``[batch]`` numbers of the contexts, counted from the start of the span.
    ids
        ``[batch, position]`` token ids.
    attention
        ``[batch, position]`` 1 for a token and 0 for padding.
    """
    import torch

    lengths = tokens.length[span]
    order = np.argsort(lengths, kind="stable")
    begin = 0
    while begin < len(order):
        end = begin + 1
        while end < len(order) and lengths[order[end]] * (end + 1 - begin) <= batch_tokens:
            end += 1
        chosen = order[begin:end]
        longest = int(lengths[chosen[-1]])
        ids = torch.from_numpy(tokens.ids[span][chosen, :longest].astype(np.int64))
        attention = (
            torch.arange(longest) < torch.from_numpy(lengths[chosen].astype(np.int64))[:, None]
        )
        yield torch.from_numpy(chosen), ids, attention.long()
        begin = end


def held_out_activations(
    stores: Mapping[str, ActivationStore], reading: ReadingConfig, trained: bool = True
) -> Iterator[Activations]:
    """Yield the held-out rows of every store as activations in memory, together with the store."""
    import torch

    for name, position in reading.places():
        key = activation_key(name, position, "trained" if trained else "untrained")
        store = stores[key]
        n = store.n_held_out
        yield Activations(
            values=store.rows(store.n_rows, store.n_rows + n),
            split=torch.zeros(n, dtype=torch.int64),
            hook_name=name,
            position=position,
            model=store.about["model"],
            trained=trained,
            store=store,
        )

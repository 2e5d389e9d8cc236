"""What a language model makes of one token when the activations read at it are changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from husai.config import Position
from husai.errors import InputError
from husai.language.config import ReadingConfig
from husai.language.extraction import batches, row_places
from husai.language.model import BlockOutput, LanguageModel, check_hooks
from husai.text import Tokens

if TYPE_CHECKING:
    import torch


class TokenOutputs:
    """The last block's output at a held-out token, as a function of the row read there.

    One row is changed at a time, and its whole context is run again: what the change does to the
    other tokens of the context is not looked at.

    Parameters
    ----------
    model, tokens
        The model and its text.
    place
        Hook and position of the rows; not the mean of a context.
    reading
        Which tokens are rows, and the tokens of one forward pass.
    rows
        ``[n_rows, d]`` the held-out rows as they were read.

    Attributes
    ----------
    unchanged
        ``[n_rows, d_model]`` float32: the outputs of the model as it is.

    Raises
    ------
    InputError
        When the hook does not exist, rows are means of contexts, or the rows are others.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokens: Tokens,
        place: tuple[str, Position],
        reading: ReadingConfig,
        rows: NDArray[Any],
    ) -> None:
        hook, position = place
        if position == "mean":
            raise InputError("reading.position: the function of a mean of tokens is not measured")
        check_hooks(model, [hook])
        self._model, self._tokens, self._hook, self._rows = model, tokens, hook, np.asarray(rows)
        self._batch_tokens = reading.batch_tokens
        self._first = len(tokens) - tokens.n_held_out
        at = row_places(tokens, position, reading)
        held_out = at.context >= self._first
        self._context, self._place = at.context[held_out], at.place[held_out]
        if len(self._context) != len(self._rows):
            raise InputError(
                f"rows: {len(self._rows)} given, and {len(self._context)} held-out tokens are read"
            )
        self._before: dict[int, BlockOutput] = {}
        self.unchanged = self._unchanged()

    def _unchanged(self) -> NDArray[np.float32]:
        found: list[NDArray[np.float32]] = []
        where: list[NDArray[np.int64]] = []
        row_of = np.full((self._tokens.n_held_out, self._tokens.ids.shape[1]), -1)
        row_of[self._context - self._first, self._place] = np.arange(len(self._rows))
        span = slice(self._first, len(self._tokens))
        for chosen, ids, attention in batches(self._tokens, span, self._batch_tokens):
            before = self._model.block_output(ids, attention, self._hook)
            output = self._model.outputs(ids, attention, embedding=True, after=before)
            if before is not None:
                lengths = attention.sum(1).tolist()
                for context, value, n in zip(chosen.tolist(), before.value, lengths, strict=True):
                    own = before._replace(value=value[:n].cpu().clone())
                    self._before[self._first + context] = own
            row = row_of[chosen.numpy(), : ids.shape[1]]
            kept = row >= 0
            where.append(row[kept])
            found.append(output.to("cpu").float().numpy()[kept])
        outputs = np.empty((len(self._rows), found[0].shape[1]), dtype=np.float32)
        outputs[np.concatenate(where)] = np.concatenate(found)
        return outputs

    def __call__(self, index: NDArray[np.int64], values: NDArray[Any]) -> NDArray[np.float32]:
        """Give the outputs ``[n, d_model]`` at rows ``index`` when ``values [n, d]`` stand there.

        What is added to the model's own activations is ``values`` less the row as it was read, so
        that the rounding of stored rows does not count as a change.
        """
        change = np.asarray(values, dtype=np.float32) - self._rows[index].astype(np.float32)
        found = np.empty((len(index), self.unchanged.shape[1]), dtype=np.float32)
        for part, output in self._runs(np.asarray(index), change):
            found[part] = output
        return found

    def _runs(
        self, index: NDArray[np.int64], change: NDArray[np.float32]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Run contexts of like length together, each with its own change at its own token."""
        import torch

        length = self._tokens.length[self._context[index]]
        order = np.argsort(length, kind="stable")
        begin = 0
        while begin < len(order):
            end = begin + 1
            while end < len(order) and length[order[end]] * (end + 1 - begin) <= self._batch_tokens:
                end += 1
            part = order[begin:end]
            context, place = self._context[index[part]], self._place[index[part]]
            longest = int(length[part[-1]])
            ids = torch.from_numpy(self._tokens.ids[context, :longest].astype(np.int64))
            attention = torch.from_numpy(np.arange(longest) < length[part][:, None]).long()
            at = np.arange(len(part)), place
            added = torch.from_numpy(change[part])

            def put(value: torch.Tensor, at: Any = at, added: torch.Tensor = added) -> torch.Tensor:
                changed = value.clone()
                changed[at] += added.to(changed.device, changed.dtype)
                return changed

            after = self._padded(context, longest)
            output = self._model.outputs(
                ids, attention, self._hook, put, embedding=True, after=after
            )
            yield part, output[at].to("cpu").float().numpy()
            begin = end

    def _padded(self, context: NDArray[np.int64], longest: int) -> BlockOutput | None:
        """The hook's values in some contexts as they were read, with zeros at padding."""
        if not self._before:
            return None
        known = [self._before[int(one)] for one in context]
        value = known[0].value.new_zeros(len(known), longest, known[0].value.shape[1])
        for number, one in enumerate(known):
            value[number, : len(one.value)] = one.value
        return known[0]._replace(value=value.to(self._model.device))

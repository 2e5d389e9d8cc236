"""Activations that are never stored: they are computed from the tokens when an SAE needs them."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from husai.config import Position
from husai.errors import InputError
from husai.language.config import ReadingConfig
from husai.language.extraction import contexts_values, row_places
from husai.language.model import LanguageModel, check_hooks
from husai.text import Tokens

if TYPE_CHECKING:
    import torch

MOMENT_PARTS = 32
"""Number of evenly spaced parts of the rows that estimate their mean and scale."""

PART_ROWS = 1024
"""Number of rows in each of these parts."""


class LiveRows:
    """Rows of one hook, computed by running the model.

    Pass it to :func:`husai.sae.train_bank` instead of a store: it is a
    :class:`husai.activations.store.RowsReader`. Every pass over the rows computes each of them
    again, so use it for a single pass, or when there is no space on disk.

    Parameters
    ----------
    model, tokens
        The model and the text.
    place
        Hook and position; not the mean of a context.
    reading
        Which tokens are rows, and the size of a forward pass.

    Raises
    ------
    InputError
        When the hook does not exist, or rows are means of contexts.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokens: Tokens,
        place: tuple[str, Position],
        reading: ReadingConfig,
    ) -> None:
        self.model, self.tokens, self.reading = model, tokens, reading
        self.hook, position = place
        if position == "mean":
            raise InputError(
                "reading.position: means of contexts can only be read into a store; use "
                "extract_stores, or another position"
            )
        check_hooks(model, [self.hook])
        self.places = row_places(tokens, position, reading)
        first_held_out = len(tokens) - tokens.n_held_out
        self.n_held_out = int((self.places.context >= first_held_out).sum())
        self.n_rows = len(self.places.context) - self.n_held_out
        how = [reading.special_tokens, reading.batch_tokens]
        content = json.dumps([dict(model.about), self.hook, position, tokens.fingerprint, *how])
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
        self.d_in = int(self.rows(0, 1).shape[1])

    def __len__(self) -> int:
        return self.n_rows

    @cached_property
    def _sample(self) -> torch.Tensor:
        import torch

        size = min(PART_ROWS, self.n_rows)
        starts = np.unique(np.linspace(0, self.n_rows - size, MOMENT_PARTS).astype(int)).tolist()
        return torch.cat([self.rows(start, start + size) for start in starts]).double()

    @property
    def mean(self) -> torch.Tensor:
        """Mean of a sample of the rows, ``[d_in]`` float64."""
        return self._sample.mean(0)

    @property
    def mean_square(self) -> float:
        """Mean squared norm of a sample of the rows."""
        return float(self._sample.square().sum(1).mean())

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Compute rows ``start … stop − 1`` and write them to ``out [stop − start, d_in]``."""
        out.copy_(self.rows(start, stop))

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Compute rows ``start … stop − 1``: ``[stop − start, d_in]`` float32."""
        import torch

        context, place = self.places.context[start:stop], self.places.place[start:stop]
        span = slice(int(context[0]), int(context[-1]) + 1)
        values = contexts_values(
            self.model, self.tokens, span, [self.hook], self.reading.batch_tokens
        )[self.hook]
        return values[torch.from_numpy(context - span.start), torch.from_numpy(place)]

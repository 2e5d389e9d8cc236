"""What a comparison is told: its settings, and a record of each SAE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from husai.consistency.scores.codes import Codes, code_moments
from husai.consistency.scores.subspace import DataSpan
from husai.errors import InputError
from husai.matching.match import unit_rows


@dataclass(frozen=True)
class SAERecord:
    """What the comparison needs to know of one SAE.

    Attributes
    ----------
    id
        Unique name.
    architecture, k, l1_coefficient
        Its kind and its sparsity setting.
    seed
        The seed that was varied.
    W_dec
        ``[d_sae, d]`` decoder, a feature a row.
    W_enc
        ``[d, d_sae]`` encoder as the SAE holds it, or None.
    W_dec_init
        ``[d_sae, d]`` initial decoder, or None.
    converged
        Whether its convergence gate is passed; None when unknown.
    cosine_to_init
        Mean cosine of the decoder to its own initialisation, or None.
    firing_rate
        ``[d_sae]`` share of rows on which each latent fires, or None.
    codes
        Codes ``[rows, d_sae]`` on the same rows for all SAEs (array, scipy sparse, or a function
        that returns row blocks), or None.
    l0, fvu
        Mean number of latents that fire and fraction of variance unexplained, or None.
    group
        SAEs of one group differ in the seed only; made from the settings when empty.
    """

    id: str
    architecture: str
    seed: int
    W_dec: NDArray[np.floating[Any]]
    W_enc: NDArray[np.floating[Any]] | None = None
    W_dec_init: NDArray[np.floating[Any]] | None = None
    k: float | None = None
    l1_coefficient: float | None = None
    converged: bool | None = None
    cosine_to_init: float | None = None
    firing_rate: NDArray[np.floating[Any]] | None = None
    codes: Codes | None = None
    l0: float | None = None
    fvu: float | None = None
    group: str = ""

    @property
    def d_sae(self) -> int:
        """Width."""
        return int(self.W_dec.shape[0])

    @property
    def group_name(self) -> str:
        """The group's name: architecture, width and sparsity setting."""
        if self.group:
            return self.group
        parts = [self.architecture, f"d_sae={self.d_sae}"]
        if self.k is not None:
            parts.append(f"k={self.k:g}")
        if self.l1_coefficient is not None:
            parts.append(f"l1={self.l1_coefficient:g}")
        return " ".join(parts)


def live_latents(record: SAERecord, dead: Literal["keep", "drop"]) -> NDArray[np.int64]:
    """Indices of the latents that take part.

    Rows of zeros have no direction and never take part. With ``"drop"`` neither do latents whose
    firing rate is zero.

    Raises
    ------
    InputError
        When ``"drop"`` is asked for and the firing rate is not known, or its length is wrong.
    """
    live = np.asarray(record.W_dec).any(axis=1)
    if dead == "drop":
        if record.firing_rate is None:
            raise InputError(
                f"{record.id}: firing_rate is not known, so its dead latents cannot be dropped; "
                'give it or choose dead="keep"'
            )
        if np.shape(record.firing_rate) != (record.d_sae,):
            raise InputError(
                f"{record.id}: firing_rate has shape {np.shape(record.firing_rate)}, "
                f"not ({record.d_sae},)"
            )
        live &= np.asarray(record.firing_rate) > 0
    return np.flatnonzero(live)


def check_records(records: Sequence[SAERecord]) -> None:
    """Check that the SAEs can be compared, before any work.

    Raises
    ------
    InputError
        When there is none, an id occurs twice, dimensions differ, or a shape does not fit.
    """
    if not records:
        raise InputError("records: no SAE to compare; give at least one")
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise InputError(f"records: the id {record.id!r} occurs twice")
        seen.add(record.id)
        unit_rows(record.W_dec, f"{record.id}: W_dec")
        d = record.W_dec.shape[1]
        if d != records[0].W_dec.shape[1]:
            raise InputError(
                f"{record.id}: its decoder has {d} dimensions and {records[0].id}'s "
                f"{records[0].W_dec.shape[1]}; compare SAEs of one space"
            )
        if record.W_enc is not None and np.shape(record.W_enc) != (d, record.d_sae):
            raise InputError(
                f"{record.id}: W_enc has shape {np.shape(record.W_enc)}, not {(d, record.d_sae)}"
            )
        if record.W_dec_init is not None and np.shape(record.W_dec_init) != (record.d_sae, d):
            raise InputError(
                f"{record.id}: W_dec_init has shape {np.shape(record.W_dec_init)}, "
                f"not {(record.d_sae, d)}"
            )


def with_firing_rates(records: Sequence[SAERecord]) -> list[SAERecord]:
    """Fill in firing rates and L0 from the codes, where codes are given and those are not.

    Raises
    ------
    InputError
        When codes do not have a column for each latent, or rows differ between SAEs.
    """
    filled = []
    rows: dict[int, str] = {}
    for record in records:
        if record.codes is None:
            filled.append(record)
            continue
        moments = code_moments(record.codes)
        if len(moments.fires) != record.d_sae:
            raise InputError(
                f"{record.id}: codes of {len(moments.fires)} latents, d_sae {record.d_sae}"
            )
        rows.setdefault(moments.n_rows, record.id)
        if len(rows) > 1:
            (n_one, one), (n_other, other) = rows.items()
            raise InputError(
                f"codes: {one} has {n_one} rows and {other} {n_other}; "
                "encode the same activation rows with every SAE"
            )
        filled.append(
            replace(
                record,
                firing_rate=moments.firing_rate
                if record.firing_rate is None
                else record.firing_rate,
                l0=moments.l0 if record.l0 is None else record.l0,
            )
        )
    return filled


@dataclass(frozen=True)
class LiveSAE:
    """One SAE's latents that take part, in one space.

    Attributes
    ----------
    record
        The SAE.
    index
        ``[n]`` which latents.
    decoder, encoder, init
        ``[n, dimensions]`` rows of the latents, or None where not known.
    """

    record: SAERecord
    index: NDArray[np.int64]
    decoder: NDArray[np.float64]
    encoder: NDArray[np.float64] | None
    init: NDArray[np.float64] | None


def live_sae(
    record: SAERecord, dead: Literal["keep", "drop"], span: DataSpan | None = None
) -> LiveSAE:
    """Take the latents that take part, in the full space or within the data's subspace."""
    index = live_latents(record, dead)
    dimensions = record.W_dec.shape[1] if span is None else span.rank

    def place(rows: NDArray[Any] | None) -> NDArray[np.float64] | None:
        if rows is None or not len(index):
            return None
        chosen = unit_rows(rows[index])
        return chosen if span is None else span.project(chosen)

    decoder = place(record.W_dec)
    return LiveSAE(
        record,
        index,
        np.zeros((0, dimensions)) if decoder is None else decoder,
        place(None if record.W_enc is None else record.W_enc.T),
        place(record.W_dec_init),
    )


def all_converged(flags: Sequence[bool | None]) -> bool | None:
    """False when one is not converged, None when one is unknown, else True."""
    if any(flag is False for flag in flags):
        return False
    return None if any(flag is None for flag in flags) else True

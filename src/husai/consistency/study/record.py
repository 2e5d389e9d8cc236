"""The record of one SAE in a comparison, and its live latents; the same for SAEs of any origin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from husai.consistency.config import ComparisonConfig
from husai.consistency.scores.code_scores import UnitCodes
from husai.consistency.scores.codes import (
    Codes,
    code_blocks,
    code_moments,
    sparse_codes,
    whole_codes,
)
from husai.consistency.scores.pair import Side
from husai.consistency.scores.rows import Rows, direction_rows, row_cosines
from husai.consistency.scores.subspace import DataMetric, DataSpan, data_metric
from husai.errors import InputError
from husai.matching.blocked import check_dictionary
from husai.threads import worker_pool

# Numbers in the codes of one block of rows, before they become sparse: 128 MB of float32.
_BLOCK_NUMBERS = 32_000_000


@dataclass(frozen=True)
class SAERecord:
    """One SAE in a comparison.

    Attributes
    ----------
    id
        Unique name.
    architecture, k, l1_coefficient
        Its kind and its sparsity setting.
    seed
        The seed that was varied.
    W_dec
        ``[d_sae, d]`` decoder, one feature per row.
    W_enc
        ``[d, d_sae]`` encoder, one latent per column, or None.
    W_dec_init
        ``[d_sae, d]`` initial decoder, or None.
    converged
        Whether it passed the convergence gate; None when unknown.
    motion, plateau
        The measures of the gate: the motion of its decoder before the learning rate fell, and the
        change of its group's mean score; None when unknown. See
        :mod:`husai.consistency.analyses.gate`.
    cosine_to_init
        Mean |cosine| of each decoder row to its own initialisation, or None.
    firing_rate
        ``[d_sae]`` share of rows on which each latent fires, or None.
    encode
        Function from activation rows ``[n, d]`` to codes ``[n, d_sae]``, or None.
    codes
        Codes ``[rows, d_sae]`` on the same rows for all SAEs (array, scipy sparse, or a function
        that returns row blocks), or None; :func:`with_codes` makes them.
    l0, fvu
        Mean number of latents that fire and fraction of variance unexplained, or None.
    group
        Name of its group, whose SAEs differ only in the seed; made from the settings when empty.
    origin
        Where it came from: path, format, files with their sha256 and the like.
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
    motion: float | None = None
    plateau: float | None = None
    cosine_to_init: float | None = None
    firing_rate: NDArray[np.floating[Any]] | None = None
    encode: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    codes: Codes | None = None
    l0: float | None = None
    fvu: float | None = None
    group: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
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


def live_latents(record: SAERecord, dead: Literal["keep", "drop"] = "keep") -> NDArray[np.int64]:
    """Indices of the latents that take part.

    Decoder rows of zeros have no direction and never take part. With ``"drop"``, latents with a
    firing rate of zero do not take part either.

    Raises
    ------
    InputError
        With ``"drop"``, when the firing rate is not known or its length is wrong.
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
    """Check that the SAEs can be compared.

    Raises
    ------
    InputError
        When there is none, an id occurs twice, dimensions differ, a shape does not fit, or a
        number is not finite.
    """
    if not records:
        raise InputError("records: no SAE to compare; give at least one")
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise InputError(f"records: the id {record.id!r} occurs twice")
        seen.add(record.id)
        check_dictionary(record.W_dec, f"{record.id}: W_dec")
        d = record.W_dec.shape[1]
        if d != records[0].W_dec.shape[1]:
            raise InputError(
                f"{record.id}: its decoder has {d} dimensions and {records[0].id}'s "
                f"{records[0].W_dec.shape[1]}; only SAEs of one space can be compared"
            )
        for name, matrix, shape in (
            ("W_enc", record.W_enc, (d, record.d_sae)),
            ("W_dec_init", record.W_dec_init, (record.d_sae, d)),
        ):
            if matrix is None:
                continue
            if np.shape(matrix) != shape:
                raise InputError(f"{record.id}: {name} has shape {np.shape(matrix)}, not {shape}")
            check_dictionary(matrix, f"{record.id}: {name}")


def group_members(records: Sequence[SAERecord]) -> dict[str, list[SAERecord]]:
    """Gather SAEs that differ only in their seed, by the name of their group."""
    groups: dict[str, list[SAERecord]] = {}
    for record in records:
        groups.setdefault(record.group_name, []).append(record)
    return dict(sorted(groups.items()))


def with_codes(record: SAERecord, rows: NDArray[Any]) -> SAERecord:
    """Return the record with codes of the activation rows ``[n, d]``.

    An SAE that cannot encode, or has codes already, is returned unchanged.
    """
    if record.encode is None or record.codes is not None:
        return record
    return replace(record, codes=sparse_codes(_encoded(record, rows)))


def _encoded(record: SAERecord, rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    assert record.encode is not None
    step = max(1, _BLOCK_NUMBERS // record.d_sae)
    for start in range(0, len(rows), step):
        yield record.encode(np.asarray(rows[start : start + step], dtype=np.float32))


def with_firing_rates(records: Sequence[SAERecord]) -> list[SAERecord]:
    """Fill in firing rates and L0 where not given, and keep codes that a function makes.

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
        codes: Codes = record.codes
        if callable(codes):  # encoding is slow: do it once and keep the sparse codes
            codes = whole_codes(codes)
        moments = code_moments(codes)
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
                codes=codes,
                firing_rate=moments.firing_rate
                if record.firing_rate is None
                else record.firing_rate,
                l0=moments.l0 if record.l0 is None else record.l0,
            )
        )
    return filled


@dataclass(frozen=True)
class LiveSAE:
    """The latents of one SAE that take part in a comparison, in one space.

    Attributes
    ----------
    record
        The SAE.
    index
        ``[n]`` indices of these latents.
    decoder, encoder, init
        ``[n, dimensions]`` unit rows of the latents, or None where not known. Those of the encoder
        are in the metric of the encoders.
    codes
        Their codes, or None.
    encoder_cosine
        ``[n]`` cosine of each latent's encoder with its own decoder, in that metric, or None.
    """

    record: SAERecord
    index: NDArray[np.int64]
    decoder: Rows
    encoder: Rows | None
    init: Rows | None
    codes: UnitCodes | None = None
    encoder_cosine: NDArray[np.float64] | None = None

    @property
    def side(self) -> Side:
        """The same latents as one side of a pair."""
        return Side(self.decoder, self.encoder, self.codes)


def live_sae(
    record: SAERecord,
    dead: Literal["keep", "drop"] = "keep",
    span: DataSpan | None = None,
    codes: UnitCodes | None = None,
    metric: DataMetric | None = None,
) -> LiveSAE:
    """Take the latents that take part, in the full space or within the data's subspace.

    Encoder rows are moved into the data's ``metric``; without one they stay raw.
    """
    index = live_latents(record, dead)
    dimensions = record.W_dec.shape[1] if span is None else span.rank

    def place(rows: NDArray[Any] | None) -> Rows | None:
        if rows is None or not len(index):
            return None
        chosen = rows if len(index) == len(rows) else rows[index]
        return direction_rows(chosen if span is None else span.project(chosen))

    def read(rows: NDArray[Any]) -> Rows | None:
        return place(rows if metric is None else metric.place(rows))

    decoder = place(record.W_dec)
    encoder = None if record.W_enc is None else read(record.W_enc.T)
    # the decoder in the encoders' metric: its cosine says whether the encoder reads what it writes
    written = read(record.W_dec) if encoder is not None else None
    return LiveSAE(
        record,
        index,
        np.zeros((0, dimensions)) if decoder is None else decoder,
        encoder,
        place(record.W_dec_init),
        codes,
        None if encoder is None or written is None else row_cosines(written, encoder),
    )


def encoder_metric(covariance: ArrayLike | None, config: ComparisonConfig) -> DataMetric | None:
    """Return the metric in which encoders are compared; None to compare their raw rows.

    Raw encoder rows keep their initialisation in directions in which the data hardly vary, so
    their cosines say little; without activations there is no other choice.
    """
    if covariance is None or config.encoder_metric == "raw":
        return None
    return data_metric(covariance)


def live_codes(record: SAERecord, config: ComparisonConfig) -> UnitCodes | None:
    """Gather the codes of one SAE's live latents; None when not given or no latent is live."""
    index = live_latents(record, config.dead)
    if record.codes is None or not len(index):
        return None
    norms = np.linalg.norm(np.asarray(record.W_dec, dtype=np.float64), axis=1)[index]
    scale = sparse.dia_array((norms[None, :], [0]), shape=(len(norms), len(norms)))
    blocks = [
        sparse.csr_array(block[:, index] @ scale) for block in code_blocks(record.codes, record.id)
    ]
    made = UnitCodes(sparse.csc_array(sparse.vstack(blocks, format="csc")))
    if len(index) <= config.max_similarity_width:
        _ = made.gram  # made here, in parallel, for all pairs
    return made


def live_group(
    records: Sequence[SAERecord], config: ComparisonConfig, metric: DataMetric | None = None
) -> list[LiveSAE]:
    """Take the live latents of one group's SAEs in the full space, with their codes."""
    with worker_pool(config.workers) as pool:
        codes = pool.map(lambda record: live_codes(record, config), records)
        return [
            live_sae(record, config.dead, codes=own, metric=metric)
            for record, own in zip(records, codes, strict=True)
        ]


def all_converged(flags: Sequence[bool | None]) -> bool | None:
    """False when one is not converged, None when one is unknown, else True."""
    if any(flag is False for flag in flags):
        return False
    return None if any(flag is None for flag in flags) else True


def group_settings(name: str, records: Sequence[SAERecord]) -> dict[str, Any]:
    """Return the columns that every table beside the report has for a group."""
    first = records[0]
    return {
        "group": name,
        "architecture": first.architecture,
        "d_sae": first.d_sae,
        "n_seeds": len(records),
        "converged": all_converged([record.converged for record in records]),
    }

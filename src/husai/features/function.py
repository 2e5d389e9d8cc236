"""Measure whether matched features do the same in the model: ablation and substitution.

A latent's *fingerprint* is the change of the model's outputs, row by row, when its contribution
``f_j(x) d_j`` is subtracted from the activations (OpenReview 5cy6WtSC8f). *Function* is the
correlation of two latents' fingerprints. *Substitution* replaces one latent's contribution by
another's. Ablation changes the outputs, and substitution repairs a share of that harm: 1 for a
latent that does the same, 0 for one without effect, negative for one that makes it worse.

Each partner is compared with its *hard negative*, the nearest latent that is not the partner, and
with a random latent that fires about as often: the null.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import log_softmax

from husai.errors import InputError
from husai.features.cards import FeatureCards, FeatureGroup, unit_decoder
from husai.features.config import FeaturesConfig
from husai.features.readouts import Readout
from husai.features.strata import function_strata
from husai.threads import worker_pool

Floats = NDArray[np.float64]

_BLOCK = 8192  # changed rows that the model reads at once
# Most numbers in one SAE's fingerprints: 400 MB of float32 with their indices.
_MOST_NUMBERS = 50_000_000
# The random partner is one of this many latents that fire about as often.
_NEIGHBOURS = 10

# Repair is not measured for an ablation with less than this share of the strongest one's harm.
_NO_HARM = 1e-3

ROLES = ("partner", "negative", "random")


@dataclass(frozen=True)
class Measured:
    """The rows on which function is measured.

    Attributes
    ----------
    chosen
        ``[n]`` indices of these rows among the rows of the codes, ascending.
    values
        ``[n, d]`` their activations.
    outputs
        ``[n, m]`` the model's outputs on them, centred over outputs for logits.
    exact
        Whether all rows are used.
    """

    chosen: NDArray[np.int64]
    values: NDArray[Any]
    outputs: Floats
    exact: bool

    @cached_property
    def certain(self) -> tuple[Floats, Floats]:
        """Probabilities ``[n, m]`` with the outputs as logits, and negative entropies ``[n]``."""
        log_p = log_softmax(self.outputs, axis=1)
        p = np.exp(log_p)
        return p, (p * log_p).sum(axis=1)


@dataclass(frozen=True)
class FunctionTables:
    """How far partners agree in what they do in the model.

    Attributes
    ----------
    features
        A row per feature: ``function`` and ``repaired`` (means over the other seeds),
        ``ablation`` (mean divergence of the outputs where it fires: KL in nats, or squared
        distance), ``loss_change`` (of the loss there, with targets) and ``effect`` in words.
    partners
        A row per feature and other SAE: ``function``, ``function_negative``, ``function_random``,
        ``repaired``, ``repaired_negative``, ``repaired_random``.
    strata
        A row per stratum (all, each kind, each quarter of activity): means of the above with
        intervals over seeds, and ``cosine_predicts``, the rank correlation of |cosine| and
        function in the stratum.
    note
        One sentence: on which outputs and rows function was measured.
    """

    features: pd.DataFrame
    partners: pd.DataFrame
    strata: pd.DataFrame
    note: str


def measured_rows(
    group: FeatureGroup, values: NDArray[Any], readout: Readout, config: FeaturesConfig
) -> Measured:
    """Choose the rows on which function is measured: all of them, or a random part.

    Parameters
    ----------
    group
        A group with codes.
    values
        ``[n_rows, d]`` the activations that were encoded.
    readout
        The model's outputs as a function of the activations.
    config
        ``max_function_rows`` and ``seed`` are used; memory for the fingerprints may allow fewer.

    Raises
    ------
    InputError
        When the group has no codes, or the number of rows differs.
    """
    if group.codes is None:
        raise InputError("function: the SAEs have no codes; give rows of activations")
    n_rows = group.codes[0].shape[0]
    if len(values) != n_rows:
        raise InputError(f"function: {len(values)} rows of activations, {n_rows} of codes")
    fires = max(codes.nnz for codes in group.codes) / n_rows
    most = min(config.max_function_rows, int(_MOST_NUMBERS / max(1.0, fires * len(readout.names))))
    index = np.arange(n_rows)
    if n_rows > most:
        index = np.sort(np.random.default_rng(config.seed).permutation(n_rows)[:most])
    chosen = np.asarray(values)[index]
    if readout.unchanged is None:
        outputs = outputs_of(readout, index, chosen)
    else:
        outputs = _centred(readout, np.asarray(readout.unchanged[index], dtype=np.float64))
    return Measured(index, chosen, outputs, len(index) == n_rows)


def outputs_of(readout: Readout, index: NDArray[np.int64], values: NDArray[Any]) -> Floats:
    """Outputs ``[n, m]`` on rows ``[n]`` when ``values [n, d]`` stand there, centred for logits."""
    parts = [
        np.asarray(readout.apply(index[i : i + _BLOCK], values[i : i + _BLOCK]), dtype=np.float64)
        for i in range(0, len(index), _BLOCK)
    ]
    return _centred(readout, np.concatenate(parts))


def _centred(readout: Readout, outputs: Floats) -> Floats:
    """Logits without their mean: a constant added to all of them changes nothing."""
    return outputs - outputs.mean(axis=1, keepdims=True) if readout.kind == "logits" else outputs


def ablation_fingerprints(
    codes: sparse.csc_array, W_dec: NDArray[Any], rows: Measured, readout: Readout
) -> sparse.csr_array:
    """Compute the change of the outputs when each latent is ablated.

    Parameters
    ----------
    codes
        ``[n_rows, n]`` codes of all rows.
    W_dec
        ``[n, d]`` decoder rows, not normalised.
    rows, readout
        From :func:`measured_rows`.

    Returns
    -------
    scipy.sparse.csr_array
        ``[n, rows · m]`` float32; rows on which a latent does not fire are zeros.
    """
    entries = sparse.coo_array(sparse.csr_array(codes)[rows.chosen])
    order = np.lexsort((entries.row, entries.col))
    row, latent, value = entries.row[order], entries.col[order], entries.data[order]
    m, n = rows.outputs.shape[1], codes.shape[1]
    deltas = np.empty((len(row), m), dtype=np.float32)
    for start in range(0, len(row), _BLOCK):
        at = slice(start, start + _BLOCK)
        r, j = row[at], latent[at]
        changed = rows.values[r] - value[at, None] * W_dec[j]
        deltas[at] = outputs_of(readout, rows.chosen[r], changed) - rows.outputs[r]
    columns = (row.astype(np.int64)[:, None] * m + np.arange(m)).ravel()
    ends = np.concatenate([[0], np.cumsum(np.bincount(latent, minlength=n))]) * m
    shape = (n, len(rows.chosen) * m)
    return sparse.csr_array((deltas.ravel(), columns, ends), shape=shape)


def fingerprint_correlation(a: sparse.csr_array, b: sparse.csr_array) -> Floats:
    """Compute the ``[n_a, n_b]`` Pearson correlation of all pairs of fingerprints.

    It is 0 where a fingerprint is constant.

    Parameters
    ----------
    a, b
        Fingerprints of two SAEs, from :func:`ablation_fingerprints`.

    Raises
    ------
    InputError
        When they differ in the number of rows or outputs.
    """
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"fingerprints: {a.shape[1]} and {b.shape[1]} numbers; both need the same rows and the "
            "same readout"
        )
    return _correlation(a, b, _print_moments(a), _print_moments(b))


class _Moments(NamedTuple):
    """Mean and standard deviation ``[n]`` of each fingerprint."""

    mean: Floats
    sd: Floats


def _print_moments(x: sparse.csr_array) -> _Moments:
    mean = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel() / x.shape[1]
    squares = np.asarray(x.astype(np.float64).power(2).sum(axis=1)).ravel() / x.shape[1]
    return _Moments(mean, np.sqrt(np.clip(squares - mean**2, 0, None)))


def _correlation(
    a: sparse.csr_array, b: sparse.csr_array, of_a: _Moments, of_b: _Moments
) -> Floats:
    product = np.asarray((a @ b.T).todense(), dtype=np.float64) / a.shape[1]
    scale = np.outer(of_a.sd, of_b.sd)
    covariance = product - np.outer(of_a.mean, of_b.mean)
    return np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)


def role_partners(
    group: FeatureGroup, s: int, t: int, rng: np.random.Generator
) -> dict[str, NDArray[np.int64]]:
    """Choose for each latent of SAE s one latent of SAE t in each role; -1 for none.

    ``partner`` is its partner in the match, ``negative`` the nearest latent by |cosine| that is
    not the partner, and ``random`` a random latent that fires about as often and is neither.

    Parameters
    ----------
    group
        A group with codes.
    s, t
        Positions of the two SAEs.
    rng
        Draws the random latents.

    Returns
    -------
    dict
        Role to ``[n_s]`` positions among the live latents of SAE t.
    """
    assert group.codes is not None
    partner, _ = group.partners(s, t)
    cosine = np.abs(unit_decoder(group, s) @ unit_decoder(group, t).T)
    here = np.arange(len(partner))
    known = partner >= 0
    cosine[here[known], partner[known]] = -1.0
    negative = cosine.argmax(axis=1)
    fires = [np.diff(group.codes[one].indptr) for one in (s, t)]
    distance = np.abs(np.log1p(fires[0])[:, None] - np.log1p(fires[1])[None, :])
    distance[here[known], partner[known]] = np.inf
    distance[here, negative] = np.inf
    near = min(_NEIGHBOURS, distance.shape[1])
    order = np.argsort(distance, axis=1, kind="stable")[:, :near]
    usable = np.isfinite(np.take_along_axis(distance, order, axis=1)).sum(axis=1)
    pick = (rng.random(len(here)) * np.maximum(usable, 1)).astype(np.int64)
    chosen = np.where(usable > 0, order[here, pick], -1)
    return {"partner": partner, "negative": negative, "random": chosen}


def substitution(
    group: FeatureGroup,
    s: int,
    t: int,
    roles: dict[str, NDArray[np.int64]],
    rows: Measured,
    readout: Readout,
    config: FeaturesConfig,
) -> dict[str, Floats]:
    """Measure the share of an ablation's harm that another latent's contribution repairs, by role.

    For each pair it is ``1 - divergence(substituted) / divergence(ablated)``, with divergences
    summed over up to ``config.substitution_rows`` random rows on which either latent fires. Values
    below -1 become -1. It is NaN where the ablation has less than a thousandth of the harm of the
    strongest one.

    Parameters
    ----------
    group
        A group with codes.
    s, t
        Positions of the SAE whose latents are ablated and of the one whose latents replace them.
    roles
        From :func:`role_partners`.
    rows, readout
        From :func:`measured_rows`.
    config
        ``substitution_rows`` and ``seed`` are used.

    Returns
    -------
    dict
        Role to ``[n_s]``.
    """
    assert group.codes is not None
    rng = np.random.default_rng([config.seed, s, t])
    mine = sparse.csc_array(sparse.csr_array(group.codes[s])[rows.chosen])
    other = sparse.csc_array(sparse.csr_array(group.codes[t])[rows.chosen])
    decoders = [group.live[one].record.W_dec[group.live[one].index] for one in (s, t)]
    found = {}
    for role, partners in roles.items():
        owner, at = [], []
        for latent, partner in enumerate(partners):
            if partner < 0:
                continue
            active = np.union1d(column_rows(mine, latent), column_rows(other, int(partner)))
            if len(active) > config.substitution_rows:
                active = rng.choice(active, config.substitution_rows, replace=False)
            owner.append(np.full(len(active), latent, dtype=np.int64))
            at.append(active.astype(np.int64))
        none = np.zeros(0, dtype=np.int64)
        j, r = np.concatenate([*owner, none]), np.concatenate([*at, none])
        k = partners[j]
        own = column_values(mine, r, j)[:, None] * decoders[0][j]
        theirs = column_values(other, r, k)[:, None] * decoders[1][k]
        harm = _divergence(readout, rows, r, -own)
        left = _divergence(readout, rows, r, theirs - own)
        n = len(partners)
        total = np.bincount(j, harm, minlength=n)
        kept = np.bincount(j, left, minlength=n)
        share = np.full(n, np.nan)
        np.divide(kept, total, out=share, where=total > _NO_HARM * total.max(initial=0.0))
        found[role] = np.clip(1 - share, -1, 1)
    return found


def column_rows(codes: sparse.csc_array, latent: int) -> NDArray[np.int64]:
    """Rows on which a latent fires."""
    return codes.indices[codes.indptr[latent] : codes.indptr[latent + 1]].astype(np.int64)


def column_values(
    codes: sparse.csc_array, row: NDArray[np.int64], latent: NDArray[np.int64]
) -> Floats:
    """Codes of latents on rows, ``[n]``."""
    if not len(row):
        return np.zeros(0)
    return np.asarray(sparse.csr_array(codes)[row, latent], dtype=np.float64).ravel()


def _divergence(
    readout: Readout, rows: Measured, at: NDArray[np.int64], change: NDArray[Any]
) -> Floats:
    """``[n]`` divergence of the outputs from the model's own when rows are changed."""
    found = np.empty(len(at))
    kind = rows.values.dtype
    if readout.kind == "logits":
        p, negative_entropy = rows.certain
    for start in range(0, len(at), _BLOCK):
        part = slice(start, start + _BLOCK)
        r = at[part]
        changed = readout.apply(rows.chosen[r], rows.values[r] + change[part].astype(kind))
        if readout.kind == "logits":
            # KL = Σ p log p - Σ p z + log Σ exp z, in the precision of the outputs: one
            # exponential per number, and a constant added to all z does not change it
            z = changed - changed.max(axis=1, keepdims=True)
            cross = np.einsum("nm,nm->n", p[r].astype(kind), z) - np.log(np.exp(z).sum(axis=1))
            found[part] = negative_entropy[r] - cross
        else:
            found[part] = np.square(changed - rows.outputs[r]).sum(axis=1)
    return np.maximum(found, 0.0)


def functional_consistency(
    cards: FeatureCards,
    values: NDArray[Any],
    readout: Readout,
    config: FeaturesConfig | None = None,
) -> FunctionTables:
    """Compare the function of partners, and of hard negatives and random latents beside them.

    Parameters
    ----------
    cards
        From :func:`husai.features.feature_cards`.
    values
        ``[n_rows, d]`` the activations that were encoded.
    readout
        The model's outputs as a function of the activations.
    config
        ``max_function_rows``, ``substitution_rows``, ``strata``, ``level``, ``seed`` and
        ``workers`` are used.

    Raises
    ------
    InputError
        When the group has no codes, or the number of rows differs.
    """
    config = config or FeaturesConfig()
    group = cards.group
    rows = measured_rows(group, values, readout, config)
    assert group.codes is not None
    n = len(group.live)
    decoders = [one.record.W_dec[one.index] for one in group.live]
    prints = [
        ablation_fingerprints(codes, W_dec, rows, readout)
        for codes, W_dec in zip(group.codes, decoders, strict=True)
    ]
    moments = [_print_moments(one) for one in prints]
    rng = np.random.default_rng(config.seed)
    roles_of = {pair: role_partners(group, *pair, rng) for pair in permutations(range(n), 2)}
    if readout.kind == "logits":
        _ = rows.certain  # computed here once, before the threads share it

    def correlate(pair: tuple[int, int]) -> Floats:
        s, t = pair
        return _correlation(prints[s], prints[t], moments[s], moments[t])

    def repair(pair: tuple[int, int]) -> dict[str, Floats]:
        return substitution(group, *pair, roles_of[pair], rows, readout, config)

    pairs = list(combinations(range(n), 2))
    with worker_pool(config.workers) as pool:
        correlation = dict(zip(pairs, pool.map(correlate, pairs), strict=True))
        correlation |= {(t, s): own.T for (s, t), own in correlation.items()}
        repairs = dict(zip(roles_of, pool.map(repair, roles_of), strict=True))
    tables = []
    for (s, t), roles in roles_of.items():
        repaired = repairs[s, t]
        one, other = group.live[s], group.live[t]
        table = pd.DataFrame(
            {"id": one.record.id, "latent": one.index, "other_id": other.record.id}
        )
        for role in ROLES:
            tail = "" if role == "partner" else f"_{role}"
            k = roles[role]
            own = correlation[s, t][np.arange(len(k)), k]
            table[f"function{tail}"] = np.where(k >= 0, own, np.nan)
            table[f"repaired{tail}"] = repaired[role]
        tables.append(table)
    partners = pd.concat(tables, ignore_index=True)
    effects = pd.concat(
        [_effects(group, s, prints[s], rows, readout) for s in range(n)], ignore_index=True
    )
    means = partners.groupby(["id", "latent"], sort=False)[["function", "repaired"]].mean()
    features = effects.merge(means.reset_index(), on=["id", "latent"])
    total = group.codes[0].shape[0]
    shown = f"all {total}" if rows.exact else f"a random {len(rows.chosen)} of {total}"
    what = "logits" if readout.kind == "logits" else "activations of the next hook"
    note = f"Function is the effect on the model's {what}, measured on {shown} rows."
    return FunctionTables(features, partners, function_strata(cards, partners, config), note)


def _effects(
    group: FeatureGroup, s: int, prints: sparse.csr_array, rows: Measured, readout: Readout
) -> pd.DataFrame:
    """Measure the effect of ablating each latent of one SAE, on the rows where it fires."""
    m = rows.outputs.shape[1]
    targets = None if readout.targets is None else readout.targets[rows.chosen]
    ablation, loss, texts = [], [], []
    for j in range(prints.shape[0]):
        part = slice(prints.indptr[j], prints.indptr[j + 1])
        delta = prints.data[part].reshape(-1, m).astype(np.float64)
        if not len(delta):
            ablation.append(np.nan)
            loss.append(np.nan)
            texts.append("")
            continue
        r = prints.indices[part][::m] // m
        own = rows.outputs[r]
        mean = delta.mean(axis=0)
        if readout.kind == "logits":
            log_p, log_q = log_softmax(own, axis=1), log_softmax(own + delta, axis=1)
            ablation.append(float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()))
            words = f"the outputs change by a KL divergence of {ablation[-1]:.3g} nats"
        else:
            ablation.append(float(np.square(delta).sum(axis=1).mean()))
            words = f"the outputs change by a squared distance of {ablation[-1]:.3g}"
        change = np.nan
        if targets is not None and readout.kind == "logits":
            at = np.arange(len(r))
            change = float((log_p - log_q)[at, targets[r]].mean())
            words += f" and the loss by {change:+.3g}"
        loss.append(change)
        most = np.argsort(-np.abs(mean), kind="stable")[:3]
        outputs = ", ".join(f"{readout.names[o]} by {mean[o]:+.3g}" for o in most)
        texts.append(f"On the {len(r)} rows where it is active, {words}; most of all {outputs}.")
    one = group.live[s]
    return pd.DataFrame(
        {
            "id": one.record.id,
            "latent": one.index,
            "ablation": ablation,
            "loss_change": loss,
            "effect": texts,
        }
    )

"""Do partners do the same thing in the model? Ablation fingerprints and substitution.

A latent's *fingerprint* is the change of the model's outputs when its contribution
``f_j(x) d_j`` is taken out of the activations, over the rows (OpenReview 5cy6WtSC8f). Two latents
*function* alike when their fingerprints correlate. *Substitution* puts one latent's contribution
in the place of another's: the share of the ablation's harm that it repairs is 1 for a latent that
does the same, 0 for one that is as good as nothing, and negative for one that does more harm.

Each partner stands beside its *hard negative*, the nearest latent that is not the partner, and
beside a random latent that fires as often: the null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import log_softmax
from scipy.stats import spearmanr

from husai.consistency.inference.intervals import seed_interval
from husai.errors import InputError
from husai.features.cards import FeatureCards, FeatureGroup, unit_decoder
from husai.features.config import FeaturesConfig
from husai.features.readouts import Readout
from husai.threads import worker_pool

Floats = NDArray[np.float64]

_BLOCK = 8192  # changed rows that the model sees at once
# Numbers of one SAE's fingerprints: 400 MB of float32 with their indices.
_MOST_NUMBERS = 50_000_000
# The random partner is drawn among so many that fire about as often.
_NEIGHBOURS = 10

# An ablation that does less than this share of the strongest one's harm leaves nothing to repair.
_NO_HARM = 1e-3

ROLES = ("partner", "negative", "random")


@dataclass(frozen=True)
class Measured:
    """The rows on which function is measured.

    Attributes
    ----------
    chosen
        ``[n]`` which rows of the codes, ascending.
    values
        ``[n, d]`` their activations.
    outputs
        ``[n, m]`` the model's outputs on them, centred over outputs for logits.
    exact
        Whether they are all rows.
    """

    chosen: NDArray[np.int64]
    values: NDArray[Any]
    outputs: Floats
    exact: bool

    @cached_property
    def certain(self) -> tuple[Floats, Floats]:
        """Probabilities ``[n, m]`` of the outputs as logits, and their negative entropy ``[n]``."""
        log_p = log_softmax(self.outputs, axis=1)
        p = np.exp(log_p)
        return p, (p * log_p).sum(axis=1)


@dataclass(frozen=True)
class FunctionTables:
    """How partners' functions agree.

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
        function in it.
    note
        On what it was measured.
    """

    features: pd.DataFrame
    partners: pd.DataFrame
    strata: pd.DataFrame
    note: str


def measured_rows(
    group: FeatureGroup, values: NDArray[Any], readout: Readout, config: FeaturesConfig
) -> Measured:
    """Choose the rows on which function is measured: all of them, or a random part.

    Raises
    ------
    InputError
        When the group has no codes, or the values are of other rows.
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
    return Measured(index, chosen, _outputs(readout, index, chosen), len(index) == n_rows)


def _outputs(readout: Readout, index: NDArray[np.int64], values: NDArray[Any]) -> Floats:
    parts = [
        np.asarray(readout.apply(index[i : i + _BLOCK], values[i : i + _BLOCK]), dtype=np.float64)
        for i in range(0, len(index), _BLOCK)
    ]
    outputs = np.concatenate(parts)
    # a constant added to all logits changes nothing
    return outputs - outputs.mean(axis=1, keepdims=True) if readout.kind == "logits" else outputs


def ablation_fingerprints(
    codes: sparse.csc_array, W_dec: NDArray[Any], rows: Measured, readout: Readout
) -> sparse.csr_array:
    """Change of the outputs when each latent is ablated.

    Parameters
    ----------
    codes
        ``[n_rows, n]`` of all rows.
    W_dec
        ``[n, d]`` decoder rows as the SAE has them.
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
        deltas[at] = _outputs(readout, rows.chosen[r], changed) - rows.outputs[r]
    columns = (row.astype(np.int64)[:, None] * m + np.arange(m)).ravel()
    ends = np.concatenate([[0], np.cumsum(np.bincount(latent, minlength=n))]) * m
    shape = (n, len(rows.chosen) * m)
    return sparse.csr_array((deltas.ravel(), columns, ends), shape=shape)


def fingerprint_correlation(a: sparse.csr_array, b: sparse.csr_array) -> Floats:
    """Pearson correlation ``[n_a, n_b]`` of all pairs of fingerprints; 0 for one that is constant.

    Raises
    ------
    InputError
        When they are of other rows or outputs.
    """
    if a.shape[1] != b.shape[1]:
        raise InputError(f"fingerprints: {a.shape[1]} numbers and {b.shape[1]}; use one readout")
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
    """For each latent of SAE s a latent of SAE t in each role; -1 for none.

    ``partner`` of the match, ``negative`` the nearest by |cosine| that is not the partner, and
    ``random`` one that fires about as often and is neither.
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
    """Share of an ablation's harm that another latent's contribution repairs, by role.

    Of each pair, on up to ``config.substitution_rows`` random rows on which either fires:
    ``1 - divergence(substituted) / divergence(ablated)``, sums over the rows; cut at -1, NaN where
    the ablation does less than a thousandth of the strongest one's harm.

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
            active = np.union1d(_rows_of(mine, latent), _rows_of(other, int(partner)))
            if len(active) > config.substitution_rows:
                active = rng.choice(active, config.substitution_rows, replace=False)
            owner.append(np.full(len(active), latent, dtype=np.int64))
            at.append(active.astype(np.int64))
        none = np.zeros(0, dtype=np.int64)
        j, r = np.concatenate([*owner, none]), np.concatenate([*at, none])
        k = partners[j]
        own = _values_at(mine, r, j)[:, None] * decoders[0][j]
        theirs = _values_at(other, r, k)[:, None] * decoders[1][k]
        harm = _divergence(readout, rows, r, -own)
        left = _divergence(readout, rows, r, theirs - own)
        n = len(partners)
        total = np.bincount(j, harm, minlength=n)
        kept = np.bincount(j, left, minlength=n)
        share = np.full(n, np.nan)
        np.divide(kept, total, out=share, where=total > _NO_HARM * total.max(initial=0.0))
        found[role] = np.clip(1 - share, -1, 1)
    return found


def _rows_of(codes: sparse.csc_array, latent: int) -> NDArray[np.int64]:
    return codes.indices[codes.indptr[latent] : codes.indptr[latent + 1]].astype(np.int64)


def _values_at(
    codes: sparse.csc_array, row: NDArray[np.int64], latent: NDArray[np.int64]
) -> Floats:
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
            # KL = Σ p log p - Σ p z + log Σ exp z, in the outputs' own precision: one exponential
            # a number, and a constant added to all z changes nothing
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
    """Compare what partners do in the model, beside hard negatives and random latents.

    Parameters
    ----------
    cards
        From :func:`husai.features.feature_cards`.
    values
        ``[n_rows, d]`` the activations that were encoded.
    readout
        What the model makes of them.
    config
        Rows, strata, level, seed.

    Raises
    ------
    InputError
        When the group has no codes, or the values are of other rows.
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
        _ = rows.certain  # here, and not once a thread

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
    return FunctionTables(features, partners, _strata(cards, partners, config), note)


def _effects(
    group: FeatureGroup, s: int, prints: sparse.csr_array, rows: Measured, readout: Readout
) -> pd.DataFrame:
    """What the ablation of each latent of one SAE does, on the rows where it fires."""
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
        if targets is not None:
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


def _strata(cards: FeatureCards, partners: pd.DataFrame, config: FeaturesConfig) -> pd.DataFrame:
    """Means of every measure over strata of features, with intervals over seeds."""
    features = cards.features
    keys = ["id", "latent", "other_id"]
    table = partners.merge(cards.partners[[*keys, "similarity"]], on=keys)
    n_strata = min(config.strata, len(features))
    rank = features["firing_rate"].rank(method="first")
    quarter = pd.qcut(rank, n_strata, labels=False).astype(int)
    strata: list[tuple[str, str, NDArray[np.bool_]]] = [
        ("all", "all", np.ones(len(features), dtype=bool))
    ]
    if "kind" in features:
        strata += [
            ("kind", str(kind), (features["kind"] == kind).to_numpy())
            for kind in features["kind"].value_counts().index
        ]
    for q in range(n_strata):
        inside = (quarter == q).to_numpy()
        low, high = features.loc[inside, "firing_rate"].agg(["min", "max"])
        strata.append(("activity", f"fires on {low:.2g} to {high:.2g}", inside))
    rows = []
    for by, name, inside in strata:
        own = features.loc[inside, ["id", "latent"]]
        part = table.merge(own, on=["id", "latent"])
        row: dict[str, Any] = {"by": by, "stratum": name, "n_features": len(own)}
        for column in (
            "similarity",
            *(f"{what}{tail}" for what in ("function", "repaired") for tail in _TAILS),
        ):
            row |= _over_seeds(cards.group.ids, part, column, config.level)
        row |= _over_seeds(cards.group.ids, part, "cosine_predicts", config.level)
        rows.append(row)
    return pd.DataFrame(rows)


_TAILS = ("", "_negative", "_random")


def _over_seeds(
    ids: Sequence[str], part: pd.DataFrame, column: str, level: float
) -> dict[str, float | None]:
    """Mean over pairs of SAEs of the mean over their features, and its interval over seeds."""
    n = len(ids)
    place = {name: s for s, name in enumerate(ids)}
    W = np.full((n, n), np.nan)
    np.fill_diagonal(W, 0.0)
    pair = part["id"].map(place).to_numpy(), part["other_id"].map(place).to_numpy()
    first, second = np.minimum(*pair), np.maximum(*pair)
    for s in range(n):
        for t in range(s + 1, n):
            both = part[(first == s) & (second == t)]
            W[s, t] = W[t, s] = (
                _rank_correlation(both) if column == "cosine_predicts" else both[column].mean()
            )
    if np.isnan(W).any():
        known = W[np.triu_indices(n, 1)]
        mean = float(np.nanmean(known)) if np.isfinite(known).any() else None
        return {column: mean, f"{column}_low": None, f"{column}_high": None}
    bounds = (0.0, 1.0) if column == "similarity" else (-1.0, 1.0)
    found = seed_interval(W, level=level, bounds=bounds)
    return {column: found.mean, f"{column}_low": found.low, f"{column}_high": found.high}


def _rank_correlation(part: pd.DataFrame) -> float:
    known = part[["similarity", "function"]].dropna()
    if len(known) < 3 or known.nunique().min() < 2:
        return np.nan
    return float(spearmanr(known["similarity"], known["function"]).statistic)

"""How ambiguous a match is: which partners could be exchanged at almost no loss, exactly.

The best one-to-one match has prices (dual variables) with ``u_i + v_j >= s_ij`` for every pair and
equality on the match, so every other pair has a *reduced cost* ``u_i + v_j - s_ij >= 0``. When
feature i takes the partner j, the sum of all similarities loses exactly the reduced cost of (i, j)
plus the least cost of a new partner for the feature that had j: a shortest path over reduced costs
(Hungarian method; the exchange argument of Lawler 1976, chapter 5). So all partners within ε of
the optimum are found without listing any other matching, and their count is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import dijkstra

from husai.errors import InputError
from husai.features.cards import FeatureCards, unit_decoder
from husai.features.config import FeaturesConfig
from husai.matching.certified import Certificate
from husai.matching.dense_assignment import assign_priced
from husai.matching.match import unit_rows
from husai.matching.result import Match

Floats = NDArray[np.float64]

_MOST_FEATURES = 4096  # [n, n] float64 in memory
_MOST_PAIRS = 2**30  # products of a minute or so
_BLOCK_NUMBERS = 8_000_000
_SOURCES = 512  # rows whose distances to all others are held at once
# Reduced costs of pairs that tie exactly come out at some 1e-16.
_TIE = 1e-12


@dataclass(frozen=True)
class Ambiguity:
    """Partners that cost at most ε, for the rows and the columns of a similarity matrix.

    Attributes
    ----------
    cost
        ``[n_a, n_b]`` sparse: what the sum of similarities loses when i is matched with j. Only
        pairs with a loss of at most ε are stored, as the loss + 1e-12, so that a loss of 0 is
        stored too.
    partner
        ``[n_a]`` the best match, -1 for none.
    alone
        ``[n_a]`` whether a matching within ε leaves the feature without a partner.
    epsilon
        Largest loss of the sum of similarities that was allowed.
    """

    cost: sparse.csr_array
    partner: NDArray[np.int64]
    alone: NDArray[np.bool_]
    epsilon: float

    def table(self, similarity: ArrayLike) -> pd.DataFrame:
        """Count each row's exchangeable partners, and the range of its similarity over them.

        Parameters
        ----------
        similarity
            ``[n_a, n_b]``: the matrix that was matched.

        Returns
        -------
        pandas.DataFrame
            A row per row of the matrix: ``n_exchangeable`` (partners within ε, its own included),
            ``margin`` (least loss when it takes another partner; NaN when that is more than ε),
            ``least`` and ``most`` (smallest and largest similarity over those partners).
        """
        s = np.asarray(similarity, dtype=np.float64)
        entries = self.cost.tocoo()
        value = s[entries.row, entries.col]
        n = self.cost.shape[0]
        least, most = np.full(n, np.inf), np.full(n, -np.inf)
        np.minimum.at(least, entries.row, value)
        np.maximum.at(most, entries.row, value)
        margin = np.full(n, np.inf)
        other = entries.col != self.partner[entries.row]
        np.minimum.at(margin, entries.row[other], entries.data[other] - _TIE)
        known = np.isfinite(least)
        return pd.DataFrame(
            {
                "n_exchangeable": np.bincount(entries.row, minlength=n),
                "margin": np.where(np.isfinite(margin), np.maximum(margin, 0.0), np.nan),
                "least": np.where(known, least, np.nan),
                "most": np.where(known, most, np.nan),
            }
        )


class _Near(NamedTuple):
    """Pairs of small reduced cost, of a match whose rows all have a partner.

    Attributes
    ----------
    row, column, reduced
        ``[n_near]``: the pairs and ``u_i + v_j - s_ij``, at most ε.
    partner
        ``[n]`` column of each row.
    v
        ``[m]`` prices of the columns: at least 0, and 0 for one that no row has.
    """

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    reduced: Floats
    partner: NDArray[np.int64]
    v: Floats


def _forced_costs(near: _Near, epsilon: float) -> tuple[Floats, NDArray[np.bool_]]:
    """What the sum loses when a pair is forced ``[n_near]``, and which columns may be left out.

    A row that takes a column sends its holder on: an edge from row to row. Columns that nobody has
    belong to one more node, which takes a column at its price.
    """
    n, m = len(near.partner), len(near.v)
    slack = epsilon + (n + 1) * _TIE
    holder = np.full(m, n, dtype=np.int64)
    holder[near.partner] = np.arange(n)
    to = holder[near.column]
    moves = near.row != to
    cheap = np.flatnonzero((holder < n) & (near.v <= epsilon)) if m > n else np.zeros(0, np.int64)
    edges = pd.DataFrame(
        {
            "from": np.concatenate([near.row[moves], np.full(len(cheap), n)]),
            "to": np.concatenate([to[moves], holder[cheap]]),
            "cost": np.concatenate([near.reduced[moves], near.v[cheap]]) + _TIE,
        }
    )
    best = edges.groupby(["from", "to"], as_index=False)["cost"].min()
    step = sparse.csr_array((best["cost"], (best["from"], best["to"])), shape=(n + 1, n + 1))
    cost = near.reduced.copy()
    alone = holder == n
    order = np.flatnonzero(moves)[np.argsort(to[moves], kind="stable")]
    sources = np.union1d(to[moves], holder[cheap])
    for start in range(0, len(sources), _SOURCES):
        part = sources[start : start + _SOURCES]
        distance = dijkstra(step, indices=part, limit=slack)
        # whoever had the column ends with the one that its new owner gave up
        at = order[slice(*np.searchsorted(to[order], [part[0], part[-1] + 1]))]
        cost[at] += distance[np.searchsorted(part, to[at]), near.row[at]]
        mine = cheap[np.isin(holder[cheap], part)]
        gone = near.v[mine] + distance[np.searchsorted(part, holder[mine]), n]
        alone[mine[gone <= slack]] = True
    return cost, alone


def _ambiguity(near: _Near, epsilon: float, transposed: bool) -> Ambiguity:
    """Gather the costs; ``transposed`` when the rows of the match are the columns wanted."""
    n, m = len(near.partner), len(near.v)
    cost, alone = _forced_costs(near, epsilon)
    inside = cost <= epsilon + (n + 1) * _TIE
    entries = cost[inside] + _TIE, (near.row[inside], near.column[inside])
    found = sparse.csr_array(entries, shape=(n, m))
    if not transposed:
        return Ambiguity(found, near.partner, np.zeros(n, dtype=bool), epsilon)
    holder = np.full(m, -1, dtype=np.int64)
    holder[near.partner] = np.arange(n)
    return Ambiguity(sparse.csr_array(found.T), holder, alone, epsilon)


def match_ambiguity(similarity: ArrayLike, epsilon: float) -> Ambiguity:
    """Find every pair that some matching within ε of the best one contains.

    Parameters
    ----------
    similarity
        ``[n_a, n_b]``. All features of the smaller side are matched.
    epsilon
        Most that the *sum* of similarities may lose.

    Raises
    ------
    InputError
        When the matrix is too large to be held, or not finite.
    """
    s = np.asarray(similarity, dtype=np.float64)
    if s.ndim != 2 or not s.size or max(s.shape) > _MOST_FEATURES:
        raise InputError(f"similarity: shape {s.shape}; give up to {_MOST_FEATURES} features each")
    if not np.isfinite(s).all() or epsilon <= 0:
        raise InputError("similarity: give finite numbers, and a positive epsilon")
    transposed = s.shape[0] > s.shape[1]
    wide = s.T if transposed else s
    partner, u, v = assign_priced(wide)
    reduced = np.maximum(u[:, None] + v[None, :] - wide, 0.0)
    row, column = np.nonzero(reduced <= epsilon)
    return _ambiguity(_Near(row, column, reduced[row, column], partner, v), epsilon, transposed)


class PartnerRange(NamedTuple):
    """How ambiguous each feature of A is in the match of two dictionaries.

    Attributes
    ----------
    epsilon
        Most that the sum of similarities may lose.
    n_exchangeable
        ``[n_a]`` partners that the feature has in some matching within ε, its own included.
    least, most
        ``[n_a]`` its least and greatest similarity in them; NaN where it may have no partner.
    n_pairs
        Features matched.
    """

    epsilon: float
    n_exchangeable: NDArray[np.int64]
    least: Floats
    most: Floats
    n_pairs: int

    @property
    def ambiguous(self) -> float:
        """Share of A's features that could have another partner."""
        return float((self.n_exchangeable > 1).mean())

    @property
    def score_moves(self) -> float:
        """Most that the mean similarity falls in any of these matchings."""
        return self.epsilon / self.n_pairs

    @property
    def feature_moves(self) -> float:
        """Most that the similarity of one feature differs between two of them."""
        return float(np.nan_to_num(self.most - self.least).max(initial=0.0))

    def matched(self, threshold: float) -> tuple[int, int]:
        """Features that reach a similarity in all of them, and in some."""
        sure = np.nan_to_num(self.least, nan=-1.0) >= threshold
        may = np.nan_to_num(self.most, nan=-1.0) >= threshold
        return int(sure.sum()), int(may.sum())


def partner_range(A: ArrayLike, B: ArrayLike, match: Match, epsilon: float) -> PartnerRange | None:
    """Say how far the partners of a match could be others, from the prices that prove it.

    Small dictionaries are matched again for their prices. For larger ones the prices are those of
    the match's certificate, and one more pass of products finds the pairs of small reduced cost.

    Parameters
    ----------
    A, B
        ``[n_a, d]`` and ``[n_b, d]`` that were matched.
    match
        The best match.
    epsilon
        Most that the sum of similarities may lose.

    Returns
    -------
    PartnerRange or None
        None where the match is not proved to be the best, or there are more pairs than a pass of
        a minute or so.
    """
    a, b = unit_rows(A, "A"), unit_rows(B, "B")
    if max(len(a), len(b)) <= _MOST_FEATURES:
        similarity = a @ b.T
        found = match_ambiguity(similarity if match.signed else np.abs(similarity), epsilon)
    else:
        proof = match.certificate
        if proof is None or not proof.certified or len(a) * len(b) > _MOST_PAIRS:
            return None
        found = _certified(a, b, match, proof, epsilon)
    entries = found.cost.tocoo()
    value = np.einsum("nd,nd->n", a[entries.row], b[entries.col])
    if not match.signed:
        value = np.abs(value)
    least, most = np.full(len(a), np.inf), np.full(len(a), -np.inf)
    np.minimum.at(least, entries.row, value)
    np.maximum.at(most, entries.row, value)
    least[found.alone | np.isinf(least)] = np.nan
    most[np.isinf(most)] = np.nan
    count = np.bincount(entries.row, minlength=len(a))
    return PartnerRange(epsilon, count, least, most, min(len(a), len(b)))


def _certified(a: Floats, b: Floats, match: Match, proof: Certificate, epsilon: float) -> Ambiguity:
    """The same from a certificate's prices, a block of products at a time."""
    transposed = len(a) > len(b)
    rows, columns, u, v = a, b, proof.a_price, proof.b_price
    here, there = match.a_index, match.b_index
    if transposed:
        rows, columns, u, v, here, there = b, a, v, u, there, here
    partner = np.empty(len(rows), dtype=np.int64)
    partner[here] = there
    parts, step = [], max(1, _BLOCK_NUMBERS // len(columns))
    for start in range(0, len(rows), step):
        block = rows[start : start + step] @ columns.T
        if not match.signed:
            np.abs(block, out=block)
        reduced = u[start : start + step, None] + v - block
        row, column = np.nonzero(reduced <= epsilon)
        parts.append((row + start, column, np.maximum(reduced[row, column], 0.0)))
    row, column, reduced = (np.concatenate(one) for one in zip(*parts, strict=True))
    return _ambiguity(_Near(row, column, reduced, partner, np.maximum(v, 0.0)), epsilon, transposed)


def ambiguity_tables(
    cards: FeatureCards, config: FeaturesConfig | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Measure for each feature, and each of its partners, how ambiguous the match is.

    Parameters
    ----------
    cards
        From :func:`husai.features.feature_cards`.
    config
        ``epsilon``: the largest loss of the sum of similarities.

    Returns
    -------
    features
        ``id``, ``latent``, ``n_exchangeable`` (mean over the other seeds).
    partners
        ``id``, ``latent``, ``other_id``, ``n_exchangeable``, ``margin``, ``least``, ``most``: see
        :meth:`Ambiguity.table`.
    notes
        One sentence: how much the ambiguity can change the scores.

    Raises
    ------
    InputError
        As :func:`match_ambiguity`.
    """
    config = config or FeaturesConfig()
    group, tables = cards.group, []
    unit = [unit_decoder(group, s) for s in range(len(group.live))]
    for s, one in enumerate(group.live):
        for t, other in enumerate(group.live):
            if s == t:
                continue
            similarity = np.abs(unit[s] @ unit[t].T)
            found = match_ambiguity(similarity, config.epsilon).table(similarity)
            tables.append(
                found.assign(id=one.record.id, latent=one.index, other_id=other.record.id)
            )
    partners = pd.concat(tables, ignore_index=True)
    features = partners.groupby(["id", "latent"], sort=False)["n_exchangeable"].mean()
    share = float((partners["n_exchangeable"] > 1).mean())
    widest = float((partners["most"] - partners["least"]).max())
    note = (
        f"{share:.0%} of the matched pairs are ambiguous: the feature could take another partner "
        f"at a loss of at most {config.epsilon:g} in the sum of all similarities. That moves the "
        f"mean similarity of two SAEs by at most {config.epsilon / min(map(len, unit)):.1g}, and "
        f"the similarity of one feature by up to {widest:.2f}."
    )
    return features.reset_index(), partners, [note]

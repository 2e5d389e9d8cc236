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

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import dijkstra

from husai.errors import InputError
from husai.features.cards import FeatureCards, unit_decoder
from husai.features.config import FeaturesConfig
from husai.matching.dense_assignment import assign

Floats = NDArray[np.float64]

_MOST_FEATURES = 4096  # the [n, n] float64 matrices have to fit in memory
# Rounding leaves reduced costs of about 1e-16 for pairs that tie exactly.
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
    epsilon
        Largest loss of the sum of similarities that was allowed.
    """

    cost: sparse.csr_array
    partner: NDArray[np.int64]
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


def prices(similarity: ArrayLike, partner: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Find prices ``u`` and ``v`` that prove a square assignment optimal.

    The conditions ``v_j >= s_ij - s_i,p(i) + v_p(i)`` for all i are difference constraints. Their
    least solution from 0 up is a longest path; it exists because no cycle of exchanges improves an
    optimal assignment.

    Parameters
    ----------
    similarity
        ``[n, n]``.
    partner
        ``[n]`` the best assignment.

    Returns
    -------
    u, v
        ``[n]`` prices of the rows and of the columns.

    Raises
    ------
    InputError
        When the assignment is not the best one.
    """
    s = np.asarray(similarity, dtype=np.float64)
    n = len(s)
    gain = s - s[np.arange(n), partner][:, None]
    v = np.zeros(n)
    for _ in range(n + 1):
        raised = np.maximum(v, (gain + v[partner][:, None]).max(axis=0))
        if np.allclose(raised, v, rtol=0, atol=1e-13):
            break
        v = raised
    else:
        raise InputError("partner: another assignment has a larger sum; give the best one")
    return s[np.arange(n), partner] - v[partner], v


def match_ambiguity(similarity: ArrayLike, epsilon: float) -> Ambiguity:
    """Find every pair that some matching within ε of the best one contains.

    Parameters
    ----------
    similarity
        ``[n_a, n_b]``, never negative: |cosine|, or cosines of which only the positive ones
        count. A feature may stay without a partner, at a similarity of 0.
    epsilon
        Most that the *sum* of similarities may lose.

    Raises
    ------
    InputError
        When the matrix is too large, or has numbers that are not finite or negative; when epsilon
        is not positive.
    """
    s = np.asarray(similarity, dtype=np.float64)
    if s.ndim != 2 or not s.size or max(s.shape) > _MOST_FEATURES:
        raise InputError(f"similarity: shape {s.shape}; give up to {_MOST_FEATURES} features each")
    if not np.isfinite(s).all() or s.min() < 0 or epsilon <= 0:
        raise InputError("similarity: give finite numbers from 0 up, and a positive epsilon")
    n_a, n_b = s.shape
    n = max(n_a, n_b)
    square = np.zeros((n, n))
    square[:n_a, :n_b] = s
    _, partner = assign(square)
    u, v = prices(square, partner)
    reduced = np.maximum(u[:, None] + v[None, :] - square, 0.0)
    near = np.nonzero(reduced <= epsilon)
    # when i takes j, the row that held j needs a new column: an edge from i to the holder of j
    holder = np.empty(n, dtype=np.int64)
    holder[partner] = np.arange(n)
    to = holder[near[1]]
    moves = near[0] != to
    step = sparse.csr_array(
        (reduced[near][moves] + _TIE, (near[0][moves], to[moves])), shape=(n, n)
    )
    back = dijkstra(step, limit=epsilon + n * _TIE)
    # the exchanges end when some row takes the column that i left
    cost = reduced[near] + np.where(moves, back[to, near[0]], 0.0)
    inside = (cost <= epsilon + n * _TIE) & (near[0] < n_a) & (near[1] < n_b)
    row, column = near[0][inside], near[1][inside]
    found = sparse.csr_array((cost[inside] + _TIE, (row, column)), shape=(n_a, n_b))
    own = partner[:n_a]
    return Ambiguity(found, np.where(own < n_b, own, -1), epsilon)


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

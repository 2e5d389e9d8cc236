"""Compare the latents that an encoder chooses with those that matching pursuit chooses.

Orthogonal matching pursuit (Pati et al. 1993) chooses latents for each row, one after the other,
so that their weighted sum explains the row best. Where its choice differs from the encoder's,
either the dictionary does not determine the codes, or the encoder has not learned them. OpenReview
JiyytGKbA9 finds a Jaccard overlap of about .43.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from husai.consistency.inference.ranks import rank_correlation
from husai.errors import InputError
from husai.features.cards import FeatureCards, unit_decoder
from husai.matching.match import unit_rows

Floats = NDArray[np.float64]


class Pursuit(NamedTuple):
    """The latents that matching pursuit chose.

    Attributes
    ----------
    support
        ``[n, k]`` latents in the order of choice; -1 where fewer than k were chosen.
    explained
        Share of the squared norm of all rows together that they explain.
    """

    support: NDArray[np.int64]
    explained: float


def matching_pursuit(
    rows: ArrayLike, dictionary: ArrayLike, counts: ArrayLike, *, positive: bool = True
) -> Pursuit:
    """Choose latents greedily; after each choice the weights of all of them are fitted again.

    Parameters
    ----------
    rows
        ``[n, d]``, without the SAE's bias.
    dictionary
        ``[m, d]``; its rows are normalised first.
    counts
        ``[n]`` number of latents that each row may use.
    positive
        Choose only latents whose inner product with the residual is positive, because an SAE's
        codes are.

    Raises
    ------
    InputError
        When shapes do not agree.
    """
    x, D = np.asarray(rows, dtype=np.float64), unit_rows(dictionary, "dictionary")
    wanted = np.minimum(np.asarray(counts, dtype=np.int64), min(D.shape))
    if x.ndim != 2 or x.shape[1] != D.shape[1] or wanted.shape != (len(x),):
        raise InputError(
            f"rows: shape {x.shape}, dictionary {D.shape}, counts {wanted.shape}; give [n, d], "
            "[m, d] and [n]"
        )
    n, most = len(x), int(wanted.max(initial=0))
    support = np.full((n, most), -1, dtype=np.int64)
    residual = x.copy()
    active = wanted > 0
    for step in range(most):
        active &= wanted > step
        at = np.flatnonzero(active)
        product = residual[at] @ D.T
        product = product if positive else np.abs(product)
        if step:
            np.put_along_axis(product, support[at, :step], -np.inf, axis=1)
        best = product.argmax(axis=1)
        useful = product[np.arange(len(at)), best] > 1e-9
        active[at[~useful]] = False
        at, best = at[useful], best[useful]
        if not len(at):
            break
        support[at, step] = best
        # least squares on what was taken, for all rows at once: [rows, step + 1, d]
        taken = D[support[at, : step + 1]]
        gram = np.einsum("nid,njd->nij", taken, taken) + 1e-10 * np.eye(step + 1)
        weights = np.linalg.solve(gram, np.einsum("nid,nd->ni", taken, x[at])[..., None])
        residual[at] = x[at] - np.einsum("ni,nid->nd", weights[..., 0], taken)
    total = float(np.square(x).sum())
    return Pursuit(support, 1 - float(np.square(residual).sum()) / total if total else 1.0)


def support_overlap(codes: sparse.csr_array, pursuit: Pursuit) -> tuple[Floats, Floats]:
    """Compare the encoder's choice of latents with the pursuit's.

    Parameters
    ----------
    codes
        ``[n, m]`` codes of the encoder.
    pursuit
        Choice of matching pursuit on the same rows.

    Returns
    -------
    rows
        ``[n]`` Jaccard overlap of the two choices on each row; NaN where both are empty.
    latents
        ``[m]`` of the rows on which the encoder uses a latent, the share on which the pursuit uses
        it too; NaN for a latent that the encoder never uses.
    """
    mine = sparse.csr_array(codes).astype(bool).astype(np.float64)
    row, step = np.nonzero(pursuit.support >= 0)
    theirs = sparse.csr_array(
        (np.ones(len(row)), (row, pursuit.support[row, step])), shape=mine.shape
    )
    both = mine.multiply(theirs)
    shared, own, other = (np.asarray(x.sum(axis=1)).ravel() for x in (both, mine, theirs))
    union = own + other - shared
    jaccard = np.divide(shared, union, out=np.full(len(union), np.nan), where=union > 0)
    fires, hits = (np.asarray(x.sum(axis=0)).ravel() for x in (mine, both))
    return jaccard, np.divide(hits, fires, out=np.full(len(fires), np.nan), where=fires > 0)


def code_identifiability(
    cards: FeatureCards,
    values: NDArray[np.floating],
    *,
    max_rows: int = 2000,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare every SAE's encoder with matching pursuit on its own dictionary.

    The pursuit may use as many latents on a row as the encoder uses there. The mean of all rows is
    subtracted from each row first.

    Parameters
    ----------
    cards
        Cards of a group with codes.
    values
        ``[n_rows, d]`` the activations that were encoded.
    max_rows
        Most rows that are compared; if there are more, a random part.
    seed
        Seed of that random part and of the null's order.

    Returns
    -------
    features
        ``id``, ``latent``, ``pursuit_agreement``: see :func:`support_overlap`.
    saes
        A row per SAE: ``jaccard`` (mean over rows), ``jaccard_null`` (with the pursuit's rows in
        random order), ``explained`` (share of the squared norm that the pursuit explains), and
        ``correlation``: rank correlation over features of agreement and reproducibility.

    Raises
    ------
    InputError
        When the group has no codes, or the number of rows differs.
    """
    group = cards.group
    if group.codes is None:
        raise InputError("identifiability: the SAEs have no codes; give rows of activations")
    if len(values) != group.codes[0].shape[0]:
        raise InputError(
            f"rows: {len(values)} rows of activations, {group.codes[0].shape[0]} of codes"
        )
    rng = np.random.default_rng(seed)
    index = np.sort(rng.permutation(len(values))[:max_rows])
    x = np.asarray(values[index], dtype=np.float64)
    x = x - np.asarray(values, dtype=np.float64).mean(axis=0)
    order = rng.permutation(len(index))
    features, saes = [], []
    for s, one in enumerate(group.live):
        codes = sparse.csr_array(group.codes[s])[index]
        pursuit = matching_pursuit(x, unit_decoder(group, s), np.diff(codes.indptr))
        jaccard, agreement = support_overlap(codes, pursuit)
        null, _ = support_overlap(codes, pursuit._replace(support=pursuit.support[order]))
        table = pd.DataFrame(
            {"id": one.record.id, "latent": one.index, "pursuit_agreement": agreement}
        )
        features.append(table)
        joined = table.merge(cards.features[["id", "latent", "reproducibility"]])
        saes.append(
            {
                "id": one.record.id,
                "jaccard": float(np.nanmean(jaccard)),
                "jaccard_null": float(np.nanmean(null)),
                "explained": pursuit.explained,
                "correlation": rank_correlation(
                    joined["pursuit_agreement"], joined["reproducibility"]
                ),
            }
        )
    return pd.concat(features, ignore_index=True), pd.DataFrame(saes)

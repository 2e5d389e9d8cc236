"""The list of all scores: the command, the study, planted truth and the tables read it.

A score is one entry of :data:`SCORES`: what it needs, how it is computed from a prepared pair,
its value for two equal SAEs, its bounds, its nulls, and one sentence that says what it means.
"""

from __future__ import annotations

import numpy as np

from husai.consistency.scores.decoder import distinct_share, orderedness, shared_pairs
from husai.consistency.scores.pair import PreparedPair
from husai.consistency.scores.score import CLAIM_NULLS, COSINE, DISTANCE, DRAWN, Need, Score, Value
from husai.consistency.scores.similarity import cka_from_products, svcca_from_products
from husai.consistency.scores.truth import TRUTH_SCORES
from husai.errors import InputError

__all__ = ["SCORES", "Score", "Value", "known_scores", "of_pairs", "of_truth", "register"]

SCORES: dict[str, Score] = {}
"""All scores by name, in the order in which tables list them."""


def register(score: Score) -> None:
    """Add a score.

    Raises
    ------
    InputError
        When there is a score of this name already.
    """
    if score.name in SCORES:
        raise InputError(f"scores: {score.name!r} is registered already; choose another name")
    SCORES[score.name] = score


def _decoder(name: str, title: str, meaning: str, compute: object, **fields: object) -> None:
    needs: frozenset[Need] = frozenset({"decoder"})
    register(Score(name, title, meaning, needs, compute, **fields))  # type: ignore[arg-type]


def _a_to_b(pair: PreparedPair, signed: bool) -> float:
    return float(pair.nearest(signed).a_similarity.mean())


def _b_to_a(pair: PreparedPair, signed: bool) -> float:
    return float(pair.nearest(signed).b_similarity.mean())


def _matched_fraction(pair: PreparedPair, signed: bool) -> float:
    reached = pair.matches[signed].similarity >= pair.config.shared_threshold
    return float(reached.sum() / pair.narrower)


def _uniqueness(pair: PreparedPair, signed: bool) -> float:
    nearest = pair.nearest(signed)
    return (distinct_share(nearest.a_index) + distinct_share(nearest.b_index)) / 2


def _decoder_cka(pair: PreparedPair, signed: bool) -> float | None:
    """Linear CKA of the matched decoder rows, the pairs as samples (Kornblith et al. 2019)."""
    made = pair.products(signed)
    return cka_from_products(made.xy, made.xx, made.yy)


def _decoder_svcca(pair: PreparedPair, signed: bool) -> float | None:
    """SVCCA of the matched decoder rows, the pairs as samples (Raghu et al. 2017).

    None when there are no more pairs than directions kept on the two sides together: CCA then
    finds perfect correlations between any two sets of rows.
    """
    made = pair.products(signed)
    return svcca_from_products(made.xy, made.xx, made.yy, n_rows=made.n_pairs)


def _orderedness(pair: PreparedPair, signed: bool) -> float | None:
    found = orderedness(pair.matches[signed])
    return None if found is None else found.rho


_decoder(
    "pw_mcc",
    "PW-MCC",
    "mean similarity of the decoder rows under the best one-to-one match (arXiv 2505.20254)",
    lambda pair, signed: pair.matches[signed].mean,
    signed_bounds=COSINE,
    nulls=CLAIM_NULLS,
)
_decoder(
    "mmcs",
    "MMCS",
    "mean similarity of each feature to its nearest in the other SAE, many to one, mean of both "
    "directions",
    lambda pair, signed: (_a_to_b(pair, signed) + _b_to_a(pair, signed)) / 2,
    signed_bounds=COSINE,
    nulls=CLAIM_NULLS,
)
_decoder(
    "mmcs_a_to_b",
    "MMCS from A to B",
    "mean similarity of each feature of A to its nearest in B",
    _a_to_b,
    signed_bounds=COSINE,
    symmetric=False,
)
_decoder(
    "mmcs_b_to_a",
    "MMCS from B to A",
    "mean similarity of each feature of B to its nearest in A",
    _b_to_a,
    signed_bounds=COSINE,
    symmetric=False,
)
_decoder(
    "matched_fraction",
    "matched fraction ≥ {threshold:g}",
    "share of features whose partner in the decoders' match reaches the threshold",
    _matched_fraction,
    nulls=CLAIM_NULLS,
)
_decoder(
    "uniqueness",
    "uniqueness",
    "number of distinct nearest features in the other SAE, divided by the number of features, mean "
    "of both directions (arXiv 2602.14687)",
    _uniqueness,
)
for _p, _name in ((1, "l1"), (2, "l2"), (np.inf, "linf")):
    _decoder(
        f"distance_{_name}",
        f"{_name} distance of matched features",
        f"mean {_name} distance of matched unit decoder rows; 0 is best",
        lambda pair, signed, p=_p: pair.distance(signed, p),
        bounds=DISTANCE,
        perfect=0.0,
    )
_decoder(
    "subspace_overlap",
    "subspace overlap",
    "overlap of the top principal subspaces of the two decoders (arXiv 2606.12138)",
    lambda pair, signed: pair.subspaces,
)
_decoder(
    "decoder_cka",
    "CKA of matched decoders",
    "linear CKA of the matched decoder rows, the pairs as samples (arXiv 1905.00414)",
    _decoder_cka,
)
_decoder(
    "decoder_svcca",
    "SVCCA of matched decoders",
    "mean canonical correlation of the matched decoder rows, the pairs as samples "
    "(arXiv 1706.05806)",
    _decoder_svcca,
)
_decoder(
    "orderedness",
    "orderedness",
    "rank correlation of the features' order under the match (arXiv 2512.02194)",
    _orderedness,
    bounds=COSINE,
)


# -- with encoders ---------------------------------------------------------------------------------

_ENCODER: frozenset[Need] = frozenset({"decoder", "encoder"})
# no data-aware null: the covariance of the data does not say which directions encoders read
_ENCODER_NULLS = ("permuted", "isotropic")


def _shared_fraction(pair: PreparedPair, signed: bool) -> float:
    threshold = pair.config.shared_threshold
    decoder = pair.matches[signed]
    if not (decoder.similarity >= threshold).any():
        return 0.0  # no encoder match can change this; most draws of a null end here
    shared = shared_pairs(decoder, pair.encoder_matches[signed], threshold)
    return float(shared.sum() / pair.narrower)


def _encoder_cosine(pair: PreparedPair, signed: bool) -> float:
    encoder_a, encoder_b = pair.encoders
    match = pair.matches[signed]
    one, other = encoder_a[match.a_index], encoder_b[match.b_index]
    # the signs of the decoders' match are used, not those of the encoders
    cosine = (one * other).sum(axis=1, dtype=np.float64) * pair.sides_met(signed)
    return float(cosine.mean())


register(
    Score(
        "shared_fraction",
        "shared fraction ≥ {threshold:g}",
        "share of features whose decoder and encoder have the same partner, both at the threshold "
        "or above (arXiv 2501.16615); encoders in the data's metric if there are activation rows",
        _ENCODER,
        _shared_fraction,
        nulls=("permuted", *DRAWN),
    )
)
register(
    Score(
        "pw_mcc_encoder",
        "PW-MCC of encoders",
        "mean similarity of the encoder rows under their own best one-to-one match, in the data's "
        "metric if there are activation rows",
        _ENCODER,
        lambda pair, signed: pair.encoder_matches[signed].mean,
        signed_bounds=COSINE,
        nulls=_ENCODER_NULLS,
    )
)
register(
    Score(
        "encoder_cosine",
        "cosine of matched encoders",
        "mean cosine of the encoder rows under the decoders' match, in the data's metric if there "
        "are activation rows",
        _ENCODER,
        _encoder_cosine,
        bounds=COSINE,
        nulls=_ENCODER_NULLS,
    )
)


# -- with codes ------------------------------------------------------------------------------------

_CODES: frozenset[Need] = frozenset({"decoder", "codes"})
_CLOSED = ("chance",)


def _of_codes(value: float | None, reason: str, chance: float | None = None) -> Value:
    return Value(value, chance, reason if value is None else "")


register(
    Score(
        "code_jaccard",
        "support Jaccard of matched codes",
        "rows on which both matched latents fire over rows on which at least one does, mean over "
        "pairs",
        _CODES,
        lambda pair, _: _of_codes(
            pair.agreement.jaccard, pair.agreement.reason, pair.agreement.jaccard_chance
        ),
        signs=(False,),
        nulls=_CLOSED,
    )
)
register(
    Score(
        "code_correlation",
        "correlation of matched codes",
        "correlation of matched latents' codes over the rows, mean over pairs",
        _CODES,
        lambda pair, _: _of_codes(pair.agreement.correlation, pair.agreement.reason, 0.0),
        bounds=COSINE,
        signs=(False,),
        nulls=_CLOSED,
    )
)
register(
    Score(
        "code_r2",
        "R² of matched codes",
        "share of the variance of one SAE's codes that the matched codes of the other explain, "
        "with no scale fitted",
        _CODES,
        lambda pair, _: _of_codes(pair.agreement.r2, pair.agreement.reason),
        bounds=(-float("inf"), 1.0),
        signs=(False,),
        nulls=(),
    )
)
register(
    Score(
        "activation_mcc",
        "matched activation correlation",
        "mean correlation of latents matched by their activations alone (arXiv 2410.06981)",
        _CODES,
        lambda pair, _: _of_codes(*pair.activation_match),
        signed_bounds=COSINE,
        signs=(True,),
        nulls=("shuffled",),
    )
)
register(
    Score(
        "code_cka",
        "CKA of codes",
        "linear CKA of the two codes as whole representations (arXiv 1905.00414)",
        _CODES,
        lambda pair, _: _of_codes(
            pair.code_similarity.cka, pair.code_similarity.reason, pair.code_similarity.cka_chance
        ),
        signs=(False,),
        nulls=_CLOSED,
    )
)
register(
    Score(
        "code_svcca",
        "SVCCA of codes",
        "mean canonical correlation of the two codes' principal components (arXiv 1706.05806)",
        _CODES,
        lambda pair, _: _of_codes(pair.code_similarity.svcca, pair.code_similarity.reason),
        signs=(False,),
        nulls=(),
    )
)

for _score in TRUTH_SCORES:
    register(_score)


def of_pairs() -> list[Score]:
    """Scores of two SAEs: those that need no truth."""
    return [score for score in SCORES.values() if "truth" not in score.needs]


def of_truth(codes: bool) -> list[Score]:
    """Scores of an SAE against the truth; those that need codes only with ``codes``."""
    return [
        score
        for score in SCORES.values()
        if "truth" in score.needs and (codes or "codes" not in score.needs)
    ]


def known_scores(names: list[str]) -> list[Score]:
    """Look scores up by name.

    Raises
    ------
    InputError
        When one is not known.
    """
    unknown = [name for name in names if name not in SCORES]
    if unknown:
        raise InputError(f"scores: {unknown} are not known; choose from {sorted(SCORES)}")
    return [SCORES[name] for name in names]

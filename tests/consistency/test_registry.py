"""The registry of scores: each entry obeys its declared bounds, perfect value and needs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from husai.consistency.inference.nulls import NULL_KINDS
from husai.consistency.scores import decoder
from husai.consistency.scores.code_scores import UnitCodes
from husai.consistency.scores.pair import PreparedPair, Side
from husai.consistency.scores.registry import SCORES, of_pairs, of_truth, register
from husai.consistency.scores.rows import direction_rows
from husai.consistency.scores.similarity import subspace_overlap
from husai.errors import InputError


def side(seed: int, n: int = 14, d: int = 6) -> Side:
    rng = np.random.default_rng(seed)
    decoder, encoder = rng.standard_normal((2, n, d))
    codes = np.maximum(rng.standard_normal((200, n)) - 0.5, 0)
    return Side(
        direction_rows(decoder), direction_rows(encoder), UnitCodes(sparse.csc_array(codes))
    )


ENTRIES = [(score.name, signed) for score in SCORES.values() for signed in score.signs]


@pytest.mark.parametrize(("name", "signed"), ENTRIES)
def test_every_score_keeps_to_its_declaration(name: str, signed: bool) -> None:
    """Equal SAEs get the perfect score, no pair leaves the bounds, order of A and B is as said."""
    score, a, b = SCORES[name], side(0), side(1)
    assert score.of(PreparedPair(a, a), signed).value == pytest.approx(score.perfect, abs=1e-6)
    pair, turned = PreparedPair(a, b), PreparedPair(b, a)
    value = score.of(pair, signed).value
    assert value is not None
    low, high = score.bounds_of(signed)
    assert low <= value <= high
    assert value != pytest.approx(score.perfect, abs=1e-3)
    other = score.of(turned, signed).value
    # the absolute convention turns rows of B, and what is centred sees which side was turned
    centred = name in ("decoder_cka", "decoder_svcca") and not signed
    if "truth" not in score.needs and not centred:
        assert (value == pytest.approx(other)) == score.symmetric
    least, most = score.difference_bounds(signed)
    assert (least, most) == (low - high, high - low)
    assert set(score.nulls) <= set(NULL_KINDS)
    assert score.meaning
    assert score.title.format(threshold=0.7)


def test_entries_equal_the_functions_of_the_same_names() -> None:
    a, b = side(0), side(1)
    pair = PreparedPair(a, b)
    encoder_a, encoder_b = pair.encoders
    for signed in (True, False):
        direct = decoder.mmcs(a.decoder, b.decoder, signed=signed)
        expected = {
            "pw_mcc": decoder.pw_mcc(a.decoder, b.decoder, signed=signed),
            "mmcs": direct.mean,
            "mmcs_a_to_b": direct.a_to_b,
            "mmcs_b_to_a": direct.b_to_a,
            "distance_l1": decoder.lp_distance(a.decoder, b.decoder, 1, signed=signed),
            "distance_l2": decoder.lp_distance(a.decoder, b.decoder, 2, signed=signed),
            "distance_linf": decoder.lp_distance(a.decoder, b.decoder, np.inf, signed=signed),
            "subspace_overlap": subspace_overlap(a.decoder, b.decoder, 3),
            "shared_fraction": decoder.shared_fraction(
                a.decoder, encoder_a, b.decoder, encoder_b, signed=signed
            ).fraction,
        }
        for name, value in expected.items():
            assert SCORES[name].of(pair, signed).value == pytest.approx(value), name


def test_fractions_cannot_be_negative_whatever_the_sign_convention() -> None:
    shares = {"matched_fraction", "shared_fraction", "uniqueness", "code_jaccard", "decoder_cka"}
    for name in shares:
        for signed in SCORES[name].signs:
            assert SCORES[name].bounds_of(signed) == (0.0, 1.0)
    assert SCORES["pw_mcc"].bounds_of(True) == (-1.0, 1.0)
    assert SCORES["distance_l2"].bounds_of(True) == (0.0, float("inf"))


def test_a_name_is_registered_once_and_needs_are_distinguished() -> None:
    with pytest.raises(InputError, match="already"):
        register(SCORES["mmcs"])
    assert not {score.name for score in of_pairs()} & {score.name for score in of_truth(codes=True)}
    assert {"precision", "recall", "f1"} == {
        score.name for score in of_truth(codes=True) if score not in of_truth(codes=False)
    }

"""Labels in a study: planted answers are found, counted, and matched across seeds by kind."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from husai.activations.rows import Activations
from husai.consistency import ConsistencyConfig, SAERecord, consistency_report, match_features
from husai.consistency.inference.seeds import partner_similarity
from husai.consistency.study.columns import TableError
from husai.consistency.study.labels import candidate_labels
from husai.consistency.study.schema import TABLES
from husai.errors import InputError
from husai.tasks.modular import make_vocabulary

P, D, OTHERS = 7, 24, 5


def rows() -> Activations:
    """All pairs modulo 7: each answer has a direction of its own, and there is noise."""
    rng = np.random.default_rng(0)
    a, b = np.divmod(np.arange(P**2), P)
    means = np.linalg.qr(rng.standard_normal((D, P)))[0].T
    values = means[(a + b) % P] + 0.01 * rng.standard_normal((P**2, D))
    words = make_vocabulary(P, "addition", "compact").model_dump()
    return Activations(
        values=torch.from_numpy(values.astype(np.float32)),
        split=torch.zeros(P**2, dtype=torch.int64),
        hook_name="post",
        position=-1,
        model={"vocabulary": words},
    )


def planted(seed: int, own: Activations, lacks: int = 0, turn: float = 0.0) -> SAERecord:
    """One latent an answer, and five latents that are random in each seed.

    ``lacks`` answers have a dead latent, and rows are turned by noise of size ``turn``.
    """
    rng = np.random.default_rng(seed + 10)
    x = own.values.numpy()
    a, b = np.divmod(np.arange(P**2), P)
    means = np.stack([x[(a + b) % P == c].mean(axis=0) for c in range(P)])
    answers = ((a + b) % P)[:, None] == np.arange(P)
    codes = np.concatenate([answers, rng.random((P**2, OTHERS)) < 0.3], axis=1)
    codes[:, :lacks] = False
    order = rng.permutation(P + OTHERS)
    W = np.concatenate([means - x.mean(axis=0), rng.standard_normal((OTHERS, D))])[order]
    W = W + turn * rng.standard_normal(W.shape)
    codes = codes[:, order].astype(np.float64)
    return SAERecord(f"s{seed}", "topk", seed, W, W_enc=W.T.copy(), k=1, codes=codes)


@pytest.fixture(scope="module")
def report():
    own = rows()
    config = ConsistencyConfig(null_draws=4, code_null_draws=0, dead="drop")
    records = [planted(seed, own) for seed in range(4)]
    return consistency_report(records, config, labelled=candidate_labels(own))


def test_every_planted_answer_is_covered_and_random_features_are_not(report) -> None:
    line = report.coverage.set_index("family").loc["answer"]
    assert (line["n_classes"], line["mean"], line["low"], line["high"]) == (P, P, P, P)
    assert line["gt_mcc"] == pytest.approx(1.0)
    assert line["permuted_mean"] < 0.8
    assert line["permuted_p"] == pytest.approx(1 / 21)  # five times the draws of other nulls
    assert line["chance"] < P
    assert report.coverage.set_index("family").loc["token", "mean"] == 0


def test_the_two_populations_differ_and_add_up_to_all_features(report) -> None:
    kinds = report.kinds.set_index("kind")
    assert kinds.loc["answer", "n_features"] == P
    assert kinds.loc["answer", "reproducibility"] == pytest.approx(1.0)
    assert kinds.loc["answer", "found_everywhere"] == 1
    assert kinds.loc["answer", "above_null"] == 1
    rest = kinds.drop(index="answer")
    assert (rest["reproducibility"] < 0.7).all()
    assert (kinds["low"].dropna() <= kinds["reproducibility"][kinds["low"].notna()] + 1e-9).all()
    whole = report.features["reproducibility"].mean()
    parts = (kinds["share"] * kinds["reproducibility"]).sum()
    assert parts == pytest.approx(whole)
    assert set(report.features.loc[report.features["kind"] == "answer", "family"]) == {"answer"}


def test_partner_similarity_equals_the_match_of_each_pair() -> None:
    rng = np.random.default_rng(1)
    Ws = [rng.standard_normal((n, 6)) for n in (4, 5, 3)]
    matches = {(s, t): match_features(Ws[s], Ws[t]) for s, t in combinations(range(3), 2)}
    own = partner_similarity(matches, [4, 5, 3])
    for s in range(3):
        for column, t in enumerate(t for t in range(3) if t != s):
            match = matches[min(s, t), max(s, t)]
            mine, theirs = (
                (match.a_index, match.b_index) if s < t else (match.b_index, match.a_index)
            )
            for i in range(len(Ws[s])):
                at = np.flatnonzero(mine == i)
                if not len(at):
                    assert own[s][i, column] == 0
                    continue
                u, v = Ws[s][i], Ws[t][theirs[at[0]]]
                cosine = abs(u @ v) / np.linalg.norm(u) / np.linalg.norm(v)
                assert own[s][i, column] == pytest.approx(cosine)


def test_labels_given_by_the_user_must_fit_the_rows() -> None:
    own = rows()
    found = candidate_labels(own, pd.DataFrame({"topic": np.arange(P**2) % 3}))
    assert found is not None
    assert found.families[-1].family == "topic"
    with pytest.raises(InputError, match="labels: 3 rows of labels, 49 of activations"):
        candidate_labels(own, pd.DataFrame({"topic": [0, 1, 2]}))


def test_the_interval_of_a_kind_belongs_to_its_mean() -> None:
    own, level = rows(), 0.9
    config = ConsistencyConfig(null_draws=0, code_null_draws=0, dead="drop", level=level)
    # seeds hold 4 to 7 answers: a mean of the seeds' means would be another number
    records = [planted(seed, own, lacks=seed, turn=0.03 * seed) for seed in range(4)]

    def kinds(some: list[SAERecord]) -> pd.DataFrame:
        found = consistency_report(some, config, labelled=candidate_labels(own))
        return found.kinds.set_index("kind")

    whole = kinds(records)
    without = [kinds([r for r in records if r is not left]) for left in records]
    for column, ends in (
        ("reproducibility", ["low", "high"]),
        ("share", ["share_low", "share_high"]),
    ):
        for kind in ("answer", "other"):
            left = np.array([table.loc[kind, column] for table in without])
            se = np.sqrt(3 / 4 * np.square(left - left.mean()).sum())
            half = stats.t.ppf((1 + level) / 2, 3) * se
            mean = whole.loc[kind, column]
            assert half > 0
            wanted = [max(mean - half, 0.0), min(mean + half, 1.0)]
            assert whole.loc[kind, ends].tolist() == pytest.approx(wanted, abs=1e-12)


def test_a_number_outside_its_interval_is_refused(report) -> None:
    kinds = report.kinds.assign(low=0.99, high=1.0)
    with pytest.raises(TableError, match=r"column reproducibility: .* lies outside its interval"):
        TABLES["kinds"].check(kinds)

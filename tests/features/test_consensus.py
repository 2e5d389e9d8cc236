"""The consensus of planted seeds recovers the planted features, and is a complete SAE."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from husai.campaign.features import worth_summary
from husai.consistency import SAERecord
from husai.errors import InputError
from husai.features import feature_group
from husai.features.config import ConsensusConfig
from husai.features.consensus import (
    build_consensus,
    consensus_directions,
    fit_encoder,
    measure_sae,
    probe_accuracy,
    yardsticks,
)
from husai.features.readouts import Readout
from husai.features.recurrence import consensus_recurrence
from husai.figures.consensus import consensus_figure
from husai.matching.match import match_features, unit_rows

N, OWN, D, K = 20, 30, 24, 3


def world(n_seeds=6, seed=0, noise=0.25):
    """Noisy copies of planted directions in every seed, and as many and more of its own."""
    rng = np.random.default_rng(seed)
    truth = unit_rows(rng.standard_normal((N, D)))
    codes = np.zeros((3000, N))
    for row in codes:
        row[rng.choice(N, K, replace=False)] = rng.uniform(1, 2, K)
    rows = codes @ truth + 0.05 * rng.standard_normal((3000, D)) + 1.0
    decoders = []
    for _ in range(n_seeds):
        copies = unit_rows(truth + noise * rng.standard_normal((N, D)) / np.sqrt(D) * 2)
        own = unit_rows(rng.standard_normal((OWN, D)))
        decoders.append(np.concatenate([copies, own])[rng.permutation(N + OWN)])
    return truth, decoders, rows.astype(np.float32), codes


def test_consensus_recovers_the_planted_features_better_than_a_seed():
    truth, decoders, _, _ = world()
    found = consensus_directions(decoders)
    assert N <= len(found.directions) <= N + 3
    recovered = match_features(truth, found.directions).mean
    single = [match_features(truth, one).mean for one in decoders]
    assert recovered > max(single) + 0.05
    assert recovered > 0.95
    medoid = consensus_directions(decoders, ConsensusConfig(direction="medoid"))
    assert max(single) - 0.02 < match_features(truth, medoid.directions).mean < recovered
    assert found.tracks["n_seeds"].between(5, 6).all()
    # members named in the table are those rows
    latents = found.tracks.filter(like="latent_").to_numpy()[0]
    members = [decoders[s][latent] for s, latent in enumerate(latents) if latent >= 0]
    assert np.abs(np.array(members) @ found.directions[0]).min() > 0.7


def test_a_copy_of_opposite_sign_counts_and_does_not_cancel():
    truth, _, _, _ = world()
    found = consensus_directions([truth, -truth, truth])
    assert np.allclose(np.abs(found.directions @ truth.T).max(axis=1), 1)


def test_dictionaries_without_common_features_are_an_error():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="no feature is found in 3 of 3"):
        consensus_directions([rng.standard_normal((5, 64)) for _ in range(3)])
    with pytest.raises(InputError, match="at least two"):
        consensus_directions([np.eye(3)])


def test_fitting_the_encoder_keeps_the_decoder_and_finds_the_codes():
    truth, _, rows, codes = world()
    sae = fit_encoder(truth, rows, K)
    assert np.allclose(sae.W_dec.numpy(), truth, atol=1e-6)
    by = yardsticks(rows, ConsensusConfig())
    measured = measure_sae(sae, by)
    assert measured["variance_kept"] > 0.85
    assert measured["l0"] <= K
    import torch

    found = sae.encode(torch.from_numpy(rows)).numpy()
    correlation = [np.corrcoef(found[:, j], codes[:, j])[0, 1] for j in range(N)]
    assert np.mean(correlation) > 0.9


def records(decoders, rows):
    made = []
    for s, one in enumerate(decoders):
        pre = (rows - rows.mean(axis=0)) @ one.T
        kept = np.where(pre >= np.sort(pre, axis=1)[:, [-K]], np.maximum(pre, 0), 0)
        made.append(SAERecord(f"sae {s}", "topk", s, one, codes=kept))
    return made


def test_consensus_keeps_more_than_subsets_of_the_same_size():
    truth, decoders, rows, codes = world()
    classes = codes.argmax(axis=1)
    readout = Readout(
        lambda index, x: 3 * (x - 1) @ truth.T, tuple(map(str, range(N))), "logits", classes
    )
    config = ConsensusConfig(steps=200, compared=2)
    result = build_consensus(
        feature_group(records(decoders, rows)), yardsticks(rows, config, readout, classes), config
    )
    summary = worth_summary(result.table, 0.95)
    table = summary.set_index("dictionary")
    worth = {str(name): dict(row) for name, row in table.iterrows()}
    for subset in ("random subset", "most active subset", "most reproducible subset"):
        for column in ("variance_kept", "loss_recovered", "probe_accuracy"):
            assert worth["consensus"][column] > worth[subset][column], (subset, column)
    assert worth["consensus"]["n_latents"] < worth["one seed"]["n_latents"]
    assert (table["l0"] <= K).all()
    assert table.loc["one seed", "n_saes"] == 2
    # picking what comes back is worth more than picking at random
    assert (
        worth["most reproducible subset"]["loss_recovered"]
        > (worth["random subset"]["loss_recovered_high"])
    )
    figure = consensus_figure(summary, pd.DataFrame())
    measures = ["variance kept", "loss recovered", "accuracy of a probe"]
    assert [axis.get_xlabel() for axis in figure.axes] == measures
    more = pd.concat([summary, summary.assign(min_share=1.0, n_latents=9)])
    assert [axis.get_ylabel() for axis in consensus_figure(more, pd.DataFrame()).axes] == measures


def test_consensus_recurs_in_other_seeds_more_than_single_seeds_do():
    _, decoders, _, _ = world(n_seeds=8)
    table = consensus_recurrence(decoders, null_draws=20)
    found = table.set_index("between")["pw_mcc"]
    ends = table.set_index("between")[["pw_mcc_low", "pw_mcc_high"]]
    for other in ("most reproducible of one seed", "random of one seed"):
        assert ends["pw_mcc_low"]["consensus"] > ends["pw_mcc_high"][other]
    assert found["most reproducible of one seed"] > found["random of one seed"]
    assert found["consensus"] > found["permuted null"] + 0.1
    assert table["found"][0] > 0.9
    assert table["p"].iloc[-1] == pytest.approx(1 / 21)
    with pytest.raises(InputError, match="at least six"):
        consensus_recurrence(decoders[:5])


def test_seeds_that_share_nothing_do_not_recur():
    """What four seeds share by construction, another four do not have."""
    first, second = (world(n_seeds=4, seed=s)[1] for s in (0, 1))
    table = consensus_recurrence([*first, *second], null_draws=40).set_index("between")
    null = table.loc["permuted null"]
    assert table["pw_mcc"]["consensus"] < null["pw_mcc_high"]  # so few make the null high
    assert null["p"] > 0.05
    assert table["found"]["consensus"] < 0.2


def test_probe_is_right_for_linear_classes_and_at_chance_otherwise():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 400)
    codes = np.eye(4)[classes] + 0.1 * rng.standard_normal((400, 4))
    half = slice(0, 200), slice(200, 400)
    assert probe_accuracy(*((codes[h], classes[h]) for h in half)) == 1.0
    guess = probe_accuracy(*((rng.standard_normal((200, 4)), classes[h]) for h in half))
    assert guess < 0.45

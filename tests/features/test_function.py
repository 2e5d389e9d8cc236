"""Function of planted features: partners do the same, random latents do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax

from husai.activations import Activations
from husai.consistency.analyses.labels import class_labels
from husai.errors import InputError
from husai.features import FeaturesConfig, feature_cards, feature_group
from husai.features.function import (
    ablation_fingerprints,
    fingerprint_correlation,
    functional_consistency,
    measured_rows,
    role_partners,
    substitution,
)
from husai.features.readouts import Readout, modular_readout
from husai.features.sampled import sampled_function
from husai.tasks import ModularTaskConfig, modular_dataset
from husai.transformer import TransformerConfig, build_transformer
from husai.transformer.functional import answer_activations

from .conftest import N_SHARED, D, planted_records
from .test_cards import answers

M = 5
WEIGHTS = np.random.default_rng(7).standard_normal((D, M))


def readout(kind="logits"):
    """A nonlinear layer, so that effects are not products."""
    return Readout(
        lambda index, rows: np.tanh(0.3 * rows @ WEIGHTS) * 3,
        tuple(f"output {i}" for i in range(M)),
        kind,
        answers() % M,
    )


def brute_force(group, s, rows, kind):
    """Change of every output on every row, one latent at a time."""
    out = readout(kind).apply
    codes, decoder = group.codes[s].toarray(), group.live[s].record.W_dec[group.live[s].index]
    found = []
    for j in range(codes.shape[1]):
        change = out(None, rows - codes[:, [j]] * decoder[j]) - out(None, rows)
        if kind == "logits":
            change -= change.mean(axis=1, keepdims=True)
        found.append(change.ravel())
    return np.array(found)


@pytest.mark.parametrize("kind", ["logits", "rows"])
def test_fingerprints_and_their_correlation_equal_brute_force(planted, kind):
    group, out = planted.group, readout(kind)
    rows = measured_rows(group, planted.rows, out, FeaturesConfig())
    assert rows.exact
    prints = [
        ablation_fingerprints(
            group.codes[s], group.live[s].record.W_dec[group.live[s].index], rows, out
        )
        for s in (0, 1)
    ]
    expected = [brute_force(group, s, planted.rows, kind) for s in (0, 1)]
    for found, wanted in zip(prints, expected, strict=True):
        assert np.allclose(found.toarray(), wanted, atol=1e-4)
    n = len(expected[0])
    correlation = np.corrcoef(np.concatenate(expected))[:n, n:]
    assert np.allclose(fingerprint_correlation(*prints), correlation, atol=1e-4)


def test_substitution_equals_brute_force(planted):
    group, out = planted.group, readout()
    config = FeaturesConfig(substitution_rows=10_000)
    rows = measured_rows(group, planted.rows, out, config)
    roles = role_partners(group, 0, 1, np.random.default_rng(0))
    found = substitution(group, 0, 1, roles, rows, out, config)
    decoder = [one.record.W_dec[one.index] for one in group.live]
    codes = [one.toarray() for one in group.codes]

    def kl(changed):
        p, q = (log_softmax(out.apply(None, x), axis=1) for x in (planted.rows, changed))
        return (np.exp(p) * (p - q)).sum()

    for role, partners in roles.items():
        for j, k in enumerate(partners):
            own = codes[0][:, [j]] * decoder[0][j]
            other = codes[1][:, [k]] * decoder[1][k]
            active = (codes[0][:, j] > 0) | (codes[1][:, k] > 0)
            left = np.where(active[:, None], other - own, 0)
            wanted = np.clip(1 - kl(planted.rows + left) / kl(planted.rows - own), -1, 1)
            assert found[role][j] == pytest.approx(wanted, abs=1e-5)


def test_planted_partners_have_function_1_and_others_are_at_chance(planted):
    cards = feature_cards(planted.group, [class_labels("answer", answers())])
    tables = functional_consistency(cards, planted.rows, readout())
    truth = {one.record.id: planted.truth[s] for s, one in enumerate(planted.group.live)}
    is_shared = np.array(
        [truth[i][j] >= 0 for i, j in tables.partners[["id", "latent"]].to_numpy()]
    )
    mine = tables.partners[is_shared]
    assert np.allclose(mine["function"], 1, atol=1e-4)
    assert np.allclose(mine["repaired"], 1, atol=1e-4)
    others = mine[["function_random", "function_negative", "repaired_random"]].to_numpy()
    assert np.abs(others[:, 0]).mean() < 0.2
    assert np.abs(others[:, 1]).mean() < 0.3
    assert others[:, 2].mean() < 0.1
    strata = {row["stratum"]: row for row in tables.strata.to_dict("records")}
    assert strata["answer"]["function"] == pytest.approx(1, abs=1e-4)
    everything = strata["all"]
    assert everything["function_low"] <= everything["function"] <= everything["function_high"]
    assert everything["cosine_predicts"] > 0.5
    assert strata["answer"]["n_features"] + strata["other"]["n_features"] == len(cards.features)
    joined = cards.join(tables.features, tables.partners, [tables.note])
    assert joined.features["function"].notna().all()
    effect = joined.features.loc[joined.features["kind"] == "answer", "effect"].iloc[0]
    assert "KL divergence" in effect
    assert "output" in effect


def test_shuffled_partners_are_at_chance(planted):
    """The same latents with shuffled partners: what a wrong match would score."""
    records, _, rows = planted_records()
    rng = np.random.default_rng(1)
    shuffled = [records[0]]
    for one in records[1:]:
        order = rng.permutation(one.d_sae)
        shuffled.append(replace(one, codes=one.codes.tocsc()[:, order].tocsr()))
    cards = feature_cards(feature_group(shuffled))
    tables = functional_consistency(cards, rows, readout())
    everything = tables.strata.to_dict("records")[0]
    assert everything["function"] < 0.3
    assert everything["repaired"] < 0.3


def test_a_sample_of_rows_is_reported_and_agrees_with_all_rows(planted):
    cards = feature_cards(planted.group)
    whole = functional_consistency(cards, planted.rows, readout())
    part = functional_consistency(
        cards, planted.rows, readout(), FeaturesConfig(max_function_rows=120)
    )
    assert "all 169 rows" in whole.note
    assert "a random 120 of 169 rows" in part.note
    a, b = whole.strata.loc[0, "function"], part.strata.loc[0, "function"]
    assert a == pytest.approx(b, abs=0.1)
    with pytest.raises(InputError, match="168 rows"):
        functional_consistency(cards, planted.rows[1:], readout())


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_mid", "blocks.0.hook_resid_post"])
def test_the_modular_readout_gives_the_logits_of_the_model(hook):
    dataset = modular_dataset(ModularTaskConfig(modulus=11))
    words = dataset.vocabulary
    config = TransformerConfig(d_model=20, n_heads=4, d_mlp=36)
    model = build_transformer(config, words.d_vocab, words.n_ctx)
    from husai.transformer import TrainedTransformer, TransformerTrainingConfig

    trained = TrainedTransformer(
        model.state_dict(), config, TransformerTrainingConfig(), words, pd.DataFrame()
    )
    a, b = (torch.from_numpy(x) for x in np.divmod(np.arange(121), 11))
    with torch.no_grad():
        found = answer_activations(trained.state_dict, a, b, words, config)
    values = found.resid_mid if hook.endswith("mid") else found.resid_post
    rows = Activations(values, torch.zeros(121, dtype=torch.int64), hook, -1)
    made = modular_readout(trained, rows)
    logits = made.apply(np.arange(121), values.numpy())
    assert np.allclose(logits, found.logits[:, :11].numpy(), atol=1e-5)
    assert made.targets.tolist() == ((a + b) % 11).tolist()
    for other in (
        Activations(values, rows.split, "blocks.0.mlp.hook_post", -1),
        Activations(values[1:], rows.split[1:], hook, -1),
        Activations(values, rows.split, hook, 0),
    ):
        with pytest.raises(InputError):
            modular_readout(trained, other)


def test_latents_without_effect_are_kept(planted):
    """A latent without contribution has a function of 0, and its repair is undefined."""
    records, _, rows = planted_records()
    W = records[0].W_dec.copy()
    W[2] *= 1e-9
    cards = feature_cards(feature_group([replace(records[0], W_dec=W), *records[1:]]))
    tables = functional_consistency(cards, rows, readout())
    own = tables.partners[(tables.partners["id"] == records[0].id) & (tables.partners.latent == 2)]
    assert own["repaired"].isna().all()
    assert len(own) == 2
    assert N_SHARED  # the others are as before


def sampled_readout(rows):
    """The readout with the outputs of the rows as they are."""
    own = readout("rows")
    return replace(own, unchanged=own.apply(np.arange(len(rows)), rows))


def test_function_on_samples_is_that_of_all_rows_when_all_are_taken(planted):
    cards = feature_cards(planted.group)
    whole = functional_consistency(
        cards, planted.rows, readout("rows"), FeaturesConfig(substitution_rows=10_000)
    )
    config = FeaturesConfig(function_features=100, sampled_rows=10_000)
    part = sampled_function(cards, planted.rows, sampled_readout(planted.rows), config)
    keys = ["id", "latent", "other_id"]
    both = part.partners.merge(whole.partners, on=keys, suffixes=("", "_whole"))
    assert len(both) == len(whole.partners)
    for name in ("function", "function_negative", "repaired", "repaired_negative"):
        assert np.allclose(both[name], both[f"{name}_whole"], atol=1e-4, equal_nan=True), name
    assert (part.partners["function_se"] < 1e-12).all()
    own = part.features.merge(whole.features, on=["id", "latent"], suffixes=("", "_whole"))
    assert np.allclose(own["ablation"], own["ablation_whole"], rtol=1e-4)


def test_the_stated_error_of_a_sample_is_its_error(planted):
    """Over many samples, function is off by about its standard error, and not to one side."""
    cards = feature_cards(planted.group)
    made = sampled_readout(planted.rows)
    whole = sampled_function(
        cards, planted.rows, made, FeaturesConfig(function_features=100, sampled_rows=10_000)
    ).partners.set_index(["id", "latent", "other_id"])
    off, stated = [], []
    for seed in range(6):
        part = sampled_function(
            cards,
            planted.rows,
            made,
            FeaturesConfig(function_features=6, sampled_rows=6, seed=seed),
        )
        assert "6 features of each SAE" in part.note
        own = part.partners.set_index(["id", "latent", "other_id"])
        known = own["function_se"] > 0
        off.append((own["function"] - whole.loc[own.index, "function"])[known])
        stated.append(own["function_se"][known])
    errors = np.concatenate(off)
    assert len(errors) > 60
    size = np.sqrt(np.square(errors).mean())
    assert 0.5 < np.sqrt(np.square(np.concatenate(stated)).mean()) / size < 2
    assert abs(errors.mean()) < 3 * size * np.sqrt(12 / len(errors))


def test_planted_partners_have_function_1_on_samples_and_shuffled_ones_chance(planted):
    made = sampled_readout(planted.rows)
    config = FeaturesConfig(function_features=20, sampled_rows=6)
    found = sampled_function(feature_cards(planted.group), planted.rows, made, config).partners
    truth = {one.record.id: planted.truth[s] for s, one in enumerate(planted.group.live)}
    is_shared = np.array([truth[i][j] >= 0 for i, j in found[["id", "latent"]].to_numpy()])
    assert found.loc[is_shared, "function"].mean() > 0.9
    assert found.loc[is_shared, "function_random"].abs().mean() < 0.2
    assert np.allclose(found.loc[is_shared, "repaired"], 1, atol=1e-4)
    with pytest.raises(InputError, match="unchanged"):
        sampled_function(feature_cards(planted.group), planted.rows, readout("rows"))

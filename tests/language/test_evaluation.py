"""Effect of an SAE on a model: exact where the answer is known, and equal to the model's loss."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from husai.errors import InputError
from husai.language import ReadingConfig, evaluation, extract_stores
from husai.language.config import EvaluationConfig
from husai.language.evaluation import (
    CATEGORIES,
    density_histogram,
    model_metrics,
    reconstruction_metrics,
    rows_per_context,
    saebench_results,
)
from husai.language.extraction import held_out_contexts
from husai.sae import SAEConfig, TrainedSAE

HOOK = "blocks.1.hook_out"
READING = ReadingConfig(hook_names=(HOOK,), dtype="float32")
CONFIG = EvaluationConfig(contexts=40, batch_tokens=128)


def sae_of(W_enc, W_dec, b_dec) -> TrainedSAE:
    d_sae = W_dec.shape[0]
    return TrainedSAE(
        config=SAEConfig(architecture="relu", d_sae=d_sae, l1_coefficient=1.0),
        W_enc=W_enc,
        b_enc=torch.zeros(d_sae),
        W_dec=W_dec,
        b_dec=b_dec,
        threshold=None,
        W_dec_init=W_dec,
        metrics={},
        history=pd.DataFrame(),
        density=torch.full((d_sae,), 0.5),
    )


def identity(d: int) -> TrainedSAE:
    """Build an SAE that reconstructs perfectly: a latent for each sign of each dimension."""
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    return sae_of(both.T.contiguous(), both, torch.zeros(d))


def silent(d: int, value: torch.Tensor) -> TrainedSAE:
    """Build an SAE whose reconstruction is the same for all inputs."""
    return sae_of(torch.zeros(d, 2), torch.zeros(2, d), value)


@pytest.mark.parametrize("kind", ["bert", "bert_encoder", "gpt2"])
def test_a_perfect_sae_changes_nothing_and_a_constant_one_equals_ablation(kind, models, tokens):
    model, (text, _) = models[kind], tokens[kind]
    mean = torch.linspace(-1, 1, 16)
    saes = {
        "perfect": identity(16),
        "zero": silent(16, torch.zeros(16)),
        "mean": silent(16, mean),
    }
    measured = model_metrics(
        model, text, (HOOK, "all"), saes, READING, CONFIG, mean, progress=False
    )
    table: Any = measured.set_index("sae_id")
    change = "output_change" if kind == "bert_encoder" else "kl_div"
    assert table.loc["perfect", f"{change}_score"] == pytest.approx(1, abs=1e-5)
    assert table.loc["zero", f"{change}_score"] == pytest.approx(0, abs=1e-6)
    for way in ("ablation", "mean_ablation"):
        sae = {"ablation": "zero", "mean_ablation": "mean"}[way]
        expected = table.loc[sae, f"{change}_with_{way}"]
        assert table.loc[sae, f"{change}_with_sae"] == pytest.approx(expected)
        assert expected > 1e-3
    if kind != "bert_encoder":
        assert table.loc["perfect", "ce_loss_score"] == pytest.approx(1, abs=1e-5)
        assert table.loc["zero", "ce_loss_score"] == pytest.approx(0, abs=1e-9)
        zero = table.loc["zero"]
        assert zero["ce_loss_with_sae"] == pytest.approx(zero["ce_loss_with_ablation"])
    else:
        assert not [name for name in table.columns if str(name).startswith("ce_")]


def test_the_loss_equals_that_of_the_model(models, tokens, model_folders):
    from transformers import GPT2LMHeadModel

    model, (text, _) = models["gpt2"], tokens["gpt2"]
    table = model_metrics(
        model, text, (HOOK, "all"), {"one": identity(16)}, READING, CONFIG, torch.zeros(16),
        progress=False,
    )  # fmt: skip
    whole = GPT2LMHeadModel.from_pretrained(model_folders["gpt2"]).eval()
    total, n = 0.0, 0
    first = len(text) - text.n_held_out
    for ids, length in zip(text.ids[first:][:40], text.length[first:][:40], strict=True):
        batch = torch.from_numpy(ids[:length].astype(np.int64))[None]
        if length > 1:
            with torch.no_grad():
                total += float(whole(batch, labels=batch).loss) * (length - 1)
            n += length - 1
    assert table["ce_loss_without_sae"][0] == pytest.approx(total / n, abs=1e-4)
    assert table["total_tokens_eval_reconstruction"][0] == n


def test_only_the_position_that_is_read_is_changed(models, tokens):
    model, (text, _) = models["gpt2"], tokens["gpt2"]
    saes = {"zero": silent(16, torch.zeros(16))}
    last = model_metrics(
        model, text, (HOOK, -1), saes, READING, CONFIG, torch.zeros(16), progress=False
    )
    # what follows the last token is not asked, so that nothing that is asked has changed
    assert last["kl_div_with_ablation"][0] == pytest.approx(0, abs=1e-6)
    assert math.isclose(last["ce_loss_with_sae"][0], last["ce_loss_without_sae"][0], abs_tol=1e-6)
    with_loss = CONFIG.model_copy(update={"measure": "cross_entropy"})
    with pytest.raises(InputError, match="does not predict tokens, so it has no cross-ent"):
        model_metrics(
            models["bert_encoder"], text, (HOOK, "all"), saes, READING, with_loss, torch.zeros(16)
        )
    with pytest.raises(InputError, match="is the mean of a context"):
        model_metrics(model, text, (HOOK, "mean"), saes, READING, CONFIG, torch.zeros(16))


def test_reconstruction_metrics_equal_their_definitions():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5000, 8, generator=generator) + 1
    sae = replace(identity(8), b_enc=torch.full((16,), -0.3))
    found = reconstruction_metrics(sae, rows)
    x = rows.double().numpy()
    x_hat = np.sign(x) * np.maximum(np.abs(x) - 0.3, 0)
    f = np.abs(x_hat)
    assert found["explained_variance"] == pytest.approx(
        1 - (x - x_hat).var(0).sum() / x.var(0).sum(), rel=1e-6
    )
    assert found["mse"] == pytest.approx(((x - x_hat) ** 2).mean(), rel=1e-6)
    norms = np.linalg.norm(x, axis=1), np.linalg.norm(x_hat, axis=1)
    assert found["cossim"] == pytest.approx(((x * x_hat).sum(1) / (norms[0] * norms[1])).mean())
    assert found["l2_ratio"] == pytest.approx((norms[1] / norms[0]).mean(), rel=1e-6)
    bias = (x_hat**2).sum(1).mean() / (x * x_hat).sum(1).mean()
    assert found["relative_reconstruction_bias"] == pytest.approx(bias, rel=1e-6)
    assert bias < 1  # it shrinks
    assert found["l0"] == pytest.approx((f > 0).sum(1).mean())
    assert found["l1"] == pytest.approx(f.sum(1).mean(), rel=1e-6)
    assert found["frac_alive"] == 1


@pytest.mark.parametrize("chunk", [3, 1000])
def test_rows_per_context_agree_with_a_loop(monkeypatch, chunk):
    monkeypatch.setattr(evaluation, "CHUNK", chunk)
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    rows[:, 7] = -rows[:, 7].abs()  # the latent of its sign never fires
    context = np.repeat([2, 3, 7, 8], [5, 1, 14, 20])
    sae = identity(8)
    codes = sae.encode(rows).numpy() > 0
    expected = []
    for latent in range(16):
        counts = [codes[context == one, latent].sum() for one in np.unique(context)]
        counts = [count for count in counts if count]
        expected.append(np.mean(counts) if counts else np.nan)
    assert np.isnan(expected).any()
    np.testing.assert_allclose(rows_per_context(sae, rows, context), expected)


def test_densities_are_counted_in_bins():
    table = density_histogram({"one": torch.tensor([0.0, 0.0, 1e-7, 2e-3, 0.5, 1.0])})
    assert table["latents"].sum() == 6
    assert table.loc[table["low"].isna(), "latents"].tolist() == [2]
    low, high, latents = (table[name].to_numpy() for name in ("low", "high", "latents"))
    for density in (1e-7, 2e-3, 0.5, 1.0):
        at = np.log10(density)
        (bin_of,) = np.flatnonzero((low < at) & (at <= high))
        assert latents[bin_of] > 0


def test_the_json_has_the_names_of_saebench(tmp_path, models, tokens):
    model, (text, _) = models["gpt2"], tokens["gpt2"]
    store = extract_stores(model, text, READING, tmp_path, progress=False)[f"{HOOK}@all"]
    rows = store.rows(store.n_rows, store.n_rows + store.n_held_out)
    sae = identity(16)
    table = model_metrics(
        model, text, (HOOK, "all"), {"one": sae}, READING, CONFIG, rows.mean(0), progress=False
    )
    metrics: dict[str, Any] = {str(name): table[name][0] for name in table.columns}
    metrics |= reconstruction_metrics(sae, rows)
    context = held_out_contexts(text, "all", READING)
    often = rows_per_context(sae, rows, context)
    found = saebench_results(sae, metrics, {"sae_id": "one"}, often)
    values = found["eval_result_metrics"]
    assert set(values) == set(CATEGORIES)
    assert all(value is not None for group in values.values() for value in group.values())
    assert values["model_performance_preservation"]["ce_loss_score"] == pytest.approx(1, abs=1e-5)
    assert len(found["eval_result_details"]) == 32
    details = found["eval_result_details"]
    assert details[0]["consistent_activation_heuristic"] == often[0] > 0
    assert details[0]["encoder_decoder_cosine_sim"] == pytest.approx(1)

"""Activations that are computed when needed train the same SAEs as those of a store."""

from __future__ import annotations

import pytest
import torch

from husai.errors import InputError
from husai.language import LiveRows, ReadingConfig, extract_stores
from husai.sae import BankTrainingConfig, SAEConfig, train_bank
from husai.sae import buffered as buffered_module

HOOK = "blocks.1.hook_out"
READING = ReadingConfig(hook_names=(HOOK,), dtype="float32")


def test_rows_equal_those_of_a_store_and_train_the_same_saes(tmp_path, models, tokens, monkeypatch):
    model, (text, _) = models["gpt2"], tokens["gpt2"]
    store = extract_stores(model, text, READING, tmp_path, progress=False)[f"{HOOK}@all"]
    live = LiveRows(model, text, (HOOK, "all"), READING)
    assert (live.n_rows, live.n_held_out) == (store.n_rows, store.n_held_out)
    for start, stop in ((0, 1), (100, 400), (store.n_rows, store.n_rows + store.n_held_out)):
        out = torch.empty(stop - start, 16)
        live.read(start, stop, out)
        assert torch.allclose(out, store.rows(start, stop), atol=2e-5)
    # of a sample of the rows, and of all of them
    assert live.mean_square == pytest.approx(store.mean_square, rel=0.1)
    monkeypatch.setattr(buffered_module, "BLOCK_ROWS", 64)
    training = BankTrainingConfig(
        steps=20, batch_size=100, eval_interval=10, threads=1, normalize="none",
        rows_memory_gb=2 * 4 * 16 * 512 / 1e9,
    )  # fmt: skip
    config = [SAEConfig(d_sae=24, k=3)]
    (one,) = train_bank(live, config, training)
    (other,) = train_bank(store, config, training)
    # the same batches; rows differ by rounding
    assert torch.nn.functional.cosine_similarity(one.W_dec, other.W_dec).min() > 0.999
    (again,) = train_bank(live, config, training)
    assert torch.equal(one.W_dec, again.W_dec)


def test_means_of_contexts_are_refused(models, tokens):
    with pytest.raises(InputError, match="can only be read into a store"):
        LiveRows(models["gpt2"], tokens["gpt2"][0], (HOOK, "mean"), READING)

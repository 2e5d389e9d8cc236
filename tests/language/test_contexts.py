"""The contexts of a latent: they equal those found by sorting, and show the token marked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from husai.language import ReadingConfig, extract_stores
from husai.language.config import ContextsConfig
from husai.language.contexts import contexts_table, logit_effects, row_words, top_rows

HOOK = "blocks.1.hook_out"
READING = ReadingConfig(hook_names=(HOOK,), dtype="float32")


def test_the_top_rows_equal_those_of_a_full_sort(monkeypatch, random_sae):
    monkeypatch.setattr("husai.language.contexts.CHUNK", 37)
    sae = random_sae(0)
    rows = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    best, numbers = top_rows(sae, rows, 6)
    codes = sae.encode(rows).numpy()
    order = np.argsort(-codes, axis=0, kind="stable")[:6]
    expected = np.take_along_axis(codes, order, axis=0)
    assert np.allclose(best, expected, atol=1e-6)
    fires = expected > 0
    assert (numbers[fires] == order[fires]).all()


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_every_context_shows_the_token_of_its_row(tmp_path, models, tokens, kind, random_sae):
    model, (text, documents) = models[kind], tokens[kind]
    store = extract_stores(model, text, READING, tmp_path, progress=False)[f"{HOOK}@all"]
    rows = store.rows(store.n_rows, store.n_rows + store.n_held_out)
    saes = {"one": random_sae(1), "two": random_sae(2)}
    config = ContextsConfig(contexts=3, before=4, after=2)
    table = contexts_table(
        model, text, documents, saes, rows, (HOOK, "all"), READING, config, progress=False
    )
    assert table.groupby(["sae_id", "latent"]).size().max() == 3
    places = np.argwhere(text.ordinary)
    held = places[places[:, 0] >= len(text) - text.n_held_out]
    for row in table.sample(40, random_state=0).to_dict("records"):
        context, place = held[int(row["row"])]
        word = model.tokenizer.convert_ids_to_tokens(int(text.ids[context, place]))
        assert row["token"] == word
        assert f"«{word}»" in str(row["text"])
        assert documents["held_out"][text.document[context, place]]
        codes = saes[str(row["sae_id"])].encode(rows[[int(row["row"])]])
        assert float(codes[0, int(row["latent"])]) == pytest.approx(
            float(row["activation"]), abs=1e-5
        )


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_words_of_rows_equal_the_held_out_tokens(models, tokens, kind):
    model, (text, _) = models[kind], tokens[kind]
    table = row_words(model.tokenizer, text, "all", READING)
    places = np.argwhere(text.ordinary)
    held = places[places[:, 0] >= len(text) - text.n_held_out]
    assert table["document"].tolist() == held[:, 0].tolist()
    for (context, place), word in zip(held.tolist(), table["token"], strict=True):
        whole = model.tokenizer.convert_ids_to_tokens(int(text.ids[context, place]))
        assert word.strip() == whole
    assert row_words(model.tokenizer, text, "mean", READING).empty


def test_logit_effects_equal_a_product_with_the_unembedding(models, random_sae):
    sae = random_sae(1)
    table = logit_effects(models["gpt2"], {"one": sae}, ContextsConfig(tokens=2))
    W_U = models["gpt2"].bridge.original_model.lm_head.weight.detach()
    effect = sae.W_dec @ W_U.T
    effect = effect - effect.mean(1, keepdim=True)
    assert len(table) == 48
    for latent in (0, 20, 47):
        top = int(effect[latent].argmax())
        assert table["promoted"][latent][0] == models["gpt2"].tokenizer.decode([top]).strip()
        assert table["promoted_effect"][latent][0] == pytest.approx(float(effect[latent].max()))
        assert table["suppressed_effect"][latent][0] == pytest.approx(float(effect[latent].min()))
    assert logit_effects(models["bert_encoder"], {"one": sae}, ContextsConfig()).empty

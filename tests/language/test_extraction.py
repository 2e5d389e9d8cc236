"""Activations of a language model: equal to those of a full run, also after an interruption."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from husai.errors import InputError
from husai.language import (
    LanguageModelConfig,
    ReadingConfig,
    check_hooks,
    extract_stores,
    held_out_activations,
    load_language_model,
    row_places,
)

HOOKS = ("blocks.1.hook_out", "blocks.1.attn.hook_z", "blocks.1.attn.hook_z.head1@-1")
READING = ReadingConfig(
    hook_names=(*HOOKS, "blocks.0.hook_out@mean", "blocks.1.hook_out@2"),
    dtype="float32",
    shard_contexts=50,
    batch_tokens=200,
)


def expected_rows(model, tokens, name, position):
    """Run contexts one by one without padding, with TransformerLens's own cache."""
    base, _, head = name.partition(".head")
    found = []
    for ids, length, document in zip(tokens.ids, tokens.length, tokens.document, strict=True):
        batch = torch.from_numpy(ids[:length].astype(np.int64))[None]
        with torch.no_grad():
            _, cache = model.bridge.run_with_cache(
                batch, attention_mask=torch.ones_like(batch), names_filter=[base]
            )
        value = cache[base][0]
        value = value[:, int(head)] if head else value.flatten(1)
        kept = value[torch.from_numpy(document[:length] >= 0)]
        if position == "mean":
            found.append(kept.mean(0, keepdim=True))
        elif position == "all":
            found.append(kept)
        elif -len(kept) <= position < len(kept):
            found.append(kept[position][None])
    return torch.cat(found)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_rows_equal_those_of_each_context_read_alone(tmp_path, models, tokens, kind):
    model, (text, _) = models[kind], tokens[kind]
    stores = extract_stores(model, text, READING, tmp_path, progress=False)
    assert list(stores) == [
        "blocks.1.hook_out@all",
        "blocks.1.attn.hook_z@all",
        "blocks.1.attn.hook_z.head1@-1",
        "blocks.0.hook_out@mean",
        "blocks.1.hook_out@2",
    ]
    for (name, position), (key, store) in zip(READING.places(), stores.items(), strict=True):
        expected = expected_rows(model, text, name, position)
        found = store.rows(0, store.n_rows + store.n_held_out)
        assert found.shape == expected.shape, key
        # rounding differs with the length that a batch is cut to
        assert torch.allclose(found, expected, atol=2e-5), key
    (first, *_) = held_out_activations(stores, READING)
    assert first.key == "blocks.1.hook_out@all"
    assert len(first.values) == text.ordinary[-text.n_held_out :].sum()
    assert first.training_rows is stores[first.key]


def test_every_row_has_its_token(models, tokens):
    text, _ = tokens["bert"]
    places = row_places(text, "all", READING)
    assert (text.document[places.context, places.place] >= 0).all()
    assert len(places.context) == text.about["counts"]["tokens"]
    last = row_places(text, -1, READING)
    # the last ordinary token stands before [SEP]
    assert (last.place == text.length[last.context] - 2).all()
    with_special = ReadingConfig(hook_names=("blocks.0.hook_out",), special_tokens=True)
    assert len(row_places(text, "all", with_special).context) == text.length.sum()
    third = row_places(text, 2, READING)
    assert (text.place[third.context, third.place] == 2).all()
    assert len(third.context) == (text.ordinary.sum(1) > 2).sum()


def test_a_killed_extraction_continues_to_the_same_bytes(tmp_path, models, tokens, monkeypatch):
    model, (text, _) = models["gpt2"], tokens["gpt2"]
    whole = extract_stores(model, text, READING, tmp_path / "whole", progress=False)
    calls = 0
    values = type(model).values

    def killed(self, *arguments):
        nonlocal calls
        calls += 1
        if calls > 12:
            raise KeyboardInterrupt
        return values(self, *arguments)

    monkeypatch.setattr(type(model), "values", killed)
    with pytest.raises(KeyboardInterrupt):
        extract_stores(model, text, READING, tmp_path / "killed", progress=False)
    torn = tmp_path / "killed" / "blocks.1.hook_out@all" / "rows-000000.safetensors"
    torn.write_bytes(torn.read_bytes()[:-7])
    calls = -(10**9)
    again = extract_stores(model, text, READING, tmp_path / "killed", progress=False)
    for key, store in whole.items():
        for path in store.folder.iterdir():
            assert path.read_bytes() == (again[key].folder / path.name).read_bytes(), path
    calls = 11  # all is there: one pass over a context, for the widths
    extract_stores(model, text, READING, tmp_path / "killed", progress=False)
    # a shard that is torn later is read again
    calls = -(10**9)
    torn.write_bytes(torn.read_bytes()[:40])
    extract_stores(model, text, READING, tmp_path / "killed", progress=False)
    assert torn.read_bytes() == (tmp_path / "whole" / torn.parent.name / torn.name).read_bytes()


def test_an_untrained_model_has_the_weights_of_its_seed(model_folders, models):
    config = LanguageModelConfig(name=str(model_folders["gpt2"]), device="cpu")
    torch.manual_seed(5)
    one = load_language_model(config, trained=False)
    torch.manual_seed(6)
    again = load_language_model(config, trained=False)
    other = load_language_model(config.model_copy(update={"untrained_seed": 1}), trained=False)
    assert one.about == again.about
    weights = {m.about["weights"] for m in (one, other, models["gpt2"])}
    assert len(weights) == 3


def test_every_kind_of_model_is_recognised(models):
    assert {kind: model.kind for kind, model in models.items()} == {
        "bert": "masked",
        "bert_encoder": "encoder",
        "gpt2": "causal",
    }


def test_bad_input_gives_an_error_of_one_line(tmp_path, models, tokens, model_folders):
    model, (text, _) = models["gpt2"], tokens["gpt2"]
    with pytest.raises(InputError, match=r"no hook 'blocks\.9\.hook_out'.*blocks\.2\.hook_out"):
        check_hooks(model, ["blocks.9.hook_out"])
    with pytest.raises(InputError, match="the hook has no heads"):
        model.values(torch.ones(1, 4).long(), torch.ones(1, 4).long(), ["blocks.0.hook_out.head0"])
    with pytest.raises(InputError, match="the hook has 2 heads"):
        model.values(
            torch.ones(1, 4).long(), torch.ones(1, 4).long(), ["blocks.0.attn.hook_z.head7"]
        )
    long = text.__class__(
        *(np.repeat(a, 2, axis=1) for a in (text.ids, text.document, text.place)),
        text.length, text.n_held_out, text.about,
    )  # fmt: skip
    with pytest.raises(
        InputError, match=r"text\.context: 32 tokens, but the model reads at most 24"
    ):
        extract_stores(model, long, READING, tmp_path, progress=False)
    extract_stores(model, text, READING, tmp_path, progress=False)
    other = READING.model_copy(update={"special_tokens": True})
    with pytest.raises(InputError, match="holds other activations"):
        extract_stores(model, text, other, tmp_path, progress=False)
    for name in ("no/such/model", str(tmp_path / "empty")):
        with pytest.raises(InputError, match=r"language_model\.name"):
            load_language_model(LanguageModelConfig(name=name, device="cpu"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_language_model(LanguageModelConfig(name=str(tmp_path / "broken"), device="cpu"))

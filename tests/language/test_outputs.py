"""What a change of one token's activations does: against the model run on that context alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from husai.errors import InputError
from husai.language import ReadingConfig, extract_stores
from husai.language.extraction import held_out_activations, row_places
from husai.language.outputs import TokenOutputs

HOOK = "blocks.1.hook_out"
READING = ReadingConfig(hook_names=(HOOK,), dtype="float16", batch_tokens=64)


def held_out(tmp_path, model, text):
    stores = extract_stores(model, text, READING, tmp_path, progress=False)
    (rows,) = held_out_activations(stores, READING)
    return rows


@pytest.mark.parametrize("kind", ["bert_encoder", "gpt2"])
def test_outputs_are_those_of_each_context_with_one_row_changed(tmp_path, models, tokens, kind):
    model, (text, _) = models[kind], tokens[kind]
    rows = held_out(tmp_path, model, text)
    values = rows.values.numpy()
    made = TokenOutputs(model, text, (HOOK, "all"), READING, values)
    rng = np.random.default_rng(0)
    index = rng.choice(len(values), 12, replace=False)
    change = rng.standard_normal((12, 16)).astype(np.float32)
    found = made(index, values[index] + change)
    places = row_places(text, "all", READING)
    first = np.flatnonzero(places.context >= len(text) - text.n_held_out)[0]
    for i, row in enumerate(index):
        context, place = places.context[first + row], places.place[first + row]
        ids = torch.from_numpy(text.ids[[context], : text.length[context]].astype(np.int64))

        def put(value, place=place, i=i):
            value = value.clone()
            value[0, place] += torch.from_numpy(change[i])
            return value

        attention = torch.ones_like(ids)
        wanted = model.outputs(ids, attention, HOOK, put, embedding=True)[0, place].numpy()
        assert np.allclose(found[i], wanted, atol=1e-5)
        whole = model.outputs(ids, attention, embedding=True)[0, place].numpy()
        assert np.allclose(made.unchanged[row], whole, atol=1e-5)
        assert not np.allclose(found[i], whole, atol=1e-2)
    # rows as they were stored change nothing, whatever their rounding
    assert np.allclose(made(index, values[index]), made.unchanged[index], atol=1e-5)


def test_other_rows_and_means_are_refused(tmp_path, models, tokens):
    model, (text, _) = models["gpt2"], tokens["gpt2"]
    values = held_out(tmp_path, model, text).values.numpy()
    with pytest.raises(InputError, match="held-out tokens"):
        TokenOutputs(model, text, (HOOK, "all"), READING, values[1:])
    with pytest.raises(InputError, match="mean"):
        TokenOutputs(model, text, (HOOK, "mean"), READING, values)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_pass_that_goes_on_from_a_block_equals_the_whole_pass(models, kind):
    model = models[kind]
    ids = torch.randint(5, 65, (3, 9), generator=torch.Generator().manual_seed(0))
    attention = (torch.arange(9) < torch.tensor([[9], [6], [4]])).long()

    def change(value):
        return 0.5 * value.flip(-1)

    wanted = model.outputs(ids, attention, "blocks.0.hook_out", change)
    after = model.block_output(ids, attention, "blocks.0.hook_out")
    found = model.outputs(ids, attention, "blocks.0.hook_out", change, after=after)
    kept = attention.bool()
    assert torch.allclose(found[kept], wanted[kept], atol=1e-5)
    # the model is as it was
    whole = model.outputs(ids, attention)
    assert torch.allclose(model.outputs(ids, attention, after=after)[kept], whole[kept], atol=1e-5)
    assert not torch.allclose(wanted[kept], whole[kept], atol=1e-2)


def test_a_pass_goes_on_from_the_output_of_a_block_alone(models):
    ids = torch.full((1, 4), 7)
    for hook in ("blocks.2.hook_out", "blocks.0.hook_in", "blocks.0.attn.hook_out"):
        assert models["gpt2"].block_output(ids, torch.ones_like(ids), hook) is None

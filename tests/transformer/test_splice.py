"""Loss with a function applied to the activations equals a computation by hand."""

from __future__ import annotations

import pytest
import torch

from husai.errors import InputError
from husai.tasks import ModularTaskConfig, modular_dataset
from husai.transformer import TransformerConfig, build_transformer, spliced_loss
from husai.transformer.training import answer_loss

HOOK = "blocks.0.hook_resid_post"


def test_splicing_the_last_residual_equals_unembedding_it() -> None:
    dataset = modular_dataset(ModularTaskConfig(modulus=7))
    tokens, answers = torch.tensor(dataset.tokens()), torch.tensor(dataset.answers())
    model = build_transformer(
        TransformerConfig(d_model=16, n_heads=2, d_mlp=32), dataset.vocabulary.d_vocab, 3
    )
    loss_with = spliced_loss(model, tokens, answers, HOOK, -1, chunk_size=10)
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
        rows = cache[HOOK][:, -1]
        unembed = model.state_dict()["unembed.weight"]
        shrunk = answer_loss((0.5 * rows + 1) @ unembed.T, answers)
    assert loss_with(lambda x: x) == pytest.approx(float(answer_loss(logits[:, -1], answers)))
    assert loss_with(lambda x: 0.5 * x + 1) == pytest.approx(float(shrunk), rel=1e-6)
    # the residual after the block is read at the answer's position only
    elsewhere = spliced_loss(model, tokens, answers, HOOK, 0)
    assert elsewhere(torch.zeros_like) == pytest.approx(loss_with(lambda x: x), rel=1e-6)


def test_a_hook_the_model_does_not_have_is_named() -> None:
    dataset = modular_dataset(ModularTaskConfig(modulus=5))
    model = build_transformer(
        TransformerConfig(d_model=8, n_heads=1, d_mlp=8), dataset.vocabulary.d_vocab, 3
    )
    with pytest.raises(InputError, match=r"blocks\.7"):
        spliced_loss(model, torch.zeros(1, 3).long(), torch.zeros(1).long(), "blocks.7.x", -1)

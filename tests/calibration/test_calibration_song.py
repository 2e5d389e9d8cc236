"""The fused full-batch trainer of the reproductions equals torch autograd at every step."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from husai.tasks import planted_dictionary, song_world

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from song_kernel import initial_sae, train

STEPS = 60


def by_autograd(sae, rows, k, steps):
    """Song et al.'s loss as their notebooks state it."""
    W_enc, b_enc, W_dec, b_dec = (torch.nn.Parameter(torch.tensor(p)) for p in sae.parameters())
    optimizer = torch.optim.Adam([W_enc, b_enc, W_dec, b_dec], lr=1e-3)
    x = torch.tensor(rows)
    for _ in range(steps):
        f = torch.relu((x - b_dec) @ W_enc.T + b_enc)
        if k:
            top = f.topk(k, dim=1)
            f = torch.zeros_like(f).scatter(1, top.indices, top.values)
        loss = ((x - f @ W_dec - b_dec) ** 2).mean() + 1e-2 * f.abs().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [p.detach().numpy() for p in (W_enc, b_enc, W_dec, b_dec)]


@pytest.mark.parametrize(("k", "d_sae"), [(None, 16), (3, 16), (3, 80)])
def test_full_batch_training_equals_autograd(k, d_sae):
    rows, _ = planted_dictionary(song_world()).sample(700)
    architecture = "topk" if k else "standard"
    sae = initial_sae(architecture, 8, d_sae, seed=42)
    expected = by_autograd(sae, rows, k, STEPS)
    encoded = train(sae, rows, k, STEPS, learning_rate=1e-3)
    assert sae.step == STEPS
    # the bounds save work, and change nothing
    assert encoded < 1
    for ours, theirs in zip(sae.parameters(), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_resumed_training_gives_the_same_result():
    rows, _ = planted_dictionary(song_world()).sample(500)
    whole, parts = (initial_sae("topk", 8, 16, seed=1) for _ in range(2))
    train(whole, rows, 3, 40)
    train(parts, rows, 3, 15)
    train(parts, rows, 3, 25)
    np.testing.assert_allclose(whole.W_dec, parts.W_dec, atol=1e-6)

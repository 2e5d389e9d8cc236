"""The rules that say which latents are active, against sorting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from husai.sae.selection import active_latents


def some_values(B: int, N: int, F: int) -> torch.Tensor:
    return torch.randn(B, N, F, generator=torch.Generator().manual_seed(B + N + F))


def largest(values: np.ndarray, k: int) -> np.ndarray:
    """The k largest positive values of a vector, the others 0."""
    out = np.zeros_like(values)
    for i in sorted(range(len(values)), key=lambda i: -values[i])[:k]:
        out[i] = max(values[i], 0)
    return out


@pytest.mark.parametrize("k", [1, 3, 7])
def test_row_keeps_the_k_largest_positive_of_each_row(k: int) -> None:
    pre = some_values(20, 1, 7)[:, 0]
    found = active_latents("row", pre, k=k)
    expected = np.stack([largest(row, k) for row in pre.numpy()])
    assert np.array_equal(found.numpy(), expected)
    assert bool((found == 0).any(1).all()) or k < 7


def test_each_sae_of_a_bank_has_its_own_k() -> None:
    pre = some_values(20, 3, 9)
    ks = torch.tensor([1, 4, 9])
    rows = active_latents("row", pre, k=ks)
    batch = active_latents("batch", pre, k=ks)
    for i, k in enumerate(ks.tolist()):
        assert torch.equal(rows[:, i], active_latents("row", pre[:, i], k=k))
        assert torch.equal(batch[:, i], active_latents("batch", pre[:, i], k=k))


@pytest.mark.parametrize("k", [1, 2, 8])
def test_batch_keeps_as_many_of_all_rows_together(k: int) -> None:
    pre = some_values(20, 1, 8)[:, 0]
    found = active_latents("batch", pre, k=k).numpy().ravel()
    assert np.array_equal(found, largest(pre.numpy().ravel(), 20 * k))
    # some row has more than k: it is the batch that is cut, and not its rows
    if k < 8:
        assert int((found.reshape(20, 8) > 0).sum(1).max()) > k


def test_all_and_threshold_use_only_the_sign_and_the_threshold() -> None:
    pre = torch.tensor([[-2.0, -0.5, 0.0, 0.5, 1.0, 1.5]])
    expected = torch.tensor([[0.0, 0.0, 0.0, 0.5, 1.0, 1.5]])
    assert torch.equal(active_latents("all", pre), expected)
    # at the threshold is not above it, and below 0 nothing is active whatever the threshold
    threshold = torch.tensor([-3.0, -3.0, -3.0, 0.6, 1.0, 1.0])
    expected = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 1.5]])
    assert torch.equal(active_latents("threshold", pre, threshold=threshold), expected)


@pytest.mark.parametrize("rule", ["all", "row", "batch", "threshold"])
def test_only_chosen_latents_have_a_gradient(rule: str) -> None:
    pre = some_values(10, 2, 6).requires_grad_()
    k = torch.tensor([2, 3]) if rule in ("row", "batch") else None
    found = active_latents(rule, pre, k=k, threshold=torch.tensor(0.3))  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(found.sum(), pre)
    assert torch.equal(gradient, (found > 0).float())

"""The fast path has the same logits, loss and gradients as the model with hooks."""

from typing import Any

import pytest
import torch

from husai.tasks import ModularTaskConfig, modular_dataset
from husai.transformer import TransformerConfig, build_transformer
from husai.transformer.functional import answer_activations, functional_logits, has_functional_form
from husai.transformer.kernel import compiled_loss, has_compiled_form
from husai.transformer.model import named_parameters
from husai.transformer.training import answer_loss

SHAPES = [
    ("compact", "relu", 4),
    ("index_value", "relu", 4),
    ("alternating", "relu", 1),
    ("compact", "gelu", 5),
    ("alternating", "gelu_new", 2),
    ("index_value", "silu", 10),
]


class Case:
    """A small model with no zero anywhere, its data, and gradients in float64 as the oracle."""

    def __init__(self, token_format: Any, act_fn: Any, n_heads: Any, modulus: Any = 11) -> None:
        self.dataset = modular_dataset(
            ModularTaskConfig(modulus=modulus, token_format=token_format, seed=1)
        )
        self.vocabulary = self.dataset.vocabulary
        self.config = TransformerConfig(
            d_model=20, n_heads=n_heads, d_mlp=36, act_fn=act_fn, biases="all", seed=2
        )
        self.model = build_transformer(self.config, self.vocabulary.d_vocab, self.vocabulary.n_ctx)
        self.parameters = named_parameters(self.model)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.parameters.values():
                # large enough that the attention pattern is far from uniform
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        rows = torch.tensor(self.dataset.rows("train"))
        self.tokens = torch.tensor(self.dataset.tokens())[rows]
        self.answers = torch.tensor(self.dataset.answers())[rows]
        self.a = self.tokens[:, self.vocabulary.position_a].contiguous()
        self.b = self.tokens[:, self.vocabulary.position_b].contiguous()

    def functional(self, rows: Any = slice(None)) -> Any:
        return functional_logits(
            self.parameters, self.a[rows], self.b[rows], self.vocabulary, self.config
        )

    def hooked(self) -> Any:
        return self.model(self.tokens)[:, self.vocabulary.answer_position]

    def compiled(self, rows: Any = slice(None)) -> Any:
        return compiled_loss(
            self.parameters,
            self.a[rows],
            self.b[rows],
            self.answers[rows],
            self.vocabulary,
            self.config,
        )

    def gradients(self, loss: Any) -> Any:
        self.model.zero_grad()
        torch.autograd.backward(loss)
        return {n: p.grad.clone() for n, p in self.parameters.items() if p.grad is not None}


@pytest.mark.parametrize(("token_format", "act_fn", "n_heads"), SHAPES)
def test_functional_equals_hooked_in_float64(token_format: Any, act_fn: Any, n_heads: Any) -> None:
    case = Case(token_format, act_fn, n_heads)
    case.model.double()
    case.parameters = named_parameters(case.model)
    hooked, functional = case.hooked(), case.functional()
    torch.testing.assert_close(functional, hooked, rtol=1e-10, atol=1e-11)
    expected = case.gradients(answer_loss(hooked, case.answers))
    found = case.gradients(answer_loss(functional, case.answers))
    assert set(found) == set(expected)
    assert len(found) >= 14
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-11, msg=name)


@pytest.mark.parametrize(("token_format", "act_fn", "n_heads"), SHAPES[:1])
def test_activations_are_those_of_the_hooks(token_format: Any, act_fn: Any, n_heads: Any) -> None:
    case = Case(token_format, act_fn, n_heads)
    with torch.no_grad():
        _, cache = case.model.run_with_cache(case.tokens)
        found = answer_activations(case.parameters, case.a, case.b, case.vocabulary, case.config)
    for name, values in (
        ("hook_resid_mid", found.resid_mid),
        ("mlp.hook_post", found.post),
        ("hook_resid_post", found.resid_post),
    ):
        torch.testing.assert_close(values, cache[f"blocks.0.{name}"][:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_heads", [1, 4, 5, 10])
@pytest.mark.parametrize("token_format", ["compact", "index_value", "alternating"])
def test_compiled_loss_and_gradients_equal_the_hooked_models(
    token_format: Any, n_heads: Any
) -> None:
    case = Case(token_format, "relu", n_heads)
    found_loss = case.compiled()
    found = case.gradients(found_loss)
    assert found_loss.dtype == torch.float64
    case.model.double()
    case.parameters = named_parameters(case.model)
    loss = answer_loss(case.hooked(), case.answers)
    expected = case.gradients(loss)
    assert found_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    scale = max(float(g.norm()) for g in expected.values())
    for name, gradient in expected.items():
        # float32 against float64; the key bias has no gradient but rounding
        difference = float((found[name].double() - gradient).norm())
        assert difference < 1e-5 * (float(gradient.norm()) + 0.1 * scale), name


def test_compiled_loss_in_blocks_of_rows_and_threads(monkeypatch: Any) -> None:
    case = Case("compact", "relu", 4)
    whole = case.compiled()
    expected = case.gradients(whole)
    monkeypatch.setattr("husai.transformer.kernel._BLOCK_ROWS", 7)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            blocks = case.compiled()
            assert blocks.item() == pytest.approx(whole.item(), rel=1e-6)
            found = case.gradients(blocks)
            for name, gradient in expected.items():
                torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
            # the same numbers, whatever the threads' timing
            again = case.gradients(case.compiled())
            for name, gradient in found.items():
                assert torch.equal(gradient, again[name]), name
    finally:
        torch.set_num_threads(threads)


def test_gradient_scales_with_the_loss() -> None:
    case = Case("compact", "relu", 4)
    expected = case.gradients(case.compiled())
    found = case.gradients(3 * case.compiled())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], 3 * gradient, rtol=1e-3, atol=1e-6)


def test_order_of_rows_does_not_matter() -> None:
    case = Case("compact", "relu", 4)
    order = torch.randperm(len(case.answers), generator=torch.Generator().manual_seed(0))
    assert case.compiled(order).item() == pytest.approx(case.compiled().item(), rel=1e-6)


def test_loss_of_a_confident_model_is_precise() -> None:
    # 1 - p is 1e-12 here: float32 would say 0
    logits = torch.tensor([[28.0, 0.0], [0.0, 28.0]])
    loss = answer_loss(logits, torch.tensor([0, 1]))
    assert float(loss) == pytest.approx(6.914e-13, rel=1e-3)


def test_the_fast_path_refuses_models_it_cannot_compute() -> None:
    assert has_functional_form(TransformerConfig())
    assert not has_functional_form(TransformerConfig(n_layers=2))
    assert not has_functional_form(TransformerConfig(normalization="LN"))
    cpu = torch.device("cpu")
    assert has_compiled_form(TransformerConfig(), cpu)
    assert not has_compiled_form(TransformerConfig(act_fn="gelu"), cpu)
    assert not has_compiled_form(TransformerConfig(), torch.device("cuda"))

"""The Triton kernels against the dense engine: on a CUDA device, or in Triton's interpreter.

The interpreter makes some thousand operations a second, so the shapes are tiny.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    # read when the kernels are decorated
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton", reason="the CUDA engine needs triton, which is not installed here")

from husai.errors import InputError  # noqa: E402
from husai.sae import BankTrainingConfig, SAEConfig  # noqa: E402
from husai.sae.bank import SAEBank, build_bank  # noqa: E402
from husai.sae.engines.cuda import CudaEngine, CudaRows  # noqa: E402
from husai.sae.engines.dense import DenseEngine  # noqa: E402
from husai.sae.gpu.codes import group_size, largest_of_rows  # noqa: E402
from husai.sae.schedule import batch_rows, step_table  # noqa: E402
from husai.sae.train import choose_engine  # noqa: E402

DEVICE = torch.device("cuda" if CUDA else "cpu")
D_IN, D_SAE, BATCH, ROWS = 6, 12, 8, 40

SETTINGS: dict[str, dict[str, Any]] = {
    "topk": {"k": 3},
    "batch_topk": {"k": 3},
    "relu": {"l1_coefficient": 2.0},
    "jumprelu": {"l0_coefficient": 0.5, "jumprelu_threshold": 0.3, "jumprelu_bandwidth": 0.5},
    "matryoshka_batch_topk": {"k": 3, "matryoshka_fractions": (0.25, 0.5, 1.0)},
    "matryoshka_topk": {"k": 3, "matryoshka_fractions": (0.25, 0.5, 1.0)},
}


@pytest.fixture(autouse=True)
def _patch_each_module_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter patches triton.language anew for every call of a function: most of its time.

    The patches of such calls are never taken back, so once for each module is enough.
    """
    if CUDA:
        return
    from triton.runtime import interpreter

    patched = set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if id(self.fn.__globals__) not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(id(self.fn.__globals__))
        return self.rewrite()(*args, **kwargs)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)


def rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, D_IN, generator=generator) + 0.5


def cuda_engine(bank: SAEBank, training: BankTrainingConfig) -> CudaEngine:
    x = rows()
    return CudaEngine(bank, CudaRows(x, x.mean(0), len(x)), training, DEVICE)


def bank_of(architecture: str, n: int = 2, **changes: Any) -> SAEBank:
    x = rows()
    configs = [
        SAEConfig.model_validate(
            {"architecture": architecture, "d_sae": D_SAE, "init_seed": seed}
            | {"learning_rate": 3e-3 * (1 + seed)}
            | SETTINGS[architecture]
            | {name: v[seed] if isinstance(v, list) else v for name, v in changes.items()}
        )
        for seed in range(n)
    ]
    bank = build_bank(configs, x, x.mean(0))
    # two latents never fire
    bank.parameters["b_enc"][:, :2] -= 20.0
    return bank.to(DEVICE)


def settings(**changes: Any) -> BankTrainingConfig:
    return BankTrainingConfig.model_validate({"batch_size": BATCH, "warmup_steps": 1} | changes)


def advance(
    bank: SAEBank, training: BankTrainingConfig, engine: Any, first: int = 0, last: int = 2
) -> dict[str, torch.Tensor]:
    seeds = {config.data_seed for config in bank.configs}
    batches = {seed: torch.from_numpy(batch_rows(seed, ROWS, BATCH, first, last)) for seed in seeds}
    means: dict[str, torch.Tensor] = engine.run(
        step_table(bank.configs, training, first, last), batches
    )
    return means


def state(bank: SAEBank) -> dict[str, torch.Tensor]:
    return {n: t.double().cpu() for n, t in bank.tensors().items() if n != "W_dec_init"}


def compare(
    architecture: str, training: BankTrainingConfig, sparse: bool | None = None, **changes: Any
) -> tuple[SAEBank, dict[str, torch.Tensor]]:
    """Two steps of the dense engine and of the kernels."""
    banks = [bank_of(architecture, **changes) for _ in range(2)]
    x = rows()
    engine = cuda_engine(banks[1], training)
    if sparse is not None:
        engine.step.sparse = sparse
    expected = advance(banks[0], training, DenseEngine(banks[0], x, training, DEVICE))
    means = advance(banks[1], training, engine)
    for name, value in means.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7, msg=name)
    theirs = state(banks[0])
    for name, mine in state(banks[1]).items():
        scale = float(theirs[name].abs().max())
        difference = float((mine - theirs[name]).abs().max())
        assert difference <= 2e-5 * scale + 1e-9, (name, difference, scale)
    return banks[1], means


@pytest.mark.parametrize("architecture", SETTINGS)
def test_kernels_equal_autograd(architecture: str) -> None:
    compare(architecture, settings(), sparse=True)


@pytest.mark.parametrize("architecture", ["topk", "matryoshka_batch_topk"])
def test_dense_products_equal_autograd(architecture: str) -> None:
    compare(architecture, settings(), sparse=False)


@pytest.mark.parametrize("kind", ["continuous", "ties", "few positive"])
@pytest.mark.parametrize(("F", "k"), [(20, 3), (70, 3)])
def test_selection_of_rows_equals_sorting(kind: str, F: int, k: int) -> None:
    assert group_size(F, k) == (1 if F == 20 else 4)
    B = 4
    pre = torch.randn(B, 2, F, generator=torch.Generator().manual_seed(F)).to(DEVICE)
    bias = torch.randn(2, F, generator=torch.Generator().manual_seed(k)).to(DEVICE)
    if kind == "ties":
        pre, bias = pre.round(), bias.round()
    if kind == "few positive":
        pre[..., 2:] = -5.0
    # another k for each SAE, and two blocks of rows
    ks = torch.tensor([k, k - 1], dtype=torch.int32, device=DEVICE)
    codes = largest_of_rows(lambda first, last: pre[first:last], bias, ks, k, (B, 3))
    values = (pre + bias).cpu()
    for sae in range(2):
        for row in range(B):
            begin, count = int(codes.begin[sae, row]), int(codes.active[sae, row])
            found = codes.latent[sae, begin : begin + count].tolist()
            own = values[row, sae]
            expected = own[own > 0].sort(descending=True).values[: k - sae]
            assert found == sorted(set(found))
            assert torch.equal(own[found].sort(descending=True).values, expected)
            assert torch.equal(codes.value[sae, begin : begin + count].cpu(), own[found])


def test_options_equal_autograd() -> None:
    training = settings(
        optimizer="adamw", weight_decay=0.1, clip_grad_norm=0.05, unit_norm_decoder=False
    )
    compare("topk", training, sparse=True, l1_coefficient=0.5, data_seed=[0, 1])


def test_dead_latents_equal_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    # two latents are dead after a batch; a latent with more than two codes is cut into parts
    monkeypatch.setattr("husai.sae.gpu.codes.PART", 2)
    monkeypatch.setattr("husai.sae.gpu.step.PART", 2)
    bank, means = compare("topk", settings(dead_after_passes=0.2), sparse=True)
    assert float(means["auxiliary"].min()) > 0
    assert bool((bank.since_fired[:, :2] > 0).all())


@pytest.mark.parametrize("baseline", ["frozen_decoder", "soft_frozen_decoder", "frozen_encoder"])
def test_baselines_equal_autograd(baseline: str) -> None:
    # steps so large that a soft-frozen decoder is turned back; its neighbour is free
    fields = {"baseline": [baseline, "none"], "learning_rate": 0.5}
    bank, _ = compare("topk", settings(), sparse=False, **fields)
    cosine = (bank.parameters["W_dec"].cpu() * bank.W_dec_init).sum(2).min(1).values
    assert (cosine[0] >= 0.8 - 1e-5) == ("decoder" in baseline)
    assert cosine[1] < 0.8


def test_an_sae_that_fails_does_not_change_the_others() -> None:
    training = settings()
    banks = [bank_of("topk"), bank_of("topk")]
    banks[0].parameters["W_enc"][0, 5] = torch.nan
    for bank in banks:
        engine = cuda_engine(bank, training)
        engine.step.sparse = True
        advance(bank, training, engine)
    assert banks[0].failed.tolist() == [True, False]
    assert int(banks[0].stopped_at[0]) == 0
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert torch.equal(banks[0].parameters[name][1], banks[1].parameters[name][1])


def test_training_uses_the_engine_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    topk, relu = bank_of("topk").configs, bank_of("relu").configs
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert choose_engine(settings(), topk, cpu) == "sparse"
    assert choose_engine(settings(), topk, cuda) == "cuda"
    assert choose_engine(settings(engine="dense"), topk, cuda) == "dense"
    assert choose_engine(settings(dead_latents="ghost"), relu, cuda) == "dense"
    with pytest.raises(InputError, match="engine: cuda cannot train these SAEs"):
        choose_engine(settings(dead_latents="ghost", engine="cuda"), relu, cuda)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_engine(settings(), topk, cuda) == "dense"
    with pytest.raises(InputError, match="triton is not installed"):
        choose_engine(settings(engine="cuda"), topk, cuda)

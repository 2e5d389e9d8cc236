"""The CUDA engine on a GPU: checks, then times beside the encoder's product and other projects.

    python benchmarks/gpu.py                       # every section, under 10 minutes
    python benchmarks/gpu.py --sections checks steps --out results.json

Sections: checks (the engine against the dense one, resume), ceilings, steps, kernels (where the
time of a step goes), architectures, small (a bank of 48), peers, quality (what each precision
costs), matching. A section that fails leaves the others; the file is written after each.
SynthSAEBench-16k on a GPU is `python benchmarks/reproductions.py bench`. Peers are imported
from where they are installed: eai-sparsify, sae-lens, dictionary-learning; with ``--stand-in``
the modules that they import and a training step does not use (datasets, nnsight,
transformer_lens, ...) are stood in for by empty ones.
Writes benchmarks/results/gpu.json and gpu.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.abc
import importlib.machinery
import json
import shutil
import statistics
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from husai.sae.bank import SAEBank, build_bank
from husai.sae.config import BankTrainingConfig, SAEConfig
from husai.sae.engines.cuda import CudaEngine, CudaRows
from husai.sae.engines.dense import DenseEngine, matmul_precision
from husai.sae.schedule import batch_rows, step_table

RESULTS = Path(__file__).resolve().parent / "results" / "gpu.json"
DEVICE = torch.device("cuda")
D_IN = 768
ROWS = 131_072
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "topk": {"k": 32},
    "batch_topk": {"k": 32},
    "relu": {"l1_coefficient": 2.0},
    "jumprelu": {"l0_coefficient": 0.5},
    "matryoshka_batch_topk": {"k": 32},
    "matryoshka_topk": {"k": 32},
}
PEERS = ("sparsify", "saelens", "dictionary_learning")
STOOD_IN = {
    *("datasets", "nnsight", "transformer_lens", "wandb", "plotly", "plotly_express", "nltk"),
    *("babe", "dotenv", "tenacity", "schedulefree", "circuitsvis", "umap", "zstandard"),
    "accelerate",
}

Section = Callable[[], Any]


def planted_rows(n: int = ROWS, d: int = D_IN) -> torch.Tensor:
    """Rows of 24 of 4,096 directions, some of them far more frequent, at mean square 1."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    directions = torch.randn(4096, d, generator=generator, device=DEVICE)
    directions /= directions.norm(dim=1, keepdim=True)
    rank = torch.arange(1, 4097, device=DEVICE)
    rows = []
    for _ in range(0, n, 8192):
        chance = torch.rand(8192, 4096, generator=generator, device=DEVICE) ** (rank / 400)
        support = chance.topk(24, dim=1).indices
        size = torch.rand(8192, 24, generator=generator, device=DEVICE) + 0.5
        code = torch.zeros(8192, 4096, device=DEVICE).scatter_(1, support, size)
        noise = torch.randn(8192, d, generator=generator, device=DEVICE)
        rows.append(code @ directions + 0.01 * noise)
    x = torch.cat(rows)[:n]
    x -= x.mean(0)
    return x * (d / x.square().sum(1).mean()).sqrt()


def random_bank(configs: list[SAEConfig], d: int = D_IN) -> SAEBank:
    """A bank at its start, made on the device: the library's own start takes a CPU minutes."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    n, F = len(configs), configs[0].d_sae
    W = torch.randn(n, F, d, generator=generator, device=DEVICE)
    W /= W.norm(dim=2, keepdim=True)
    zeros = torch.zeros(n, F, device=DEVICE)
    parameters = {
        "W_enc": W.clone(),
        "b_enc": zeros.clone(),
        "W_dec": W,
        "b_dec": torch.zeros(n, d, device=DEVICE),
    }
    if configs[0].architecture == "jumprelu":
        parameters["log_threshold"] = zeros + np.log(configs[0].jumprelu_threshold)
    return SAEBank(
        tuple(configs),
        parameters,
        {name: torch.zeros_like(p) for name, p in parameters.items()},
        {name: torch.zeros_like(p) for name, p in parameters.items()},
        W,
        torch.full((n,), -1.0, dtype=torch.float64, device=DEVICE),
        torch.zeros(n, F, dtype=torch.int64, device=DEVICE),
        torch.full((n,), -1, dtype=torch.int64),
        torch.zeros(n, dtype=torch.bool),
    )


def sae_configs(n: int, architecture: str = "topk", **settings: Any) -> list[SAEConfig]:
    """SAEs that differ in their seed."""
    base = {"architecture": architecture, "learning_rate": 1e-3} | settings
    return [SAEConfig.model_validate(base | {"init_seed": seed}) for seed in range(n)]


def held(rows: torch.Tensor) -> CudaRows:
    """Rows as the engine takes them."""
    return CudaRows(rows, rows.mean(0), len(rows))


class Timed:
    """A bank that is advanced and timed."""

    def __init__(self, rows: torch.Tensor, configs: list[SAEConfig], **training: Any) -> None:
        fields = {"steps": 100_000, "warmup_steps": 10} | training
        self.training = BankTrainingConfig.model_validate(fields)
        self.bank = random_bank(configs)
        self.engine: Any = CudaEngine(self.bank, held(rows), self.training, DEVICE)
        self.n_rows, self.step = len(rows), 0

    def advance(self, steps: int) -> dict[str, torch.Tensor]:
        """Make some steps."""
        until = self.step + steps
        batches = {
            seed: torch.from_numpy(
                batch_rows(seed, self.n_rows, self.training.batch_size, self.step, until)
            )
            for seed in {config.data_seed for config in self.bank.configs}
        }
        table = step_table(self.bank.configs, self.training, self.step, until)
        means: dict[str, torch.Tensor] = self.engine.run(table, batches)
        self.step = until
        return means

    def milliseconds(self, steps: int = 20, repeats: int = 3) -> float:
        """Milliseconds of a step, the median of some runs."""
        self.advance(30)
        return statistics.median(timed(lambda: self.advance(steps)) / steps for _ in range(repeats))


def timed(function: Callable[[], Any]) -> float:
    """Milliseconds between events before and after."""
    event: Any = torch.cuda.Event
    begin, end = (event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def median_of(function: Callable[[], Any], repeats: int = 10) -> float:
    """Median milliseconds, after three calls."""
    for _ in range(3):
        function()
    return statistics.median(timed(function) for _ in range(repeats))


def encoder_product(n: int, d_sae: int, batch: int, precision: str) -> float:
    """Milliseconds of the product of all encoders with a batch, as the engine makes it."""
    x = torch.randn(batch, D_IN, device=DEVICE)
    W = torch.randn(n * d_sae, D_IN, device=DEVICE)
    if precision == "bf16":
        x, W = x.bfloat16(), W.bfloat16()
        return median_of(lambda: torch.mm(x, W.T, out_dtype=torch.float32))
    with matmul_precision(BankTrainingConfig.model_validate({"precision": precision})):
        return median_of(lambda: torch.mm(x, W.T))


def step_bytes(n: int, d_sae: int, batch: int) -> float:
    """Fewest bytes of a step: pre-activations written and read, parameters and moments moved."""
    return 8.0 * n * batch * d_sae + 24.0 * 2 * n * d_sae * D_IN


# ---- sections ----


def copied_tb_s() -> float:
    """Bytes read and written by a copy within the device, in TB/s."""
    a, b = (torch.empty(2**29, device=DEVICE).normal_() for _ in range(2))
    return 2 * a.nbytes / median_of(lambda: b.copy_(a)) / 1e9


def ceilings() -> dict[str, Any]:
    """What the card can do."""
    found: dict[str, Any] = {"bandwidth_tb_s": copied_tb_s()}
    for precision in ("float32", "tf32", "bf16"):
        ms = encoder_product(1, 32768, 4096, precision)
        found[f"encoder_product_tflop_s_{precision}"] = 2 * 4096 * 32768 * D_IN / ms / 1e9
    return found


def check_engine(architecture: str, sparse: bool, method: str) -> dict[str, Any]:
    """Largest difference to the dense engine after 12 steps, relative to each tensor's largest."""
    settings = {"architecture": architecture} | ARCHITECTURES[architecture]
    configs = [
        SAEConfig.model_validate(settings | {"d_sae": 1024, "init_seed": s, "data_seed": s // 2})
        for s in range(3)
    ]
    x = planted_rows(8192, 192)
    fields = {"batch_size": 1024, "dead_latents": method, "dead_after_passes": 0.4}
    training = BankTrainingConfig.model_validate(fields)
    states, means = [], []
    for kind in ("dense", "cuda"):
        bank = build_bank(configs, x.cpu(), x.mean(0).cpu()).to(DEVICE)
        bank.parameters["b_enc"][:, :30] -= 20.0
        engine: Any = (
            DenseEngine(bank, x, training, DEVICE)
            if kind == "dense"
            else CudaEngine(bank, held(x), training, DEVICE)
        )
        if kind == "cuda" and engine.step.selection in ("row", "batch"):
            engine.step.sparse = sparse
        batches = {s: torch.from_numpy(batch_rows(s, len(x), 1024, 0, 12)) for s in (0, 1)}
        means.append(engine.run(step_table(configs, training, 0, 12), batches))
        states.append({n: t.double().cpu() for n, t in bank.tensors().items()})
    worst = {
        name: float((states[1][name] - one).abs().max() / one.abs().max().clamp_min(1e-30))
        for name, one in states[0].items()
    }
    name = max(worst, key=lambda key: worst[key])
    relative = {
        key: float(((means[1][key] - one) / one.abs().clamp_min(1e-12)).abs().max())
        for key, one in means[0].items()
    }
    return {"worst_tensor": name, "difference": worst[name], "means": relative}


def check_resume(architecture: str) -> bool:
    """Whether 40 steps give the same bits as 20 and, in a new engine, 20 more."""
    x = planted_rows(16384)
    configs = sae_configs(2, architecture, d_sae=4096, **ARCHITECTURES[architecture])
    whole = Timed(x, configs, batch_size=2048)
    whole.advance(20)
    kept = {name: tensor.clone() for name, tensor in whole.bank.tensors().items()}
    whole.advance(20)
    again = Timed(x, configs, batch_size=2048)
    again.bank.load_tensors(kept)
    again.step = 20
    again.advance(20)
    theirs = again.bank.tensors()
    return all(torch.equal(one, theirs[name]) for name, one in whole.bank.tensors().items())


def check_failure() -> dict[str, Any]:
    """One SAE that diverges fails alone; the other is as it would be without it."""
    x = planted_rows(16384)
    banks = []
    for rate in (1e30, 1e-3):
        configs = sae_configs(2, d_sae=2048, k=32)
        configs[0] = configs[0].model_copy(update={"learning_rate": rate})
        run = Timed(x, configs, batch_size=1024)
        run.advance(30)
        banks.append(run.bank)
    same = torch.equal(banks[0].parameters["W_dec"][1], banks[1].parameters["W_dec"][1])
    return {"failed": banks[0].failed.tolist(), "other_unchanged": same}


def check_training(architecture: str) -> dict[str, Any]:
    """Whether training takes the engine by itself, and continues from a file with the same bits."""
    from husai.sae.train import train_bank

    x = planted_rows(16384, 256).cpu()
    configs = sae_configs(2, architecture, d_sae=2048, **ARCHITECTURES[architecture])
    training = BankTrainingConfig.model_validate(
        {"steps": 90, "batch_size": 1024, "checkpoint_interval": 30, "keep_checkpoints": 9}
        | {"dead_after_passes": 1.0, "eval_interval": 90, "precision": "tf32"}
    )
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        whole = train_bank(x, configs, training, checkpoint_dir=first)
        shutil.copy(Path(first) / "step_000000030.safetensors", second)
        resumed = train_bank(x, configs, training, checkpoint_dir=second)
    return {
        "engine": whole[0].provenance["engine"],
        "same_bits": all(
            torch.equal(a.W_dec, b.W_dec) and torch.equal(a.W_enc, b.W_enc)
            for a, b in zip(whole, resumed, strict=True)
        ),
        "fvu": [sae.metrics["fvu"] for sae in whole],
    }


def checks() -> dict[str, Any]:
    """Equality with the dense engine, resume, failure."""
    found: dict[str, Any] = {}
    for architecture in ARCHITECTURES:
        for sparse in (True, False) if "topk" in architecture else (False,):
            name = f"{architecture} {'codes' if sparse else 'products'}"
            method = "resample" if architecture == "relu" else "auxk"
            found[name] = guarded(check_engine, architecture, sparse, method)
            print(name, json.dumps(found[name]), flush=True)
    for architecture in ("topk", "batch_topk", "jumprelu"):
        found[f"resume {architecture}"] = guarded(check_resume, architecture)
    found["failure"] = guarded(check_failure)
    for architecture in ("topk", "batch_topk", "relu"):
        found[f"training {architecture}"] = guarded(check_training, architecture)
    rest = ("resume", "failure", "training")
    print({k: v for k, v in found.items() if k.split()[0] in rest}, flush=True)
    return found


def measure(rows: torch.Tensor, configs: list[SAEConfig], **training: Any) -> dict[str, Any]:
    """Times of one case and its floors."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run = Timed(rows, configs, **training)
    ms = run.milliseconds()
    n, d_sae, batch = len(configs), configs[0].d_sae, run.training.batch_size
    precision = run.training.precision
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    state = sum(tensor.nbytes for tensor in run.bank.tensors().values()) / 2**30
    means = run.advance(5)
    sparse = run.engine.step.sparse
    del run
    torch.cuda.empty_cache()
    product = encoder_product(n, d_sae, batch, precision)
    return {
        "saes": n,
        "architecture": configs[0].architecture,
        "d_sae": d_sae,
        "k": configs[0].k,
        "batch": batch,
        "precision": precision,
        "way": "codes" if sparse else "products",
        "ms_per_step": ms,
        "ms_per_sae_step": ms / n,
        "encoder_product_ms": product,
        "times_product": ms / product,
        "bytes_tb_s": step_bytes(n, d_sae, batch) / ms / 1e9,
        "peak_gib": peak,
        "state_gib": state,
        "train_fvu": means["train_fvu"].mean().item(),
        "l0": means["train_l0"].mean().item(),
    }


def show(case: dict[str, Any]) -> dict[str, Any]:
    """Print a case on one line."""
    short = {k: round(v, 3) if isinstance(v, float) else v for k, v in case.items()}
    print(json.dumps(short), flush=True)
    return case


def steps() -> list[Any]:
    """TopK over bank, width, k, batch and precision."""
    rows = planted_rows()
    cases = [
        (1, 32768, 64, 4096, "float32"),
        (1, 32768, 64, 4096, "tf32"),
        (1, 32768, 64, 4096, "bf16"),
        (1, 32768, 32, 4096, "tf32"),
        (1, 32768, 64, 16384, "tf32"),
        (1, 32768, 64, 16384, "bf16"),
        (1, 16384, 32, 4096, "tf32"),
        (1, 4096, 32, 4096, "tf32"),
        (8, 32768, 64, 4096, "tf32"),
        (8, 16384, 64, 4096, "tf32"),
        (8, 4096, 32, 4096, "tf32"),
        (8, 4096, 32, 4096, "bf16"),
        (48, 4096, 32, 4096, "tf32"),
        (48, 4096, 64, 4096, "bf16"),
    ]
    return [
        show(guarded(measure, rows, sae_configs(n, d_sae=f, k=k), batch_size=b, precision=p))
        for n, f, k, b, p in cases
    ]


def small() -> list[Any]:
    """A bank of 48 SAEs of 1,024 latents, both ways."""
    found = []
    rows = planted_rows()
    for precision in ("float32", "tf32", "bf16"):
        found.append(
            guarded(
                measure,
                rows,
                sae_configs(48, d_sae=1024, k=32),
                batch_size=4096,
                precision=precision,
            )
        )
        show(found[-1])
    return found


def ways() -> list[Any]:
    """Codes against dense products: where each is faster."""
    import husai.sae.gpu.plan as plan

    found = []
    rows = planted_rows()
    before = dict(plan.DENSE_BELOW)
    for precision in ("float32", "tf32", "bf16"):
        for d_sae in (1024, 4096, 8192, 16384):
            for below in (0, 10**9):
                plan.DENSE_BELOW[precision] = below
                n = max(1, 16384 // d_sae)
                case = guarded(
                    measure,
                    rows,
                    sae_configs(n, d_sae=d_sae, k=64),
                    batch_size=4096,
                    precision=precision,
                )
                found.append(show(case))
    plan.DENSE_BELOW.update(before)
    return found


def architectures() -> list[Any]:
    """The other architectures at one size."""
    rows = planted_rows()
    return [
        show(
            guarded(
                measure,
                rows,
                sae_configs(1 if f > 8192 else 4, a, d_sae=f, **ARCHITECTURES[a]),
                batch_size=4096,
                precision="tf32",
            )
        )
        for a in ARCHITECTURES
        for f in (4096, 32768)
    ]


def kernels() -> dict[str, Any]:
    """Microseconds of a step by kernel."""
    rows = planted_rows()
    found = {}
    for name, n, d_sae, k, precision, architecture in (
        ("wide", 1, 32768, 64, "tf32", "topk"),
        ("small", 48, 1024, 32, "bf16", "topk"),
        ("batch", 1, 32768, 64, "tf32", "batch_topk"),
    ):
        run = Timed(
            rows,
            sae_configs(n, architecture, d_sae=d_sae, k=k),
            batch_size=4096,
            precision=precision,
        )
        run.advance(30)
        activity = torch.profiler.ProfilerActivity.CUDA
        with torch.profiler.profile(activities=[activity]) as profile:
            run.advance(10)
            torch.cuda.synchronize()
        times = sorted(
            (
                (e.self_device_time_total / 10, e.key[:70], e.count / 10)
                for e in profile.key_averages()
            ),
            reverse=True,
        )
        found[name] = [(key, round(us, 1), count) for us, key, count in times[:22]]
        print(
            name, *(f"{us:9.1f} us x{count:5.1f} {key}" for key, us, count in found[name]), sep="\n"
        )
        del run
    return found


class _Anything(types.ModuleType):
    """A module that has everything and does nothing."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _HookPoint if name in ("HookPoint", "HookedRootModule") else type(name, (), {})


class _HookPoint(torch.nn.Module):
    """transformer_lens's hook point and the class of modules with them, without any hook."""

    def setup(self) -> None:
        """Find no hook."""

    def forward(self, x: Any) -> Any:
        """Pass on what comes."""
        return x


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives empty modules for what is not installed and no training step uses."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] not in STOOD_IN:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Leave it empty."""


@contextlib.contextmanager
def tf32_everywhere() -> Iterator[None]:
    """TF32 products for the peers too."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def peers() -> list[Any]:
    """Each peer's own TopK step, TF32 products, on the same rows."""
    sys.path.insert(0, str(Path(__file__).parent))
    from sae_engine import peer_stepper  # type: ignore[import-not-found]

    rows = planted_rows()
    found = []
    for d_sae, k, batch in ((1024, 32, 4096), (4096, 32, 4096), (32768, 64, 4096)):
        for peer in PEERS:
            case: dict[str, Any] = {"peer": peer, "d_sae": d_sae, "k": k, "batch": batch}

            def one(peer: str = peer, d_sae: int = d_sae, k: int = k, batch: int = batch) -> Any:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                update, _ = peer_stepper(
                    peer, "topk", d_sae, 10**5, 1e-3, d_in=D_IN, k=k, device="cuda"
                )
                parts = torch.chunk(rows[: 8 * batch], 8)
                for x in parts[:3]:
                    update(x)
                ms = statistics.median(
                    timed(lambda: [update(x) for x in parts]) / len(parts) for _ in range(3)
                )
                peak = (torch.cuda.max_memory_allocated() - before) / 2**30
                return {"ms_per_sae_step": ms, "peak_gib": peak}

            with tf32_everywhere():
                answer = guarded(one)
            found.append(show(case | (answer if isinstance(answer, dict) else {})))
    return found


def tune() -> list[Any]:
    """Settings of the largest kernels, microseconds each."""
    import husai.sae.gpu.codes as gpu_codes
    import husai.sae.gpu.step as gpu_step

    rows = planted_rows()
    found = []

    def times(n: int, d_sae: int, k: int, precision: str, name: str = "topk") -> dict[str, Any]:
        configs = sae_configs(n, name, d_sae=d_sae, k=k)
        run = Timed(rows, configs, batch_size=4096, precision=precision)
        run.advance(12)
        activity = torch.profiler.ProfilerActivity.CUDA
        with torch.profiler.profile(activities=[activity]) as profile:
            run.advance(5)
            torch.cuda.synchronize()
        wanted = {"update_latents", "add_parts", "largest_of_row", "group_maxima"}
        wanted |= {"largest_groups", "largest_in_groups"}
        return {
            e.key: round(e.self_device_time_total / 5, 1)
            for e in profile.key_averages()
            if e.key in wanted
        }

    def attempt(module: Any, case: tuple[Any, ...], **values: int) -> None:
        before = {name: getattr(module, name) for name in values}
        for name, value in values.items():
            setattr(module, name, value)
        found.append(values | {"case": case[:3]} | guarded(times, *case))
        print(json.dumps(found[-1]), flush=True)
        for name, value in before.items():
            setattr(module, name, value)

    wide, few = (1, 32768, 64, "tf32"), (48, 1024, 32, "bf16")
    updates = ((8, 2, 4), (8, 1, 4), (4, 2, 4), (8, 2, 2), (16, 2, 4), (8, 2, 8))
    for values, group in ((16, 32), (8, 32), (32, 32), (16, 64), (16, 16)):
        attempt(gpu_codes, wide, VALUES_A_THREAD=values, GROUP=group)
    for values, group in ((8, 8), (16, 8), (16, 4), (16, 1)):
        attempt(gpu_codes, few, VALUES_A_THREAD=values, GROUP=group)
    for latents, tile, warps in updates:
        attempt(gpu_step, wide, LATENTS=latents, UPDATE_TILE=tile, UPDATE_WARPS=warps)
    return found


def quality() -> list[Any]:
    """FVU after 1,000 steps by precision, the same SAEs and rows."""
    rows = planted_rows()
    found = []
    for architecture, d_sae, n in (("topk", 16384, 1), ("topk", 2048, 3)):
        for precision in ("float32", "tf32", "bf16"):
            run = Timed(
                rows,
                sae_configs(n, architecture, d_sae=d_sae, k=32),
                batch_size=4096,
                precision=precision,
                steps=1000,
            )
            while run.step < 900:
                run.advance(100)
            means = run.advance(100)
            found.append(
                show(
                    {
                        "architecture": architecture,
                        "d_sae": d_sae,
                        "precision": precision,
                        "fvu_of_last_100_steps": means["train_fvu"].tolist(),
                        "way": "codes" if run.engine.step.sparse else "products",
                    }
                )
            )
            del run
    return found


def match_one(n: int, d: int = D_IN) -> dict[str, Any]:
    """Exact matching of two dictionaries that share half their features, beside its product."""
    from husai.matching.match import match_features

    def product_ms(a: torch.Tensor, b: torch.Tensor) -> float:
        block = torch.empty(2048, n, device=DEVICE)

        def one_pass() -> None:
            for i in range(0, n, 2048):
                torch.mm(a[i : i + 2048], b.T, out=block)

        return median_of(one_pass, 2)

    rng = torch.Generator(DEVICE).manual_seed(0)
    a = torch.randn(n, d, generator=rng, device=DEVICE)
    b = torch.randn(n, d, generator=rng, device=DEVICE)
    b[: n // 2] = a[: n // 2] + 0.3 * b[: n // 2]
    product = product_ms(a, b) / 1e3
    first, second = a.cpu().numpy(), b.cpu().numpy()
    started = time.perf_counter()
    match = match_features(first, second, method="sparse", device="cuda")
    return {
        "n": n,
        "d": d,
        "seconds": time.perf_counter() - started,
        "product_seconds": product,
        "certified": match.certified,
        "mean": match.mean,
        "gap_bound": match.gap_bound,
    }


def matching() -> list[Any]:
    """Exact matching, its products on the device; the first case also compiles."""
    return [show(guarded(match_one, n)) for n in (16384, 16384, 131072, 262144)]


def guarded(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """The answer, or what went wrong."""
    try:
        return function(*arguments, **named)
    except Exception as error:
        traceback.print_exc()
        torch.cuda.empty_cache()
        return {"failed": f"{type(error).__name__}: {error}"[:400]}


def report(result: dict[str, Any]) -> str:
    """The results as tables."""
    lines = [
        "# The CUDA engine",
        "",
        f"`{result['command']}` on one {result['card']} (torch {result['torch']}, triton "
        f"{result['triton']}). d_in {D_IN}, planted rows; milliseconds are medians. Product: the "
        "encoder's, of all SAEs, in the same precision and run.",
        "",
        *(f"- {remark}" for remark in result.get("remarks", [])),
    ]
    if "ceilings" in result:
        found = result["ceilings"]
        rates = ", ".join(
            f"{precision} {found[f'encoder_product_tflop_s_{precision}']:.0f}"
            for precision in ("float32", "tf32", "bf16")
        )
        lines += [
            "",
            f"The card: {found['bandwidth_tb_s']:.2f} TB/s (a copy, read and written); TFLOP/s of "
            f"the encoder's product at d_sae 32,768: {rates}.",
        ]
    head = ["SAEs", "architecture", "d_sae", "k", "batch", "precision", "way"]
    head += ["ms per SAE and step", "x product", "floor TB/s", "peak GiB", "state GiB"]
    for name in ("steps", "small", "architectures", "ways"):
        cases = [case for case in result.get(name, []) if "ms_per_step" in case]
        if cases:
            lines += ["", f"## {name}", "", "| " + " | ".join(head) + " |", "|---" * 12 + "|"]
        for c in cases:
            cells = [c["saes"], c["architecture"], c["d_sae"], c["k"] or "–", c["batch"]]
            cells += [c["precision"], c["way"], f"{c['ms_per_sae_step']:.3f}"]
            cells += [f"{c['times_product']:.2f}", f"{c['bytes_tb_s']:.2f}"]
            cells += [f"{c['peak_gib']:.2f}", f"{c['state_gib']:.2f}"]
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    if "peers" in result:
        lines += ["", "## peers (TopK, TF32 products)", ""]
        lines += ["| peer | d_sae | k | batch | ms per SAE and step | peak GiB |", "|---" * 6 + "|"]
    for c in result.get("peers", []):
        time_, peak = c.get("ms_per_sae_step"), c.get("peak_gib")
        lines.append(
            f"| {c['peer']} | {c['d_sae']} | {c['k']} | {c['batch']} | "
            + (f"{time_:.2f} | {peak:.2f} |" if time_ and peak else "failed | – |")
        )
    if "checks" in result:
        lines += ["", "## checks", "", "| check | found |", "|---|---|"]
    for name, found in result.get("checks", {}).items():
        said = found
        if isinstance(found, dict) and "difference" in found:
            said = f"largest difference {found['difference']:.1e}, of {found['worst_tensor']}"
        lines.append(f"| {name} | {said} |")
    if "quality" in result:
        lines += ["", "## quality: training FVU of steps 901 to 1,000", ""]
        lines += ["| architecture | d_sae | precision | way | FVU |", "|---" * 5 + "|"]
    for c in result.get("quality", []):
        values = ", ".join(f"{value:.4f}" for value in c["fvu_of_last_100_steps"])
        cells = [c["architecture"], str(c["d_sae"]), c["precision"], c["way"], values]
        lines.append("| " + " | ".join(cells) + " |")
    if "matching" in result:
        lines += ["", "## matching (half the features shared; the first also compiles)", ""]
        lines += ["| n | d | seconds | its product | certified |", "|---" * 5 + "|"]
    for c in result.get("matching", []):
        if "seconds" in c:
            lines.append(
                f"| {c['n']} | {c['d']} | {c['seconds']:.2f} | {c['product_seconds']:.3f} | "
                f"{c['certified']} |"
            )
    for name, kernels_of in result.get("kernels", {}).items():
        lines += [
            "",
            f"## microseconds of a step by kernel: {name}",
            "",
            "| kernel | µs |",
            "|---|---|",
        ]
        lines += [f"| `{key[:48]}` | {us} |" for key, us, _ in kernels_of[:14]]
    return "\n".join(lines) + "\n"


SECTIONS: dict[str, Section] = {
    "ceilings": ceilings,
    "checks": checks,
    "tune": tune,
    "kernels": kernels,
    "steps": steps,
    "small": small,
    "peers": peers,
    "architectures": architectures,
    "ways": ways,
    "quality": quality,
    "matching": matching,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=[s for s in SECTIONS if s != "tune"]
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--stand-in", action="store_true", help="empty modules for unused imports")
    options = parser.parse_args()
    if options.stand_in:
        sys.meta_path.append(_StandIn())
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing to measure")
    import triton

    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    here = {
        "command": "python benchmarks/gpu.py" + " --stand-in" * options.stand_in,
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    if any(result.get(name) != value for name, value in here.items()):
        # other sections stay only where they were measured by the same things
        result = dict(here)
    for name in options.sections:
        started = time.perf_counter()
        print(f"== {name}", flush=True)
        result[name] = guarded(SECTIONS[name])
        result.setdefault("seconds", {})[name] = round(time.perf_counter() - started, 1)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(report(result))
    print(result["seconds"], flush=True)


if __name__ == "__main__":
    main()

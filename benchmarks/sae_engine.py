"""Speed, memory and quality of the SAE engine beside its peers, in one interleaved run.

    python3 -m venv .venv-peers-all
    .venv-peers-all/bin/pip install torch==2.13.0 sae-lens eai-sparsify dictionary-learning
    python benchmarks/sae_engine.py            # the first two of the following
    python benchmarks/sae_engine.py --table    # milliseconds beside the peers
    python benchmarks/sae_engine.py --rest     # overhead of a whole training, curves
    python benchmarks/sae_engine.py --memory   # peak memory per SAE beside the peers'
    python benchmarks/sae_engine.py --quality [topk batch_topk relu]  # FVU at equal L0

Setting: 8 seeds, d_in 128, batch 2,048, k 32, 2 threads. Each peer makes its own training steps
(forward, loss, backward, clipping, optimiser, its dead-latent bookkeeping) on the same rows in a
process of its own; peers loop over SAEs, so one SAE gives their time per SAE and step. Ours trains
8 at once. Rounds are interleaved and the medians compared, so a busy machine slows all alike.
With BENCH_THREADS=1 both sides use one thread and CPU time is compared: the fair choice on a
machine that does other work, where barriers of several threads wait for each other.
Writes benchmarks/results/sae_engine_<threads>.json (and .md).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers-all" / "bin" / "python"
RESULTS = ROOT / "benchmarks" / "results"
D_IN, BATCH, K, SEEDS = 128, 2048, 32, 8
THREADS = int(os.environ.get("BENCH_THREADS", "2"))
# one thread: CPU time, which other work on the machine hardly changes; more: wall time
clock = time.process_time if THREADS == 1 else time.perf_counter
WIDTHS = (1024, 4096)
ARCHITECTURES = ("topk", "batch_topk", "relu")
CASES = {
    "dictionary_learning": ("relu", "topk", "batch_topk"),
    "sparsify": ("topk",),
    "saelens": ("relu", "topk", "batch_topk"),
}
LEARNING_RATE = 1e-3
# what is freed goes back at once, so that what is resident is in use
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def resident_mb() -> float:
    """Megabytes resident now; the peak counts from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def peak_mb() -> float:
    """Most megabytes resident since :func:`resident_mb`."""
    return _status_mb("VmHWM")


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def make_rows(n: int) -> Any:
    """Rows from a planted dictionary of 512 directions, 16 active, scaled to mean square 1."""
    import torch

    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(512, D_IN, generator=generator)
    directions = directions / directions.norm(dim=1, keepdim=True)
    support = torch.rand(n, 512, generator=generator).topk(16, dim=1).indices
    code = torch.zeros(n, 512).scatter_(1, support, 1.0)
    rows = (code * torch.randn(n, 512, generator=generator).abs()) @ directions
    return rows * (D_IN / rows.square().sum(1).mean()).sqrt()


# ---- the peers' side: runs in their environment, talks through standard input and output ----


def peer_stepper(
    peer: str,
    architecture: str,
    d_sae: int,
    steps: int,
    learning_rate: float,
    *,
    d_in: int = D_IN,
    k: int = K,
    device: str = "cpu",
) -> tuple[Any, Any]:
    """A function that makes one training step on a batch, and one that reconstructs."""
    import torch

    if peer == "dictionary_learning":
        from dictionary_learning.trainers import (
            BatchTopKTrainer,
            StandardTrainer,
            TopKTrainer,
        )

        shared: dict[str, Any] = {
            "steps": steps,
            "activation_dim": d_in,
            "dict_size": d_sae,
            "layer": 0,
            "lm_name": "none",
            "lr": learning_rate,
            "warmup_steps": min(100, steps // 4),
            "device": device,
            "seed": 0,
        }
        if architecture == "relu":
            trainer = StandardTrainer(**shared, sparsity_warmup_steps=None)
        else:
            kind = TopKTrainer if architecture == "topk" else BatchTopKTrainer
            trainer = kind(**shared, k=k, decay_start=max(int(steps * 0.8), 101))
        counter = {"step": 0}

        def update(x: Any) -> None:
            trainer.update(counter["step"], x)
            counter["step"] += 1

        def reconstruct(x: Any) -> Any:
            # BatchTopK by its batches, as it trains: its threshold starts late and lags
            by_batch = {"use_threshold": False} if architecture == "batch_topk" else {}
            code = trainer.ae.encode(x, **by_batch)
            return trainer.ae.decode(code), code

        return update, reconstruct
    if peer == "sparsify":
        from sparsify import SparseCoder, SparseCoderConfig

        sae = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=k), device=device)
        optimizer = torch.optim.Adam(sae.parameters(), lr=learning_rate)
        since = torch.zeros(d_sae, dtype=torch.long, device=device)

        def update(x: Any) -> None:
            out = sae(x, dead_mask=since > 10_000_000)
            (out.fvu + out.auxk_loss / 32).backward()
            with torch.no_grad():
                since.add_(len(x))
                since[out.latent_indices.flatten()] = 0
            sae.remove_gradient_parallel_to_decoder_directions()
            torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            sae.set_decoder_norm_to_unit_norm()

        def reconstruct(x: Any) -> Any:
            out = sae(x)
            return out.sae_out, out.latent_acts

        return update, reconstruct
    from sae_lens.saes import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )
    from sae_lens.saes.sae import TrainStepInput

    model: Any
    size: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "device": device}
    if architecture == "relu":
        model = StandardTrainingSAE(StandardTrainingSAEConfig(**size))
    elif architecture == "topk":
        model = TopKTrainingSAE(TopKTrainingSAEConfig(**size, k=k))
    else:
        model = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**size, k=k))
    adam = torch.optim.Adam(model.parameters(), lr=learning_rate)
    passes = torch.zeros(d_sae, device=device)
    scores = torch.zeros(d_sae, device=device)
    made = {"steps": 0}

    def lens_update(x: Any) -> None:
        out = model.training_forward_pass(
            step_input=TrainStepInput(
                sae_in=x,
                coefficients={"l1": 1.0},
                dead_neuron_mask=passes > 1000,
                n_training_steps=made["steps"],
                is_logging_step=False,
            )
        )
        with torch.no_grad():
            firing = out.feature_acts.bool().float()
            fired = firing.sum(-2).bool()
            fired = fired.to_dense() if fired.is_sparse else fired
            passes.add_(1)
            passes[fired] = 0
            score = firing.sum(0)
            scores.add_(score.to_dense() if score.is_sparse else score)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        made["steps"] += 1

    def lens_reconstruct(x: Any) -> Any:
        code = model.encode(x)
        return model.decode(code), code

    return lens_update, lens_reconstruct


def peer_main(peer: str, directory: str) -> None:
    """Serve requests, one JSON a line, until standard input ends."""
    import torch

    torch.set_num_threads(THREADS)
    rows = torch.load(Path(directory) / "rows.pt", weights_only=True)
    made: dict[str, tuple[Any, Any]] = {}
    generator = torch.Generator().manual_seed(0)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the peers print goes to standard error
    for line in sys.stdin:
        ask = json.loads(line)
        rate = ask.get("learning_rate", LEARNING_RATE)
        key = f"{ask['architecture']} {ask['d_sae']} {rate}"
        fresh = key not in made
        if fresh:
            made = {}  # one at a time
            before = resident_mb()
            made[key] = peer_stepper(peer, ask["architecture"], ask["d_sae"], ask["total"], rate)
        update, reconstruct = made[key]
        n = ask["steps"]
        size = (ask.get("batch_size", BATCH),)
        batches = [rows[torch.randint(len(rows), size, generator=generator)] for _ in range(n)]
        started = clock()
        for batch in batches:
            update(batch)
        seconds = clock() - started
        answer: dict[str, Any] = {"seconds": seconds}
        if fresh:
            answer["memory_mb"] = peak_mb() - before
        if ask.get("evaluate"):
            held_out = torch.load(Path(directory) / "held_out.pt", weights_only=True)
            with torch.no_grad():
                guess, code = reconstruct(held_out)
            guess, x = guess.double(), held_out.double()
            answer["fvu"] = float((guess - x).square().sum() / (x - x.mean(0)).square().sum())
            code = code.to_dense() if code.is_sparse else code
            answer["l0"] = float((code > 0).double().sum(1).mean())
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Peer:
    """A peer's process."""

    def __init__(self, name: str, directory: str, measure_memory: bool = False) -> None:
        environment = os.environ | (ALLOCATOR if measure_memory else {})
        environment |= {"SPARSIFY_DISABLE_TRITON": "1", "OMP_NUM_THREADS": str(THREADS)}
        self.process = subprocess.Popen(
            [str(PEERS), __file__, "--peer", name, directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"peer ended: {request}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# ---- our side ----


def our_config(architecture: str, d_sae: int, seed: int, k: int = K) -> Any:
    """An SAE of the benchmark's setting."""
    from husai.sae import SAEConfig

    settings: dict[str, Any] = {"l1_coefficient": 1.0} if architecture == "relu" else {"k": k}
    return SAEConfig(
        architecture=architecture,
        d_sae=d_sae,
        init_seed=seed,
        learning_rate=LEARNING_RATE,
        **settings,
    )


def our_configs(architecture: str, d_sae: int, n: int = SEEDS) -> list[Any]:
    """SAEs that differ in their seed."""
    return [our_config(architecture, d_sae, seed) for seed in range(n)]


class Ours:
    """A bank of our engine, advanced a few steps at a time."""

    def __init__(self, rows: Any, configs: list[Any], l0: float | None = None) -> None:
        import torch

        from husai.sae import BankTrainingConfig
        from husai.sae.bank import build_bank
        from husai.sae.engines.sparse import SparseEngine

        self.rows = rows
        self.training = BankTrainingConfig(threads=THREADS, steps=100_000)
        self.configs = configs
        self.bank = build_bank(configs, rows, rows.mean(0))
        d_sae = self.bank.d_sae
        if l0 is not None:
            # biases that leave about that many latents active, as after training
            for i in range(len(configs)):
                p = {name: tensor[i] for name, tensor in self.bank.parameters.items()}
                pre = (rows[:512] - p["b_dec"]) @ p["W_enc"].T
                p["b_enc"] -= pre.flatten().kthvalue(int(pre.numel() * (1 - l0 / d_sae))).values
        self.engine = SparseEngine(self.bank, rows, self.training)
        self.step = 0
        self.torch = torch

    def seconds_per_sae_step(self, steps: int) -> float:
        """Advance; give the seconds per SAE and step."""
        from husai.sae.schedule import batch_rows, step_table

        until = self.step + steps
        started = clock()
        batches = {0: self.torch.from_numpy(batch_rows(0, len(self.rows), BATCH, self.step, until))}
        table = step_table(self.configs, self.training, self.step, until)
        self.means = self.engine.run(table, batches)
        self.step = until
        return (clock() - started) / steps / len(self.configs)


def encoder_product(d_sae: int, repeats: int = 3) -> dict[str, float]:
    """Milliseconds of the product a step cannot do without, into fresh and into kept memory."""
    import torch

    x, w, out = torch.randn(BATCH, D_IN), torch.randn(d_sae, D_IN), torch.empty(BATCH, d_sae)
    times: dict[str, list[float]] = {"fresh": [], "kept": []}
    for _ in range(repeats):
        started = clock()
        torch.mm(x, w.T)
        times["fresh"].append(clock() - started)
        started = clock()
        torch.mm(x, w.T, out=out)
        times["kept"].append(clock() - started)
    return {name: 1e3 * min(values) for name, values in times.items()}


def measure_table(rows: Any, directory: str, rounds: int) -> list[dict[str, Any]]:
    """Interleaved milliseconds per SAE and step of every architecture, width and peer."""
    table = []
    for d_sae in WIDTHS:
        for architecture in ARCHITECTURES:
            peers = {
                name: Peer(name, directory)
                for name, known in CASES.items()
                if architecture in known
            }
            times: dict[str, list[float]] = {name: [] for name in peers}
            ours = {"ours": Ours(rows, our_configs(architecture, d_sae))}
            if architecture == "relu":
                ours = {
                    "ours, L0 = d_sae/2": ours["ours"],
                    "ours, L0 = d_sae/20": Ours(
                        rows, our_configs(architecture, d_sae), l0=d_sae / 20
                    ),
                }
            times |= {name: [] for name in ours}
            products: list[dict[str, float]] = []
            for process in peers.values():
                process.ask(architecture=architecture, d_sae=d_sae, steps=1, total=100_000)
            for engine in ours.values():
                engine.seconds_per_sae_step(1)
            for _ in range(rounds):
                for peer, process in peers.items():
                    answer = process.ask(
                        architecture=architecture, d_sae=d_sae, steps=3, total=100_000
                    )
                    times[peer].append(1e3 * answer["seconds"] / 3)
                for name, engine in ours.items():
                    times[name].append(1e3 * engine.seconds_per_sae_step(2))
                products.append(encoder_product(d_sae))
            for process in peers.values():
                process.close()
            medians = {name: statistics.median(values) for name, values in times.items()}
            fastest = min(medians[name] for name in peers)
            entry = {
                "architecture": architecture,
                "d_sae": d_sae,
                "ms_per_sae_step": {n: round(v, 2) for n, v in medians.items()},
                "best_ms_per_sae_step": {n: round(min(v), 2) for n, v in times.items()},
                "speedup_over_fastest_peer": {n: round(fastest / medians[n], 2) for n in ours},
                "encoder_product_ms": {
                    kind: round(statistics.median(p[kind] for p in products), 2)
                    for kind in ("fresh", "kept")
                },
                "ours_over_encoder_product": {
                    kind: round(
                        medians[next(iter(ours))] / statistics.median(p[kind] for p in products), 2
                    )
                    for kind in ("fresh", "kept")
                },
            }
            print(json.dumps(entry), flush=True)
            table.append(entry)
    return table


def measure_overhead(rows: Any) -> list[dict[str, Any]]:
    """Whole trainings (metrics, history, dead latents, checkpoints) over their bare steps.

    Both are of the same run: the seconds within the engine, and those of the whole call.
    """
    from husai.sae import BankTrainingConfig, train_bank

    found = []
    for d_sae, k, batch_size, steps, eval_interval in (
        (1024, K, BATCH, 1000, 200),
        (64, 4, 1024, 3000, 150),
    ):
        configs = [our_config("topk", d_sae, seed, k) for seed in range(SEEDS)]
        training = BankTrainingConfig(
            threads=THREADS, steps=steps, batch_size=batch_size, eval_interval=eval_interval
        )
        short = training.model_copy(update={"steps": 2})
        train_bank(rows[:11_492], configs, short)  # compiles
        with tempfile.TemporaryDirectory() as directory:
            started = clock()
            saes = train_bank(rows[:11_492], configs, training, checkpoint_dir=directory)
            whole = clock() - started
        bare = SEEDS * saes[0].metrics["train_seconds"]
        found.append(
            {
                "d_sae": d_sae,
                "batch_size": batch_size,
                "steps": steps,
                "eval_interval": eval_interval,
                "checkpoint_interval": training.checkpoint_interval,
                "bare_seconds": round(bare, 2),
                "whole_seconds": round(whole, 2),
                "ratio": round(whole / bare, 3),
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found


def measure_curves(rows: Any) -> dict[str, list[dict[str, float]]]:
    """Milliseconds per SAE and step against the number of seeds and the width."""
    seeds = []
    for n in (1, 2, 4, 8, 16):
        engine = Ours(rows, our_configs("topk", 512, n))
        engine.seconds_per_sae_step(2)
        best = min(engine.seconds_per_sae_step(10) for _ in range(3))
        seeds.append({"seeds": n, "ms_per_sae_step": round(1e3 * best, 3)})
    widths = []
    for d_sae in (64, 128, 256, 512, 1024, 2048, 4096):
        engine = Ours(rows, our_configs("topk", d_sae))
        engine.seconds_per_sae_step(2)
        best = min(engine.seconds_per_sae_step(5) for _ in range(3))
        widths.append({"d_sae": d_sae, "ms_per_sae_step": round(1e3 * best, 3)})
    narrow = []
    for d_sae, k in ((16, 4), (32, 4), (64, 8)):
        engine = Ours(rows, [our_config("topk", d_sae, seed, k) for seed in range(12)])
        engine.seconds_per_sae_step(5)
        best = min(engine.seconds_per_sae_step(40) for _ in range(3))
        narrow.append({"d_sae": d_sae, "k": k, "ms_per_sae_step": round(1e3 * best, 3)})
    return {"by_seeds": seeds, "by_width": widths, "narrow": narrow}


def measure_memory(directory: str) -> list[dict[str, Any]]:
    """Peak resident megabytes that an SAE adds over two steps, each in a process of its own.

    Peers train one SAE in a process; ours is 8 in a bank, divided by 8, and one alone.
    """
    table = []
    for d_sae in WIDTHS:
        for architecture in ARCHITECTURES:
            entry: dict[str, Any] = {"architecture": architecture, "d_sae": d_sae}
            for n in (SEEDS, 1):
                command = [sys.executable, __file__, "--memory-of", architecture]
                done = subprocess.run(
                    [*command, str(d_sae), str(n)],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=os.environ | ALLOCATOR,
                )
                entry[f"ours, bank of {n}"] = round(float(done.stdout), 1)
            for name, known in CASES.items():
                if architecture in known:
                    peer = Peer(name, directory, measure_memory=True)
                    # another shape first: what a first step sets up is no part of an SAE
                    peer.ask(architecture=architecture, d_sae=64, steps=1, total=1000)
                    answer = peer.ask(architecture=architecture, d_sae=d_sae, steps=2, total=1000)
                    peer.close()
                    entry[name] = round(answer["memory_mb"], 1)
            print(json.dumps(entry), flush=True)
            table.append(entry)
    return table


def memory_main(architecture: str, d_sae: int, n: int) -> None:
    """Print the megabytes per SAE."""
    rows = make_rows(8192)
    Ours(rows, our_configs(architecture, 64, 1)).seconds_per_sae_step(1)
    before = resident_mb()
    engine = Ours(rows, our_configs(architecture, d_sae, n))
    engine.seconds_per_sae_step(2)
    print((peak_mb() - before) / n)


def measure_quality(
    directory: str, rows: Any, held_out: Any, architectures: tuple[str, ...]
) -> list[dict[str, Any]]:
    """FVU at equal L0 after the same number of rows, each at its best of several learning rates.

    Smaller than the speed's setting, so that slow peers end. ReLU's L0 cannot be set: ours is
    trained at several weights of the penalty, and its FVU read off between them, in log L0, at
    the L0 that each peer came to with its own default.
    """
    import numpy as np

    from husai.sae import BankTrainingConfig, SAEConfig, train_bank

    d_sae, batch_size, steps = 512, 1024, 1000
    training = BankTrainingConfig(
        threads=THREADS, steps=steps, batch_size=batch_size, eval_interval=steps
    )
    found = []
    for architecture in architectures:
        # a penalty asks for larger steps than a place among k does
        rates = (2e-3, 4e-3, 8e-3, 1.6e-2) if architecture == "relu" else (1e-3, 2e-3, 4e-3)
        weights = (0.05, 0.1, 0.3, 0.7, 1.0, 1.4) if architecture == "relu" else (None,)
        seeds = (0,) if architecture == "relu" else (0, 1, 2)
        configs = [
            SAEConfig(
                architecture=architecture,
                d_sae=d_sae,
                k=None if architecture == "relu" else K,
                l1_coefficient=weight,
                init_seed=seed,
                learning_rate=rate,
            )
            for rate in rates
            for weight in weights
            for seed in seeds
        ]
        saes = train_bank(rows, configs, training, eval_rows=held_out)
        entry: dict[str, Any] = {
            "architecture": architecture,
            "d_sae": d_sae,
            "batch_size": batch_size,
            "steps": steps,
            "ours": [
                {
                    "learning_rate": sae.config.learning_rate,
                    "l1_coefficient": sae.config.l1_coefficient,
                    "fvu": round(sae.metrics["fvu"], 4),
                    "l0": round(sae.metrics["l0"], 2),
                }
                for sae in saes
            ],
        }
        for name, known in CASES.items():
            if architecture not in known:
                continue
            entry[name] = []
            for rate in rates:
                peer = Peer(name, directory)
                answer = peer.ask(
                    architecture=architecture,
                    d_sae=d_sae,
                    batch_size=batch_size,
                    steps=steps,
                    total=steps,
                    learning_rate=rate,
                    evaluate=True,
                )
                peer.close()
                cell = {
                    "learning_rate": rate,
                    "fvu": round(answer["fvu"], 4),
                    "l0": round(answer["l0"], 2),
                }
                if architecture == "relu":
                    read = []
                    for mine in rates:
                        curve = sorted(
                            (np.log(max(s.metrics["l0"], 1e-9)), np.log(s.metrics["fvu"]))
                            for s in saes
                            if s.config.learning_rate == mine
                        )
                        l0, fvu = np.array(curve).T
                        at = np.log(answer["l0"])
                        if l0[0] <= at <= l0[-1]:
                            read.append(float(np.exp(np.interp(at, l0, fvu))))
                    cell["ours_at_this_l0"] = round(min(read), 4) if read else None
                entry[name].append(cell)
        print(json.dumps(entry), flush=True)
        found.append(entry)
    return found


def speed_lines(result: dict[str, Any]) -> list[str]:
    """The table of speeds, for people."""
    lines = [
        "## Speed",
        "",
        "Milliseconds per SAE and step (median of interleaved rounds), "
        f"{SEEDS} seeds, d_in {D_IN}, batch {BATCH}, k {K}, {THREADS} threads.",
        "",
        "| architecture | d_sae | ours | dictionary_learning | sparsify | SAELens | × fastest peer "
        "| encoder product (fresh / kept memory) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in result["table"]:
        times = entry["ms_per_sae_step"]
        product = entry["encoder_product_ms"]
        for name, speedup in entry["speedup_over_fastest_peer"].items():
            label = entry["architecture"] + name.removeprefix("ours")
            cells = [times.get(p, "–") for p in ("dictionary_learning", "sparsify", "saelens")]
            lines.append(
                f"| {label} | {entry['d_sae']} | {times[name]} | {cells[0]} | {cells[1]} | "
                f"{cells[2]} | {speedup} | {product['fresh']} / {product['kept']} |"
            )
    return lines


def rest_lines(result: dict[str, Any]) -> list[str]:
    """Overhead and curves."""
    lines = [
        "## Whole trainings over their bare steps",
        "",
        "| d_sae | steps | ratio |",
        "|---|---|---|",
    ]
    lines += [f"| {e['d_sae']} | {e['steps']} | {e['ratio']} |" for e in result["overhead"]]
    lines += ["", "## Cost by seeds and width (TopK, ms per SAE and step)", ""]
    for title, key in (("by_seeds", "seeds"), ("by_width", "d_sae"), ("narrow", "d_sae")):
        points = result["curves"][title]
        lines += [
            f"| {key} | " + " | ".join(str(point[key]) for point in points) + " |",
            "|---" * (len(points) + 1) + "|",
            "| ms | " + " | ".join(str(point["ms_per_sae_step"]) for point in points) + " |",
            "",
        ]
    return lines[:-1]


def memory_lines(result: dict[str, Any]) -> list[str]:
    """Peaks of memory."""
    names = [f"ours, bank of {SEEDS}", "ours, bank of 1", *CASES]
    lines = [
        "## Memory",
        "",
        "Peak resident megabytes an SAE adds.",
        "",
        "| architecture | d_sae | " + " | ".join(names) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    for entry in result["memory_mb_per_sae"]:
        cells = " | ".join(str(entry.get(name, "–")) for name in names)
        lines.append(f"| {entry['architecture']} | {entry['d_sae']} | {cells} |")
    return lines


def quality_lines(result: dict[str, Any]) -> list[str]:
    """FVU at equal L0, each at its best learning rate."""
    first = result["quality"][0]
    lines = [
        "## Quality",
        "",
        f"Held-out FVU after {first['steps']} steps of {first['batch_size']} rows, d_sae "
        f"{first['d_sae']}, each at its best of several learning rates.",
        "",
        "| architecture | who | L0 | FVU | ours at this L0 |",
        "|---|---|---|---|---|",
    ]
    for entry in result["quality"]:
        name = entry["architecture"]
        if name != "relu":
            best = min(entry["ours"], key=lambda cell: float(cell["fvu"]))
            ours = [
                cell["fvu"]
                for cell in entry["ours"]
                if cell["learning_rate"] == best["learning_rate"]
            ]
            lines.append(f"| {name} | ours | {best['l0']} | {min(ours)}–{max(ours)} | |")
        for peer in CASES:
            if peer in entry:
                cell = min(entry[peer], key=lambda cell: float(cell["fvu"]))
                mine = cell.get("ours_at_this_l0") or ""
                lines.append(f"| {name} | {peer} | {cell['l0']} | {cell['fvu']} | {mine} |")
    return lines


PARTS = {
    "table": speed_lines,
    "rest": rest_lines,
    "memory": memory_lines,
    "quality": quality_lines,
}


def write_markdown(result: dict[str, Any]) -> None:
    """Every part that was measured, each with its command."""
    blocks = ["# The SAE engine beside its peers"]
    for part, command in sorted(
        result["commands"].items(), key=lambda item: list(PARTS).index(item[0])
    ):
        blocks.append("\n".join([*PARTS[part](result), "", f"Made by `{command}`."]))
    path = RESULTS / f"sae_engine_{THREADS}.md"
    path.write_text("\n\n".join(blocks) + "\n")


def main() -> None:
    import torch

    torch.set_num_threads(THREADS)
    rows, held_out = make_rows(20_000), make_rows(24_000)[20_000:]
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"sae_engine_{THREADS}.json"
    command = f"BENCH_THREADS={THREADS} python " + " ".join(sys.argv)
    result: dict[str, Any] = {"clock": clock.__name__}
    with tempfile.TemporaryDirectory() as directory:
        torch.save(rows, Path(directory) / "rows.pt")
        torch.save(held_out.clone(), Path(directory) / "held_out.pt")
        if path.is_file():
            result = json.loads(path.read_text())
        commands = result.setdefault("commands", {})
        asked = [p for p in ("table", "rest", "memory", "quality") if f"--{p}" in sys.argv]
        for part in asked or ["table", "rest"]:
            if part != "quality" or not any(a in sys.argv for a in ARCHITECTURES):
                commands[part] = command
            if part == "quality":
                found = {e["architecture"]: e for e in result.get("quality", [])}
                asked_for = tuple(a for a in ARCHITECTURES if a in sys.argv) or ARCHITECTURES
                for entry in measure_quality(directory, rows, held_out, asked_for):
                    found[entry["architecture"]] = entry
                result["quality"] = [found[a] for a in ARCHITECTURES if a in found]
                if asked_for != ARCHITECTURES and commands.get(part, command) != command:
                    commands[part] += f"; {command}"
                continue
            if part == "memory":
                result["memory_mb_per_sae"] = measure_memory(directory)
                continue
            result[f"load_average_{part}"] = os.getloadavg()[0]
            if part == "table":
                result["table"] = measure_table(rows, directory, rounds=3)
            else:
                result["overhead"] = measure_overhead(rows)
                result["curves"] = measure_curves(rows)
    path.write_text(json.dumps(result, indent=1) + "\n")
    write_markdown(result)
    print(json.dumps({k: v for k, v in result.items() if k != "table"}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        peer_main(*sys.argv[2:4])
    elif sys.argv[1:2] == ["--memory-of"]:
        memory_main(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()

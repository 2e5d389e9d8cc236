"""Speed, memory and quality of the SAE engine beside its peers, in one interleaved run.

    python3 -m venv .venv-peers-all
    .venv-peers-all/bin/pip install torch==2.13.0 sae-lens eai-sparsify dictionary-learning
    python benchmarks/sae_engine.py            # all of the following
    python benchmarks/sae_engine.py --table    # milliseconds beside the peers
    python benchmarks/sae_engine.py --rest     # overhead of a whole training, memory, curves
    python benchmarks/sae_engine.py --quality  # FVU after the same rows as well

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
import resource
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
CASES = {
    "dictionary_learning": ("relu", "topk", "batch_topk"),
    "sparsify": ("topk",),
    "saelens": ("relu", "topk", "batch_topk"),
}
LEARNING_RATE = 1e-3


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


def peer_stepper(peer: str, architecture: str, d_sae: int, steps: int) -> tuple[Any, Any]:
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
            "activation_dim": D_IN,
            "dict_size": d_sae,
            "layer": 0,
            "lm_name": "none",
            "lr": LEARNING_RATE,
            "warmup_steps": min(100, steps // 4),
            "device": "cpu",
            "seed": 0,
        }
        if architecture == "relu":
            trainer = StandardTrainer(**shared, sparsity_warmup_steps=None)
        else:
            kind = TopKTrainer if architecture == "topk" else BatchTopKTrainer
            trainer = kind(**shared, k=K, decay_start=max(int(steps * 0.8), 101))
        counter = {"step": 0}

        def update(x: Any) -> None:
            trainer.update(counter["step"], x)
            counter["step"] += 1

        return update, trainer.ae
    if peer == "sparsify":
        from sparsify import SparseCoder, SparseCoderConfig

        sae = SparseCoder(D_IN, SparseCoderConfig(num_latents=d_sae, k=K))
        optimizer = torch.optim.Adam(sae.parameters(), lr=LEARNING_RATE)
        since = torch.zeros(d_sae, dtype=torch.long)

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

        return update, lambda x: sae(x).sae_out
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
    if architecture == "relu":
        model = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=D_IN, d_sae=d_sae))
    elif architecture == "topk":
        model = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D_IN, d_sae=d_sae, k=K))
    else:
        model = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=d_sae, k=K))
    adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    passes = torch.zeros(d_sae)
    scores = torch.zeros(d_sae)
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

    return lens_update, lambda x: model.decode(model.encode(x))


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
        key = f"{ask['architecture']} {ask['d_sae']}"
        fresh = key not in made
        if fresh:
            made = {}  # one at a time: memory is measured
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            made[key] = peer_stepper(peer, ask["architecture"], ask["d_sae"], ask["total"])
        update, reconstruct = made[key]
        n = ask["steps"]
        batches = [rows[torch.randint(len(rows), (BATCH,), generator=generator)] for _ in range(n)]
        started = clock()
        for batch in batches:
            update(batch)
        seconds = clock() - started
        answer: dict[str, Any] = {"seconds": seconds}
        if fresh:
            answer["memory_mb"] = (
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            ) / 1024
        if ask.get("evaluate"):
            held_out = torch.load(Path(directory) / "held_out.pt", weights_only=True)
            with torch.no_grad():
                guess = reconstruct(held_out).double()
            x = held_out.double()
            answer["fvu"] = float((guess - x).square().sum() / (x - x.mean(0)).square().sum())
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Peer:
    """A peer's process."""

    def __init__(self, name: str, directory: str) -> None:
        environment = os.environ | {"SPARSIFY_DISABLE_TRITON": "1", "OMP_NUM_THREADS": str(THREADS)}
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
    """A SAE of the benchmark's setting."""
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
        from husai.sae.sparse import SparseEngine

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
        for architecture in ("topk", "batch_topk", "relu"):
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
            memory: dict[str, float] = {}
            for peer, process in peers.items():
                answer = process.ask(architecture=architecture, d_sae=d_sae, steps=1, total=100_000)
                memory[peer] = answer["memory_mb"]
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
                "peer_memory_mb_per_sae": {n: round(v, 1) for n, v in memory.items()},
            }
            print(json.dumps(entry), flush=True)
            table.append(entry)
    return table


def measure_overhead(rows: Any) -> dict[str, float]:
    """Whole training (metrics, history, checkpoints, counters) over the bare steps."""
    from husai.sae import BankTrainingConfig, train_bank

    steps = 60
    ratios, bares, wholes = [], [], []
    for _ in range(3):
        engine = Ours(rows, our_configs("topk", 1024))
        engine.seconds_per_sae_step(2)
        bare = engine.seconds_per_sae_step(steps) * steps * SEEDS
        # evaluation and checkpoints as often per step as in a default study
        training = BankTrainingConfig(
            threads=THREADS, steps=steps, eval_interval=200, checkpoint_interval=1000
        )
        with tempfile.TemporaryDirectory() as directory:
            started = clock()
            train_bank(
                rows,
                engine.configs,
                training,
                eval_rows=rows[:2048],
                checkpoint_dir=directory,
            )
            whole = clock() - started
        # one run of 60 steps pays one evaluation, one checkpoint and the start; a study of 4,000
        # steps pays 20 evaluations, 4 checkpoints and one start
        extra = whole - bare
        per_4000 = bare / steps * 4000
        ratios.append((per_4000 + 20 * extra) / per_4000)
        bares.append(bare)
        wholes.append(whole)
    return {
        "bare_seconds_60_steps": round(statistics.median(bares), 2),
        "whole_seconds_60_steps": round(statistics.median(wholes), 2),
        "upper_bound_of_ratio_over_4000_steps": round(statistics.median(ratios), 3),
    }


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


def measure_memory() -> dict[str, float]:
    """Peak resident memory of 8 SAEs over that of none, per SAE, in a process of its own."""
    memory = {}
    for d_sae in WIDTHS:
        command = [sys.executable, __file__, "--memory", str(d_sae)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        memory[str(d_sae)] = round(float(output), 1)
    return memory


def memory_main(d_sae: int) -> None:
    """Print the megabytes per SAE."""
    rows = make_rows(8192)
    warm = Ours(rows, our_configs("topk", 64, 1))
    warm.seconds_per_sae_step(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine = Ours(rows, our_configs("topk", d_sae))
    engine.seconds_per_sae_step(2)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((after - before) / 1024 / SEEDS)


def measure_quality(directory: str, rows: Any, held_out: Any, steps: int) -> list[dict[str, Any]]:
    """FVU at k = 32 after the same number of rows, d_sae 1,024."""
    from husai.sae import BankTrainingConfig, train_bank

    found = []
    for architecture in ("topk", "batch_topk"):
        training = BankTrainingConfig(
            threads=THREADS, steps=steps, batch_size=BATCH, eval_interval=steps
        )
        saes = train_bank(
            rows,
            [our_config(architecture, 1024, seed) for seed in range(2)],
            training,
            eval_rows=held_out,
        )
        entry: dict[str, Any] = {
            "architecture": architecture,
            "d_sae": 1024,
            "steps": steps,
            "ours": [round(s.metrics["fvu"], 4) for s in saes],
            "ours_l0": [round(s.metrics["l0"], 2) for s in saes],
        }
        for name, known in CASES.items():
            if architecture in known:
                peer = Peer(name, directory)
                answer = peer.ask(
                    architecture=architecture, d_sae=1024, steps=steps, total=steps, evaluate=True
                )
                peer.close()
                entry[name] = round(answer["fvu"], 4)
        print(json.dumps(entry), flush=True)
        found.append(entry)
    return found


def write_markdown(result: dict[str, Any], command: str) -> None:
    """The table for people."""
    lines = [
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
    lines += ["", f"Made by `{command}`.", ""]
    (RESULTS / f"sae_engine_{THREADS}.md").write_text("\n".join(lines))


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
        asked = [part for part in ("table", "rest", "quality") if f"--{part}" in sys.argv]
        for part in asked or ["table", "rest"]:
            commands[part] = command
            if part == "quality":
                result["quality"] = measure_quality(directory, rows, held_out, 600)
                continue
            result[f"load_average_{part}"] = os.getloadavg()[0]
            if part == "table":
                result["table"] = measure_table(rows, directory, rounds=3)
                write_markdown(result, command)
            else:
                result["memory_mb_per_sae"] = measure_memory()
                result["overhead"] = measure_overhead(rows)
                result["curves"] = measure_curves(rows)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "table"}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        peer_main(*sys.argv[2:4])
    elif sys.argv[1:2] == ["--memory"]:
        memory_main(int(sys.argv[2]))
    else:
        main()

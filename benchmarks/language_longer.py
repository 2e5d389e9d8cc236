"""Do more features come back if the SAEs of the language study are trained until they settle?

    kedro run --env=lm                                             # its text and activations
    python benchmarks/language_longer.py pack data/lm .carry/lm    # 40 MB for a machine with a GPU
    python benchmarks/language_longer.py run .carry/lm OUT         # on that machine: minutes
    python benchmarks/language_longer.py page OUT                  # longer.md in docs/results

Half an hour on two cores is one pass over the tokens. On a GPU the same SAEs are trained for many
passes over the same rows. This shows how the share of features that every other seed has depends on
the length of training, for the same model, rows, widths and seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from husai.activations import ActivationStore
from husai.campaign.plan import records
from husai.consistency import ConsistencyConfig, mean_interval
from husai.consistency.analyses.gate import convergence_gate, decay_start
from husai.language.study import compare_seeds
from husai.sae import BankTrainingConfig, SAEConfig, TrainedSAE, train_bank
from husai.storage import TensorFile, atomic_path, read_tensors, write_tensors
from husai.text import Tokens

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "language_model"
HOOK = "blocks.2.hook_out"
LAYERS = 3
NEEDED = re.compile(
    r"embeddings\.(\w+_embeddings|LayerNorm)\.|"
    r"encoder\.layer\.\d+\.(attention\.(self|output)|intermediate|output)\.\w+\.(weight|bias)$"
)
"""Weights that the layers are computed from; the bridge names some of them more than once."""

CHECKED_ROWS = 4096
SEEDS = (0, 1, 2, 3)
WIDTHS = (1536, 3072)
KINDS: Mapping[str, Mapping[str, Any]] = {
    "topk": {"k": 32},
    "batch_topk": {"k": 32},
    "relu": {"l1_coefficient": 2.0},
}
LENGTHS = (1000, 4000, 16000)
"""Steps of 2,048 rows: 1.4, 5.5 and 22 passes over the rows."""

BATCH = 2048


def pack(study: Path, folder: Path) -> None:
    """Write what the rows are computed from: the layers below the hook, the tokens, some rows."""
    from husai.language import LanguageModelConfig, load_language_model

    folder.mkdir(parents=True, exist_ok=True)
    tensors, header = read_tensors(study / "text" / "tokens.safetensors")
    tokens = Tokens.from_file(TensorFile(tensors, header))
    store = ActivationStore(study / "stores" / f"{HOOK}@all")
    model = load_language_model(LanguageModelConfig(name=store.about["model"]["name"]))
    state = model.bridge.original_model.state_dict()
    weights = {}
    for name, value in state.items():
        plain = name.replace("_original_component.", "").removeprefix("bert.")
        layer = plain.split(".")[2] if plain.startswith("encoder.layer.") else "0"
        if NEEDED.match(plain) and int(layer) < LAYERS:
            weights[plain] = value.half().contiguous()
    inner = tokens.ordinary
    place = np.arange(inner.shape[1])
    expected = (place > 0) & (place < tokens.length[:, None] - 1)
    if not np.array_equal(inner, expected):
        raise SystemExit("the tokens are not one special token before and one after each document")
    checked = store.rows(store.n_rows, store.n_rows + CHECKED_ROWS)
    flat = tokens.ids[place < tokens.length[:, None]].astype(np.int32)
    write_tensors(folder / "model.safetensors", weights, {"hook": HOOK})
    write_tensors(
        folder / "tokens.safetensors",
        {
            "ids": torch.from_numpy(flat).to(torch.uint16),
            "length": torch.from_numpy(tokens.length),
            "checked": checked.half(),
        },
        {"n_held_out": tokens.n_held_out, "rows": store.n_rows},
    )
    for path in sorted(folder.iterdir()):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def layer_outputs(W: Mapping[str, torch.Tensor], ids: torch.Tensor, heads: int) -> torch.Tensor:
    """Outputs of BERT's first layers ``[batch, position, d]`` for tokens without padding."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, W[f"{name}.weight"], W[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = W[f"{name}.weight"], W[f"{name}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, 1e-12)

    length = ids.shape[1]
    x = W["embeddings.word_embeddings.weight"][ids]
    x = x + W["embeddings.position_embeddings.weight"][:length]
    x = norm(x + W["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for number in range(LAYERS):
        at = f"encoder.layer.{number}"
        q, k, v = (
            linear(x, f"{at}.attention.self.{name}")
            .reshape(len(ids), length, heads, -1)
            .transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = norm(
            x + linear(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
        )
        inner = functional.gelu(linear(x, f"{at}.intermediate.dense"))
        x = norm(x + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return x


def rows_of(folder: Path, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Compute the rows for training and the held-out ones; beside them how far they are from ours.

    Contexts of one length are computed together, so that nothing is padded.
    """
    weights, _ = read_tensors(folder / "model.safetensors")
    W = {name: value.to(device).float() for name, value in weights.items()}
    data, header = read_tensors(folder / "tokens.safetensors")
    ids = data["ids"].to(torch.int64)
    length = data["length"].to(torch.int64)
    start = torch.cumsum(length, 0) - length
    first_row = torch.cumsum(length - 2, 0) - (length - 2)
    rows = torch.empty(int((length - 2).sum()), W["embeddings.LayerNorm.weight"].shape[0])
    for n in np.unique(length.numpy()).tolist():
        contexts = torch.nonzero(length == n).flatten()
        for part in torch.split(contexts, max(1, 65536 // n)):
            batch = ids[start[part][:, None] + torch.arange(n)].to(device)
            with torch.no_grad():
                found = layer_outputs(W, batch, heads=12)[:, 1:-1].cpu()
            rows[(first_row[part][:, None] + torch.arange(n - 2)).flatten()] = found.flatten(0, 1)
    train, held_out = rows[: header["rows"]], rows[header["rows"] :]
    checked = data["checked"].float()
    own = held_out[: len(checked)]
    return train, held_out, float((own - checked).norm() / (checked - checked.mean(0)).norm())


def train_group(
    rows: torch.Tensor, held_out: torch.Tensor, kind: str, d_sae: int, steps: int
) -> list[TrainedSAE]:
    """Train the SAEs of one setting, which differ in the seed of their weights."""
    configs = [
        SAEConfig(architecture=kind, d_sae=d_sae, init_seed=seed, learning_rate=2e-3, **KINDS[kind])
        for seed in SEEDS
    ]
    passes = steps * BATCH / len(rows)
    training = BankTrainingConfig(
        steps=steps,
        batch_size=BATCH,
        eval_interval=max(100, steps // 8),
        snapshot_interval=max(100, steps // 16),
        checkpoint_interval=steps,
        dead_after_passes=min(1.0, 0.15 * passes),
        resample_every_passes=min(1.0, 0.15 * passes),
    )
    return train_bank(rows, configs, training, eval_rows=held_out)


def group_row(saes: list[TrainedSAE], group: str) -> dict[str, Any]:
    """Say how well a group's SAEs do, and whether they have settled."""
    gate = convergence_gate(
        [sae.snapshots for sae in saes],
        decay_start(saes[0].provenance["training"]),
        live=[sae.density.numpy() > 0 for sae in saes],
    )
    means = {
        name: float(np.mean([sae.metrics[name] for sae in saes]))
        for name in ("fvu", "l0", "dead_fraction")
    }
    motion = [value for value in gate.motion if value is not None]
    return {
        "group": group,
        **means,
        "motion": float(np.mean(motion)) if motion else None,
        "plateau": gate.plateau,
        "n_settled": sum(flag is True for flag in gate.settled),
    }


def run(folder: Path, out: Path, lengths: tuple[int, ...] = LENGTHS) -> None:
    """Compute the rows, train every setting at every length, compare the seeds."""
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    rows, held_out, error = rows_of(folder, device)
    about = {
        "rows": len(rows),
        "held_out": len(held_out),
        "relative_error": error,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "rows_seconds": time.perf_counter() - started,
        "batch_size": BATCH,
    }
    print(json.dumps(about), flush=True)
    (out / "about.json").write_text(json.dumps(about))
    found, tables = [], []
    for steps in lengths:
        for d_sae in WIDTHS:
            for kind in KINDS:
                begin = time.perf_counter()
                saes = train_group(rows, held_out, kind, d_sae, steps)
                seconds = time.perf_counter() - begin
                group = f"{kind} d{d_sae}"
                members = {group: {f"s{seed}": sae for seed, sae in zip(SEEDS, saes, strict=True)}}
                scores, features = compare_seeds(members, ConsistencyConfig())
                row = group_row(saes, group) | records(scores)[0]
                row |= {"steps": steps, "passes": steps * BATCH / len(rows), "seconds": seconds}
                found.append(row)
                kept = ["group", "id", "latent", "n_other_seeds", "n_seeds_found"]
                kept += ["reproducibility", "firing_rate"]
                tables.append(features[kept].assign(steps=steps))
                print(json.dumps(row), flush=True)
                pd.DataFrame(found).to_csv(out / "groups.csv", index=False)
                pd.concat(tables).to_csv(out / "features.csv.gz", index=False)


def page(out: Path) -> str:
    """Write the page and its tables from what a run left."""
    groups = pd.read_csv(out / "groups.csv")
    features = pd.read_csv(out / "features.csv.gz")
    about = json.loads((out / "about.json").read_text())
    features["everywhere"] = features["n_seeds_found"] == features["n_other_seeds"]
    features["density"] = pd.cut(
        features["firing_rate"], [0, 1e-3, 1e-2, 1], labels=["rare", "middle", "often"]
    )
    rows = []
    for row in records(groups):
        own = features[(features["group"] == row["group"]) & (features["steps"] == row["steps"])]
        shares = {"all": own}
        for name, part in own.groupby("density", observed=True):
            shares[str(name)] = part
        for name, part in shares.items():
            per_seed = part.groupby("id")["everywhere"].mean()
            interval = mean_interval(per_seed, bounds=(0.0, 1.0))
            ends = f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
            row |= {f"share_{name}": interval.mean, f"text_{name}": ends}
        rows.append(row)
    table = pd.DataFrame(rows)
    text = [
        "# The same SAEs, trained longer",
        "",
        "`python benchmarks/language_longer.py run .carry/lm OUT`, then `page OUT`. "
        f"On one {about['device']}: the rows of the offline study ({about['rows']:,}), its widths, "
        f"architectures, learning rate and four seeds, in batches of {about['batch_size']:,}. The "
        "rows are computed anew from weights of half precision: they are "
        f"{about['relative_error']:.1e} of their spread away from the study's.",
        "",
        "A feature counts when every other seed has it (|cosine| ≥ 0.7). Rare: fires on at most "
        "0.1 % of the tokens; middle: to 1 %; often: more. Intervals (95 %) are over seeds. "
        "Settled: by the gate, see docs/glossary.md.",
        "",
        "| group | passes | FVU | L0 | dead | settled | motion | PW-MCC | in every other seed | "
        "rare | middle | often |",
        "|---" * 12 + "|",
    ]
    text += [_line(row) for row in records(table.sort_values(["group", "steps"]))]
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = [column for column in table.columns if not column.startswith("text_")]
    table[kept].round(5).to_csv(RESULTS / "longer.csv", index=False)
    with atomic_path(RESULTS / "longer.md") as path:
        path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return "\n".join(text)


def _line(row: Mapping[str, Any]) -> str:
    shares = " | ".join(str(row.get(f"text_{n}", "–")) for n in ("all", "rare", "middle", "often"))
    return (
        f"| {row['group']} | {row['passes']:.1f} | {row['fvu']:.3f} | {row['l0']:.1f} | "
        f"{row['dead_fraction']:.2f} | {row['n_settled']} of {row['n_seeds']:.0f} | "
        f"{row['motion']:.4f} | {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}] | "
        f"{shares} |"
    )


def main() -> None:
    """Pack, run or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["pack", "run", "page"])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    given = parser.parse_args()
    if given.what == "pack":
        pack(given.folders[0], given.folders[1])
    elif given.what == "run":
        run(given.folders[0], given.folders[1], tuple(given.lengths))
    else:
        print(page(given.folders[0]))


if __name__ == "__main__":
    main()

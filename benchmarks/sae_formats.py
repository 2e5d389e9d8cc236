"""Round trips of SAEs through the peers' own loaders, in an environment of their own.

    python3 -m venv .venv-peers-all
    .venv-peers-all/bin/pip install torch==2.13.0 sae-lens eai-sparsify dictionary-learning
    python benchmarks/sae_formats.py

Trains a small SAE of each architecture, exports it to each format, lets the peer load it and
reconstruct rows, and reads the directory back. Both must agree with our own to 1e-5. Writes
benchmarks/results/sae_formats.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers-all" / "bin" / "python"
RESULTS = ROOT / "benchmarks" / "results" / "sae_formats.json"
TOLERANCE = 1e-5

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "relu": {"l1_coefficient": 2.0},
    "topk": {"k": 4},
    "batch_topk": {"k": 4},
    "jumprelu": {"l0_coefficient": 0.5},
    "matryoshka_batch_topk": {"k": 4},
}
FORMATS = {
    "saelens": list(ARCHITECTURES),
    "dictionary_learning": list(ARCHITECTURES),
    "sparsify": ["topk"],
}


def peer_reconstruct(directory: Path) -> None:
    """Run in the peers' environment: load each directory, write its reconstructions."""
    import importlib.metadata

    import torch

    jobs: list[dict[str, Any]] = json.loads((directory / "jobs.json").read_text())
    x = torch.load(directory / "rows.pt", weights_only=True)
    for job in jobs:
        path = job["path"]
        if job["format"] == "saelens":
            from sae_lens import SAE

            model = SAE.load_from_disk(path, device="cpu")
            out = model.decode(model.encode(x))
        elif job["format"] == "dictionary_learning":
            from dictionary_learning.utils import (
                load_dictionary,
            )

            model, _ = load_dictionary(path, device="cpu")
            if job["architecture"] == "matryoshka_batch_topk":
                out = model.decode(model.encode(x, use_threshold=True))
            else:
                out = model(x)
        else:
            from sparsify import SparseCoder

            model = SparseCoder.load_from_disk(path)
            out = model(x).sae_out
        torch.save(out.detach(), Path(path) / "reconstruction.pt")
    versions = {
        name: importlib.metadata.version(name)
        for name in ("sae-lens", "dictionary-learning", "eai-sparsify", "torch")
    }
    (directory / "versions.json").write_text(json.dumps(versions))


def main() -> None:
    import torch

    from husai.sae import BankTrainingConfig, SAEConfig, export_sae, load_sae, train_bank

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 8, generator=generator) @ torch.randn(8, 24, generator=generator) + 0.5
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        saes = {}
        for architecture, settings in ARCHITECTURES.items():
            config = SAEConfig.model_validate(
                {"architecture": architecture, "d_sae": 48} | settings
            )
            training = BankTrainingConfig(steps=200, batch_size=256)
            (saes[architecture],) = train_bank(x, [config], training)
        jobs: list[dict[str, Any]] = [
            {"format": f, "architecture": a, "path": str(directory / f / a)}
            for f, architectures in FORMATS.items()
            for a in architectures
        ]
        for job in jobs:
            export_sae(saes[job["architecture"]], job["path"], job["format"])
        (directory / "jobs.json").write_text(json.dumps(jobs))
        torch.save(x, directory / "rows.pt")
        environment = os.environ | {"SPARSIFY_DISABLE_TRITON": "1", "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [str(PEERS), __file__, "--peer", str(directory)], check=True, env=environment
        )
        for job in jobs:
            sae = saes[job["architecture"]]
            ours = sae.decode(sae.encode(x))
            theirs = torch.load(Path(job["path"]) / "reconstruction.pt", weights_only=True)
            back = load_sae(job["path"])
            again = back.decode(back.encode(x))
            table.append(
                {
                    "format": job["format"],
                    "architecture": job["architecture"],
                    "read_back_as": back.config.architecture,
                    "peer_max_difference": float((ours - theirs).abs().max()),
                    "read_back_max_difference": float((ours - again).abs().max()),
                    "largest_value": float(ours.abs().max()),
                }
            )
        versions = json.loads((directory / "versions.json").read_text())
    worst = max(max(r["peer_max_difference"], r["read_back_max_difference"]) for r in table)
    result = {
        "command": "python benchmarks/sae_formats.py",
        "versions": versions,
        "tolerance": TOLERANCE,
        "worst_difference": worst,
        "round_trips": table,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if worst > TOLERANCE:
        sys.exit(f"a round trip is off by {worst}")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--peer":
        peer_reconstruct(Path(sys.argv[2]))
    else:
        main()

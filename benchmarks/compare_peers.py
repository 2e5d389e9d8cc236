"""Compare SAEs that the peers' own packages wrote, in an environment of their own.

    python3 -m venv .venv-peers-all
    .venv-peers-all/bin/pip install torch==2.13.0 sae-lens eai-sparsify dictionary-learning
    python benchmarks/compare_peers.py

SAELens, dictionary_learning and sparsify each write SAEs of 128 features, of which 96 are the same
planted directions with a little noise, in a new order, and 32 are random. Every pair must share
those 96 and no other. Writes benchmarks/results/compare_peers.json.
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
RESULTS = ROOT / "benchmarks" / "results" / "compare_peers.json"
D, D_SAE, SHARED, K = 32, 128, 96, 8


def write_saes(folder: Path) -> None:
    """Run in the peers' environment: write SAEs with the peers' own code."""
    import importlib.metadata

    import torch
    from dictionary_learning.dictionary import AutoEncoder
    from dictionary_learning.trainers.top_k import (
        AutoEncoderTopK,
    )
    from sae_lens import (
        JumpReLUSAE,
        JumpReLUSAEConfig,
        StandardSAE,
        StandardSAEConfig,
        TopKSAE,
        TopKSAEConfig,
    )
    from sparsify import SparseCoder, SparseCoderConfig

    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(SHARED, D, generator=generator)
    truth /= truth.norm(dim=1, keepdim=True)

    def decoder() -> Any:
        W = torch.randn(D_SAE, D, generator=generator)
        W[:SHARED] = truth + 0.03 * W[:SHARED]
        W = W[torch.randperm(D_SAE, generator=generator)]
        return W / W.norm(dim=1, keepdim=True)

    saelens = [
        (StandardSAE, StandardSAEConfig(d_in=D, d_sae=D_SAE)),
        (TopKSAE, TopKSAEConfig(d_in=D, d_sae=D_SAE, k=K)),
        (JumpReLUSAE, JumpReLUSAEConfig(d_in=D, d_sae=D_SAE)),
    ]
    for model, config in saelens:
        sae, W = model(config), decoder()
        with torch.no_grad():
            sae.W_dec.copy_(W)
            sae.W_enc.copy_(W.T)
        sae.save_model(str(folder / f"saelens_{config.architecture()}"))
    for name, sae in (
        ("AutoEncoder", AutoEncoder(D, D_SAE)),
        ("AutoEncoderTopK", AutoEncoderTopK(D, D_SAE, K)),
    ):
        W = decoder()
        with torch.no_grad():
            sae.decoder.weight.copy_(W.T)
            sae.encoder.weight.copy_(W)
        path = folder / f"dictionary_learning_{name}"
        path.mkdir()
        torch.save(sae.state_dict(), path / "ae.pt")
        (path / "config.json").write_text(json.dumps({"trainer": {"dict_class": name, "k": K}}))
    sae, W = SparseCoder(D, SparseCoderConfig(num_latents=D_SAE, k=K)), decoder()
    with torch.no_grad():
        sae.W_dec.copy_(W)
        sae.encoder.weight.copy_(W)
    sae.save_to_disk(folder / "sparsify")
    names = ("sae-lens", "dictionary-learning", "eai-sparsify", "torch")
    versions = {name: importlib.metadata.version(name) for name in names}
    (folder / "versions.json").write_text(json.dumps(versions))


def main() -> None:
    import jsonschema

    from husai.cli import main as husai
    from husai.compare.document import schema

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = os.environ | {"SPARSIFY_DISABLE_TRITON": "1", "OMP_NUM_THREADS": "1"}
        subprocess.run([str(PEERS), __file__, "--peer", str(folder)], check=True, env=environment)
        saes = sorted(path for path in folder.iterdir() if path.is_dir())
        code = husai(["compare", *map(str, saes), "--json", str(folder / "out.json")])
        document = json.loads((folder / "out.json").read_text())
        versions = json.loads((folder / "versions.json").read_text())
    if code:
        sys.exit(code)
    jsonschema.validate(document, schema())
    pairs = []
    for pair in document["pairs"]:
        value = {(s["score"], s["signed"]): s["value"] for s in pair["scores"]}
        pairs.append(
            {
                "a": pair["a"],
                "b": pair["b"],
                "pw_mcc": value["pw_mcc", False],
                "matched_fraction": value["matched_fraction", True],
                "shared_fraction": value["shared_fraction", True],
            }
        )
    expected = SHARED / D_SAE
    wrong = [p for p in pairs if not p["matched_fraction"] == p["shared_fraction"] == expected]
    result = {
        "command": "python benchmarks/compare_peers.py",
        "versions": versions,
        "expected_shared_fraction": expected,
        "pairs_wrong": len(wrong),
        "pairs": pairs,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    if wrong:
        sys.exit(f"not the planted fraction: {wrong}")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--peer":
        write_saes(Path(sys.argv[2]))
    else:
        main()

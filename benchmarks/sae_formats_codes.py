"""Codes of files in other projects' formats, by our readers and by the peers' own loaders.

    python3 -m venv .venv-peers-all
    .venv-peers-all/bin/pip install torch==2.13.0 sae-lens eai-sparsify dictionary-learning
    python benchmarks/sae_formats_codes.py

Writes a folder of each kind that the peer's loader knows, from one set of random numbers, lets the
peer encode rows, and encodes them with what `husai.sae.load_sae` reads. Codes are compared in units
of unit decoder rows. Writes benchmarks/results/sae_formats_codes.json.
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
PEERS = Path(os.environ.get("HUSAI_PEERS_PYTHON", ROOT / ".venv-peers-all" / "bin" / "python"))
RESULTS = ROOT / "benchmarks" / "results" / "sae_formats_codes.json"
TOLERANCE = 1e-4
D, F, K = 24, 48, 4

SAELENS: dict[str, dict[str, Any]] = {
    "standard": {"architecture": "standard"},
    "standard, raw rows": {"architecture": "standard", "apply_b_dec_to_input": False},
    "standard, layer norm": {"architecture": "standard", "normalize_activations": "layer_norm"},
    "topk": {"architecture": "topk", "k": K},
    "topk by weighed latents": {
        "architecture": "topk",
        "k": K,
        "rescale_acts_by_decoder_norm": True,
    },
    "topk, constant norm": {
        "architecture": "topk",
        "k": K,
        "normalize_activations": "constant_norm_rescale",
    },
    "signed topk": {"architecture": "abstopk", "k": K},
    "jumprelu": {"architecture": "jumprelu"},
    "gated": {"architecture": "gated"},
    "topk called standard, before v6": {
        "architecture": "standard",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
    },
}
SPARSIFY: dict[str, dict[str, Any]] = {
    "topk": {"activation": "topk"},
    "groupmax": {"activation": "groupmax"},
}
DICTIONARY_LEARNING = (
    "AutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
    "GatedAutoEncoder",
)


def build(folder: Path) -> list[dict[str, str]]:
    """Write every kind; give format, kind and path of each."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    W_enc, b_enc, W_dec, b_dec = draw(D, F), draw(F), draw(F, D), draw(D)
    gate, mag, r, threshold = draw(F), draw(F), draw(F) / 4, draw(F).abs()
    named = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    linear = {
        "encoder.weight": W_enc.T,
        "encoder.bias": b_enc,
        "decoder.weight": W_dec.T,
    }
    jobs = []
    for kind, change in SAELENS.items():
        tensors = dict(named)
        if change["architecture"] == "jumprelu":
            tensors["threshold"] = threshold
        if change["architecture"] == "gated":
            del tensors["b_enc"]
            tensors |= {"b_gate": gate, "b_mag": mag, "r_mag": r}
        version = {} if "before" in kind else {"metadata": {"sae_lens_version": "6.20.0"}}
        cfg = {"d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu"} | change | version
        cfg = {"apply_b_dec_to_input": True, "normalize_activations": "none"} | cfg
        jobs.append(_write(folder, "saelens", kind, "cfg.json", cfg))
        save_file(
            {name: t.contiguous() for name, t in tensors.items()},
            Path(jobs[-1]["path"]) / "sae_weights.safetensors",
        )
    for kind, change in SPARSIFY.items():
        cfg = {"num_latents": F, "k": K, "d_in": D, "expansion_factor": F // D} | change
        jobs.append(_write(folder, "sparsify", kind, "cfg.json", cfg))
        tensors = {**linear, "W_dec": W_dec, "b_dec": b_dec}
        del tensors["decoder.weight"]
        save_file(
            {name: t.contiguous() for name, t in tensors.items()},
            Path(jobs[-1]["path"]) / "sae.safetensors",
        )
    buffers = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.8)}
    states: dict[str, dict[str, torch.Tensor]] = {
        "AutoEncoder": linear | {"bias": b_dec},
        "AutoEncoderNew": linear | {"decoder.bias": b_dec},
        "AutoEncoderTopK": linear | buffers | {"b_dec": b_dec},
        "BatchTopKSAE": linear | buffers | {"b_dec": b_dec},
        "MatryoshkaBatchTopKSAE": named | buffers | {"group_sizes": torch.tensor([8, 16, F - 24])},
        "JumpReluAutoEncoder": named | {"threshold": threshold},
        "GatedAutoEncoder": {
            "encoder.weight": W_enc.T,
            "decoder.weight": W_dec.T,
            "decoder_bias": b_dec,
            "r_mag": r,
            "gate_bias": gate,
            "mag_bias": mag,
        },
    }
    for kind in DICTIONARY_LEARNING:
        trainer = {"dict_class": kind, "activation_dim": D, "dict_size": F, "k": K}
        jobs.append(
            _write(folder, "dictionary_learning", kind, "config.json", {"trainer": trainer})
        )
        torch.save(states[kind], Path(jobs[-1]["path"]) / "ae.pt")
    torch.save(draw(500, D) + 0.4, folder / "rows.pt")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return jobs


def _write(folder: Path, format: str, kind: str, name: str, cfg: dict[str, Any]) -> dict[str, str]:
    path = folder / format / kind.replace(", ", "_").replace(" ", "_")
    path.mkdir(parents=True)
    (path / name).write_text(json.dumps(cfg))
    return {"format": format, "kind": kind, "path": str(path)}


def peer_codes(folder: Path) -> None:
    """Run in the peers' environment: encode the rows with every folder, in unit decoder rows."""
    import importlib.metadata

    import torch

    x = torch.load(folder / "rows.pt", weights_only=True)
    for job in json.loads((folder / "jobs.json").read_text()):
        path = job["path"]
        with torch.no_grad():
            if job["format"] == "saelens":
                from sae_lens import SAE

                model = SAE.load_from_disk(path, device="cpu")
                codes, W_dec = model.encode(x), model.W_dec
                if getattr(model.cfg, "rescale_acts_by_decoder_norm", False):
                    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
            elif job["format"] == "sparsify":
                from sparsify import SparseCoder

                model = SparseCoder.load_from_disk(path)
                top = model.encode(x)
                codes = torch.zeros(len(x), F).scatter_(-1, top.top_indices, top.top_acts)
                W_dec = model.W_dec
            else:
                from dictionary_learning.utils import load_dictionary

                model, _ = load_dictionary(path, device="cpu")
                codes = model.encode(x)
                W_dec = model.W_dec if hasattr(model, "W_dec") else model.decoder.weight.T
        torch.save(codes * W_dec.norm(dim=1), Path(path) / "codes.pt")
    names = ("sae-lens", "dictionary-learning", "eai-sparsify", "torch")
    versions = {name: importlib.metadata.version(name) for name in names}
    (folder / "versions.json").write_text(json.dumps(versions))


def main() -> None:
    import torch

    from husai.sae import load_sae

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = build(folder)
        environment = os.environ | {"SPARSIFY_DISABLE_TRITON": "1", "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        subprocess.run([str(PEERS), __file__, "--peer", str(folder)], check=True, env=environment)
        x = torch.load(folder / "rows.pt", weights_only=True)
        table = []
        for job in jobs:
            sae = load_sae(job["path"])
            ours = sae.encode(x) * sae.W_dec.norm(dim=1)
            theirs = torch.load(Path(job["path"]) / "codes.pt", weights_only=True)
            table.append(
                {
                    "format": job["format"],
                    "kind": job["kind"],
                    "read_as": sae.config.architecture,
                    "largest_code": float(theirs.abs().max()),
                    "max_difference": float((ours - theirs).abs().max()),
                    "l0": float((theirs != 0).float().sum(1).mean()),
                }
            )
        versions = json.loads((folder / "versions.json").read_text())
    worst = max(float(str(row["max_difference"])) for row in table)
    result = {
        "command": "python benchmarks/sae_formats_codes.py",
        "versions": versions,
        "tolerance": TOLERANCE,
        "worst_difference": worst,
        "kinds": table,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if worst > TOLERANCE:
        sys.exit(f"codes are off by {worst}")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--peer":
        peer_codes(Path(sys.argv[2]))
    else:
        main()

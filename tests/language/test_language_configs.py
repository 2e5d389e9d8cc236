"""The configurations for a GPU run on a tiny random model of the same architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

PROJECT = Path(__file__).parents[2]


def make_tiny(folder: Path, tokenizer: Path, kind: str) -> Path:
    """Write a model of 8 dimensions, with as many layers as the hook that is read needs."""
    import shutil

    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    layers = {"gpt2": 7, "pythia160m": 9, "pythia1b": 13}[kind]
    if kind == "gpt2":
        gpt2 = GPT2Config(
            vocab_size=65, n_positions=32, n_embd=8, n_layer=layers, n_head=2, bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
        GPT2LMHeadModel(gpt2).save_pretrained(folder)
    else:
        neox = GPTNeoXConfig(
            vocab_size=65, max_position_embeddings=32, hidden_size=8, num_hidden_layers=layers,
            num_attention_heads=2, intermediate_size=16, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        GPTNeoXForCausalLM(neox).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, folder / file)
    return folder


@pytest.mark.parametrize("kind", ["gpt2", "pythia160m", "pythia1b"])
def test_a_dry_run_of_a_large_study_estimates_its_cost(tmp_path, model_folders, text_path, kind):
    params: dict[str, Any] = {
        "language_model": {
            "name": str(make_tiny(tmp_path / "model", model_folders["gpt2"], kind)),
            "device": "cpu",
        },
        "text": {
            "source": str(text_path),
            "n_tokens": 1500,
            "held_out_tokens": 300,
            "context": 16,
        },
        "campaign": {
            "plan": {"d_sae": [16, 32], "untrained_d_sae": [16]},
            "compute": {"processes": 0},
        },
        "sae_training": {"batch_size": 64},
    }
    plan = params["campaign"]["plan"]
    plan["architectures"] = {"topk": {"k": [4]}, "batch_topk": {"k": [4]}}
    plan["variants"] = (
        None if kind != "pythia160m" else {"mlp_topk": {"d_sae": 32}, "mlp_relu": None}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_DATA_DIR", str(tmp_path / "data"))
        for pipeline in ("language_activations", "campaign_dry_run"):
            bootstrap_project(PROJECT)
            made: Any = KedroSession.create(PROJECT, env=f"lm_{kind}", runtime_params=params)
            with made as session:
                session.run(pipeline_names=[pipeline])
    estimate = pd.read_parquet(tmp_path / "data" / "saes" / "campaign" / "estimate.parquet")
    assert (estimate["seconds"] > 0).all()
    assert set(estimate["architecture"]) == {"topk", "batch_topk", "relu"}

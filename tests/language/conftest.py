"""Tiny random language models in the Hugging Face format, made in the test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from husai.language import LanguageModelConfig, load_language_model
from husai.sae import SAEConfig, TrainedSAE
from husai.text import TextConfig, tokenise

WORDS = [f"w{i}" for i in range(60)]


@pytest.fixture(scope="session", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def make_model(folder: Path, kind: str) -> Path:
    """Write a model of 3 layers with its tokenizer: ``bert``, ``bert_encoder`` or ``gpt2``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        BertModel,
        GPT2Config,
        GPT2LMHeadModel,
        PreTrainedTokenizerFast,
    )

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    if kind != "gpt2":
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    torch.manual_seed(99)
    size = len(vocabulary)
    if kind == "gpt2":
        gpt2 = GPT2Config(
            vocab_size=size, n_positions=24, n_embd=16, n_layer=3, n_head=2, bos_token_id=0,
            eos_token_id=0, initializer_range=0.3,
        )  # fmt: skip
        GPT2LMHeadModel(gpt2).save_pretrained(folder)
    else:
        bert = BertConfig(
            vocab_size=size, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=24, initializer_range=0.3,
        )  # fmt: skip
        (BertModel if kind == "bert_encoder" else BertForMaskedLM)(bert).save_pretrained(folder)
    return folder


def write_text(path: Path, documents: int = 400) -> Path:
    """Write documents of random words with two labels, each of which prefers its own words."""
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        for number in range(documents):
            label = number % 2
            length = int(generator.integers(3, 30))
            low, high = (0, 40) if label else (20, 60)
            words = " ".join(WORDS[i] for i in generator.integers(low, high, size=length))
            file.write(json.dumps({"text": words, "label": label}) + "\n")
    return path


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: make_model(root / kind, kind) for kind in ("bert", "bert_encoder", "gpt2")}


@pytest.fixture(scope="session")
def models(model_folders):
    return {
        kind: load_language_model(LanguageModelConfig(name=str(folder), device="cpu"))
        for kind, folder in model_folders.items()
    }


@pytest.fixture(scope="session")
def text_path(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.jsonl")


@pytest.fixture(scope="session")
def tokens(models, text_path):
    """Tokens of the text by model."""
    config = TextConfig(
        source=str(text_path), label="label", n_tokens=2500, held_out_tokens=600, context=16
    )
    return {
        kind: tokenise(config, model.tokenizer, n_vocabulary=model.d_vocab, progress=False)
        for kind, model in models.items()
    }


def build_sae(seed: int, permuted: bool = False) -> TrainedSAE:
    """Build an SAE of random directions; permuted, the same one with its latents reordered."""
    generator = torch.Generator().manual_seed(0 if permuted else seed)
    W = torch.nn.functional.normalize(torch.randn(48, 16, generator=generator), dim=1)
    if permuted:
        W = W[torch.randperm(48, generator=torch.Generator().manual_seed(seed))]
    return TrainedSAE(
        config=SAEConfig(architecture="relu", d_sae=48, l1_coefficient=1.0, init_seed=seed),
        W_enc=W.T.contiguous(),
        b_enc=torch.zeros(48),
        W_dec=W,
        b_dec=torch.zeros(16),
        threshold=None,
        W_dec_init=W,
        metrics={},
        history=pd.DataFrame(),
        density=torch.full((48,), 0.5),
    )


@pytest.fixture(scope="session")
def random_sae():
    return build_sae

"""Nodes that measure, probe and describe the SAEs of a language model."""

from __future__ import annotations

from typing import Any

import pandas as pd

from husai.consistency.config import ConsistencyConfig
from husai.language.config import (
    ContextsConfig,
    EvaluationConfig,
    LanguageModelConfig,
    ProbesConfig,
    ReadingConfig,
)
from husai.storage import TensorFile, TensorFiles
from husai.text import TextConfig, Tokens


def evaluate(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    text_tokens: TensorFile,
    language_model: LanguageModelConfig,
    reading: ReadingConfig,
    evaluation: EvaluationConfig,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, dict[str, Any]]]:
    """Measure every SAE's reconstruction, and its effect on the model in place of activations."""
    from husai.language.study import evaluate_plan

    tokens = Tokens.from_file(text_tokens)
    return evaluate_plan(sae_plan, saes, activations, tokens, language_model, reading, evaluation)


def probe(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    probe_text: TextConfig,
    language_model: LanguageModelConfig,
    reading: ReadingConfig,
    probes: ProbesConfig,
    consistency: ConsistencyConfig,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Probe labelled texts with every SAE, and measure whether seeds select matched latents."""
    from husai.language.study import probe_plan

    found = probe_plan(
        sae_plan,
        saes,
        activations,
        probe_text,
        language_model,
        reading,
        probes,
        consistency.level,
    )
    return found.probes, found.summary, found.stability


def describe(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    text_tokens: TensorFile,
    text_documents: pd.DataFrame,
    language_model: LanguageModelConfig,
    reading: ReadingConfig,
    contexts: ContextsConfig,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Find the contexts that activate every latent most, and the tokens that it promotes."""
    from husai.language.study import describe_plan

    tokens = Tokens.from_file(text_tokens)
    return describe_plan(
        sae_plan, saes, activations, tokens, text_documents, language_model, reading, contexts
    )


def compare_untrained(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    consistency: ConsistencyConfig,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Say how well the features of the model at new initial weights come back."""
    from husai.language import study

    return study.compare_untrained(sae_plan, saes, activations, consistency)

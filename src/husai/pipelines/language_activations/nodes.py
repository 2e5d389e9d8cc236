"""Nodes that turn a text into tokens, and tokens into activations of a language model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from husai.language.config import LanguageModelConfig, ReadingConfig
from husai.storage import TensorFile
from husai.text import TextConfig, Tokens


def tokenise_text(
    text: TextConfig, language_model: LanguageModelConfig
) -> tuple[TensorFile, pd.DataFrame]:
    """Cut the text into contexts of the model's tokens, and list its documents."""
    from husai.language import load_tokenizer
    from husai.text import tokenise

    tokenizer, n_vocabulary = load_tokenizer(language_model)
    tokens, documents = tokenise(
        text, tokenizer, n_vocabulary=n_vocabulary, about={"tokenizer": language_model.name}
    )
    return tokens.to_file(), documents


def read_model(
    text_tokens: TensorFile,
    language_model: LanguageModelConfig,
    reading: ReadingConfig,
    stores: Path,
) -> Iterator[dict[str, TensorFile]]:
    """Read the hooks into stores, and return the held-out rows of each as activations.

    If the parameters ask for it, also those of the same model at new initial weights.
    """
    from husai.language import extract_stores, held_out_activations, load_language_model

    tokens = Tokens.from_file(text_tokens)
    for trained in (True, False) if reading.untrained else (True,):
        model = load_language_model(language_model, trained=trained)
        found = extract_stores(model, tokens, reading, stores, trained=trained)
        for rows in held_out_activations(found, reading, trained):
            yield {rows.key: TensorFile(*rows.to_tensors())}


def name_rows(
    text_tokens: TensorFile, language_model: LanguageModelConfig, reading: ReadingConfig
) -> pd.DataFrame:
    """Tabulate the word of each row of the first hook, which the feature page shows."""
    from husai.language import load_tokenizer
    from husai.language.contexts import row_words

    tokenizer, _ = load_tokenizer(language_model)
    _, position = reading.places()[0]
    return row_words(tokenizer, Tokens.from_file(text_tokens), position, reading)

"""Describe latents by text: the contexts that activate them, and the tokens they make likely."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from husai.config import Position
from husai.errors import InputError
from husai.language.config import ContextsConfig, ReadingConfig
from husai.language.extraction import ALL_OF_A_CONTEXT, row_places
from husai.language.model import LanguageModel
from husai.progress import progress_bar
from husai.sae import TrainedSAE
from husai.text import Tokens

if TYPE_CHECKING:
    import torch

CHUNK = 2048
OPEN, CLOSE = "«", "»"


def top_rows(
    sae: TrainedSAE, rows: torch.Tensor, n: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the rows that activate each latent most.

    Parameters
    ----------
    sae
        The SAE.
    rows
        ``[n_rows, d]`` activations that it reads.
    n
        Number of rows per latent.

    Returns
    -------
    activations, numbers
        ``[n, d_sae]`` activations, descending, and the numbers of their rows. Where a latent fires
        on fewer than n rows both are 0. Of equal activations the earlier row comes first.
    """
    n = min(n, len(rows))
    latent, number = np.empty((2, 0), np.int64)
    value = np.empty(0, np.float32)
    for begin in range(0, len(rows), CHUNK):
        # few latents fire on a row, so only the active entries are sorted
        codes = sae.encode(rows[begin : begin + CHUNK].float()).numpy()
        row, own = np.nonzero(codes)
        latent = np.concatenate([latent, own])
        value = np.concatenate([value, codes[row, own]])
        number = np.concatenate([number, row + begin])
        order = np.lexsort((number, -value, latent))
        latent, value, number = latent[order], value[order], number[order]
        rank = np.arange(len(latent)) - np.searchsorted(latent, latent)
        kept = rank < n
        latent, value, number, rank = latent[kept], value[kept], number[kept], rank[kept]
    best = np.zeros((n, sae.config.d_sae), np.float32)
    numbers = np.zeros((n, sae.config.d_sae), np.int64)
    best[rank, latent], numbers[rank, latent] = value, number
    return best, numbers


def contexts_table(
    model: LanguageModel,
    tokens: Tokens,
    documents: pd.DataFrame,
    saes: Mapping[str, TrainedSAE],
    rows: torch.Tensor,
    place: tuple[str, Position],
    reading: ReadingConfig,
    config: ContextsConfig,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Tabulate the held-out contexts that activate every latent most.

    Parameters
    ----------
    model
        The model; its tokenizer turns tokens into text.
    tokens, documents
        The text, from :func:`husai.text.tokenise`.
    saes
        SAEs of one hook by name.
    rows
        ``[n, d]`` held-out rows of this hook.
    place, reading
        Hook and position of the rows, and which tokens are rows.
    config
        How many contexts per latent, and how long.
    progress
        Show a progress bar.

    Returns
    -------
    DataFrame
        A row for each SAE, latent and ``rank`` from 0: ``activation``, ``row`` among the held-out
        ones, ``token``, ``text`` with the token in « », ``source`` and ``document_row``.

    Raises
    ------
    InputError
        When the number of rows differs from that of the held-out tokens.
    """
    places = row_places(tokens, place[1], reading)
    held_out = places.context >= len(tokens) - tokens.n_held_out
    context, at = places.context[held_out], places.place[held_out]
    if len(context) != len(rows):
        raise InputError(
            f"contexts: {len(rows)} held-out rows, but the tokens give {len(context)}; run the "
            "extraction again"
        )
    words = _Words(model.tokenizer, int(tokens.ids[tokens.ordinary][0]))
    found = []
    with progress_bar(len(saes), "find contexts", "SAE", disable=not progress) as bar:
        for sae_id, sae in saes.items():
            best, numbers = top_rows(sae, rows, config.contexts)
            rank, latent = np.nonzero(best > 0)
            row = numbers[rank, latent]
            table = pd.DataFrame({"sae_id": sae_id, "latent": latent, "rank": rank})
            table["activation"], table["row"] = best[rank, latent], row
            shown = [words.shown(tokens, context[one], at[one], config) for one in row]
            table["token"], table["text"] = zip(*shown, strict=True) if shown else ([], [])
            document = tokens.document[context[row], np.maximum(at[row], 0)]
            # the row of a whole context takes the document of the context's first ordinary token
            document = np.where(at[row] < 0, tokens.document[context[row]].max(1), document)
            table["source"] = documents["source"].to_numpy()[document]
            table["document_row"] = documents["row"].to_numpy()[document]
            found.append(table.sort_values(["latent", "rank"], ignore_index=True))
            bar.update(1)
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def row_words(
    tokenizer: Any, tokens: Tokens, position: Position, reading: ReadingConfig
) -> pd.DataFrame:
    """Tabulate the token of every held-out row as text, in the rows' order, for the feature page.

    Parameters
    ----------
    tokenizer
        Tokenizer of the model.
    tokens
        The text.
    position, reading
        Position of the rows, and which tokens are rows.

    Returns
    -------
    DataFrame
        ``token``, its text with the space before it, and ``document``, the number of its context.
        Empty where a row is the mean of a context, because such a row has no token.
    """
    places = row_places(tokens, position, reading)
    held_out = places.context >= len(tokens) - tokens.n_held_out
    context, at = places.context[held_out], places.place[held_out]
    if (at == ALL_OF_A_CONTEXT).any():
        return pd.DataFrame()
    words = _Words(tokenizer, int(tokens.ids[tokens.ordinary][0]))
    return pd.DataFrame(
        {"token": [words.of(int(one)) for one in tokens.ids[context, at]], "document": context}
    )


class _Words:
    """The text of a token when another token precedes it, with a space before it if it has one."""

    def __init__(self, tokenizer: Any, before: int) -> None:
        self.tokenizer = tokenizer
        self.before = before
        self.skipped = len(self.tokenizer.decode([before]))
        self.known: dict[int, str] = {}
        self.contexts: dict[int, list[str]] = {}

    def of(self, token: int) -> str:
        """Return the text of one token."""
        if token not in self.known:
            self.known[token] = self.tokenizer.decode([self.before, token])[self.skipped :]
        return self.known[token]

    def shown(
        self, tokens: Tokens, context: int, place: int, config: ContextsConfig
    ) -> tuple[str, str]:
        """Return a token's text, and one line with the text around it and the token marked."""
        if context not in self.contexts:  # latents share contexts
            length = int(tokens.length[context])
            ids = tokens.ids[context, :length].tolist()
            self.contexts[context] = [self.of(one) for one in ids]
        words = self.contexts[context]
        if place == ALL_OF_A_CONTEXT:
            return "", " ".join("".join(words[: config.before + config.after]).split())
        before = "".join(words[max(0, place - config.before) : place])
        after = "".join(words[place + 1 : place + 1 + config.after])
        token = words[place]
        bare = token.lstrip(" ")
        space = token[: len(token) - len(bare)]
        marked = f"{before}{space}{OPEN}{bare}{CLOSE}{after}"
        return " ".join(bare.split()) or token, " ".join(marked.split())


def logit_effects(
    model: LanguageModel, saes: Mapping[str, TrainedSAE], config: ContextsConfig
) -> pd.DataFrame:
    """Tabulate the tokens that each latent's decoder row makes most and least likely.

    The row is multiplied by the unembedding directly (the logit lens of nostalgebraist, 2020). The
    effect of the layers after the hook and of the last normalisation is left out.

    Parameters
    ----------
    model
        The model, for its unembedding and tokenizer.
    saes
        SAEs by name.
    config
        ``tokens``: how many tokens are listed.

    Returns
    -------
    DataFrame
        A row for each SAE and latent: ``promoted`` and ``suppressed``, lists of tokens, and
        ``promoted_effect``, ``suppressed_effect``, their logits for one unit of the latent. Empty
        where the model does not predict tokens, or the hook is not as wide as the residual stream.
    """
    head = model.bridge.original_model.get_output_embeddings()
    if model.kind == "encoder" or head is None:
        return pd.DataFrame()
    W_U = head.weight.detach().float().cpu()
    found: list[dict[str, Any]] = []
    for sae_id, sae in saes.items():
        if sae.d_in != W_U.shape[1]:
            continue
        for begin in range(0, sae.config.d_sae, CHUNK):
            effect = sae.W_dec[begin : begin + CHUNK].float() @ W_U.T
            effect = effect - effect.mean(1, keepdim=True)  # a constant does not change a softmax
            n = min(config.tokens, effect.shape[1])
            best, worst = effect.topk(n, dim=1), effect.topk(n, dim=1, largest=False)
            for offset in range(len(effect)):
                row: dict[str, Any] = {"sae_id": sae_id, "latent": begin + offset}
                for name, top in (("promoted", best), ("suppressed", worst)):
                    ids = top.indices[offset].tolist()
                    row[name] = [model.tokenizer.decode([token]).strip() for token in ids]
                    row[f"{name}_effect"] = top.values[offset].tolist()
                found.append(row)
    return pd.DataFrame(found)

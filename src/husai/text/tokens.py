"""Tokenise documents and cut them into contexts, with the document and place of each token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from husai.errors import InputError
from husai.progress import progress_bar
from husai.storage import TensorFile
from husai.text.config import TextConfig
from husai.text.documents import Document, read_documents

if TYPE_CHECKING:
    import torch

ENCODED_AT_ONCE = 256
CHARACTERS_A_TOKEN = 40
"""More characters than the mean token of any text has. Only the first ``CHARACTERS_A_TOKEN *
context`` characters of a document are tokenised when only its first context is kept."""

NO_DOCUMENT = -1
PROBE = "a"
"""A short text that shows which special tokens the tokenizer puts around every text."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    @property
    def pad_token_id(self) -> int | None:
        """Token that fills the end of a context."""
        ...

    def __call__(self, text: Any, **options: Any) -> Any:
        """Tokenise texts; ``input_ids`` of the result has a list for each."""
        ...


@dataclass(frozen=True)
class Tokens:
    """Contexts of tokens, with the document and place of each token.

    Attributes
    ----------
    ids
        ``[n_contexts, context]`` int32: token ids, with padding at the end of short contexts.
    document
        ``[n_contexts, context]`` int32: number of the token's document, −1 for special and padding
        tokens.
    place
        ``[n_contexts, context]`` int32: number of the token in its document, −1 for special and
        padding tokens.
    length
        ``[n_contexts]`` int32: tokens of each context, padding not counted.
    n_held_out
        Number of held-out contexts. They are the last ones, and share no document with the others.
    about
        Text, tokenizer, and counts of tokens: JSON data.
    """

    ids: NDArray[np.int32]
    document: NDArray[np.int32]
    place: NDArray[np.int32]
    length: NDArray[np.int32]
    n_held_out: int
    about: Mapping[str, Any]

    @property
    def ordinary(self) -> NDArray[np.bool_]:
        """``[n_contexts, context]`` whether a token is from a document, not special or padding."""
        return self.document != NO_DOCUMENT

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that identify the tokens."""
        return hashlib.sha256(self.ids.tobytes() + self.document.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.ids)

    def to_file(self) -> TensorFile:
        """Return the content of a file of these tokens."""
        import torch

        tensors: dict[str, torch.Tensor] = {
            name: torch.from_numpy(np.ascontiguousarray(getattr(self, name)))
            for name in ("ids", "document", "place", "length")
        }
        header = {"kind": "tokens", "n_held_out": self.n_held_out, "about": dict(self.about)}
        return TensorFile(tensors, header)

    @classmethod
    def from_file(cls, file: TensorFile) -> Tokens:
        """Build the tokens from a file's content.

        Raises
        ------
        InputError
            When the file does not hold tokens.
        """
        if file.header.get("kind") != "tokens":
            raise InputError("tokens: the file does not hold tokens; tokenise the text again")
        arrays = {name: tensor.numpy() for name, tensor in file.tensors.items()}
        return cls(**arrays, n_held_out=int(file.header["n_held_out"]), about=file.header["about"])


def _special_around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and after a text."""
    plain = list(tokenizer([PROBE], add_special_tokens=False)["input_ids"][0])
    whole = list(tokenizer([PROBE])["input_ids"][0])
    for at in range(len(whole) - len(plain) + 1):
        if whole[at : at + len(plain)] == plain:
            return whole[:at], whole[at + len(plain) :]
    return [], []


class _Contexts:
    """Collects contexts: one for each document, or full ones from the stream of all documents."""

    def __init__(self, tokenizer: Tokenizer, config: TextConfig) -> None:
        self.before, self.after = _special_around(tokenizer)
        n_special = len(self.before) + len(self.after)
        self.room = config.context - n_special
        if self.room < 1:
            raise InputError(
                f"text.context: {config.context} tokens, but the tokenizer adds {n_special} "
                "special tokens to each context, so no other fits; raise it"
            )
        self.packed = config.mode == "packed"
        self.config = config
        self.found: list[NDArray[np.int32]] = []
        self.rest = np.empty((3, 0), np.int32)

    def add(self, ids: list[int], document: int) -> int:
        """Add a document's tokens, and return how many tokens this adds to finished contexts."""
        part = np.empty((3, len(ids)), np.int32)
        part[0], part[1], part[2] = ids, document, np.arange(len(ids))
        if not self.packed:
            self._close(part[:, : self.room])
            return min(len(ids), self.room)
        before = len(self.found)
        self.rest = np.concatenate([self.rest, part], axis=1)
        while self.rest.shape[1] >= self.room:
            self._close(self.rest[:, : self.room])
            self.rest = self.rest[:, self.room :]
        return (len(self.found) - before) * self.room

    def end(self) -> None:
        """Drop a context that is not full, because the held-out documents follow."""
        self.rest = np.empty((3, 0), np.int32)

    def _close(self, part: NDArray[np.int32]) -> None:
        outer = [np.full((3, len(ids)), NO_DOCUMENT, np.int32) for ids in (self.before, self.after)]
        outer[0][0], outer[1][0] = self.before, self.after
        self.found.append(np.concatenate([outer[0], part, outer[1]], axis=1))


def _encoded(
    documents: Iterator[Document], tokenizer: Tokenizer, config: TextConfig
) -> Iterator[tuple[Document, list[int]]]:
    # of a long document only the tokens of its first context are needed
    most = None if config.mode == "packed" else CHARACTERS_A_TOKEN * config.context
    waiting: list[Document] = []

    def encode() -> Iterator[tuple[Document, list[int]]]:
        texts = [document.text[:most] for document in waiting]
        found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        yield from zip(waiting, found, strict=True)

    for document in documents:
        waiting.append(document)
        if len(waiting) == ENCODED_AT_ONCE:
            yield from encode()
            waiting = []
    if waiting:
        yield from encode()


def tokenise(
    config: TextConfig,
    tokenizer: Tokenizer,
    *,
    n_vocabulary: int,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[Tokens, pd.DataFrame]:
    """Read a text until there are enough tokens, and cut it into contexts.

    The held-out contexts come last, from documents of their own.

    Parameters
    ----------
    config
        The text.
    tokenizer
        Tokenizer of the model that will read it.
    n_vocabulary
        Number of tokens that the model knows.
    about
        More entries for :attr:`Tokens.about`.
    progress
        Show a progress bar.

    Returns
    -------
    tokens
        The contexts.
    documents
        A row for each document: ``source``, ``row`` there, ``label``, ``n_tokens`` in contexts,
        ``held_out``.

    Raises
    ------
    InputError
        When the text is too short, or the tokenizer gives tokens that the model does not know.
    """
    contexts = _Contexts(tokenizer, config)
    rows: list[tuple[str, int, str, int, bool]] = []
    wanted = config.n_tokens + config.held_out_tokens
    n_training = -1
    done = 0
    with progress_bar(wanted, "tokenise", "token", disable=not progress) as bar:
        for document, ids in _encoded(read_documents(config), tokenizer, config):
            if not ids:
                continue
            if max(ids) >= n_vocabulary:
                raise InputError(
                    f"language_model.tokenizer: it gives token {max(ids)}, but the model knows "
                    f"only {n_vocabulary} tokens; give the model's own tokenizer"
                )
            held_out = n_training >= 0
            added = contexts.add(ids, len(rows))
            rows.append((document.source, document.row, document.label, added, held_out))
            done += added
            bar.update(added)
            if not held_out and done >= config.n_tokens:
                contexts.end()
                n_training, done = len(contexts.found), config.n_tokens
            if done >= wanted:
                break
    if n_training < 0 or len(contexts.found) == n_training:
        raise InputError(
            f"text.n_tokens: {config.n_tokens:,}, and {config.held_out_tokens:,} held out, but the "
            f"text has only {done:,} in contexts of {config.context}; lower them or give more text"
        )
    names = ["source", "row", "label", "n_tokens", "held_out"]
    documents = pd.DataFrame(rows, columns=pd.Index(names))
    padding = tokenizer.pad_token_id or 0
    tokens = _as_tokens(contexts, n_training, padding, {"text": _text(config), **(about or {})})
    return tokens, documents


def tokenise_documents(texts: Sequence[str], tokenizer: Tokenizer, context: int) -> Tokens:
    """Make one context of each text, cut to its length; none is held out.

    Parameters
    ----------
    texts
        The documents, numbered from 0.
    tokenizer
        Tokenizer of the model that will read them.
    context
        Most tokens of a context, special tokens included.
    """
    config = TextConfig(source="texts", context=context)
    contexts = _Contexts(tokenizer, config)
    found = tokenizer(
        [text[: CHARACTERS_A_TOKEN * context] for text in texts], add_special_tokens=False
    )["input_ids"]
    for number, ids in enumerate(found):
        contexts.add(list(ids), number)
    return _as_tokens(contexts, len(contexts.found), tokenizer.pad_token_id or 0, {})


def _text(config: TextConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_defaults=True)


def _as_tokens(
    contexts: _Contexts, n_training: int, padding: int, about: Mapping[str, Any]
) -> Tokens:
    found = contexts.found
    lengths = np.array([part.shape[1] for part in found], np.int32)
    filled = np.full((3, len(found), contexts.config.context), NO_DOCUMENT, np.int32)
    filled[0] = padding
    for number, part in enumerate(found):
        filled[:, number, : part.shape[1]] = part
    ordinary = int((filled[1] != NO_DOCUMENT).sum())
    counts = {
        "contexts": len(found),
        "tokens": ordinary,
        "special": int(lengths.sum()) - ordinary,
        "padding": int(filled[0].size - lengths.sum()),
    }
    held_out = len(found) - n_training
    return Tokens(filled[0], filled[1], filled[2], lengths, held_out, {**about, "counts": counts})

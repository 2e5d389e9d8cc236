"""Text: read documents from files and data sets, and cut them into contexts of tokens."""

from husai.text.config import TextConfig
from husai.text.documents import Document, find_path, read_documents
from husai.text.tokens import Tokens, tokenise, tokenise_documents

__all__ = [
    "Document",
    "TextConfig",
    "Tokens",
    "find_path",
    "read_documents",
    "tokenise",
    "tokenise_documents",
]

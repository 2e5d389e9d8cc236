"""Build the transformer as a TransformerLens bridge, and save and load trained ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from husai.errors import InputError, needs
from husai.storage import read_tensors, tensors_digest, write_tensors
from husai.tasks.modular import Vocabulary
from husai.transformer.config import TransformerConfig, TransformerTrainingConfig

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FILE_KIND = "husai transformer"


def build_transformer(
    config: TransformerConfig, d_vocab: int, n_ctx: int, device: str | torch.device = "cpu"
) -> TransformerBridge:
    """Build the model with fresh weights, as a TransformerLens bridge.

    Positions are learned; the unembedding is untied, has no bias and covers all ``d_vocab`` ids,
    as in the released code of Nanda et al., arXiv 2301.05217. TransformerLens' native model differs
    from that code: weights start at N(0, 0.64/d_model) instead of N(0, 1/d_model) (the unembedding
    in that code at N(0, 1/d_vocab)), and W_O and W_out are smaller by a further factor
    ``1/sqrt(2 n_layers)``; it has attention biases, which stay at 0 unless ``config.biases`` is
    "all".

    Parameters
    ----------
    config
        Shape and seed.
    d_vocab
        Number of token ids.
    n_ctx
        Tokens in a sequence.
    device
        Device of the weights; they are drawn on the CPU, so that a seed gives the same weights on
        every device.

    Raises
    ------
    InputError
        When ``config.d_vocab`` is given and is not ``d_vocab``.
    """
    if config.d_vocab is not None and config.d_vocab != d_vocab:
        raise InputError(
            f"d_vocab = {config.d_vocab} in the transformer's configuration, but the dataset has "
            f"{d_vocab} tokens; leave d_vocab out or set it to {d_vocab}"
        )
    needs("transformer_lens", "lm")
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    bridge_config = TransformerBridgeConfig(
        d_model=config.d_model,
        d_head=config.head_width,
        n_heads=config.n_heads,
        n_layers=config.n_layers,
        n_ctx=n_ctx,
        d_vocab=d_vocab,
        d_mlp=config.d_mlp,
        act_fn=config.act_fn,
        normalization_type=None if config.normalization == "none" else config.normalization,
        initializer_range=-1.0 if config.initializer_range is None else config.initializer_range,
        seed=config.seed,
        device=str(device),
    )
    model: TransformerBridge = TransformerBridge.boot_native(bridge_config, device=str(device))
    for name, parameter in named_parameters(model).items():
        parameter.requires_grad_(_is_trained(name, config))
    return model


def named_parameters(model: TransformerBridge) -> dict[str, torch.nn.Parameter]:
    """Return the model's parameters under the names that its ``state_dict`` uses."""
    # the bridge's own named_parameters speaks of the wrapped module (`tok_embed._original_…`);
    # state_dict(keep_vars) gives the live parameters under the clean names
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, torch.nn.Parameter)}


def _is_trained(name: str, config: TransformerConfig) -> bool:
    if not name.endswith(".bias") or config.biases == "all" or ".ln" in name or "ln_" in name:
        return True
    return config.biases == "mlp" and ".mlp." in name


@dataclass(frozen=True)
class TrainedTransformer:
    """A trained model with its configuration, learning curves and summary.

    Attributes
    ----------
    state_dict
        Name to weights, on the CPU.
    model_config, training_config, vocabulary
        The model's shape, how it was trained, and its tokens.
    history
        One row per evaluation: ``epoch``, ``train_loss``, ``val_loss``, ``test_loss`` (mean
        cross-entropy in nats at the answer position), ``train_accuracy`` …, ``weight_norm``
        (L2 norm of all trained parameters), ``learning_rate`` (of the last step), ``seconds``.
    summary
        ``epoch_train_99``, ``epoch_test_99``, ``grokking_delay_epochs`` and ``_ratio``, final
        accuracies and losses, seconds, hardware, threads, why training stopped.
    name
        Its name among the shipped transformers (see :mod:`husai.transformer.shipped`), or empty.
    progress
        Progress measures of the training, if they were kept; or None.
    """

    state_dict: dict[str, Tensor]
    model_config: TransformerConfig
    training_config: TransformerTrainingConfig
    vocabulary: Vocabulary
    history: pd.DataFrame
    summary: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    progress: pd.DataFrame | None = None

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of the weights: equal bits, equal fingerprint."""
        return tensors_digest(self.state_dict)[:16]

    def identity(self) -> dict[str, Any]:
        """Return ``name``, ``seed`` and ``fingerprint`` of this transformer."""
        return {
            "name": self.name,
            "seed": self.model_config.seed,
            "fingerprint": self.fingerprint,
        }

    def build(self, device: str | torch.device = "cpu") -> TransformerBridge:
        """Return the hooked model with the trained weights, in evaluation mode."""
        model = build_transformer(
            self.model_config, self.vocabulary.d_vocab, self.vocabulary.n_ctx, device
        )
        model.load_state_dict(self.state_dict)
        model.eval()
        return model

    def header(self) -> dict[str, Any]:
        """Everything but the weights, as JSON."""
        header = {
            "kind": FILE_KIND,
            "model_config": self.model_config.model_dump(mode="json"),
            "training_config": self.training_config.model_dump(mode="json"),
            "vocabulary": self.vocabulary.model_dump(mode="json"),
            "history": _columns(self.history),
            "summary": self.summary,
        }
        if self.name:
            header["name"] = self.name
        if self.progress is not None:
            header["progress"] = _columns(self.progress)
        return header

    @classmethod
    def from_parts(
        cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
    ) -> TrainedTransformer:
        """Make a trained transformer from a ``state_dict`` and a :meth:`header`."""
        if header.get("kind") != FILE_KIND:
            raise InputError(
                f"the file's kind is {header.get('kind')!r}, not {FILE_KIND!r}; give a file of "
                "husai.transformer.save_transformer"
            )
        return cls(
            state_dict=dict(tensors),
            model_config=TransformerConfig.model_validate(header["model_config"]),
            training_config=TransformerTrainingConfig.model_validate(header["training_config"]),
            vocabulary=Vocabulary.model_validate(header["vocabulary"]),
            history=_table(header["history"]),
            summary=dict(header["summary"]),
            name=str(header.get("name", "")),
            progress=_table(header["progress"]) if "progress" in header else None,
        )


def _columns(table: pd.DataFrame) -> list[list[Any]]:
    # a list, for JSON objects have no order; None, for JSON has no NaN
    return [
        [name, [None if math.isnan(v) else v for v in table[name].tolist()]]
        for name in table.columns
    ]


def _table(columns: Sequence[tuple[str, Sequence[float | None]]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            name: np.asarray(values, dtype=np.int64 if name == "epoch" else np.float64)
            for name, values in columns
        }
    )


def save_transformer(transformer: TrainedTransformer, path: str | Path) -> None:
    """Write a trained transformer to one safetensors file: weights, and the rest as its header."""
    write_tensors(path, transformer.state_dict, transformer.header())


def load_transformer(path: str | Path) -> TrainedTransformer:
    """Read a file written by :func:`save_transformer`.

    Raises
    ------
    InputError
        When the file is missing or incomplete, or is not a transformer.
    """
    tensors, header = read_tensors(path)
    try:
        return TrainedTransformer.from_parts(tensors, header)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error

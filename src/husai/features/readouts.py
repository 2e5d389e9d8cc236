"""A model's outputs as a function of the activations at one hook, to measure what features do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from husai.errors import InputError

if TYPE_CHECKING:
    from husai.activations import Activations
    from husai.transformer.model import TrainedTransformer


@dataclass(frozen=True)
class Readout:
    """A model's outputs as a function of the activations at one hook.

    Attributes
    ----------
    apply
        Function of indices ``[n]`` of rows and of values ``[n, d]`` that replace these rows; it
        returns the outputs ``[n, m]``.
    names
        Names of the m outputs.
    kind
        ``"logits"``: a constant added to all outputs of a row does not matter, as in a softmax,
        and the distance of outputs is the KL divergence. ``"rows"``: activations of a later hook;
        their distance is the squared Euclidean one.
    targets
        ``[n_rows]`` which output is right, for the loss; or None.
    unchanged
        ``[n_rows, m]`` the outputs of the rows as they are, where that is cheaper known than worked
        out row by row; or None.
    """

    apply: Callable[[NDArray[np.int64], NDArray[Any]], NDArray[Any]]
    names: tuple[str, ...]
    kind: Literal["logits", "rows"] = "logits"
    targets: NDArray[np.int64] | None = None
    unchanged: NDArray[Any] | None = None


def modular_readout(trained: TrainedTransformer, rows: Activations) -> Readout:
    """Make the readout of a one-layer model's logits of the numbers; it is exact.

    Parameters
    ----------
    trained
        The transformer that the rows come from.
    rows
        Activations of all pairs (a, b), sorted by a and then b, at the answer position.

    Raises
    ------
    InputError
        When the activations of this hook alone do not determine the logits, or the rows are not
        all pairs at the answer position.
    """
    import torch

    from husai.tasks.modular import compute_answers
    from husai.transformer.functional import LOGITS_FROM, has_functional_form, logits_from

    words, config = trained.vocabulary, trained.model_config
    if rows.hook_name not in LOGITS_FROM or not has_functional_form(config) or not rows.trained:
        raise InputError(
            f"{rows.key}: the activations of this hook alone do not determine the model's logits"
        )
    p = words.modulus
    if (
        len(rows.values) != p * p
        or rows.position % words.n_ctx != words.answer_position % words.n_ctx
    ):
        raise InputError(
            f"{rows.key}: the rows are not all pairs modulo {p} at the answer position"
        )
    a, b = np.divmod(np.arange(p * p), p)

    def apply(index: NDArray[np.int64], values: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            given = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
            logits = logits_from(trained.state_dict, rows.hook_name, given, config)
        return np.asarray(logits[:, :p].numpy())

    return Readout(
        apply,
        tuple(f"answer {c}" for c in range(p)),
        "logits",
        np.asarray(compute_answers(a, b, words), dtype=np.int64),
    )

"""What a model makes of activations at a hook: the outputs by which features are compared."""

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
        From indices ``[n]`` of rows and values ``[n, d]`` put in their place to outputs ``[n, m]``.
    names
        Of the m outputs.
    kind
        ``"logits"``: outputs are compared up to a constant, as the softmax reads them, and their
        distance is the KL divergence. ``"rows"``: activations of a later hook; their distance is
        the squared one.
    targets
        ``[n_rows]`` which output is right, for the loss; or None.
    """

    apply: Callable[[NDArray[np.int64], NDArray[Any]], NDArray[Any]]
    names: tuple[str, ...]
    kind: Literal["logits", "rows"] = "logits"
    targets: NDArray[np.int64] | None = None


def modular_readout(trained: TrainedTransformer, rows: Activations) -> Readout:
    """Logits of the numbers as a function of the activations of a one-layer model: exact.

    Parameters
    ----------
    trained
        The transformer that the rows come from.
    rows
        Activations of all pairs (a, b), a slowest, at the answer position.

    Raises
    ------
    InputError
        When the logits do not follow from the hook's activations alone, or the rows are others.
    """
    import torch

    from husai.tasks.modular import compute_answers
    from husai.transformer.functional import LOGITS_FROM, has_functional_form, logits_from

    words, config = trained.vocabulary, trained.model_config
    if rows.hook_name not in LOGITS_FROM or not has_functional_form(config) or not rows.trained:
        raise InputError(f"{rows.key}: the model's logits do not follow from this hook alone")
    p = words.modulus
    if (
        len(rows.values) != p * p
        or rows.position % words.n_ctx != words.answer_position % words.n_ctx
    ):
        raise InputError(f"{rows.key}: not all pairs modulo {p} at the answer position")
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

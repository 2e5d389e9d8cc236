"""The registry of architectures: what sets one apart, and nothing they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from husai.errors import InputError

Selection = Literal["all", "row", "batch", "threshold"]
DeadLatentMethod = Literal["none", "auxk", "ghost", "resample"]


@dataclass(frozen=True)
class Architecture:
    """How an SAE becomes sparse; encoder, decoder and training are shared code.

    Attributes
    ----------
    name
        What configurations call it.
    selection
        Which positive pre-activations stay: ``all`` of them, the ``k`` largest of each ``row``,
        the ``B·k`` largest of the ``batch``, or those over a learned ``threshold``.
    penalty
        The sparsity term of the loss it needs, if any.
    nested
        Whether nested prefixes of the dictionary reconstruct as well (Matryoshka).
    source
        The paper.
    """

    name: str
    selection: Selection
    penalty: Literal["none", "l1", "l0"]
    nested: bool
    source: str

    @property
    def needs_k(self) -> bool:
        """Whether it takes a number of active latents."""
        return self.selection in ("row", "batch")

    @property
    def dead_latents(self) -> DeadLatentMethod:
        """The default method for its dead latents.

        AuxK needs dead latents with positive pre-activations. Where latents compete for k places,
        or stay below a threshold, there are such; under an L1 penalty a latent is dead because it
        has none, and AuxK is idle. Measured in benchmarks/results/planted_trainers_winners.csv
        and home_dead_latents.csv.
        """
        return "resample" if self.penalty == "l1" else "auxk"


ARCHITECTURES: dict[str, Architecture] = {}


def register_architecture(entry: Architecture) -> Architecture:
    """Add an architecture to the registry.

    Raises
    ------
    InputError
        When the name is taken.
    """
    if entry.name in ARCHITECTURES:
        raise InputError(f"architecture: {entry.name!r} is registered already; choose another name")
    ARCHITECTURES[entry.name] = entry
    return entry


def architecture(name: str) -> Architecture:
    """Look an architecture up.

    Raises
    ------
    InputError
        When there is none of that name.
    """
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"architecture: {name!r} is not one of {known}")
    return ARCHITECTURES[name]


register_architecture(
    Architecture("relu", "all", "l1", False, "Bricken et al. 2023, Towards Monosemanticity")
)
register_architecture(Architecture("topk", "row", "none", False, "Gao et al., arXiv 2406.04093"))
register_architecture(
    Architecture("batch_topk", "batch", "none", False, "Bussmann et al., arXiv 2412.06410")
)
register_architecture(
    Architecture("jumprelu", "threshold", "l0", False, "Rajamanoharan et al., arXiv 2407.14435")
)
register_architecture(
    Architecture(
        "matryoshka_batch_topk", "batch", "none", True, "Bussmann et al., arXiv 2503.17547"
    )
)
register_architecture(
    # each row keeps its own k, of which every prefix takes those it holds: the ordered SAEs of
    # arXiv 2512.02194 with a prefix for every latent
    Architecture("matryoshka_topk", "row", "none", True, "arXiv 2503.17547, arXiv 2512.02194")
)

"""The registry of SAE architectures: only what differs between them, see :class:`Architecture`."""

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
        Its name in configurations.
    selection
        Which positive pre-activations are kept: ``all`` of them, the ``k`` largest of each ``row``,
        the ``B·k`` largest of the ``batch``, or those above a learned ``threshold``.
    penalty
        The sparsity term of its loss, or ``none``.
    nested
        Whether nested prefixes of the dictionary are trained to reconstruct too (Matryoshka).
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
        """Whether it needs ``k``, the number of active latents."""
        return self.selection in ("row", "batch")

    @property
    def dead_latents(self) -> DeadLatentMethod:
        """The default method for its dead latents.

        AuxK needs dead latents with positive pre-activations. These exist if latents compete for k
        places or have to reach a threshold. Under an L1 penalty a dead latent has no positive
        pre-activation, and AuxK does nothing. Measured in
        benchmarks/results/planted_trainers_winners.csv and home_dead_latents.csv.
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
        raise InputError(f"architecture: {entry.name!r} already exists; choose another name")
    ARCHITECTURES[entry.name] = entry
    return entry


def architecture(name: str) -> Architecture:
    """Return the architecture with a name.

    Raises
    ------
    InputError
        When there is no such architecture.
    """
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"architecture: {name!r} does not exist; use one of {known}")
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
    # each row has its own k active latents, and a prefix uses those of them that it contains; with
    # a prefix for every latent these are the ordered SAEs of arXiv 2512.02194
    Architecture("matryoshka_topk", "row", "none", True, "arXiv 2503.17547, arXiv 2512.02194")
)

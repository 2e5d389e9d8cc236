"""Arrays that travel together through the kernels, and how kernels are compiled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar, TypeVarTuple

import numpy as np
import torch
from numba import njit, typeof
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

LATENT_BLOCK = 64
"""Latents whose gradients are held between accumulation and update: few enough to stay in cache."""

BLOCK_VALUES = 2**19
"""Pre-activations held at once: few enough to stay in a core's cache, enough for a fast product.

Twice as many as the encoder has weights where those are more: each block reads all of them.
"""

DENSE_FROM = 10
"""relu and jumprelu go through dense products when more than d_sae / DENSE_FROM are active."""

TINY = np.float32(1e-30)
"""Moments below it are set to 0: denormal numbers would slow every latent that does not fire."""

ZERO = np.float32(0.0)

Function = TypeVar("Function", bound=Callable[..., object])
Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


SOURCES = _digest_of_sources()


FAST_MATH = {"reassoc", "contract", "arcp", "nsz"}
"""Sums may be reordered and fused, but NaN and infinity stay visible."""


def kernel(function: Function) -> Function:
    """Compile a function when it is first called, and keep the code on disk.

    It is compiled into every kernel that calls it. A call that is left would go to the code that
    the process loaded first, the function's own or the caller's copy, and these differ in the last
    bit: a run that compiles would train other SAEs than one that reads the code from disk.
    """
    compiled = njit(
        cache=True, nogil=True, forceinline=True, fastmath=FAST_MATH, error_model="numpy"
    )(function)
    stamp_with_sources(compiled)
    return compiled


def inlined(function: Function) -> Function:
    """Compile a function into every kernel that calls it: its arrays are not handed over."""
    return njit(forceinline=True, nogil=True, fastmath=FAST_MATH, error_model="numpy")(function)


def stamp_with_sources(compiled: object) -> None:
    """Let code on disk be compiled anew when any file of this folder changes.

    Numba asks whether the function's own file has changed; a kernel also holds code of the others.
    A numba without this private attribute asks what it always does, and then the cache has to be
    emptied by hand after a change in another file.
    """
    cache: Any = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if hasattr(cache, "_source_stamp"):
        cache._source_stamp = SOURCES
    if hasattr(cache, "_load_index"):
        cache._load_index = partial(_index_or_none, cache._load_index)


def _index_or_none(load: Callable[[], dict[Any, Any]]) -> dict[Any, Any]:
    """Read what is on disk; nothing where it names a type that the sources no longer have."""
    try:
        return load()
    except (AttributeError, ImportError):
        return {}


def checked_array(
    values: torch.Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Give a tensor's memory to kernels, which neither check it nor copy it.

    Raises
    ------
    ValueError
        When it is not on the CPU, or has another dtype, shape or layout than the kernels read.
    """
    found = (values.device.type, values.dtype, tuple(values.shape), values.is_contiguous())
    if found != ("cpu", dtype, shape, True):
        layout = "contiguous" if values.is_contiguous() else "not contiguous"
        raise ValueError(
            f"{name}: {values.dtype} {tuple(values.shape)} on {values.device}, {layout}; the "
            f"kernels read contiguous {dtype} {shape} on the cpu"
        )
    return values.detach().numpy()


class Calls:
    """Calls kernels whose arguments have the same types at every call.

    Numba looks at the types of the arguments before each call, which costs 3 µs a named tuple and
    more than a tenth of a small SAE's step. Here it does so once a kernel. The owner allocates its
    memory itself and takes arrays from outside through :func:`checked_array` alone, so their types
    do not change; each owner has calls of its own.
    """

    def __init__(self) -> None:
        self.compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Call a kernel."""
        if function in self.compiled:
            return self.compiled[function](*arguments)
        result = function(*arguments)
        types = tuple(typeof(argument) for argument in arguments)
        self.compiled[function] = function.overloads[types].entry_point  # type: ignore[attr-defined]
        return result


class Parameters(NamedTuple):
    """The parameters of one SAE, or a moment of each: views of the bank's arrays."""

    W_enc: F32
    """``[F, d]``, latent by latent as the decoder."""
    b_enc: F32
    """``[F]``."""
    W_dec: F32
    """``[F, d]``."""
    b_dec: F32
    """``[d]``."""


class SAEState(NamedTuple):
    """What a step changes of one SAE."""

    parameters: Parameters
    first: Parameters
    """Adam's first moment."""
    second: Parameters
    """Adam's second moment."""
    since_fired: I64
    """Rows since each latent fired ``[F]``."""


class Batch(NamedTuple):
    """Rows, and what is wrong with their reconstructions."""

    x: F32
    """Scaled rows ``[B, d]``."""
    error: F32
    """``x̂ − x``, ``[P, B, d]``; for nested prefixes see :func:`.reconstruct_nested`."""


class Loss(NamedTuple):
    """What a latent's gradient needs to know of the loss."""

    l1: float
    """λ of the L1 penalty."""
    norms: F32
    """Norms of the decoder's rows ``[F]``."""
    unit_norm: bool
    """Whether they are held at 1."""
    prefixes: I64
    """Sizes of the nested prefixes, ascending ``[P]``."""


class JumpReLU(NamedTuple):
    """JumpReLU's thresholds; for relu the bandwidth is 0 and the edges are not used."""

    edge: F32
    """``θ − ε/2``, where the gradient's kernel begins ``[F]``."""
    bandwidth: float
    """ε, the kernel's width."""
    l0: float
    """λ of the L0 penalty."""
    gradient: F32
    """Filled: the gradient of log θ ``[F]``."""


class LatentOrder(NamedTuple):
    """The entries of a batch sorted by latent: those of latent j are ``start[j] … start[j+1] − 1``.

    ``start [F + 1]``, the others ``[capacity]``.
    """

    start: I64
    row: I32
    value: F32
    gradient: F32


class Codes(NamedTuple):
    """The active latents of a batch, row by row: those of row r are ``start[r] … start[r+1] − 1``.

    ``start [B + 1]``, the others ``[capacity]`` with one place to spare.
    """

    start: I64
    latent: I32
    value: F32
    bits: I32
    """The values' memory as integers: positive floats sort as their bits do."""
    gradient: F32
    """Of the pre-activation."""
    order: LatentOrder


class AuxK(NamedTuple):
    """Dead latents that reconstruct the residual; nothing is done where there are none."""

    dead: I32
    """The dead latents."""
    k: int
    """How many of them a row may use."""
    codes: Codes
    error: F32
    """The residual's reconstruction minus the residual ``[B, d]``."""


class BlockMemory(NamedTuple):
    """Working memory for the selection in a block of rows."""

    pre: F32
    """The products of the block's rows with the encoder ``[rows · F]``."""
    bits: I32
    """The same memory as integers; negative floats are negative."""
    chunk_max: F32
    """``[F + 1]``, as the following."""
    chunk_bits: I32
    """The same memory as ``chunk_max``."""
    chosen: I32
    candidate_bits: I32
    candidate: I32
    state: I64
    """Entries so far, AuxK entries so far, and two levels that guide the search and never change
    its result: 0 before the first block."""


class GradientSums(NamedTuple):
    """What is added up over a batch row by row: the gradients before they are scaled."""

    f: F32
    """Memory for the activations of a block ``[rows · F]``, for dense products."""
    W_enc: F32
    """``[F, d]``."""
    W_dec: F32
    """``[F, d]``."""
    activations: F32
    """Sum of each latent's activations ``[F]``."""


class GhostGradients(NamedTuple):
    """What ghost gradients add, by place among the dead latents."""

    W_enc: F32
    W_dec: F32
    b_enc: F32
    place: I32
    """Each latent's place among the dead, −1 for the live ones ``[F]``."""


class Held(NamedTuple):
    """What a baseline keeps of an SAE's start."""

    W_dec: F32
    """The decoder's rows at the start, of norm 1 ``[F, d]``."""
    encoder: bool
    """Whether ``W_enc`` stays as it is."""
    decoder: bool
    """Whether ``W_dec`` stays as it is."""
    cosine: float
    """Least cosine of a decoder row to its start; −1 where any is allowed."""


class Gradients(NamedTuple):
    """The gradients of a block of latents, or of all."""

    W_enc: F32
    """``[block, d]``."""
    W_dec: F32
    """``[block, d]``."""
    b_enc: F32
    """``[F]``."""
    b_dec: F32
    """``[d]``."""
    fired: I64
    """Rows on which each latent fired ``[F]``."""


class AdamStep(NamedTuple):
    """Adam's numbers at one step."""

    rate: float
    """Learning rate / (1 − β₁ᵗ)."""
    correction: float
    """1 / √(1 − β₂ᵗ)."""
    beta1: float
    beta2: float
    epsilon: float
    decay: float
    """Learning rate times AdamW's weight decay, for the encoder."""


Means: TypeAlias = tuple[float, float, float, float]
"""The fields of :class:`BatchMeans`: kernels give a plain tuple, which costs 10 µs less a call."""


class BatchMeans(NamedTuple):
    """What a batch's reconstruction was worth."""

    reconstruction: float
    """Mean squared error over rows and elements (and prefixes)."""
    cost: float
    """The penalised quantity per row, L1 or L0, without λ."""
    l0: float
    """Active latents per row."""
    smallest: float
    """Smallest activation; infinity where there is none or it is not asked for."""

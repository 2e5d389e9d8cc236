"""The result of reading an SAE's files: its decoder, the SAE if it is complete, its contract."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import ValidationError

from husai.config import problems
from husai.errors import InputError
from husai.sae.config import SAEConfig
from husai.sae.format_names import Format
from husai.sae.trained import TrainedSAE

Space = Literal["input", "output", "layers", "unknown"]
InputNorm = Literal["none", "layer_norm", "unit_norm"]
Choice = Literal["own", "signed", "groups"]

LAYER_NORM_EPS = 1e-5
"""Added to a row's standard deviation by SAELens and OpenAI."""

_TINY = float(torch.finfo(torch.float32).tiny)
_LAYER = re.compile(r"(?:^|[./_\-])(?:blocks?|layers?|h)[._]?(\d+)(?:[._/\-]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Hints:
    """Facts about an SAE that a file may not contain, given by the user.

    Attributes
    ----------
    k
        Active latents per row.
    input_scale
        Factor by which the activations are multiplied before the SAE reads them.
    """

    k: int | None = None
    input_scale: float | None = None


@dataclass(frozen=True)
class Contract:
    """Which activations an SAE reads and writes, as its files say; None if they do not.

    Attributes
    ----------
    model
        Name of the model.
    hook
        Name of the activations that are read.
    hook_out
        Name of the activations that are written, if they are others (a transcoder).
    layer
        Layer of the hook.
    position
        Position of the rows in a sequence, if the SAE was trained on a single one.
    scale
        How a row is scaled first: ``none``, ``layer_norm``, ``unit_norm``, a factor (already in the
        weights), or ``unknown`` if a factor was used that the files do not state.
    reshape
        ``hook_z`` if a row has the heads of an attention layer side by side.
    space
        The space of the decoder rows: the activations that are read (``input``), others
        (``output``: a transcoder), or those of several layers side by side (``layers``); for a
        plain matrix ``unknown``.
    """

    model: str | None = None
    hook: str | None = None
    hook_out: str | None = None
    layer: int | None = None
    position: str | None = None
    scale: str | None = None
    reshape: str | None = None
    space: Space = "input"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def layer_of(*names: str | None) -> int | None:
    """Find the number of the layer in the first hook or folder name that has one."""
    for name in names:
        found = _LAYER.search(name) if name else None
        if found:
            return int(found.group(1))
    return None


@dataclass(frozen=True)
class Reading:
    """The content of one SAE's files.

    Attributes
    ----------
    path
        The file or folder.
    format
        The project.
    W_dec
        ``[d_sae, d]`` float32 decoder, one feature per row.
    sae
        The SAE, or None if the files do not contain all of it.
    left_out
        Why there is no ``sae``.
    contract
        Which activations it reads and writes.
    architecture
        Its name in its own project, or None.
    """

    path: Path
    format: Format
    W_dec: torch.Tensor
    sae: TrainedSAE | None
    left_out: str
    contract: Contract
    architecture: str | None = None

    def whole(self) -> TrainedSAE:
        """Return the SAE.

        Raises
        ------
        InputError
            When there is only a decoder; the message says why.
        """
        if self.sae is None:
            raise InputError(f"{self.path}: {self.left_out}; only its decoder can be compared")
        return self.sae


@dataclass(frozen=True)
class ForeignSAE(TrainedSAE):
    """An SAE of another project that scales rows or selects latents in a way not used here.

    Attributes
    ----------
    input_norm
        How each row is scaled first. ``layer_norm``: its mean is subtracted and it is divided by
        its standard deviation (n − 1) plus 1e-5. ``unit_norm``: it is scaled to norm √d.
    choice
        ``signed`` keeps the ``k`` pre-activations of largest absolute value, with their sign;
        ``groups`` the largest of each of ``k`` equal groups of latents; ``own`` follows the
        configuration.
    """

    input_norm: InputNorm = "none"
    choice: Choice = "own"

    def _normalised(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scale rows as the encoder needs them; also return mean and scale, to undo it."""
        zero, one = x.new_zeros(len(x), 1), x.new_ones(len(x), 1)
        if self.input_norm == "layer_norm":
            mean = x.mean(dim=-1, keepdim=True)
            scale = (x - mean).std(dim=-1, keepdim=True) + LAYER_NORM_EPS
            return (x - mean) / scale, mean, scale
        if self.input_norm == "unit_norm":
            scale = x.norm(dim=-1, keepdim=True).clamp_min(_TINY) / math.sqrt(x.shape[-1])
            return x / scale, zero, scale
        return x, zero, one

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Features of the rows ``x [n, d_in]``: ``f [n, d_sae]``; signed ones may be negative."""
        x = self._normalised(x)[0] if x.shape[-1] == self.d_in else x
        if self.choice == "own":
            return super().encode(x)
        pre = (x - self.b_dec.to(x)) @ self.W_enc.to(x) + self.b_enc.to(x)
        assert self.config.k is not None
        if self.choice == "signed":
            kept = pre.abs().topk(self.config.k, dim=-1).indices
            return torch.zeros_like(pre).scatter_(-1, kept, pre.gather(-1, kept))
        groups = torch.relu(pre).reshape(len(pre), self.config.k, -1)
        largest = groups.max(dim=-1, keepdim=True)
        return torch.zeros_like(groups).scatter_(-1, largest.indices, largest.values).flatten(-2)

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        """Compute the reconstruction ``[n, d_in]`` of the features ``f [n, d_sae]``.

        Raises
        ------
        InputError
            When each row is normalised first, because ``f`` does not contain its mean and scale.
        """
        if self.input_norm != "none":
            raise InputError(
                f"decode: rows are normalised first ({self.input_norm}), so a reconstruction needs "
                "the rows themselves; use reconstruct"
            )
        return super().decode(f)

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruction ``[n, d_in]`` of the rows ``x [n, d_in]``."""
        _, mean, scale = self._normalised(x)
        return super().decode(self.encode(x)) * scale + mean


@dataclass(frozen=True)
class Weights:
    """Tensors of one SAE, ``f = act((x − b_dec) @ W_enc + b_enc)`` and ``x̂ = f @ W_dec + b_dec``.

    Each method converts weights of another convention to this one; the function stays the same.
    """

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    threshold: torch.Tensor | None = None

    @classmethod
    def linear(cls, found: Mapping[str, torch.Tensor], b_dec: str) -> Weights:
        """From two `torch.nn.Linear` layers and a decoder bias of the given name."""
        return cls(
            W_enc=found["encoder.weight"].T,
            b_enc=found["encoder.bias"],
            W_dec=found["decoder.weight"].T,
            b_dec=found[b_dec],
        )

    @classmethod
    def named(cls, found: Mapping[str, torch.Tensor]) -> Weights:
        """From tensors named as here, with ``threshold`` where there is one."""
        return cls(
            W_enc=found["W_enc"],
            b_enc=found["b_enc"],
            W_dec=found["W_dec"],
            b_dec=found["b_dec"],
            threshold=found.get("threshold"),
        )

    def reading_raw_rows(self) -> Weights:
        """Convert weights of an encoder without subtraction: ``x @ W_enc + b_enc``."""
        shift = self.b_dec.double() @ self.W_enc.double()
        return replace(self, b_enc=(self.b_enc.double() + shift).float())

    def scaled(self, factor: float) -> Weights:
        """Convert weights of an SAE for rows that are multiplied by ``factor`` first."""
        return replace(
            self,
            W_enc=self.W_enc * factor,
            W_dec=self.W_dec / factor,
            b_dec=self.b_dec / factor,
        )

    def unit_rows(self) -> Weights:
        """Scale decoder rows to norm 1, and the codes by the old norms.

        A row of zeros stays zero, and its latent is never active: it is dead, not broken.
        """
        norms = self.W_dec.double().norm(dim=1)
        inverse = torch.where(norms > 0, 1 / norms.clamp_min(_TINY), 0.0)
        return replace(
            self,
            W_enc=(self.W_enc * norms).float(),
            b_enc=(self.b_enc * norms).float(),
            W_dec=(self.W_dec * inverse[:, None]).float(),
            threshold=None if self.threshold is None else (self.threshold * norms).float(),
        )

    def thresholds(self, value: float) -> Weights:
        """Add one threshold for all latents."""
        return replace(self, threshold=torch.full_like(self.b_enc, value))


def without_direction(W_dec: torch.Tensor) -> torch.Tensor:
    """Set decoder rows to zero if they are too short to have a direction in float32."""
    lost = W_dec.double().norm(dim=1) < _TINY
    return torch.where(lost[:, None], 0.0, W_dec) if bool(lost.any()) else W_dec


def decoder_only(
    path: Path,
    format: Format,
    W_dec: torch.Tensor,
    left_out: str,
    contract: Contract,
    architecture: str | None = None,
) -> Reading:
    """Make the reading of an SAE of which only the decoder can be used.

    Raises
    ------
    InputError
        When the decoder has no row with a direction.
    """
    W_dec = without_direction(W_dec.float().contiguous())
    if not bool(W_dec.any()):
        raise InputError(f"{path}: its decoder is all zero; there is nothing to compare")
    return Reading(path, format, W_dec, None, left_out, contract, architecture)


def whole_sae(
    path: Path,
    format: Format,
    weights: Weights,
    settings: Mapping[str, Any],
    contract: Contract,
    *,
    architecture: str | None = None,
    input_norm: InputNorm = "none",
    choice: Choice = "own",
) -> Reading:
    """Make the reading of a complete SAE.

    Parameters
    ----------
    path, format, contract, architecture, input_norm, choice
        See :class:`Reading` and :class:`ForeignSAE`.
    weights
        In the convention of :class:`Weights`.
    settings
        Fields of `SAEConfig` except ``d_sae``; if ``k`` is None, the error asks the user for it.

    Raises
    ------
    InputError
        When the settings are not valid.
    """
    d_sae, d_in = weights.W_dec.shape
    if settings.get("k", 0) is None:
        raise InputError(f"{path}: its files do not say k; give it (k=..., --k)")
    try:
        config = SAEConfig(d_sae=d_sae, **settings)
    except ValidationError as error:
        reasons = "; ".join(problems(error))
        raise InputError(f"{path}: its settings are not valid: {reasons}") from error
    reading = decoder_only(path, format, weights.W_dec, "", contract, architecture)
    content: dict[str, Any] = {
        "config": config,
        "W_enc": weights.W_enc.float().contiguous(),
        "b_enc": weights.b_enc.float().contiguous(),
        "W_dec": reading.W_dec,
        "b_dec": weights.b_dec.float().contiguous(),
        "threshold": None if weights.threshold is None else weights.threshold.float().contiguous(),
        "W_dec_init": torch.full((d_sae, d_in), torch.nan),
        "metrics": {},
        "history": pd.DataFrame(),
        "density": torch.full((d_sae,), torch.nan, dtype=torch.float64),
        "provenance": {"imported_from": format, "contract": contract.as_dict()},
    }
    for name in ("W_enc", "b_enc", "b_dec", "threshold"):
        if content[name] is not None and not bool(torch.isfinite(content[name]).all()):
            raise InputError(f"{path}: {name} is not finite once its scales are folded in")
    if input_norm == "none" and choice == "own":
        return replace(reading, sae=TrainedSAE(**content))
    sae = ForeignSAE(**content, input_norm=input_norm, choice=choice)
    return replace(reading, sae=sae)

"""A trained SAE: its weights in the space of the activations, its metrics, and its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError

from husai.config import problems
from husai.errors import InputError
from husai.sae.architectures import architecture
from husai.sae.config import SAEConfig
from husai.sae.selection import active_latents
from husai.storage import TensorFiles, read_tensors, tensors_digest, write_tensors

FILE_KIND = "husai.sae"
FILE_VERSION = 1


@dataclass(frozen=True)
class TrainedSAE:
    """One SAE after training, in the space of the activations (without the input scaling).

    Attributes
    ----------
    config
        Its parameters.
    W_enc
        Encoder ``[d_in, d_sae]``.
    b_enc
        Encoder bias ``[d_sae]``.
    W_dec
        Decoder ``[d_sae, d_in]``; rows are features.
    b_dec
        Pre-bias ``[d_in]``: subtracted before the encoder, added after the decoder.
    threshold
        ``[d_sae]``; a latent is active if its pre-activation is above its threshold. ``None`` for
        relu and topk.
    W_dec_init
        Decoder rows before the first step ``[d_sae, d_in]``; NaN where they are not known.
    metrics
        Measured on held-out rows at the end of training; see :func:`husai.sae.metrics.evaluate`.
    history
        One row per evaluation: step, loss, fvu, l0, dead_fraction, ...
    density
        Fraction of held-out rows on which each latent is active ``[d_sae]``.
    snapshots
        Step to ``W_dec`` at that step; empty without ``snapshot_interval``.
    failure
        Why training stopped early (a loss that is not finite), or ``None``.
    provenance
        Training parameters, fingerprint of the rows, versions: JSON data.
    """

    config: SAEConfig
    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    threshold: torch.Tensor | None
    W_dec_init: torch.Tensor
    metrics: dict[str, float]
    history: pd.DataFrame
    density: torch.Tensor
    snapshots: dict[int, torch.Tensor] = field(default_factory=dict)
    failure: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return int(self.W_dec.shape[1])

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the features ``f [n, d_sae]`` of rows ``x [n, d_in]``; never negative."""
        if x.shape[-1] != self.d_in:
            raise InputError(
                f"x: width {x.shape[-1]}, but this SAE reads activations of width {self.d_in}"
            )
        pre = (x - self.b_dec.to(x)) @ self.W_enc.to(x)
        pre += self.b_enc.to(x)
        if self.threshold is not None:
            return active_latents("threshold", pre, threshold=self.threshold.to(x))
        selects_rows = architecture(self.config.architecture).selection == "row"
        return active_latents("row" if selects_rows else "all", pre, k=self.config.k)

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        """Compute the reconstruction ``[n, d_in]`` from the features ``f [n, d_sae]``."""
        return f @ self.W_dec.to(f) + self.b_dec.to(f)


def to_tensors(sae: TrainedSAE) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the JSON header for the SAE's file."""
    tensors = {
        "W_enc": sae.W_enc,
        "b_enc": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
        "density": sae.density,
    }
    if not sae.W_dec_init.isnan().all():
        tensors["W_dec_init"] = sae.W_dec_init
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold
    if len(sae.history):
        tensors["history"] = torch.from_numpy(sae.history.to_numpy(dtype=np.float64))
    for step, W_dec in sae.snapshots.items():
        tensors[f"snapshot.{step}"] = W_dec
    header = {
        "kind": FILE_KIND,
        "version": FILE_VERSION,
        "config": sae.config.model_dump(mode="json"),
        # JSON has no NaN: a metric that could not be computed is null
        "metrics": {name: v if np.isfinite(v) else None for name, v in sae.metrics.items()},
        "history_columns": list(sae.history.columns),
        "failure": sae.failure,
        "provenance": dict(sae.provenance),
        # safetensors has no checksum: without one, a changed bit would not be noticed
        "digest": tensors_digest(tensors),
    }
    return tensors, header


def from_tensors(
    tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any], origin: str
) -> TrainedSAE:
    """Build an SAE from a file's tensors and header.

    Raises
    ------
    InputError
        When they are not an SAE of this project, or not what was saved; the message names
        ``origin``.
    """
    try:
        return _from_tensors(tensors, header, origin)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{origin}: it cannot be read as an SAE ({type(error).__name__}: {reason})"
        ) from error


def _from_tensors(
    tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any], origin: str
) -> TrainedSAE:
    if header.get("kind") != FILE_KIND:
        raise InputError(f"{origin}: not an SAE file of this project (kind {header.get('kind')!r})")
    if header.get("version") != FILE_VERSION:
        raise InputError(
            f"{origin}: file version {header.get('version')}, but this release reads version "
            f"{FILE_VERSION}; train the SAE again"
        )
    missing = {"W_enc", "b_enc", "W_dec", "b_dec", "density"} - set(tensors)
    if missing:
        raise InputError(f"{origin}: tensors missing: {', '.join(sorted(missing))}")
    provenance = header.get("provenance", {})
    # older files have this value where a campaign wrote it
    saved = header.get("digest", provenance.get("campaign", {}).get("digest"))
    if saved not in (None, tensors_digest(tensors)):
        raise InputError(
            f"{origin}: its tensors have changed since they were saved; train the SAE or copy the "
            "file again"
        )
    try:
        config = SAEConfig.model_validate(header["config"])
    except ValidationError as error:
        reasons = "; ".join(problems(error))
        raise InputError(f"{origin}: its configuration is not valid: {reasons}") from error
    d_sae, d_in = tensors["W_dec"].shape
    shapes = {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "b_dec": (d_in,),
        "W_dec_init": (d_sae, d_in),
        "density": (d_sae,),
    }
    if "threshold" in tensors:
        shapes["threshold"] = (d_sae,)
    unknown = torch.full((d_sae, d_in), torch.nan)
    tensors = {"W_dec_init": unknown, **tensors}
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape or d_sae != config.d_sae:
            raise InputError(f"{origin}: {name} is {tuple(tensors[name].shape)}, expected {shape}")
    columns = list(header["history_columns"])
    history = pd.DataFrame(
        tensors["history"].numpy() if "history" in tensors else np.empty((0, len(columns))),
        columns=pd.Index(columns),
    )
    if "step" in history:
        history["step"] = history["step"].astype(int)
    metrics = {n: float("nan") if v is None else float(v) for n, v in header["metrics"].items()}
    snapshots = {
        int(name.removeprefix("snapshot.")): tensor
        for name, tensor in tensors.items()
        if name.startswith("snapshot.")
    }
    return TrainedSAE(
        config=config,
        W_enc=tensors["W_enc"],
        b_enc=tensors["b_enc"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        threshold=tensors.get("threshold"),
        W_dec_init=tensors["W_dec_init"],
        metrics=metrics,
        history=history,
        density=tensors["density"],
        snapshots=dict(sorted(snapshots.items())),
        failure=header.get("failure"),
        provenance=provenance,
    )


def save_sae(sae: TrainedSAE, path: str | Path) -> None:
    """Write an SAE to one safetensors file with its configuration in the header, atomically."""
    tensors, header = to_tensors(sae)
    write_tensors(path, tensors, header)


def read_sae(path: str | Path) -> TrainedSAE:
    """Read a file written by :func:`save_sae`; :func:`husai.sae.load_sae` reads others too."""
    tensors, header = read_tensors(path)
    return from_tensors(tensors, header, str(path))


def load_trained(
    files: TensorFiles, ids: Sequence[str], *, snapshots: bool = True
) -> dict[str, TrainedSAE]:
    """Load the SAEs of a plan; files of other plans are ignored.

    Parameters
    ----------
    files
        The files, by name of the SAE.
    ids
        Names of the SAEs.
    snapshots
        Keep the decoders saved during training, which are often most of the memory.

    Raises
    ------
    InputError
        When one of them has no file.
    """
    missing = [sae_id for sae_id in ids if sae_id not in files]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(ids)} planned SAEs are not trained, the first is "
            f"{missing[0]}; run the pipeline that trains them"
        )
    loaded = {}
    for sae_id in ids:
        file = files[sae_id]()
        sae = from_tensors(file.tensors, file.header, sae_id)
        loaded[sae_id] = sae if snapshots else replace(sae, snapshots={})
    return loaded

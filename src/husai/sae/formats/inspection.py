"""Describe an SAE from its files, for ``husai inspect``: sizes, norms, and what is missing."""

from __future__ import annotations

import math
from typing import Any

import torch

from husai.sae.formats.reading import ForeignSAE, Reading


def inspect_sae(reading: Reading) -> dict[str, Any]:
    """Describe sizes, architecture, norms and missing facts of an SAE, as plain values.

    Parameters
    ----------
    reading
        The content of its files.

    Returns
    -------
    dict
        ``path``, ``format``, ``architecture``, ``read_as`` (the architecture here, or None),
        ``d_sae``, ``d``, ``k``, ``decoder_norms`` (least, median and largest of the rows that have
        a direction), ``rows_without_direction``, ``encoder_columns_without_direction``,
        ``encoder_decoder_cosine`` (mean over features), ``threshold`` (least, median, largest),
        ``dead_fraction`` (on held-out rows, for SAEs trained here), ``metrics``, ``contract`` and
        ``missing``: a line for each fact that the files do not contain.
    """
    W_dec = reading.W_dec.double()
    norms = W_dec.norm(dim=1)
    live = norms > 0
    found: dict[str, Any] = {
        "path": str(reading.path),
        "format": reading.format,
        "architecture": reading.architecture,
        "read_as": None,
        "d_sae": len(W_dec),
        "d": W_dec.shape[1],
        "k": None,
        "decoder_norms": _spread(norms[live]),
        "rows_without_direction": int((~live).sum()),
        "encoder_columns_without_direction": None,
        "encoder_decoder_cosine": None,
        "threshold": None,
        "dead_fraction": None,
        "metrics": {},
        "contract": reading.contract.as_dict(),
        "missing": _missing(reading),
    }
    sae = reading.sae
    if sae is None:
        return found
    W_enc = sae.W_enc.double()
    columns = W_enc.norm(dim=0)
    both = live & (columns > 0)
    cosine = (W_dec * W_enc.T).sum(dim=1)[both] / (norms * columns)[both]
    known = torch.isfinite(sae.density)
    return found | {
        "read_as": _read_as(sae),
        "k": sae.config.k,
        "encoder_columns_without_direction": int((columns == 0).sum()),
        "encoder_decoder_cosine": float(cosine.mean()) if len(cosine) else None,
        "threshold": None if sae.threshold is None else _spread(sae.threshold.double()),
        "dead_fraction": float((sae.density[known] == 0).double().mean()) if known.any() else None,
        "metrics": {n: v if math.isfinite(v) else None for n, v in sae.metrics.items()},
    }


def _spread(values: torch.Tensor) -> dict[str, float] | None:
    if not len(values):
        return None
    return {
        "least": float(values.min()),
        "median": float(values.median()),
        "largest": float(values.max()),
    }


def _read_as(sae: Any) -> str:
    words = [str(sae.config.architecture)]
    if isinstance(sae, ForeignSAE):
        words += [sae.choice] if sae.choice != "own" else []
        words += [sae.input_norm] if sae.input_norm != "none" else []
    return ", ".join(words)


def _missing(reading: Reading) -> list[str]:
    lines = [f"encoder and codes: {reading.left_out}"] if reading.left_out else []
    contract = reading.contract
    names = {
        "model": "the model",
        "hook": "the hook",
        "layer": "the layer",
        "scale": "what is done to rows first",
    }
    lines += [text for field, text in names.items() if getattr(contract, field) is None]
    if reading.sae is not None and "converged" not in reading.sae.metrics:
        lines.append("whether training had converged")
    return lines


def inspection_text(found: dict[str, Any]) -> str:
    """Write the result of :func:`inspect_sae` as text."""
    contract = found["contract"]
    lines = [
        str(found["path"]),
        f"  format        {found['format']}",
        f"  architecture  {found['architecture'] or 'not stated'}"
        + (f" (read as {found['read_as']})" if found["read_as"] else ""),
        f"  size          {found['d_sae']:,} features × {found['d']:,}"
        + (f", k {found['k']}" if found["k"] else ""),
        f"  decoder       {_span(found['decoder_norms'], 'norms')}; "
        f"{found['rows_without_direction']:,} rows without a direction",
    ]
    if found["read_as"]:
        cosine = found["encoder_decoder_cosine"]
        lines.append(
            f"  encoder       {found['encoder_columns_without_direction']:,} columns without a "
            "direction"
            + (f"; mean cosine with the decoder {cosine:.3f}" if cosine is not None else "")
        )
    if found["threshold"]:
        lines.append(f"  thresholds    {_span(found['threshold'], 'values')}")
    if found["dead_fraction"] is not None:
        lines.append(f"  dead          {found['dead_fraction']:.1%} of the features")
    stated = [f"{name} {value}" for name, value in contract.items() if value is not None]
    lines.append(f"  reads         {', '.join(stated) or 'not stated'}")
    lines += [f"  missing       {line}" for line in found["missing"]]
    return "\n".join(lines)


def _span(values: dict[str, float] | None, name: str) -> str:
    if values is None:
        return f"no {name}"
    return f"{name} {values['least']:.4g} to {values['largest']:.4g}, median {values['median']:.4g}"

"""Measure SAEs inside a language model: the metrics, names and files of SAEBench's core evaluation.

Karvonen et al., "SAEBench" (arXiv 2503.09532).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from husai.config import Position
from husai.errors import InputError
from husai.language.config import EvaluationConfig, ReadingConfig
from husai.language.extraction import batches, kept_tokens, row_places
from husai.language.model import Kind, LanguageModel
from husai.progress import progress_bar
from husai.sae import TrainedSAE
from husai.text import Tokens

if TYPE_CHECKING:
    import torch

    Reconstruct = Callable[[torch.Tensor], torch.Tensor]

CHUNK = 2048
DENSITY_EDGES = tuple(float(edge) for edge in np.arange(-6.0, 0.51, 0.5))
"""Edges of the density histogram's bins: log10 of the share of rows. The first bin has no lower
end."""

CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "model_behavior_preservation": ("kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"),
    "model_performance_preservation": (
        "ce_loss_score",
        "ce_loss_with_ablation",
        "ce_loss_with_sae",
        "ce_loss_without_sae",
    ),
    "reconstruction_quality": ("explained_variance", "mse", "cossim"),
    "shrinkage": ("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"),
    "sparsity": ("l0", "l1"),
    "token_stats": (
        "total_tokens_eval_reconstruction",
        "total_tokens_eval_sparsity_variance",
    ),
    "misc_metrics": ("freq_over_1_percent", "freq_over_10_percent", "frac_alive"),
}
"""SAEBench's categories of core metrics, and the names in each."""


def reconstruction_metrics(sae: TrainedSAE, rows: torch.Tensor) -> dict[str, float]:
    """Measure how well an SAE reconstructs rows, and how sparse its codes are; sums are in float64.

    Parameters
    ----------
    sae
        The SAE.
    rows
        ``[n, d]`` activations x; x̂ is their reconstruction.

    Returns
    -------
    dict
        ``explained_variance``: 1 − Σ var(x − x̂) / Σ var(x). ``mse``: mean over rows and elements.
        ``cossim``: mean cosine of x and x̂. ``l2_norm_in``, ``l2_norm_out``, ``l2_ratio``: mean
        norms of x and x̂, and the mean of their ratio. ``relative_reconstruction_bias``:
        E‖x̂‖² / E⟨x, x̂⟩ (arXiv 2404.16014, eq. 10), 1 without shrinkage. ``l0``, ``l1``: active
        latents per row, and sum of the activations per row. ``frac_alive``: share of latents that
        fire on at least one row. ``freq_over_1_percent``, ``freq_over_10_percent``: share of
        latents that fire on more than 1 % and 10 % of the rows.
        ``total_tokens_eval_sparsity_variance``: number of rows.
    """
    import torch

    total: dict[str, float] = dict.fromkeys(
        ("error", "cossim", "in", "out", "ratio", "out_square", "dot", "l0", "l1"), 0.0
    )
    sums = torch.zeros(2, sae.d_in, dtype=torch.float64)
    square = 0.0
    fired = torch.zeros(sae.config.d_sae, dtype=torch.float64)
    for chunk in torch.split(rows, CHUNK):
        f = sae.encode(chunk.float())
        x, x_hat = chunk.double(), sae.decode(f).double()
        residual = x - x_hat
        norm_in, norm_out, dot = x.norm(dim=1), x_hat.norm(dim=1), (x * x_hat).sum(1)
        total["error"] += float(residual.square().sum())
        total["cossim"] += float((dot / (norm_in * norm_out).clamp_min(1e-30)).sum())
        total["in"] += float(norm_in.sum())
        total["out"] += float(norm_out.sum())
        total["ratio"] += float((norm_out / norm_in.clamp_min(1e-30)).sum())
        total["out_square"] += float(norm_out.square().sum())
        total["dot"] += float(dot.sum())
        total["l0"] += float((f > 0).sum())
        total["l1"] += float(f.sum(dtype=torch.float64))
        fired += (f > 0).sum(0)
        sums += torch.stack([x.sum(0), residual.sum(0)])
        square += float(x.square().sum())
    n = len(rows)
    variance = square - float(sums[0].square().sum()) / n
    unexplained = total["error"] - float(sums[1].square().sum()) / n
    density = fired / n
    return {
        "explained_variance": 1 - unexplained / variance,
        "mse": total["error"] / (n * sae.d_in),
        "cossim": total["cossim"] / n,
        "l2_norm_in": total["in"] / n,
        "l2_norm_out": total["out"] / n,
        "l2_ratio": total["ratio"] / n,
        "relative_reconstruction_bias": total["out_square"] / total["dot"],
        "l0": total["l0"] / n,
        "l1": total["l1"] / n,
        "frac_alive": float((density > 0).double().mean()),
        "freq_over_1_percent": float((density > 0.01).double().mean()),
        "freq_over_10_percent": float((density > 0.1).double().mean()),
        "total_tokens_eval_sparsity_variance": float(n),
    }


def rows_per_context(
    sae: TrainedSAE, rows: torch.Tensor, context: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Compute SAEBench's "consistent activation heuristic" of every latent.

    Parameters
    ----------
    sae
        The SAE.
    rows
        ``[n, d]`` activations that it reads.
    context
        ``[n]`` number of each row's context, ascending.

    Returns
    -------
    array
        ``[d_sae]``: number of rows of a context on which a latent fires, averaged over the contexts
        in which it fires; NaN where it fires in none.
    """
    import torch

    fired = np.zeros(sae.config.d_sae)
    contexts = np.zeros(sae.config.d_sae)
    bounds = np.flatnonzero(np.diff(context, prepend=-1))
    ends = [*bounds[1:].tolist(), len(rows)]
    begin = 0
    while begin < len(bounds):
        # whole contexts, together at most CHUNK rows unless one alone has more
        last = max(begin + 1, int(np.searchsorted(ends, bounds[begin] + CHUNK, side="right")))
        part = slice(int(bounds[begin]), ends[last - 1])
        active = sae.encode(rows[part].float()) > 0
        number = torch.from_numpy(np.unique(context[part], return_inverse=True)[1])
        counts = torch.zeros(last - begin, sae.config.d_sae).index_add_(0, number, active.float())
        fired += counts.sum(0).double().numpy()
        contexts += (counts > 0).sum(0).double().numpy()
        begin = last
    return np.divide(fired, contexts, out=np.full(len(fired), np.nan), where=contexts > 0)


def density_histogram(densities: Mapping[str, torch.Tensor]) -> pd.DataFrame:
    """Count latents by how often they fire.

    Parameters
    ----------
    densities
        For each SAE ``[d_sae]``: share of the rows on which each latent fires.

    Returns
    -------
    DataFrame
        A row for each SAE and bin: ``sae_id``, ``low`` and ``high`` (log10 of the share; both NaN
        for the latents that never fire), ``latents`` (their number).
    """
    found = []
    edges = [-np.inf, *DENSITY_EDGES]
    for sae_id, density in densities.items():
        values = density.double().numpy()
        found.append((sae_id, math.nan, math.nan, int((values == 0).sum())))
        logs = np.log10(values[values > 0])
        for low, high in pairwise(edges):
            found.append((sae_id, low, high, int(((logs > low) & (logs <= high)).sum())))
    return pd.DataFrame(found, columns=pd.Index(["sae_id", "low", "high", "latents"]))


class _Batch(NamedTuple):
    """Some contexts: token ids, where activations are changed, and which tokens are predicted."""

    ids: torch.Tensor
    attention: torch.Tensor
    changed: torch.Tensor
    asked: torch.Tensor
    answers: torch.Tensor


@dataclass
class _Sums:
    """Sums over the predicted tokens, or over the contexts of an encoder."""

    loss: float = 0.0
    divergence: float = 0.0
    n: int = 0


def check_measure(kind: Kind, name: str, config: EvaluationConfig) -> None:
    """Check that a model has what an evaluation measures.

    Parameters
    ----------
    kind, name
        What the model predicts, and its name for the message.
    config
        ``measure``.

    Raises
    ------
    InputError
        When the cross-entropy of a model is asked for that predicts no tokens.
    """
    if config.measure == "cross_entropy" and kind == "encoder":
        raise InputError(
            f"evaluation.measure: {name} does not predict tokens, so it has no cross-entropy; "
            "choose output_change, or a model that predicts tokens"
        )


def model_metrics(
    model: LanguageModel,
    tokens: Tokens,
    place: tuple[str, Position],
    saes: Mapping[str, TrainedSAE],
    reading: ReadingConfig,
    config: EvaluationConfig,
    mean: torch.Tensor,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure what the model loses when SAE reconstructions replace the activations.

    Only positions that SAEs are trained on are changed. A causal model predicts the next token
    where that is an ordinary one. A masked model predicts a random part of the tokens, which are
    masked.

    Parameters
    ----------
    model, tokens
        The model, and the text: its held-out contexts are used.
    place
        Hook and position that the SAEs read.
    saes
        SAEs by name.
    reading, config
        Which tokens are rows; how many contexts are measured.
    mean
        ``[d]`` mean of the activations, for the mean ablation.
    progress
        Show a progress bar.

    Returns
    -------
    DataFrame
        A row for each SAE: ``ce_loss_without_sae``, ``ce_loss_with_sae``,
        ``ce_loss_with_ablation`` (zeros) and ``ce_loss_with_mean_ablation``; ``ce_loss_score`` =
        (ablated − with SAE) / (ablated − without); the same for the KL divergence from the
        unchanged model, ``kl_div_score`` = 1 − with SAE / ablated. All are in nats per token. For
        an encoder ``output_change_with_sae``, ``…_ablation`` and ``…_mean_ablation``: 1 − cosine
        of a context's mean output embedding with that of the unchanged model, and
        ``output_change_score`` = 1 − with SAE / ablated.

    Raises
    ------
    InputError
        When the rows are means of contexts, which cannot be put back into the model; when a
        measure does not fit the model, or no token can be predicted.
    """
    import torch

    name, position = place
    if position == "mean":
        raise InputError(
            f"evaluation: {name}@mean is the mean of a context, which cannot be put back into the "
            "model; evaluate SAEs of all positions"
        )
    check_measure(model.kind, str(model.about["name"]), config)
    by_change = model.kind == "encoder" or config.measure == "output_change"
    ways: dict[str, Reconstruct | None] = {
        "": None,
        "ablation": torch.zeros_like,
        "mean_ablation": lambda x: mean.to(x).expand_as(x),
    }
    ways |= {f"sae {sae_id}": _reconstruction(sae) for sae_id, sae in saes.items()}
    sums = {way: _Sums() for way in ways}
    first = len(tokens) - tokens.n_held_out
    span = slice(first, min(len(tokens), first + config.contexts))
    with progress_bar(
        (span.stop - span.start) * len(ways), "evaluate", "context", disable=not progress
    ) as bar:
        for batch in _batches(model, tokens, place, reading, config, span):
            before = model.block_output(batch.ids, batch.attention, name)
            clean = model.outputs(batch.ids, batch.attention, embedding=by_change, after=before)
            for way, reconstruct in ways.items():
                out = clean
                if reconstruct is not None:
                    change = _changing(batch.changed, reconstruct)
                    out = model.outputs(
                        batch.ids, batch.attention, name, change, embedding=by_change, after=before
                    )
                add = _add_change if by_change else _add_loss
                add(sums[way], clean, out, batch)
                bar.update(len(batch.ids))
    if not sums[""].n:
        raise InputError("evaluation.contexts: these contexts have no token to predict; raise it")
    found = [{"sae_id": sae_id, **_scores(by_change, sums, f"sae {sae_id}")} for sae_id in saes]
    return pd.DataFrame(found).assign(total_tokens_eval_reconstruction=sums[""].n)


def _reconstruction(sae: TrainedSAE) -> Reconstruct:
    return lambda x: sae.decode(sae.encode(x.float())).to(x.dtype)


def _changing(changed: torch.Tensor, reconstruct: Reconstruct) -> Reconstruct:
    def change(values: torch.Tensor) -> torch.Tensor:
        out = values.clone()
        where = changed.to(values.device)
        out[where] = reconstruct(values[where])
        return out

    return change


def _batches(
    model: LanguageModel,
    tokens: Tokens,
    place: tuple[str, Position],
    reading: ReadingConfig,
    config: EvaluationConfig,
    span: slice,
) -> Iterator[_Batch]:
    import torch

    changed = np.zeros(tokens.ids.shape, bool)
    rows = row_places(tokens, place[1], reading)
    changed[rows.context, rows.place] = True
    ordinary = tokens.ordinary
    kept = kept_tokens(tokens, reading) & ordinary
    generator = np.random.default_rng(config.seed)
    masked = kept & (generator.random(kept.shape) < config.masked_fraction)
    for chosen, ids, attention in batches(tokens, span, config.batch_tokens):
        numbers = chosen.numpy() + span.start
        at = slice(0, ids.shape[1])
        answers = ids.clone()
        asked = torch.from_numpy(ordinary[numbers, at])
        if model.kind == "masked":
            asked = torch.from_numpy(masked[numbers, at])
            token = model.tokenizer.mask_token_id
            if token is None:
                raise InputError(
                    "language_model.tokenizer: it has no mask token; give the model's own"
                )
            ids = ids.masked_fill(asked, token)
        elif model.kind == "causal":
            # the logits at a position predict the token after it
            answers, asked = answers.roll(-1, 1), asked.roll(-1, 1)
            asked[:, -1] = False
        yield _Batch(ids, attention, torch.from_numpy(changed[numbers, at]), asked, answers)


def _add_loss(sums: _Sums, clean: torch.Tensor, out: torch.Tensor, batch: _Batch) -> None:
    """Add the loss at the predicted tokens, and the divergence from the unchanged model there."""
    import torch

    asked = batch.asked.to(out.device)
    answers = batch.answers.to(out.device)[asked]
    log_p, log_q = (torch.log_softmax(x[asked].float(), dim=1) for x in (clean, out))
    sums.loss -= float(log_q.gather(1, answers[:, None]).double().sum())
    sums.divergence += float((log_p.exp() * (log_p - log_q)).double().sum())
    sums.n += len(answers)


def _add_change(sums: _Sums, clean: torch.Tensor, out: torch.Tensor, batch: _Batch) -> None:
    """Add 1 − cosine of every context's mean output."""
    import torch

    weight = batch.attention.to(out.device)[..., None].to(out.dtype)
    one, other = ((x * weight).sum(1).double() for x in (clean, out))
    sums.divergence += float((1 - torch.cosine_similarity(one, other)).sum())
    sums.n += len(one)


def _scores(by_change: bool, sums: Mapping[str, _Sums], way: str) -> dict[str, float]:
    n = sums[""].n
    change = {
        name: sums[one].divergence / n
        for name, one in (("sae", way), ("ablation", "ablation"), ("mean", "mean_ablation"))
    }
    preserved = 1 - change["sae"] / change["ablation"] if change["ablation"] > 0 else math.nan
    if by_change:
        return {
            "output_change_score": preserved,
            "output_change_with_sae": change["sae"],
            "output_change_with_ablation": change["ablation"],
            "output_change_with_mean_ablation": change["mean"],
        }
    loss = {name: sums[name].loss / n for name in ("", "ablation", "mean_ablation", way)}
    gap = loss["ablation"] - loss[""]
    return {
        "kl_div_score": preserved,
        "kl_div_with_sae": change["sae"],
        "kl_div_with_ablation": change["ablation"],
        "kl_div_with_mean_ablation": change["mean"],
        "ce_loss_score": (loss["ablation"] - loss[way]) / gap if gap else math.nan,
        "ce_loss_with_sae": loss[way],
        "ce_loss_without_sae": loss[""],
        "ce_loss_with_ablation": loss["ablation"],
        "ce_loss_with_mean_ablation": loss["mean_ablation"],
    }


def saebench_results(
    sae: TrainedSAE,
    metrics: Mapping[str, Any],
    about: Mapping[str, Any],
    rows_of_contexts: NDArray[np.float64],
) -> dict[str, Any]:
    """Write an SAE's core evaluation in the layout of SAEBench's JSON files.

    A metric that was not measured is null, such as the losses of an encoder that predicts no
    tokens. The fields about SAEBench's code and about SAELens are null too, because neither was
    used.

    Parameters
    ----------
    sae
        The SAE, for the weights and the density of each latent.
    metrics
        Its row of the evaluation's table.
    about
        ``sae_id``, model, hook, and the evaluation's configuration.
    rows_of_contexts
        ``[d_sae]``, see :func:`rows_per_context`.

    Returns
    -------
    dict
        JSON data.
    """
    import torch

    cosine = torch.cosine_similarity(sae.W_enc.T.double(), sae.W_dec.double())
    details = [
        {
            "index": index,
            "feature_density": float(density),
            "consistent_activation_heuristic": None if math.isnan(often) else float(often),
            "encoder_bias": float(bias),
            "encoder_norm": float(norm),
            "encoder_decoder_cosine_sim": float(cos),
        }
        for index, (density, often, bias, norm, cos) in enumerate(
            zip(
                sae.density,
                rows_of_contexts,
                sae.b_enc,
                sae.W_enc.norm(dim=0),
                cosine,
                strict=True,
            )
        )
    ]

    def known(name: str) -> float | None:
        value = metrics.get(name)
        return None if value is None or not np.isfinite(value) else float(value)

    content = json.dumps(dict(about), sort_keys=True)
    return {
        "eval_type_id": "core",
        "eval_config": dict(about),
        "eval_id": hashlib.sha256(content.encode()).hexdigest()[:32],
        "eval_result_metrics": {
            category: {name: known(name) for name in names}
            for category, names in CATEGORIES.items()
        },
        "eval_result_details": details,
        "sae_bench_commit_hash": None,
        "sae_lens_id": about.get("sae_id"),
        "sae_lens_release_id": None,
        "sae_lens_version": None,
        "sae_cfg_dict": sae.config.model_dump(mode="json"),
    }

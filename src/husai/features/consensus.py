"""The consensus dictionary: the features that recur across seeds, as one SAE.

The seeds are aligned along the maximum spanning tree of their agreement. Each track holds one
feature of every seed; a track whose members are found in enough seeds becomes one direction, the
mean (or the medoid) of its members. With these directions fixed as the decoder, an encoder and the
biases are fitted to the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from husai.consistency.inference.seeds import align_seeds, match_all, partner_similarity
from husai.errors import InputError
from husai.features.cards import FeatureGroup, unit_decoder
from husai.features.config import ConsensusConfig
from husai.features.readouts import Readout
from husai.matching.match import unit_rows

if TYPE_CHECKING:
    import torch

    from husai.sae.trained import TrainedSAE

Floats = NDArray[np.float64]

_PROBE_RIDGE = 1e-3


@dataclass(frozen=True)
class Consensus:
    """The directions that recur across dictionaries.

    Attributes
    ----------
    directions
        ``[m, d]`` unit rows.
    tracks
        A row per direction: ``n_seeds`` (SAEs in which it is found), ``cohesion`` (mean |cosine|
        over pairs of members), and ``latent_<s>``, the member in SAE s (-1 for none).
    """

    directions: Floats
    tracks: pd.DataFrame


def consensus_directions(
    decoders: Sequence[ArrayLike], config: ConsensusConfig | None = None
) -> Consensus:
    """Combine the features that recur across dictionaries into one direction each.

    Parameters
    ----------
    decoders
        Two or more ``[n_s, d]``; rows are features.
    config
        ``threshold``, ``min_share`` and ``direction`` are used.

    Raises
    ------
    InputError
        With fewer than two dictionaries, or when no feature is found in enough of them.
    """
    config = config or ConsensusConfig()
    unit = [unit_rows(one, f"decoder {s}") for s, one in enumerate(decoders)]
    if len(unit) < 2:
        raise InputError(f"decoders: {len(unit)} given; a consensus needs at least two")
    index = align_seeds(match_all(unit), threshold=config.threshold).index
    needed = max(2, int(np.ceil(config.min_share * len(unit) - 1e-9)))
    directions, rows = [], []
    for track in index:
        there = np.flatnonzero(track >= 0)
        members = np.stack([unit[s][track[s]] for s in there])
        cosine = members @ members.T
        medoid = int(np.abs(cosine).sum(axis=1).argmax())
        close = np.abs(cosine[medoid]) >= config.threshold
        if close.sum() < needed:
            continue
        aligned = members[close] * np.sign(cosine[medoid, close])[:, None]
        mean = aligned.mean(axis=0) if config.direction == "mean" else members[medoid]
        # codes are never negative, so the sign matters: it is that of the medoid
        directions.append(mean / np.linalg.norm(mean))
        kept = there[close]
        pairs = np.abs(cosine[np.ix_(close, close)])
        n = len(kept)
        member = dict.fromkeys((f"latent_{s}" for s in range(len(unit))), -1)
        member |= {f"latent_{s}": int(track[s]) for s in kept}
        rows.append({"n_seeds": n, "cohesion": float((pairs.sum() - n) / (n * (n - 1))), **member})
    if not directions:
        raise InputError(
            f"consensus: no feature is found in {needed} of {len(unit)} SAEs at |cosine| "
            f"{config.threshold:g}; lower threshold or min_share"
        )
    return Consensus(np.stack(directions), pd.DataFrame(rows))


def fit_encoder(
    directions: ArrayLike, rows: ArrayLike, k: int, config: ConsensusConfig | None = None
) -> TrainedSAE:
    """Fit a TopK encoder and the biases to rows, with the decoder fixed.

    Parameters
    ----------
    directions
        ``[m, d]`` rows of the decoder; they are normalised.
    rows
        ``[n, d]`` activations.
    k
        Active latents per row; m where it is larger.
    config
        ``steps``, ``batch_size``, ``learning_rate`` and ``seed`` are used.

    Returns
    -------
    TrainedSAE
        An SAE that reads the activations as they are, not centred or scaled.

    Raises
    ------
    InputError
        When widths differ or there are fewer than two rows.
    """
    import torch

    from husai.sae.config import SAEConfig
    from husai.sae.selection import active_latents
    from husai.sae.trained import TrainedSAE

    config = config or ConsensusConfig()
    W_dec = torch.from_numpy(unit_rows(directions, "directions").astype(np.float32))
    x = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
    if x.ndim != 2 or len(x) < 2 or x.shape[1] != W_dec.shape[1]:
        raise InputError(f"rows: shape {tuple(x.shape)}; give [n, {W_dec.shape[1]}], two or more")
    k = min(k, len(W_dec))
    centre = x.mean(dim=0)
    scale = float((x - centre).square().sum(dim=1).mean().sqrt() / x.shape[1] ** 0.5)
    scale = scale if scale > 0 else 1.0
    z = (x - centre) / scale  # so that one learning rate fits activations of any size
    W_enc = W_dec.T.clone().requires_grad_()
    b_enc = torch.zeros(len(W_dec), requires_grad=True)
    b_dec = torch.zeros(x.shape[1], requires_grad=True)
    adam = torch.optim.Adam([W_enc, b_enc, b_dec], lr=config.learning_rate, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(config.seed)
    for step in range(config.steps):
        batch = z[torch.randint(len(z), (min(config.batch_size, len(z)),), generator=generator)]
        codes = active_latents("row", (batch - b_dec) @ W_enc + b_enc, k=k)
        loss = (codes @ W_dec + b_dec - batch).square().sum(dim=1).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for entry in adam.param_groups:  # over the last half the rate falls to zero
            entry["lr"] = config.learning_rate * min(1.0, 2 * (1 - step / config.steps))
        adam.step()
    with torch.no_grad():
        sae = TrainedSAE(
            config=SAEConfig(architecture="topk", d_sae=len(W_dec), k=k),
            W_enc=W_enc.detach().clone(),
            b_enc=(scale * b_enc).detach(),
            W_dec=W_dec,
            b_dec=(centre + scale * b_dec).detach(),
            threshold=None,
            W_dec_init=W_dec.clone(),
            metrics={},
            history=pd.DataFrame(),
            density=torch.zeros(len(W_dec)),
            provenance={"made_by": "consensus", "fit": config.model_dump(mode="json")},
        )
        density = (sae.encode(x) > 0).float().mean(dim=0)
    return replace(sae, density=density)


@dataclass(frozen=True)
class Yardsticks:
    """The rows, and what else is needed, to measure a dictionary.

    Attributes
    ----------
    train, held_out
        Indices of the rows to fit on and of the rows to measure on.
    values
        ``[n_rows, d]`` activations.
    readout
        The model's outputs, for the loss recovered; or None.
    classes
        ``[n_rows]`` class of each row, for the probe; or None.
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    values: NDArray[Any]
    readout: Readout | None = None
    classes: NDArray[np.int64] | None = None


def yardsticks(
    values: NDArray[Any],
    config: ConsensusConfig,
    readout: Readout | None = None,
    classes: NDArray[np.int64] | None = None,
) -> Yardsticks:
    """Choose the held-out rows at random.

    Parameters
    ----------
    values
        ``[n_rows, d]`` activations.
    config
        ``held_out`` and ``seed`` are used.
    readout, classes
        See :class:`Yardsticks`.
    """
    order = np.random.default_rng(config.seed).permutation(len(values))
    n = max(1, round(config.held_out * len(values)))
    return Yardsticks(np.sort(order[n:]), np.sort(order[:n]), values, readout, classes)


def measure_sae(sae: TrainedSAE, by: Yardsticks) -> dict[str, float]:
    """Measure how well an SAE reconstructs the held-out rows, and how useful its codes are.

    Parameters
    ----------
    sae
        The SAE.
    by
        The rows, with the readout and the classes where there are any.

    Returns
    -------
    dict
        ``n_latents``, ``l0``, ``variance_kept`` (1 - FVU); with a readout of logits and targets
        ``loss_recovered`` (1 is the model's own loss, 0 that of rows set to zero); with classes
        ``probe_accuracy`` of a linear probe on the codes, fitted on the other rows.
    """
    import torch

    from husai.sae.metrics import loss_recovered

    x = np.asarray(by.values[by.held_out], dtype=np.float64)
    with torch.no_grad():
        given = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
        codes = sae.encode(given)
        reconstruction = sae.decode(codes).numpy().astype(np.float64)
    spread = np.square(x - x.mean(axis=0)).sum()
    found = {
        "n_latents": float(sae.config.d_sae),
        "l0": float((codes > 0).sum(dim=1).double().mean()),
        "variance_kept": float(1 - np.square(x - reconstruction).sum() / spread),
    }
    if by.readout is not None and by.readout.targets is not None:
        readout = by.readout

        def loss_with(apply: Callable[[torch.Tensor], torch.Tensor]) -> float:
            return _loss(readout, by.held_out, apply(given).numpy())

        with torch.no_grad():
            found["loss_recovered"] = loss_recovered(sae, loss_with)["loss_recovered"]
    if by.classes is not None:
        with torch.no_grad():
            train = torch.from_numpy(np.ascontiguousarray(by.values[by.train], dtype=np.float32))
            fitted = sae.encode(train).numpy().astype(np.float64)
        found["probe_accuracy"] = probe_accuracy(
            (fitted, by.classes[by.train]), (codes.numpy(), by.classes[by.held_out])
        )
    return found


def _loss(readout: Readout, index: NDArray[np.int64], rows: NDArray[Any]) -> float:
    assert readout.targets is not None
    log_p = log_softmax(np.asarray(readout.apply(index, rows), dtype=np.float64), axis=1)
    return float(-log_p[np.arange(len(index)), readout.targets[index]].mean())


def probe_accuracy(
    train: tuple[ArrayLike, NDArray[np.int64]], test: tuple[ArrayLike, NDArray[np.int64]]
) -> float:
    """Fit a linear probe, by ridge regression on one-hot classes, and return its test accuracy.

    Parameters
    ----------
    train, test
        Pairs of codes ``[n, m]`` and classes ``[n]``.
    """
    x = np.asarray(train[0], dtype=np.float64)
    scale = x.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    x = np.column_stack([x / scale, np.ones(len(x))])
    names, at = np.unique(train[1], return_inverse=True)
    gram = x.T @ x + _PROBE_RIDGE * len(x) * np.eye(x.shape[1])
    targets = np.zeros((len(x), len(names)))
    targets[np.arange(len(x)), at] = 1.0
    weights = np.linalg.solve(gram, x.T @ targets)
    y = np.column_stack([np.asarray(test[0], dtype=np.float64) / scale, np.ones(len(test[1]))])
    return float((names[(y @ weights).argmax(axis=1)] == test[1]).mean())


DICTIONARIES = (
    "consensus",
    "most reproducible subset",
    "most active subset",
    "random subset",
    "one seed",
)
"""What is measured side by side; the subsets have as many latents as the consensus."""


@dataclass(frozen=True)
class ConsensusResult:
    """A consensus SAE, and its measures beside other dictionaries.

    Attributes
    ----------
    sae
        The consensus with its fitted encoder.
    consensus
        Its directions and their members.
    table
        A row per dictionary of :data:`DICTIONARIES` and SAE that it is taken from (``id``; empty
        for the consensus of all), all with encoders fitted alike: see :func:`measure_sae`.
        ``min_share`` is the share of the SAEs that the consensus asks for.
    """

    sae: TrainedSAE
    consensus: Consensus
    table: pd.DataFrame


def build_consensus(
    group: FeatureGroup,
    by: Yardsticks,
    config: ConsensusConfig | None = None,
    *,
    whole: bool = True,
) -> ConsensusResult:
    """Make the consensus of a group of SAEs, and measure it beside dictionaries of the same size.

    Each dictionary gets an encoder fitted in the same way on the same rows. The subsets are of
    the first ``config.compared`` SAEs: as many latents as the consensus has, those that come back
    best, those that fire most, or random ones. The first of these shows what is gained by pooling
    over picking. ``whole=False`` leaves out the SAEs with all their latents.

    Raises
    ------
    InputError
        When the group has no codes, or no feature is found in enough SAEs.
    """
    config = config or ConsensusConfig()
    if group.codes is None:
        raise InputError("consensus: the SAEs have no codes; give rows of activations")
    decoders = [unit_decoder(group, s) for s in range(len(group.live))]
    consensus = consensus_directions(decoders, config)
    k = mean_active(group, config)
    sae = fit_encoder(consensus.directions, by.values[by.train], k, config)
    rows: list[dict[str, Any]] = [{"dictionary": "consensus", "id": "", **measure_sae(sae, by)}]
    for s in range(min(config.compared, len(decoders))):
        for name, directions in subsets(group, s, len(consensus.directions), config).items():
            if name == "one seed" and not whole:
                continue
            fitted = fit_encoder(directions, by.values[by.train], k, config)
            rows.append({"dictionary": name, "id": group.ids[s], **measure_sae(fitted, by)})
    table = pd.DataFrame(rows).assign(min_share=config.min_share)
    return ConsensusResult(sae, consensus, table)


def mean_active(group: FeatureGroup, config: ConsensusConfig) -> int:
    """Active latents per row of a group's SAEs, or what the configuration asks for."""
    assert group.codes is not None
    n_rows = group.codes[0].shape[0]
    return config.k or max(1, round(float(np.mean([c.nnz for c in group.codes])) / n_rows))


def subsets(group: FeatureGroup, s: int, size: int, config: ConsensusConfig) -> dict[str, Floats]:
    """Decoders of one SAE beside its consensus: parts of ``size`` latents, and the whole.

    Returns
    -------
    dict
        By the names of :data:`DICTIONARIES`, without the consensus.
    """
    assert group.codes is not None
    decoder, m = unit_decoder(group, s), min(size, len(group.live[s].index))
    chosen = np.random.default_rng([config.seed, s]).permutation(len(decoder))[:m]
    likeness = partner_similarity(group.matches, [len(one.index) for one in group.live])[s]
    order = {
        "most reproducible subset": np.argsort(-likeness.mean(axis=1), kind="stable")[:m],
        "most active subset": np.argsort(-np.diff(group.codes[s].indptr), kind="stable")[:m],
        "random subset": chosen,
        "one seed": np.arange(len(decoder)),
    }
    return {name: decoder[index] for name, index in order.items()}

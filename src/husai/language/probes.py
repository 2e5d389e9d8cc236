"""k-sparse probing of labelled texts: what seeds' latents tell, and which of them are chosen."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from husai.config import Position
from husai.consistency import mean_interval, seed_interval
from husai.errors import InputError
from husai.language.config import ProbesConfig, ReadingConfig
from husai.language.extraction import contexts_values, kept_tokens
from husai.language.model import LanguageModel
from husai.matching.match import match_features
from husai.progress import progress_bar
from husai.sae import TrainedSAE
from husai.text import TextConfig, read_documents, tokenise_documents

if TYPE_CHECKING:
    import torch

    from husai.text import Tokens

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

RIDGES = tuple(float(10.0**power) for power in range(-3, 4))
"""Penalties tried, as multiples of the features' mean squared norm."""

ENCODED_ROWS = 4096


@dataclass(frozen=True)
class Task:
    """One labelled set.

    Attributes
    ----------
    name
        Of its file.
    tokens
        Of its documents, a context each.
    label
        ``[n]`` bool: of the second of the two labels.
    test
        ``[n]`` bool: which documents test the probe.
    labels
        What the two labels are called.
    """

    name: str
    tokens: Tokens
    label: NDArray[np.bool_]
    test: NDArray[np.bool_]
    labels: tuple[str, str]


def probe_tasks(
    text: TextConfig, config: ProbesConfig, model: LanguageModel, *, progress: bool = True
) -> Iterator[Task]:
    """Read labelled sets.

    Raises
    ------
    InputError
        When a set that is named has too few documents of two labels.
    """
    if text.label is None:
        raise InputError("probe_text.label: probes need the labels' column; name it")
    found: dict[str, list[tuple[str, str]]] = {}
    source = text.model_copy(update={"files": config.files, "shuffle_documents": 0})
    for document in read_documents(source):
        if document.label:
            found.setdefault(document.source, []).append((document.text, document.label))
    given = 0
    for name, documents in found.items():
        if not config.files and given == config.n_tasks:
            return
        task = _task(name, documents, config, model)
        if task is not None:
            given += 1
            yield task
        elif config.files:
            raise InputError(
                f"probes.files: {name} has fewer than {config.documents // 2} documents of two "
                "labels; lower probes.documents or leave it out"
            )
    if not given:
        raise InputError(
            f"probes.documents: no file of {text.source} has {config.documents // 2} documents of "
            "two labels; lower it"
        )


def _task(
    name: str, documents: list[tuple[str, str]], config: ProbesConfig, model: LanguageModel
) -> Task | None:
    half = config.documents // 2
    counts = pd.Series([label for _, label in documents]).value_counts()
    chosen = sorted(counts.index[:2].tolist())
    if len(counts) < 2 or counts.iloc[1] < half:
        return None
    generator = np.random.default_rng([config.seed, len(documents)])
    texts: list[str] = []
    for label in chosen:
        own = [text for text, one in documents if one == label]
        texts += [own[i] for i in generator.permutation(len(own))[:half]]
    label = np.repeat([False, True], half)
    test = np.zeros(len(texts), bool)
    for value in (False, True):
        of_label = np.flatnonzero(label == value)
        n_test = max(1, round(config.test_fraction * half))
        test[generator.permutation(of_label)[:n_test]] = True
    context = min(config.context, model.context)
    tokens = tokenise_documents(texts, model.tokenizer, context)
    return Task(name, tokens, label, test, (chosen[0], chosen[1]))


class Fit(NamedTuple):
    """A linear probe on test documents: accuracy and the area under the ROC curve."""

    accuracy: float
    auc: float


def linear_probe(features: ArrayLike, label: NDArray[np.bool_], test: NDArray[np.bool_]) -> Fit:
    """Fit a linear probe by ridge regression on ±1, and test it.

    The penalty is that of least squared error when each training document is left out in turn,
    which a ridge regression gives in closed form: e_i / (1 − H_ii). Features are standardised on
    the training documents.

    Parameters
    ----------
    features
        ``[n, f]``.
    label, test
        ``[n]`` bool.
    """
    x = np.asarray(features, dtype=np.float64)
    y = np.where(label, 1.0, -1.0)
    train = ~test
    mean, sd = x[train].mean(0), x[train].std(0)
    varied = sd > 1e-12
    if not varied.any():
        return Fit(float(np.mean(label[test] == (y[train].mean() > 0))), 0.5)
    x = (x[:, varied] - mean[varied]) / sd[varied]
    centre = y[train].mean()
    # in the documents' space: there are fewer of them than latents
    gram = x[train] @ x[train].T
    values, vectors = np.linalg.eigh(gram)
    values = np.clip(values, 0, None)
    rotated = vectors.T @ (y[train] - centre)
    best, weights = np.inf, np.zeros(train.sum())
    for ridge in RIDGES:
        penalty = ridge * values.mean()
        shrunk = values / (values + penalty)
        residual = y[train] - centre - vectors @ (shrunk * rotated)
        # the mean that is taken off is fitted too
        leverage = np.einsum("ij,j,ij->i", vectors, shrunk, vectors) + 1 / train.sum()
        error = float(np.square(residual / np.clip(1 - leverage, 1e-9, None)).mean())
        if error < best:
            best, weights = error, vectors @ (rotated / (values + penalty))
    score = x[test] @ (x[train].T @ weights) + centre
    return Fit(float(np.mean((score > 0) == label[test])), _auc(score, label[test]))


def _auc(score: Floats, label: NDArray[np.bool_]) -> float:
    ranks = stats.rankdata(score)
    positive = int(label.sum())
    pairs = positive * (len(label) - positive)
    return float((ranks[label].sum() - positive * (positive + 1) / 2) / pairs)


def select_latents(
    features: ArrayLike, label: NDArray[np.bool_], test: NDArray[np.bool_], k: int
) -> NDArray[np.int64]:
    """Choose the k latents whose means differ most between the labels, on training documents.

    In units of their pooled standard deviation; latents that never fire are never chosen.
    """
    x = np.asarray(features, dtype=np.float64)[~test]
    y = label[~test]
    sd = np.sqrt((x[y].var(0) + x[~y].var(0)) / 2)
    difference = np.abs(x[y].mean(0) - x[~y].mean(0))
    effect = np.where(difference > 0, difference / (sd + 1e-3 * sd.max() + 1e-30), -1.0)
    return np.argsort(-effect, kind="stable")[:k]


class Stability(NamedTuple):
    """Stability of selections of features, with its interval."""

    value: float
    low: float
    high: float


def selection_stability(chosen: ArrayLike, level: float = 0.95) -> Stability:
    """Stability of feature selection: 1 when all choose the same, 0 in the mean by chance.

    Nogueira, Sechidis & Brown, JMLR 18 (2018), 174: eq. 4 for the value, theorem 7 for the
    interval, which is asymptotic in the number of selections.

    Parameters
    ----------
    chosen
        ``[M, d]`` bool: which of d features each of M selections holds.
    level
        Of the interval.

    Raises
    ------
    InputError
        When there are fewer than two selections, or all hold nothing or everything.
    """
    Z = np.asarray(chosen, dtype=np.float64)
    M, d = Z.shape
    part = Z.mean()
    if M < 2 or part in (0.0, 1.0):
        raise InputError("chosen: give at least two selections, of some of the features")
    p = Z.mean(0)
    spread = part * (1 - part)
    value = 1 - float((M / (M - 1) * p * (1 - p)).mean()) / spread
    own = Z.mean(1)
    each = (Z @ p) / d - own * part
    each += value / 2 * (2 * own * part - own - part + 1)
    each /= spread
    variance = 4 / M**2 * float(np.square(each - each.mean()).sum())
    half = float(stats.norm.ppf((1 + level) / 2)) * np.sqrt(variance)
    return Stability(value, max(-1.0, value - half), min(1.0, value + half))


def matched_overlap(
    one: NDArray[np.int64], other: NDArray[np.int64], partner: NDArray[np.int64], d: int
) -> float:
    """How far two seeds select matched latents: 1 when all are, 0 in the mean by chance.

    Kuncheva's index, of which Nogueira's stability is the mean over pairs where all select as
    many: (r − k²/d) / (k − k²/d), with r the latents of ``one`` whose partner ``other`` selected.

    Parameters
    ----------
    one, other
        Selected latents ``[k]`` of either seed.
    partner
        ``[d_sae]`` partner in the other seed of each latent of the first, −1 for none.
    d
        Latents that could be selected.
    """
    k = len(one)
    shared = len(np.intersect1d(partner[one], other))
    by_chance = k * k / d
    return (shared - by_chance) / (k - by_chance) if k > by_chance else np.nan


@dataclass
class ProbeTables:
    """What probing gives.

    Attributes
    ----------
    probes
        A row for each task, SAE and number of latents (0: all; ``sae_id`` empty: the dense probe
        on the activations): ``accuracy``, ``auc``, ``chance``, ``selected`` (JSON).
    summary
        A row for each group and number of latents: mean accuracy over tasks and seeds with the
        interval over seeds, ``stability`` of the selection over seeds with its interval, and the
        accuracy of the dense probe and chance beside it.
    stability
        A row for each group, task and number of latents.
    """

    probes: pd.DataFrame
    summary: pd.DataFrame
    stability: pd.DataFrame = field(default_factory=pd.DataFrame)


def probe_saes(
    model: LanguageModel,
    tasks: Sequence[Task],
    plan: pd.DataFrame,
    saes: Mapping[str, TrainedSAE],
    place: tuple[str, Position],
    reading: ReadingConfig,
    config: ProbesConfig,
    *,
    level: float = 0.95,
    progress: bool = True,
) -> ProbeTables:
    """Probe labelled texts with every SAE's latents, averaged over a document's tokens.

    Parameters
    ----------
    model, tasks
        The model and the labelled sets.
    plan
        ``sae_id``, ``group`` and ``seed`` of the SAEs.
    saes
        By name, those of one hook.
    place, reading
        Where they read; the mean is taken over the tokens that are rows there.
    config
        How many latents.
    level
        Of the intervals.
    progress
        Show a progress bar.
    """
    rows: list[dict[str, Any]] = []
    known = plan[plan["sae_id"].isin(list(saes))]
    with progress_bar(len(tasks) * (len(saes) + 1), "probe", "SAE", disable=not progress) as bar:
        for task in tasks:
            values = contexts_values(
                model, task.tokens, slice(0, len(task.tokens)), [place[0]], reading.batch_tokens
            )[place[0]]
            kept = kept_tokens(task.tokens, reading)
            dense = _pooled(values, kept)
            base = {"task": task.name, "chance": _majority(task)}
            fit = linear_probe(dense, task.label, task.test)
            rows.append({**base, "sae_id": "", "group": "activations", "seed": -1, "k": 0,
                         **fit._asdict(), "selected": "[]"})  # fmt: skip
            bar.update(1)
            for sae_id, group, seed in known[["sae_id", "group", "seed"]].to_numpy():
                one = {"sae_id": sae_id, "group": group, "seed": int(seed)}
                pooled = _pooled_codes(saes[sae_id], values, kept)
                for k in (*config.k, 0):
                    selected = np.arange(pooled.shape[1])
                    if k:
                        selected = select_latents(pooled, task.label, task.test, k)
                    fit = linear_probe(pooled[:, selected], task.label, task.test)
                    listed = json.dumps(selected.tolist() if k else [])
                    rows.append({**base, **one, "k": k, **fit._asdict(), "selected": listed})
                bar.update(1)
    probes = pd.DataFrame(rows)
    stability = _stability(probes, known, saes, level)
    return ProbeTables(probes, _summary(probes, stability, level), stability)


def _majority(task: Task) -> float:
    tested = task.label[task.test]
    return float(max(tested.mean(), 1 - tested.mean()))


def _pooled(values: torch.Tensor, kept: NDArray[np.bool_]) -> Floats:
    weight = kept[:, : values.shape[1], None].astype(np.float64)
    total = (values.numpy() * weight).sum(1)
    return total / np.maximum(weight.sum(1), 1)


def _pooled_codes(sae: TrainedSAE, values: torch.Tensor, kept: NDArray[np.bool_]) -> Floats:
    """Mean of the codes over the kept tokens of each document ``[n, d_sae]``."""
    import torch

    document, place = (torch.from_numpy(index) for index in np.nonzero(kept))
    rows = values[document, place]
    total = torch.zeros(len(values), sae.config.d_sae)
    for begin in range(0, len(rows), ENCODED_ROWS):
        part = slice(begin, begin + ENCODED_ROWS)
        total.index_add_(0, document[part], sae.encode(rows[part]))
    counts = np.maximum(kept.sum(1), 1)[:, None]
    return total.double().numpy() / counts


def _stability(
    probes: pd.DataFrame, plan: pd.DataFrame, saes: Mapping[str, TrainedSAE], level: float
) -> pd.DataFrame:
    found: list[dict[str, Any]] = []
    for group, members in plan.groupby("group", sort=False):
        ids = members["sae_id"].tolist()
        if len(ids) < 2:
            continue
        partners = {
            (i, j): _partners(saes[ids[i]], saes[ids[j]])
            for i, j in combinations(range(len(ids)), 2)
        }
        live = [int((saes[i].density > 0).sum()) for i in ids]
        own = probes[(probes["group"] == group) & (probes["k"] > 0)]
        for (task, k), part in own.groupby(["task", "k"], sort=False):
            selected = part.set_index("sae_id")["selected"].map(json.loads).map(np.array)
            chosen = [selected[sae_id] for sae_id in ids]
            W = np.zeros((len(ids), len(ids)))
            for (i, j), partner in partners.items():
                d = min(live[i], live[j])
                W[i, j] = W[j, i] = matched_overlap(chosen[i], chosen[j], partner, d)
            interval = seed_interval(W, level=level, bounds=(-1.0, 1.0))
            aligned = _aligned(chosen, partners, len(ids), saes[ids[0]].config.d_sae)
            nogueira = selection_stability(aligned, level)
            found.append(
                {"group": group, "task": task, "k": k, "stability": interval.mean,
                 "low": interval.low, "high": interval.high, "n_seeds": len(ids),
                 "nogueira": nogueira.value, "nogueira_low": nogueira.low,
                 "nogueira_high": nogueira.high, "pairs": json.dumps(W.tolist())}
            )  # fmt: skip
    return pd.DataFrame(found)


def _partners(one: TrainedSAE, other: TrainedSAE) -> NDArray[np.int64]:
    match = match_features(one.W_dec.numpy(), other.W_dec.numpy())
    partner = np.full(one.config.d_sae, -1, np.int64)
    partner[match.a_index] = match.b_index
    return partner


def _aligned(
    chosen: Sequence[NDArray[np.int64]],
    partners: Mapping[tuple[int, int], NDArray[np.int64]],
    n_seeds: int,
    d_sae: int,
) -> NDArray[np.bool_]:
    """Selections under the first seed's numbers ``[S, d_sae]``."""
    Z = np.zeros((n_seeds, d_sae), bool)
    Z[0, chosen[0]] = True
    for seed in range(1, n_seeds):
        Z[seed] = np.isin(partners[0, seed], chosen[seed])
    return Z


def _summary(probes: pd.DataFrame, stability: pd.DataFrame, level: float) -> pd.DataFrame:
    dense = probes[probes["sae_id"] == ""]
    found = []
    for (group, k), part in probes[probes["sae_id"] != ""].groupby(["group", "k"], sort=False):
        row: dict[str, Any] = {"group": group, "k": k, "tasks": part["task"].nunique()}
        for name in ("accuracy", "auc"):
            interval = mean_interval(
                part.groupby("seed")[name].mean(), level=level, bounds=(0.0, 1.0)
            )
            row |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
        row |= {"dense": float(dense["accuracy"].mean()), "chance": float(dense["chance"].mean())}
        if k and len(stability):
            own = stability[(stability["group"] == group) & (stability["k"] == k)]
            # the tasks' mean of each pair of seeds: seeds are the sample
            pairs = np.mean([json.loads(text) for text in own["pairs"]], axis=0)
            interval = seed_interval(pairs, level=level, bounds=(-1.0, 1.0))
            row |= {
                "stability": interval.mean,
                "stability_low": interval.low,
                "stability_high": interval.high,
                "nogueira": float(own["nogueira"].mean()),
            }
        found.append(row)
    return pd.DataFrame(found)

"""Sparse probing of labelled texts: how well k latents predict a label, and which are chosen."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
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
"""Ridge penalties that are tried, as multiples of the mean eigenvalue of the Gram matrix."""

ENCODED_ROWS = 1024
"""Rows encoded at once. Their codes stay in the processor's cache; more rows take longer."""


@dataclass(frozen=True)
class Task:
    """One set of labelled documents.

    Attributes
    ----------
    name
        Name of its file.
    tokens
        Its documents, one context each.
    label
        ``[n]`` bool: whether a document has the second of the two labels.
    test
        ``[n]`` bool: whether a document tests the probe.
    labels
        Names of the two labels.
    """

    name: str
    tokens: Tokens
    label: NDArray[np.bool_]
    test: NDArray[np.bool_]
    labels: tuple[str, str]


def probe_tasks(text: TextConfig, config: ProbesConfig, model: LanguageModel) -> Iterator[Task]:
    """Read sets of labelled documents.

    Parameters
    ----------
    text
        The labelled texts.
    config
        Which sets, and how many documents of each.
    model
        The model that will read them.

    Raises
    ------
    InputError
        When a set that is asked for has too few documents of two labels, or no set has enough.
    """
    if text.label is None:
        raise InputError("probe_text.label: probes need the column of the labels; give its name")
    source = text.model_copy(update={"files": config.files, "shuffle_documents": 0})
    if not config.files and not config.n_tasks:
        return
    given = 0
    # file by file, so that files after the last task are not read
    for name, of_file in groupby(read_documents(source), lambda document: document.source):
        documents = [(one.text, one.label) for one in of_file if one.label]
        task = _task(name, documents, config, model)
        if task is not None:
            given += 1
            yield task
            if not config.files and given == config.n_tasks:
                return
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
    """Accuracy of a linear probe on test documents, and the area under its ROC curve."""

    accuracy: float
    auc: float


def linear_probe(features: ArrayLike, label: NDArray[np.bool_], test: NDArray[np.bool_]) -> Fit:
    """Fit a linear probe by ridge regression on ±1, and test it.

    The penalty is the one with the least squared error when each training document is left out in
    turn. For a ridge regression these errors have a closed form: e_i / (1 − H_ii). Features are
    standardised on the training documents.

    Parameters
    ----------
    features
        ``[n, f]``.
    label, test
        ``[n]`` bool: the label of each document, and whether it tests the probe.
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
    # solved with the [n, n] Gram matrix: there are usually fewer documents than latents
    gram = x[train] @ x[train].T
    values, vectors = np.linalg.eigh(gram)
    values = np.clip(values, 0, None)
    rotated = vectors.T @ (y[train] - centre)
    best, weights = np.inf, np.zeros(train.sum())
    for ridge in RIDGES:
        penalty = ridge * values.mean()
        shrunk = values / (values + penalty)
        residual = y[train] - centre - vectors @ (shrunk * rotated)
        # the mean is subtracted, which is one more fitted number
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

    Differences are in units of the pooled standard deviation. Latents with equal means, such as
    those that never fire, come last.

    Parameters
    ----------
    features
        ``[n, d_sae]`` mean codes of the documents.
    label, test
        ``[n]`` bool: the label of each document, and whether it tests the probe.
    k
        Number of latents.
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
    """Compute the stability of feature selection: 1 for equal selections, 0 on average by chance.

    Nogueira, Sechidis & Brown, JMLR 18 (2018), 174: eq. 4 for the value, theorem 7 for the
    interval, which holds for many selections (it is asymptotic).

    Parameters
    ----------
    chosen
        ``[M, d]`` bool: which of d features each of M selections contains.
    level
        Confidence level of the interval.

    Raises
    ------
    InputError
        When there are fewer than two selections, or all of them contain no feature or all
        features.
    """
    Z = np.asarray(chosen, dtype=np.float64)
    M, d = Z.shape
    part = Z.mean()
    if M < 2 or part in (0.0, 1.0):
        raise InputError(
            "chosen: give at least two selections, which do not all contain none or all features"
        )
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
    """Compute how far two seeds select matched latents: 1 if all are, 0 on average by chance.

    It is Kuncheva's index, (r − k²/d) / (k − k²/d), where r is the number of latents in ``one``
    whose partner is in ``other``. Where all selections have the same size, its mean over pairs is
    Nogueira's stability.

    Parameters
    ----------
    one, other
        ``[k]`` selected latents of the first and of the second seed.
    partner
        ``[d_sae]`` partner in the second seed of each latent of the first, −1 for none.
    d
        Number of latents that could be selected.
    """
    k = len(one)
    shared = len(np.intersect1d(partner[one], other))
    by_chance = k * k / d
    return (shared - by_chance) / (k - by_chance) if k > by_chance else np.nan


@dataclass
class ProbeTables:
    """The results of probing.

    Attributes
    ----------
    probes
        A row for each task, SAE and number of latents ``k``, where 0 means all: ``accuracy``,
        ``auc``, ``chance``, ``selected`` (JSON). Rows with an empty ``sae_id`` are the dense probe
        on the activations themselves.
    summary
        A row for each group and number of latents: mean accuracy over tasks and seeds with the
        interval over seeds, ``stability`` of the selection over seeds with its interval, and for
        comparison the accuracy of the dense probe and of chance.
    stability
        A row for each group, task and number of latents, where this is fewer than the latents that
        fire in each seed.
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
        SAEs of one hook by name.
    place, reading
        Hook and position that they read, and which tokens are rows; the mean is over these tokens.
    config
        ``k``: the numbers of latents.
    level
        Confidence level of the intervals.
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
                best = select_latents(pooled, task.label, task.test, max(config.k, default=0))
                for k in (*config.k, 0):
                    selected = best[:k] if k else np.arange(pooled.shape[1])
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
    """Compute ``[n, d_sae]`` mean codes over the kept tokens of each document."""
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
            if part["k"].iloc[0] >= min(live):
                continue  # every seed selects all its latents: there is no choice to compare
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
    """Return ``[S, d_sae]`` selections, with every latent numbered by its partner in seed 0."""
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
        own = pd.DataFrame()
        if k and len(stability):
            own = stability[(stability["group"] == group) & (stability["k"] == k)]
        if len(own):
            # mean over tasks for each pair of seeds, because the seeds are the sample
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

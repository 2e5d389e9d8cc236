"""Write the feature page of a group: a list of features to sort and search, and a card for each.

The page is one HTML file with its data, style and script in it. It loads nothing, so it works
offline from disk.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from husai.errors import InputError
from husai.features.cards import FeatureCards
from husai.features.config import FeaturesConfig
from husai.features.pictures import (
    HISTOGRAM_BINS,
    activation_map,
    check_contexts,
    context_of,
    histogram,
    top_rows,
)

logger = logging.getLogger(__name__)

_MEGABYTE = 1_000_000
# Each try to fit the largest size aims at this share of it.
_SHRINK = 0.9


class Column(NamedTuple):
    """A column of the list.

    Attributes
    ----------
    name
        Name of the column in the cards' data frame.
    title, hint
        Text above the column, and text that appears when the pointer is over it.
    digits
        Number of decimals; None for text.
    narrow
        Whether a narrow screen shows it.
    """

    name: str
    title: str
    hint: str
    digits: int | None = 3
    narrow: bool = False


COLUMNS = (
    Column(
        "reproducibility",
        "comes back",
        "reproducibility: mean |cosine| to its partners in the other seeds, with its interval",
        3,
        True,
    ),
    Column("n_seeds_found", "in seeds", "other seeds that have it at the threshold or above", 0),
    Column("label", "label", "the label of the rows that explains its activation best", None, True),
    Column("kind", "kind", "kind of that label; other if no label explains enough", None),
    Column("r2", "fit", "share of its activation's variance that the best label explains (R²)", 2),
    Column("firing_rate", "fires", "share of the rows on which it is active", 4),
    Column(
        "function", "function", "correlation of the effects of its ablation and its partners'", 2
    ),
    Column("repaired", "repaired", "share of its ablation's damage that its partners undo", 2),
    Column("probability", "new seed", "estimated probability that a new seed has it", 2),
    Column(
        "n_exchangeable",
        "exchangeable",
        "mean number of partners that are about as good as its own, its own included",
        1,
    ),
)
"""Columns that the list shows, where the cards have them."""


@dataclass(frozen=True)
class RowFacts:
    """What is known about the rows that the codes belong to.

    Attributes
    ----------
    modulus
        p when the rows are all pairs (a, b) modulo p, sorted by a and then b; None otherwise.
    labels
        A row for each activation row, shown beside the strongest ones; or None.
    contexts
        A row for each activation row, see :func:`husai.features.pictures.check_contexts`; or None.
    """

    modulus: int | None = None
    labels: pd.DataFrame | None = None
    contexts: pd.DataFrame | None = None


def features_page(
    cards: FeatureCards,
    facts: RowFacts | None = None,
    config: FeaturesConfig | None = None,
    *,
    title: str = "Features",
    note: str = "",
) -> str:
    """Write the page of a group's features.

    If there are more features than the page may hold, it shows a random part of the first SAE's
    features with their partners, and says so.

    Parameters
    ----------
    cards
        From :func:`husai.features.feature_cards`.
    facts
        What is known about the rows.
    config
        ``max_features``, ``max_megabytes``, ``top_rows``, ``context_tokens`` and ``seed`` are used.
    title, note
        Title of the page, and one sentence below it that says what was compared.

    Returns
    -------
    str
        A whole HTML document.

    Raises
    ------
    InputError
        When the facts do not match the rows of the codes, or ``max_megabytes`` is too small for two
        features per SAE.
    """
    config, facts = config or FeaturesConfig(), facts or RowFacts()
    _check_facts(cards, facts)
    limit = config.max_megabytes * _MEGABYTE
    wanted = config.max_features
    while True:
        shown = shown_features(cards, wanted, config.seed)
        data = _page_data(cards, shown, facts, config)
        left_out = len(cards.features) - len(shown)
        text = (
            _environment()
            .get_template("features.html.j2")
            .render(
                title=title, note=note, data=_script_json(data), left_out=left_out, n=len(shown)
            )
        )
        size = len(text.encode())
        if size <= limit:
            return text
        if len(shown) <= 2 * len(cards.group.live):
            raise InputError(
                f"max_megabytes: {config.max_megabytes:g} is too small for a page of "
                f"{len(shown)} features ({size / _MEGABYTE:.1f} MB); raise it"
            )
        wanted = max(2, int(len(shown) * limit / size * _SHRINK))
        logger.info("the page is %.1f MB; showing %d features", size / _MEGABYTE, wanted)


def _check_facts(cards: FeatureCards, facts: RowFacts) -> None:
    codes = cards.group.codes
    n_rows = None if codes is None else codes[0].shape[0]
    if facts.modulus is not None and n_rows != facts.modulus**2:
        raise InputError(f"modulus: {facts.modulus}² pairs (a, b), but {n_rows} rows of codes")
    if facts.labels is not None and len(facts.labels) != n_rows:
        raise InputError(f"labels: {len(facts.labels)} rows of labels, {n_rows} of codes")
    if facts.contexts is not None:
        check_contexts(facts.contexts, n_rows or 0)


def shown_features(cards: FeatureCards, most: int, seed: int = 0) -> pd.DataFrame:
    """Choose the features that a page shows: all, or some of the first SAE with their partners.

    Parameters
    ----------
    cards
        From :func:`husai.features.feature_cards`.
    most
        Most features on the page.
    seed
        Seed of the random part.

    Returns
    -------
    pandas.DataFrame
        Columns ``id`` and ``latent``.
    """
    everything = cards.features[["id", "latent"]]
    if len(everything) <= most:
        return everything.reset_index(drop=True)
    group = cards.group
    n = max(1, most // len(group.live))
    size = len(group.live[0].index)
    kept = np.sort(np.random.default_rng(seed).permutation(size)[:n])
    parts = [_keys(cards, 0, kept)]
    for t in range(1, len(group.live)):
        partner, _ = group.partners(0, t)
        there = partner[kept]
        parts.append(_keys(cards, t, np.sort(there[there >= 0])))
    return pd.concat(parts, ignore_index=True)


def _keys(cards: FeatureCards, s: int, position: NDArray[np.int64]) -> pd.DataFrame:
    one = cards.group.live[s]
    return pd.DataFrame({"id": one.record.id, "latent": one.index[position]})


def _page_data(
    cards: FeatureCards, shown: pd.DataFrame, facts: RowFacts, config: FeaturesConfig
) -> dict[str, Any]:
    """Collect all values that the script of the page needs, as plain Python values."""
    features = shown.merge(cards.features, on=["id", "latent"], how="left")
    if "label" in features:  # a feature that no label explains well enough shows no label
        features["label"] = features["label"].where(~features["kind"].isin(["other", "dead"]), "")
    columns = [one for one in COLUMNS if one.name in features]
    sae = {name: s for s, name in enumerate(cards.group.ids)}
    place = {key: i for i, key in enumerate(zip(features["id"], features["latent"], strict=True))}
    found = cards.partners.merge(shown, on=["id", "latent"], how="inner")
    partners: list[list[list[Any]]] = [[] for _ in range(len(features))]
    extra = [name for name in ("function", "repaired", "n_exchangeable") if name in found]
    for row in found.to_dict("records"):
        other = (row["other_id"], row["other_latent"])
        partners[place[row["id"], row["latent"]]].append(
            [
                sae[row["other_id"]],
                row["other_latent"],
                place.get(other, -1),
                _plain(row["cosine"], 3),
                *(_plain(row[name], 2) for name in extra),
            ]
        )
    effect = features["effect"].fillna("").tolist() if "effect" in features else None
    return {
        "saes": cards.group.names,
        "n_others": len(cards.group.live) - 1,
        "columns": [one._asdict() for one in columns],
        "extra": extra,
        "features": [
            [sae[row["id"]], row["latent"], *(_cell(row, one) for one in columns)]
            for row in features.to_dict("records")
        ],
        "ends": [[_plain(a, 2), _plain(b, 2)] for a, b in features[["low", "high"]].to_numpy()],
        "effects": effect,
        "partners": partners,
        "notes": list(cards.notes),
        **_shown_activations(cards, shown, facts, config),
    }


def _cell(row: dict[Any, Any], column: Column) -> Any:
    value = row[column.name]
    if column.digits is None:
        return "" if pd.isna(value) else str(value)
    return _plain(value, column.digits)


def _plain(value: Any, digits: int) -> float | None:
    return None if pd.isna(value) else round(float(value), digits)


def _shown_activations(
    cards: FeatureCards, shown: pd.DataFrame, facts: RowFacts, config: FeaturesConfig
) -> dict[str, Any]:
    """Collect maps, or histograms and strongest rows, of the shown features in their order."""
    group = cards.group
    if group.codes is None:
        return {"maps": None, "histograms": None, "rows": None}
    maps: list[str] = []
    histograms: list[list[int]] = []
    rows: list[list[Any]] = []
    used: set[int] = set()
    for s, one in enumerate(group.live):
        own = shown.loc[shown["id"] == one.record.id, "latent"].to_numpy()
        position = np.searchsorted(one.index, own)
        codes = group.codes[s]
        if facts.modulus is not None:
            maps += [
                base64.b64encode(activation_map(codes, j, facts.modulus)).decode() for j in position
            ]
            continue
        histograms += [histogram(codes, j) for j in position]
        best = top_rows(codes[:, position], config.top_rows)
        for row, value in zip(best.row, best.value, strict=True):
            kept = [int(r) for r in row if r >= 0]
            used.update(kept)
            rows.append([kept, [float(f"{v:.3g}") for v in value[: len(kept)]]])
    if facts.modulus is not None:
        return {"maps": maps, "modulus": facts.modulus, "histograms": None, "rows": None}
    return {
        "maps": None,
        "histograms": histograms,
        "bins": HISTOGRAM_BINS,
        "rows": rows,
        "facts": _row_texts(sorted(used), facts, config),
    }


def _row_texts(rows: Sequence[int], facts: RowFacts, config: FeaturesConfig) -> dict[str, Any]:
    """Collect for each row that a card shows its context, and its labels in words."""
    texts: dict[str, Any] = {}
    contexts = facts.contexts
    if contexts is not None:
        contexts = check_contexts(contexts, len(contexts))
    for row in rows:
        about: dict[str, Any] = {}
        if contexts is not None:
            about["context"] = context_of(contexts, row, config.context_tokens)
        if facts.labels is not None and len(facts.labels.columns):
            values = facts.labels.iloc[row]
            about["labels"] = ", ".join(f"{name} = {value}" for name, value in values.items())
        if about:
            texts[str(row)] = about
    return texts


def _script_json(data: dict[str, Any]) -> Markup:
    """JSON that is safe inside a script element: no ``</script>`` or ``<!--`` can be in it."""
    text = json.dumps(data, separators=(",", ":"), default=_number, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028"))


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__}: cannot be written as JSON on a page")


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("husai.features"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )

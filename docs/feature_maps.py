"""Draw single features of a study on all pairs (a, b), beside their partners in the other seeds.

    python docs/feature_maps.py DATA TARGET        # a study's folder; docs/results/maps

Two features of the main group beside their partners in the other seeds: one that comes back in
every seed, and one that one seed has not learned. TARGET gets a small picture a feature (a
downwards, b to the right), ``maps.json`` (what each shows), ``points.csv`` (how every feature of
every group comes back, by kind) and ``pairs.csv`` (PW-MCC of each pair of seeds).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from husai.compare.files import load_saes
from husai.consistency import plane_recovery, with_codes
from husai.features.pictures import activation_map

ANSWER = "answer"
PARTNER = {"id": "other_id", "latent": "other_latent"}


def seed_of(sae_id: str) -> int:
    """The seed that an SAE's id names: ``topk-d256-k4-s3-b2291d``."""
    return int(sae_id.split("-s")[-1].split("-")[0])


def comes_back(cards: pd.DataFrame) -> pd.Series:
    """The answer feature whose least similar partner is the most similar of all."""
    answers = cards[cards["kind"] == ANSWER]
    return answers.sort_values("similarity_min", kind="stable").iloc[-1]


def lost(cards: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """An answer that all seeds but one have, its partner there the least similar of such.

    Returns its best feature, and every answer without a feature, with the seed.
    """
    answers = cards[cards["kind"] == ANSWER]
    found = answers.groupby("label")["id"].unique()
    ids = sorted(cards["id"].unique())
    missing = pd.DataFrame(
        [(label, one) for label, having in found.items() for one in ids if one not in having],
        columns=["label", "id"],
    )
    once = missing.drop_duplicates("label", keep=False)["label"]
    chosen = answers[answers["label"].isin(once)]
    return chosen.sort_values("similarity_min", kind="stable").iloc[0], missing


def beside_partners(
    feature: pd.Series, cards: pd.DataFrame, partners: pd.DataFrame
) -> list[dict[str, Any]]:
    """A feature and its partner in each other seed, in the order of the seeds."""
    own = partners[(partners["id"] == feature["id"]) & (partners["latent"] == feature["latent"])]
    about = cards[["id", "latent", "label", "kind", "f1_best", "firing_rate"]].rename(
        columns=PARTNER
    )
    named = own.merge(about, on=list(PARTNER.values()), how="left")
    shown = [
        {
            "id": row.other_id,
            "latent": int(row.other_latent),
            "cosine": round(float(row.similarity), 4),
            "function": round(float(row.function), 4),
            "label": row.label,
            "kind": row.kind,
        }
        for row in named.itertuples()
    ]
    first = {key: feature[key] for key in ("id", "label", "kind")}
    shown.append({**first, "latent": int(feature["latent"]), "cosine": None, "function": None})
    return sorted(({"seed": seed_of(one["id"]), **one} for one in shown), key=lambda x: x["seed"])


def answer_means(rows: np.ndarray, modulus: int) -> np.ndarray:
    """Mean activation of each answer, less that of all rows: what a perfect feature points at."""
    a, b = np.divmod(np.arange(modulus**2), modulus)
    centred = rows - rows.mean(axis=0)
    return np.stack([centred[(a + b) % modulus == c].mean(axis=0) for c in range(modulus)])


def main(data: Path, target: Path) -> None:
    """Draw, and write what was drawn."""
    target.mkdir(parents=True, exist_ok=True)
    cards = pd.read_parquet(data / "features" / "cards.parquet")
    partners = pd.read_parquet(data / "features" / "partners.parquet")
    ids = sorted(cards["id"].unique())
    table = pd.read_parquet(data / "saes" / "table.parquet").set_index("sae_id").loc[ids[0]]
    key = f"{table['hook_name']}@{table['position']}"
    tensors = load_file(data / "activations" / f"{key}.safetensors")
    rows = tensors["activations"]
    modulus = round(len(rows) ** 0.5)
    records = load_saes([data / "saes" / "trained" / f"{one}.safetensors" for one in ids])
    codes = {
        one: with_codes(record, rows).codes.tocsc()
        for one, record in zip(ids, records, strict=True)
    }
    gone, missing = lost(cards)
    chosen = {"kept": comes_back(cards), "lost": gone}
    maps: dict[str, Any] = {}
    for name, feature in chosen.items():
        shown = beside_partners(feature, cards, partners)
        for one in shown:
            one["file"] = f"{name}_{one['seed']}.png"
            picture = activation_map(codes[one["id"]], one["latent"], modulus)
            (target / one["file"]).write_bytes(picture)
        maps[name] = {
            "label": feature["label"],
            "seed": seed_of(feature["id"]),
            "reproducibility": round(float(feature["reproducibility"]), 4),
            "features": shown,
        }
    perfect = plane_recovery(answer_means(rows, modulus), tensors["planes"]).features
    found = {
        "group": str(table["group"]),
        "hook": key,
        "modulus": modulus,
        "seeds": len(ids),
        "answers_without_a_feature": [
            {"label": row.label, "seed": seed_of(row.id)} for row in missing.itertuples()
        ],
        "perfect_answer": {
            "purity": round(float(perfect["purity"].mean()), 4),
            "energy": round(float(perfect["energy"].mean()), 4),
        },
        **maps,
    }
    (target / "maps.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    features = pd.read_parquet(data / "consistency" / "features.parquet")
    features = features[features["space"] == "full"]
    features.assign(seed=features["id"].map(seed_of))[
        ["group", "seed", "kind", "reproducibility", "similarity_min", "n_seeds_found"]
    ].round(4).to_csv(target / "points.csv", index=False)
    pairs = pd.read_parquet(data / "consistency" / "pairs.parquet")
    wanted = (pairs["score"] == "pw_mcc") & ~pairs["signed"].astype(bool)
    wanted &= (pairs["space"] == "full") & pairs["within"].astype(bool)
    pairs.loc[wanted, ["group", "seed_a", "seed_b", "value"]].round(4).to_csv(
        target / "pairs.csv", index=False
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Draw the pictures of the pages on concepts, each from the library's own numbers.

python docs/pictures.py          # docs/pictures/concepts/*.svg: the same every time, in seconds
python docs/pictures.py cards    # docs/results/features/card_*.png: the page in a browser
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from husai.consistency import mmcs, null_scores, pw_mcc
from husai.consistency.analyses.gate import MOTION_STEPS, decay_start, decoder_motion
from husai.consistency.config import LEAST_MOTION
from husai.consistency.inference.references import (
    data_aware,
    isotropic,
    permuted,
    score_reference,
)
from husai.figures.style import COLOURS, GREY, MARKERS, tidy
from husai.matching.match import match_features
from husai.sae import BankTrainingConfig, SAEConfig, train_bank
from husai.tasks import PlantedConfig, planted_dictionary
from husai.tasks.planted.config import UniformKFiring

OUT = Path(__file__).parent / "pictures" / "concepts"
COVERAGE = Path(__file__).parents[1] / "benchmarks" / "results" / "consistency_coverage.json"


def matching() -> Figure:
    """Two dictionaries in a plane: their best match, and the nearest of each feature."""
    ours, theirs = (np.deg2rad(angles) for angles in ((12, 30, 95, 150), (22, 80, 102, 170)))
    A, B = (np.stack([np.cos(t), np.sin(t)], axis=1) for t in (ours, theirs))
    match = match_features(A, B, signed=True)
    nearest = (A @ B.T).argmax(axis=1)
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    titles = (
        f"best one-to-one match: PW-MCC {match.mean:.2f}",
        f"nearest of each feature of A: MMCS from A to B {mmcs(A, B, signed=True).a_to_b:.2f}",
    )
    pairs = (list(zip(match.a_index, match.b_index, strict=True)), list(enumerate(nearest)))
    for axis, title, joined in zip(figure.subplots(1, 2), titles, pairs, strict=True):
        for rows, colour, label in ((A, COLOURS[0], "A"), (B, COLOURS[1], "B")):
            for row in rows:
                axis.annotate("", row, (0, 0), arrowprops={"arrowstyle": "->", "color": colour})
            axis.plot([], [], color=colour, label=f"features of {label}")
        for i, j in joined:
            outer = np.stack([A[i], B[j]]) * 1.08
            axis.plot(outer[:, 0], outer[:, 1], color=GREY, lw=2)
        axis.set(xlim=(-1.25, 1.25), ylim=(-0.1, 1.25), aspect="equal", title=title)
        axis.set_axis_off()
        axis.title.set_fontsize(9)
    axis.legend(loc="upper left", fontsize=8, frameon=False)
    return figure


def chance() -> Figure:
    """Scores of random dictionaries, by their size."""
    sizes = [16, 32, 64, 128, 256, 512]
    figure = Figure(figsize=(5.2, 3), layout="constrained")
    axis = figure.subplots()
    for d, colour in zip((16, 64, 256), COLOURS, strict=False):
        found = [null_scores(n, n, d, n_draws=3) for n in sizes]
        for score, line in (("pw_mcc", "-"), ("mmcs", "--")):
            means = [one[score].mean for one in found]
            axis.plot(sizes, means, line, color=colour, marker="o", ms=3)
        axis.text(sizes[-1] * 1.1, means[-1], f"{d} dimensions", color=colour, fontsize=8)
    axis.plot([], [], "-", color=GREY, label="PW-MCC")
    axis.plot([], [], "--", color=GREY, label="MMCS")
    axis.set(xscale="log", xlim=(14, 1800), ylim=(0, 1), xlabel="features in each dictionary")
    axis.set_xticks(sizes, [str(n) for n in sizes], minor=False)
    axis.set_xticks([], minor=True)
    axis.set_ylabel("mean |cosine| of random dictionaries")
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    tidy(axis)
    return figure


def nulls() -> Figure:
    """Nulls beside dictionaries that share nothing, and beside two that share half."""
    rng = np.random.default_rng(0)
    n, d = 128, 48
    spectrum = np.diag(np.exp(-np.arange(d) / 12))

    def features(count: int) -> np.ndarray:
        rows = rng.standard_normal((count, d)) @ spectrum
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    apart = [pw_mcc(features(n), features(n)) for _ in range(12)]
    A, B = features(n), features(n)
    B[: n // 2] = A[: n // 2]
    codes = rng.gamma(1.0, size=(4000, n)) * (rng.random((4000, n)) < 0.05)
    references = {
        "isotropic": isotropic(d),
        "permuted": permuted([A, B]),
        "data-aware": data_aware(np.cov((codes @ A).T)),
    }
    figure = Figure(figsize=(6.4, 2.4), layout="constrained")
    axis = figure.subplots()
    axis.plot(apart, np.full(len(apart), 4), "o", color=GREY, ms=4)
    labels = ["dictionaries that share nothing"]
    for height, (name, reference) in zip((3, 2, 1), references.items(), strict=True):
        drawn = score_reference(reference, (n, n), n_draws=40)["pw_mcc"].values
        axis.plot(drawn, np.full(len(drawn), height), "|", color=COLOURS[height], ms=10)
        labels.append(f"{name} null")
    axis.axvline(pw_mcc(A, B), color=COLOURS[0])
    axis.text(pw_mcc(A, B) + 0.01, 4, "two that share half", color=COLOURS[0], fontsize=8)
    axis.set_yticks([4, 3, 2, 1], labels)
    axis.set(xlabel="PW-MCC (absolute)", ylim=(0.5, 4.5), xlim=(0.3, 1))
    tidy(axis)
    return figure


def intervals() -> Figure:
    """How often intervals contain the truth, by the method that makes them."""
    table = json.loads(COVERAGE.read_text())
    rows = [row for row in table["rows"] if row["world"] == "seeds differ"]
    figure = Figure(figsize=(4.8, 2.8), layout="constrained")
    axis = figure.subplots()
    axis.axhline(table["nominal"], color=GREY, lw=1, ls="--")
    methods = dict.fromkeys(row["method"] for row in rows)
    for method, colour, marker in zip(methods, COLOURS, MARKERS, strict=False):
        own = [row for row in rows if row["method"] == method]
        seeds, held = [row["n_seeds"] for row in own], [row["coverage"] for row in own]
        axis.plot(seeds, held, color=colour, marker=marker, ms=4, label=method)
    axis.set(xlabel="seeds", ylabel="share of intervals that contain the truth", ylim=(0.3, 1.02))
    axis.set_xticks(seeds)
    axis.legend(fontsize=8, frameon=False, loc="lower left")
    tidy(axis)
    return figure


def gate() -> Figure:
    """A score and the motion of decoders over training, with the rate's decay."""
    world = planted_dictionary(PlantedConfig(n_features=48, d_in=24, firing=UniformKFiring(k=3)))
    training = BankTrainingConfig(
        steps=6000, batch_size=256, snapshot_interval=500, eval_interval=500, device="cpu"
    )
    settings = [SAEConfig(architecture="topk", d_sae=48, k=3, init_seed=seed) for seed in (0, 1, 2)]
    saes = train_bank(world.sample(6000)[0], settings, training)
    steps = sorted(saes[0].snapshots)
    decoders = [{step: sae.snapshots[step].numpy() for step in steps} for sae in saes]
    pairs = [(0, 1), (0, 2), (1, 2)]
    score = [np.mean([pw_mcc(decoders[i][t], decoders[j][t]) for i, j in pairs]) for t in steps]
    motion = [
        np.mean([decoder_motion(one[before], one[after], after - before) for one in decoders])
        for before, after in pairwise(steps)
    ]
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(steps, score, color=COLOURS[0], marker="o", ms=3)
    above.set(ylabel="mean PW-MCC", ylim=(0, 1))
    below.plot(steps[1:], motion, color=COLOURS[1], marker="s", ms=3)
    below.axhline(LEAST_MOTION, color=GREY, ls="--", lw=1)
    below.set(yscale="log", xlabel="step", ylabel=f"motion per {MOTION_STEPS} steps")
    for axis in (above, below):
        axis.axvspan(
            decay_start(training.model_dump()), training.steps, color=GREY, alpha=0.15, lw=0
        )
        tidy(axis)
    above.text(training.steps, 0.05, "the rate falls ", ha="right", fontsize=8, color=GREY)
    return figure


RESULTS = Path(__file__).parent / "results"
CARDS = {"answer": "0/69", "operand": "0/94", "other": "0/12"}
"""Cards of the home study's feature page that the documentation shows, by SAE and latent."""


def cards() -> None:
    """Photograph cards of the feature page in Chromium, without a window."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium here to open the page in")
    page = (RESULTS / "features.html").resolve().as_uri()
    for name, address in CARDS.items():
        path = RESULTS / "features" / f"card_{name}.png"
        with tempfile.TemporaryDirectory() as profile:
            subprocess.run(
                [
                    *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                    *(f"--user-data-dir={profile}", "--window-size=1000,1010"),
                    *("--virtual-time-budget=3000", f"--screenshot={path}", f"{page}#{address}"),
                ],
                check=True,
                timeout=120,
            )
        print(path)


def main() -> None:
    """Write every picture."""
    OUT.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "husai"
    mpl.rcParams["svg.fonttype"] = "path"
    for draw in (matching, chance, nulls, intervals, gate):
        path = OUT / f"{draw.__name__}.svg"
        draw().savefig(path, metadata={"Date": None}, facecolor="white")
        print(path)


if __name__ == "__main__":
    cards() if sys.argv[1:] == ["cards"] else main()

"""The page of ReLU against TopK counts what its tables hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from architectures import answers, page


def contrast(at: float, difference: float, half: float, **other: object) -> dict[str, object]:
    row = {"space": "full", "score": "pw_mcc", "signed": False, "matched_on": "l0", "at": at}
    ends = {"low": difference - half, "high": difference + half, "p": 0.0004}
    return {**row, "difference": difference, **ends, **other}


CONTRASTS = pd.DataFrame(
    [
        contrast(3.0, 0.10, 0.05),
        contrast(5.0, -0.20, 0.05),
        contrast(8.0, 0.02, 0.05),
        contrast(7.0, 0.4, 0.1, space="data"),
        contrast(127.0, 0.3, 0.1, score="shared_fraction", signed=True, matched_on="n_live"),
    ]
)


def test_points_whose_interval_leaves_out_0_are_counted_by_their_sign() -> None:
    said = answers(CONTRASTS[CONTRASTS["space"] == "full"])
    assert said[0].startswith("- PW-MCC (absolute) at matched L0: ReLU less TopK is -0.200 to +0.1")
    assert said[0].endswith("of 2 whose interval leaves out 0, ReLU is above at 1.")


def test_the_page_counts_settled_saes_and_points_that_agree_with_each_paper() -> None:
    head = {"space": "full", "d_sae": 128, "n_seeds": 5, "n_everywhere": 3.0, "n_live": 128.0}
    groups = pd.DataFrame(
        {**head, "group": name, "l0": l0, "fvu": 0.1, "n_converged": settled}
        | {"score": score, "signed": signed, "mean": 0.5, "low": 0.4, "high": 0.6}
        | {"permuted_mean": 0.2}
        for name, l0, settled in (("relu", 4.0, 2), ("topk", 3.0, 4))
        for score, signed in (("pw_mcc", False), ("shared_fraction", True))
    )
    paper = {"source": "A", "score": "pw_mcc", "paper_higher": "topk", "paper_lower": "relu"}
    orderings = pd.DataFrame(
        {**paper, "agrees": agrees, "separated": separated}
        for agrees, separated in ((True, True), (False, True), (True, False))
    )
    text = page(groups, CONTRASTS, orderings)
    assert "6 of 10 SAEs had settled" in text
    of_a = "A (topk above relu by pw_mcc): of 2 matched points that separate the two, 1 agree"
    assert of_a in text
    assert text.index("| topk | 3.00") < text.index("| relu | 4.00")
    assert "< 0.001" in text
    assert "| 7 |" not in text  # the other space

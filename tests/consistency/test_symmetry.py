"""Symmetries of planted codes on the whole grid of inputs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from husai.consistency import detect_symmetries, task_symmetries
from husai.errors import InputError

P = 11


def wave_codes(frequencies: list[int], phases: int = P) -> NDArray[np.float64]:
    """Latents ``relu(cos(2π k (a + b) / p + φ))`` with evenly spread phases."""
    a, b = np.divmod(np.arange(P * P), P)
    columns = [
        np.maximum(np.cos(2 * np.pi * (k * (a + b) / P + j / phases)) - 0.3, 0.0)
        for k in frequencies
        for j in range(phases)
    ]
    return np.stack(columns, axis=1)


def found(codes: NDArray[np.float64], **options: object) -> dict[str, float]:
    table = detect_symmetries(codes, task_symmetries(P), **options)  # type: ignore[arg-type]
    return dict(zip(table["symmetry"], table["score"], strict=True))


def test_maps_are_bijections_and_declare_what_they_keep() -> None:
    for symmetry in task_symmetries(P):
        assert sorted(symmetry.rows) == list(range(P * P))
    kept = {s.name: s.answer_kept for s in task_symmetries(P)}
    assert kept["swap"]
    assert kept["translate (+1, -1)"]
    assert not kept["translate (+1, +0)"]
    assert not kept["multiply by -1"]
    swap = task_symmetries(P)[0].rows
    assert swap[2 * P + 7] == 7 * P + 2
    triple = next(s for s in task_symmetries(P) if s.name == "multiply by 3")
    assert triple.rows[2 * P + 7] == 6 * P + 10


def test_all_symmetries_of_a_complete_tiling_are_found() -> None:
    scores = found(wave_codes([1, 2, 3, 4, 5]))  # every frequency: multiplication permutes them
    for name, score in scores.items():
        assert score == pytest.approx(1.0), name


def test_multiplication_is_a_symmetry_only_of_frequencies_it_keeps() -> None:
    scores = found(wave_codes([3]))
    for name in ("swap", "translate (+1, -1)", "translate (+1, +0)", "multiply by -1"):
        assert scores[name] == pytest.approx(1.0), name
    assert scores["multiply by 2"] < 0.5
    table = detect_symmetries(wave_codes([3]), task_symmetries(P)).set_index("symmetry")
    # a rectified wave holds its own harmonics, so a multiple is not quite at chance
    assert float(table["retained"].loc["multiply by 2"]) < 0.4
    assert float(table["p"].loc["swap"]) == pytest.approx(0.1)
    assert table["retained"].loc["swap"] == pytest.approx(1.0)


def test_an_uneven_tiling_is_not_translated_onto_itself() -> None:
    codes = wave_codes([2])[:, :3]  # three neighbouring phases
    scores = found(codes)
    assert scores["translate (+1, -1)"] == pytest.approx(1.0)  # the answer is all it reads
    assert scores["translate (+1, +0)"] < 0.9


def test_codes_that_read_one_operand_are_not_swapped() -> None:
    a, _ = np.divmod(np.arange(P * P), P)
    codes = np.stack([np.maximum(np.cos(2 * np.pi * (a + j) / P), 0) for j in range(P)], axis=1)
    table = detect_symmetries(codes, task_symmetries(P)).set_index("symmetry")
    assert float(table["score"].loc["swap"]) < 0.2
    assert float(table["retained"].loc["translate (+1, +0)"]) == pytest.approx(1.0)


def test_the_dictionary_of_one_seed_may_be_mapped_to_that_of_another() -> None:
    one, double = wave_codes([1]), wave_codes([2])[:, ::-1]
    table = detect_symmetries(one, task_symmetries(P), other=double).set_index("symmetry")
    assert float(table["score"].loc["multiply by 2"]) == pytest.approx(1.0)
    assert float(table["identity_score"].iloc[0]) < 0.5
    assert float(table["score"].loc["swap"]) == pytest.approx(
        float(table["identity_score"].iloc[0])
    )


def test_dead_codes_are_not_defined_and_say_so() -> None:
    table = detect_symmetries(np.zeros((P * P, 4)), task_symmetries(P))
    assert table["reason"].str.contains("varies").all()
    assert "score" not in table or table["score"].isna().all()


def test_incomplete_grids_are_errors() -> None:
    with pytest.raises(InputError, match="complete grid"):
        detect_symmetries(wave_codes([1])[:-1], task_symmetries(P))
    with pytest.raises(InputError, match="not a unit"):
        task_symmetries(12, units=[4])
    with pytest.raises(InputError, match="modulus"):
        task_symmetries(2)

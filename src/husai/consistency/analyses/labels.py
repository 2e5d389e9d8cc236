"""Labels of activation rows, the candidates for what a latent may mean.

A latent that fires for one answer of a task is a perfect feature, but a score made of Fourier
planes would take it for noise. So there may be several *families* of labels: classes (the answer
is 17; token 5 is an operand; a topic) and regressors (a wave of a variable, the coordinates in a
plane, a column of numbers). :mod:`~husai.consistency.analyses.explanation` finds the label that
explains a latent best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from husai.errors import InputError
from husai.tasks.modular import Operation
from husai.transformer.fourier import group_elements

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Classes:
    """A family of classes that rows belong to; a row may be in several, or in none.

    Attributes
    ----------
    family
        Its name, for example ``"answer"``.
    kind
        The kind of a latent that it explains, in tables by kind; several families may have the
        same (``a``, ``b`` and ``token`` are operands).
    names
        A name for each class.
    members
        ``[n_rows, n_classes]`` sparse: 1 where the row belongs to the class.
    """

    family: str
    kind: str
    names: tuple[str, ...]
    members: sparse.csr_array

    @cached_property
    def axes(self) -> tuple[Floats, Floats]:
        """Variances ``[r]`` and axes ``[n_classes, r]`` of the centred members' products."""
        size = np.asarray(self.members.sum(axis=0)).ravel()
        gram = (self.members.T @ self.members).toarray()
        values, vectors = np.linalg.eigh(gram - np.outer(size, size) / self.members.shape[0])
        keep = values > 1e-9 * values[-1]
        return values[keep], vectors[:, keep]


@dataclass(frozen=True)
class Regressors:
    """A family of labels that are numbers: a code is regressed on each label's columns.

    Attributes
    ----------
    family, kind
        As in :class:`Classes`.
    names
        A name for each label.
    values
        ``[n_rows, n_labels, q]``: q columns per label, 2 for a wave or a plane.
    """

    family: str
    kind: str
    names: tuple[str, ...]
    values: Floats

    @cached_property
    def centred(self) -> Floats:
        """``[n_rows, n_labels * q]``: all columns minus their means."""
        flat = self.values.reshape(len(self.values), -1)
        return np.asarray(flat - flat.mean(axis=0))

    @cached_property
    def inverse(self) -> Floats:
        """``[n_labels, q, q]``: pseudo-inverse of the products of each label's centred columns."""
        columns = self.centred.reshape(self.values.shape)
        gram = np.einsum("nlq,nlr->lqr", columns, columns)
        return np.asarray(np.linalg.pinv(gram, rcond=1e-10, hermitian=True))


Labels: TypeAlias = Classes | Regressors


def class_labels(family: str, values: ArrayLike, *, kind: str | None = None) -> Classes:
    """Make a class of each value that occurs.

    Parameters
    ----------
    family
        Name of the family.
    values
        ``[n_rows]`` whole numbers; or ``[n_rows, m]`` when a row belongs to the classes of all its
        values (``"t is a or b"``: the two operands). A negative number means no class.
    kind
        The family's name by default.

    Raises
    ------
    InputError
        When values are not whole numbers, or no row has a class.
    """
    array = np.asarray(values)
    if array.dtype == bool:
        array = array.astype(np.int64)
    if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"labels {family!r}: shape {array.shape} of {array.dtype}; give whole numbers, one or "
            "several a row"
        )
    array = array.reshape(len(array), -1)
    known = array >= 0
    if not known.any():
        raise InputError(f"labels {family!r}: no row has a class")
    row = np.nonzero(known)[0]
    found, column = np.unique(array[known], return_inverse=True)
    members = sparse.csr_array((np.ones(len(row)), (row, column)), shape=(len(array), len(found)))
    members.data[:] = 1.0  # a row with two equal values is a member once
    return Classes(family, kind or family, tuple(f"{family} = {v}" for v in found), members)


def wave_labels(
    family: str,
    values: ArrayLike,
    order: int,
    *,
    frequencies: Sequence[int] | None = None,
    kind: str = "wave",
) -> Regressors:
    """Waves ``cos(2πk v / order)``, ``sin(2πk v / order)`` of a variable, of any phase.

    Parameters
    ----------
    family
        Name of the family.
    values
        ``[n_rows]`` whole numbers; rows with a negative one get zeros.
    order
        How many numbers the circle has: p for addition modulo p.
    frequencies
        1 to ``order // 2``, all of them by default.
    kind
        As in :class:`Classes`.

    Raises
    ------
    InputError
        When a frequency is out of range.
    """
    v = np.asarray(values, dtype=np.int64)
    # at frequency order / 2 the sine is zero on whole numbers: the wave has one column only
    wanted = (
        list(range(1, order // 2 + 1)) if frequencies is None else [int(k) for k in frequencies]
    )
    if not wanted or min(wanted) < 1 or max(wanted) > order // 2:
        raise InputError(f"frequencies: {wanted}; give numbers from 1 to {order // 2}")
    angle = 2 * np.pi * np.outer(v, wanted) / order
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * (v >= 0)[:, None, None]
    return Regressors(family, kind, tuple(f"{family}, k = {k}" for k in wanted), waves)


def plane_labels(
    rows: ArrayLike, planes: ArrayLike, names: Sequence[str] = (), *, family: str = "plane"
) -> Regressors:
    """Coordinates of the activations in given planes.

    Parameters
    ----------
    rows
        ``[n_rows, d]`` activations.
    planes
        ``[n_planes, 2, d]``.
    names
        Names of the planes; numbered by default.
    family
        Name of the family.

    Raises
    ------
    InputError
        When shapes do not fit.
    """
    x, axes = np.asarray(rows, dtype=np.float64), np.asarray(planes, dtype=np.float64)
    if x.ndim != 2 or axes.ndim != 3 or axes.shape[2] != x.shape[1]:
        raise InputError(f"planes: shape {axes.shape}; give [n_planes, 2, d] for rows {x.shape}")
    named = tuple(names) or tuple(f"plane {k}" for k in range(len(axes)))
    return Regressors(family, "plane", named, np.einsum("nd,kcd->nkc", x, axes))


def modular_labels(
    a: ArrayLike, b: ArrayLike, answers: ArrayLike, modulus: int, operation: Operation = "addition"
) -> list[Labels]:
    """All labels of modular arithmetic.

    Classes of the answer, of a, of b and of tokens (``"t is a or b"``); waves of the answer, of a
    and of b at each frequency of the operation's group.

    Parameters
    ----------
    a, b, answers
        ``[n_rows]`` numbers in 0 … p-1.
    modulus, operation
        The task.

    Raises
    ------
    InputError
        When lengths differ, or for multiplication when the modulus is not an odd prime.
    """
    columns = {
        name: np.asarray(values, dtype=np.int64)
        for name, values in (("answer", answers), ("a", a), ("b", b))
    }
    if len({len(values) for values in columns.values()}) > 1:
        raise InputError(f"labels: {[len(v) for v in columns.values()]} answers, a and b")
    elements = group_elements(modulus, operation)
    place = np.full(modulus, -1, dtype=np.int64)
    place[elements] = np.arange(len(elements))
    operands = np.stack([columns["a"], columns["b"]], axis=1)
    return [
        class_labels("answer", columns["answer"]),
        class_labels("a", columns["a"], kind="operand"),
        class_labels("b", columns["b"], kind="operand"),
        class_labels("token", operands, kind="operand"),
        *(
            wave_labels(f"wave of {name}", place[values], len(elements))
            for name, values in columns.items()
        ),
    ]


def table_labels(table: pd.DataFrame, *, max_classes: int = 1000) -> list[Labels]:
    """Make labels from the columns of a table, one row for each activation row.

    Columns of whole numbers, words or truth values become classes (missing or negative: no
    class), columns of other numbers one regressor each.

    Raises
    ------
    InputError
        When a column has more than ``max_classes`` values, or numbers that are not finite.
    """
    families: list[Labels] = []
    for column in table.columns:
        values, name = table[column], str(column)
        if pd.api.types.is_float_dtype(values):
            numbers = values.to_numpy(dtype=np.float64)
            if not np.isfinite(numbers).all():
                raise InputError(f"labels {name!r}: NaN or infinity; drop or fill those rows")
            families.append(Regressors(name, name, (name,), numbers[:, None, None]))
            continue
        if pd.api.types.is_integer_dtype(values) or pd.api.types.is_bool_dtype(values):
            made = class_labels(name, values.astype("Int64").fillna(-1).to_numpy(dtype=np.int64))
        else:
            codes, words = pd.factorize(values)
            made = class_labels(name, codes)
            made = Classes(name, name, tuple(f"{name} = {word}" for word in words), made.members)
        if len(made.names) > max_classes:
            raise InputError(
                f"labels {name!r}: {len(made.names)} classes, more than {max_classes}; group them, "
                "or give the column as floats"
            )
        families.append(made)
    return families

"""What a latent means: which label of the rows explains its code best.

A latent that fires for one answer of a task is a perfect feature and looks like noise to a score
made of Fourier planes. So any number of *families* of labels are candidates, and the codes say
which explains a latent: classes (the answer is 17; token 5 is an operand; a topic) and regressors
(a wave of a variable, the coordinates in a plane, a column of numbers).

Families are compared on one scale, R²: the share of the variance of a latent's code that the
label explains. Average precision and F1 say how well a latent *detects* a class and are given
beside it; they cannot choose between families, because they look at ranks: a broad wave that
peaks at answer 17 ranks those rows first, and has an average precision of 1 for that class at an
R² of .03.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from husai.consistency.scores.codes import Codes, code_blocks
from husai.errors import InputError
from husai.matching.match import unit_rows
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
        What a latent that it explains is called in a table by kind; several families may share
        one (``a``, ``b`` and ``token`` are operands).
    names
        A name for each class.
    members
        ``[n_rows, n_classes]`` sparse: 1 where the row belongs to the class.
    """

    family: str
    kind: str
    names: tuple[str, ...]
    members: sparse.csr_array


@dataclass(frozen=True)
class Regressors:
    """A family of labels made of numbers: a code is regressed on each label's columns.

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


Labels: TypeAlias = Classes | Regressors


def class_labels(family: str, values: ArrayLike, *, kind: str | None = None) -> Classes:
    """Make a class of each value that occurs.

    Parameters
    ----------
    family
        Name.
    values
        ``[n_rows]``; or ``[n_rows, m]`` when a row belongs to the classes of all its values
        (``"t is a or b"``: the two operands). Negative numbers stand for no class.
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
    members.data[:] = 1.0  # a row whose two values agree is a member once
    return Classes(family, kind or family, tuple(f"{family} = {v}" for v in found), members)


def wave_labels(
    family: str,
    values: ArrayLike,
    order: int,
    *,
    frequencies: Sequence[int] | None = None,
    kind: str = "wave",
) -> Regressors:
    """Waves ``cos(2πk v / order)``, ``sin(2πk v / order)`` of a variable, phase left free.

    Parameters
    ----------
    family
        Name.
    values
        ``[n_rows]`` whole numbers; rows with a negative one get zeros.
    order
        Numbers on the circle: p for addition modulo p.
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
    # at half an even order the sine is zero on whole numbers: one column, still a wave
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
        Of the planes.
    family
        Name.

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
    """All candidates on modular arithmetic.

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
    """Make candidates of a table's columns, rows aligned with the activations.

    Columns of whole numbers, words or truth values become classes (missing or negative: no
    class), columns of other numbers a regressor each.

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


class ClassScores(NamedTuple):
    """How each latent detects each class; arrays ``[n_latents, n_classes]``.

    ``average_precision`` is the area under the precision-recall steps, rows of equal code counted
    together; ``f1_fires`` takes "the latent fires" as the detector, ``f1_best`` the best
    threshold on its code; ``r2`` is the share of the code's variance that the class explains, 0
    where the code is lower inside it.
    """

    average_precision: Floats
    f1_fires: Floats
    f1_best: Floats
    r2: Floats


def _columns(codes: Codes, n_rows: int) -> sparse.csc_array:
    matrix = sparse.csc_array(sparse.vstack(list(code_blocks(codes)), format="csc"))
    matrix.eliminate_zeros()
    if matrix.shape[0] != n_rows:
        raise InputError(f"codes: {matrix.shape[0]} rows, labels of {n_rows}")
    if len(matrix.data) and matrix.data.min() < 0:
        raise InputError("codes: a negative code; give activations of latents, never negative")
    return matrix


def class_scores(codes: Codes, labels: Classes) -> ClassScores:
    """Score every latent against every class.

    Takes a sort of what fires, a latent at a time, and no table of rows by classes: 512 latents
    and 113 classes on 12,769 rows in about a second.

    Parameters
    ----------
    codes
        ``[n_rows, n_latents]``, never negative.
    labels
        Classes of the same rows.

    Raises
    ------
    InputError
        When rows do not correspond or a code is negative.
    """
    members = labels.members
    n_rows, n_classes = members.shape
    matrix = _columns(codes, n_rows)
    n_latents = matrix.shape[1]
    size = np.asarray(members.sum(axis=0)).ravel()
    average_precision = np.empty((n_latents, n_classes))
    f1_fires, f1_best = np.empty_like(average_precision), np.empty_like(average_precision)
    for j in range(n_latents):
        fires = slice(matrix.indptr[j], matrix.indptr[j + 1])
        rows, value = matrix.indices[fires], matrix.data[fires]
        # the number of rows with a code at least as large: the rank, ties counted together
        end = len(value) - np.searchsorted(np.sort(value), value, side="left")
        inside = members[rows]
        at = np.repeat(end, np.diff(inside.indptr))
        key = np.sort(inside.indices.astype(np.int64) * (n_rows + 1) + at)
        column, end = np.divmod(key, n_rows + 1)
        first = np.searchsorted(column, np.arange(n_classes))
        # members of the class among those rows, again with ties counted together
        hits = np.searchsorted(key, key, side="right") - first[column]
        found = np.diff(np.append(first, len(column)))
        precision = np.bincount(column, weights=hits / end, minlength=n_classes)
        # the rows on which the latent does not fire are one tie, at the end
        average_precision[j] = precision / size + (size - found) / n_rows
        f1_fires[j] = 2 * found / (len(value) + size)
        best = 2 * size / (n_rows + size)
        np.maximum.at(best, column, 2 * hits / (end + size[column]))
        f1_best[j] = best
    total = np.asarray(matrix.sum(axis=0)).ravel()
    scatter = np.asarray(matrix.power(2).sum(axis=0)).ravel() - total**2 / n_rows
    covariance = (matrix.T @ members).toarray() - np.outer(total, size) / n_rows
    spread = np.outer(scatter, size * (1 - size / n_rows))
    r2 = np.divide(
        np.clip(covariance, 0.0, None) ** 2, spread, out=np.zeros_like(spread), where=spread > 1e-12
    )
    return ClassScores(average_precision, f1_fires, f1_best, np.clip(r2, 0.0, 1.0))


def regressor_r2(codes: Codes, labels: Regressors) -> Floats:
    """R² ``[n_latents, n_labels]`` of each latent's code regressed on each label's columns.

    Raises
    ------
    InputError
        When rows do not correspond or a code is negative.
    """
    n_rows, n_labels, q = labels.values.shape
    matrix = _columns(codes, n_rows)
    flat = labels.values.reshape(n_rows, -1)
    flat = flat - flat.mean(axis=0)
    total = np.asarray(matrix.sum(axis=0)).ravel()
    scatter = np.asarray(matrix.power(2).sum(axis=0)).ravel() - total**2 / n_rows
    # centred columns: the codes need no centring
    product = np.asarray(matrix.T @ flat).reshape(-1, n_labels, q)
    centred = flat.reshape(n_rows, n_labels, q)
    gram = np.einsum("nlq,nlr->lqr", centred, centred)
    explained = np.einsum(
        "jlq,lqr,jlr->jl", product, np.linalg.pinv(gram, rcond=1e-10, hermitian=True), product
    )
    spread = np.broadcast_to(scatter[:, None], explained.shape)
    r2 = np.divide(explained, spread, out=np.zeros_like(explained), where=spread > 1e-12)
    return np.clip(r2, 0.0, 1.0)


def family_r2(codes: Codes, labels: Classes) -> Floats:
    """R² ``[n_latents]`` of each code regressed on all classes of a family together, adjusted.

    The share of a code's variance that the *variable* explains, whichever function of it the latent
    is: 1 for a latent of one class, and for one of several. Adjusted for the classes' degrees of
    freedom, so that it is 0 on average for a code that has nothing to do with them.

    Raises
    ------
    InputError
        When rows do not correspond or a code is negative.
    """
    members = labels.members
    n_rows = members.shape[0]
    matrix = _columns(codes, n_rows)
    size = np.asarray(members.sum(axis=0)).ravel()
    total = np.asarray(matrix.sum(axis=0)).ravel()
    scatter = np.asarray(matrix.power(2).sum(axis=0)).ravel() - total**2 / n_rows
    product = (matrix.T @ members).toarray() - np.outer(total, size) / n_rows
    gram = (members.T @ members).toarray() - np.outer(size, size) / n_rows
    values, vectors = np.linalg.eigh(gram)
    keep = values > 1e-9 * values[-1]
    explained = (np.square(product @ vectors[:, keep]) / values[keep]).sum(axis=1)
    r2 = np.divide(explained, scatter, out=np.zeros_like(scatter), where=scatter > 1e-12)
    left = n_rows - 1 - int(keep.sum())
    if left < 1:
        return np.zeros_like(r2)  # a class for each row explains anything
    adjusted = 1 - (1 - r2) * (n_rows - 1) / left
    return np.where(scatter > 1e-12, np.clip(adjusted, 0.0, 1.0), 0.0)


@dataclass(frozen=True)
class Explanation:
    """What each latent means, out of the labels given.

    Attributes
    ----------
    latents
        A row per latent: ``latent``, ``kind``, ``family``, ``label``, ``r2``, and for classes
        ``average_precision``, ``f1_fires``, ``f1_best`` of the label and ``family_r2`` of all
        the family's classes together. The kind is that of the label that explains most, when it
        explains ``least_r2``; else, when a family of classes does so as a whole, its kind with
        ``", several"`` (a latent for several answers); else ``"other"``, and ``"dead"`` where it
        never fires.
    by_family
        A row per latent and family: the same columns for the family's best label.
    classes
        By family of classes, every latent against every class.
    least_r2
        Least share of a code's variance that a label must explain.
    """

    latents: pd.DataFrame
    by_family: pd.DataFrame
    classes: Mapping[str, ClassScores]
    least_r2: float


def explain_latents(
    codes: Codes, families: Sequence[Labels], *, least_r2: float = 0.5
) -> Explanation:
    """Give each latent the label that explains it best.

    Parameters
    ----------
    codes
        ``[n_rows, n_latents]``, never negative.
    families
        Candidates on the same rows.
    least_r2
        Below it a latent's kind is ``"other"``.

    Raises
    ------
    InputError
        When there is no family, two have one name, or rows do not correspond.
    """
    names = [one.family for one in families]
    if not names or len(set(names)) < len(names):
        raise InputError(f"families: {names}; give at least one, each with a name of its own")
    first = families[0]
    n_rows = (first.members if isinstance(first, Classes) else first.values).shape[0]
    matrix = _columns(codes, n_rows)
    n_latents = matrix.shape[1]
    at = np.arange(n_latents)
    classes: dict[str, ClassScores] = {}
    tables = []
    for family in families:
        if isinstance(family, Classes):
            scores = class_scores(matrix, family)
            classes[family.family] = scores
            best = scores.r2.argmax(axis=1)
            measured: dict[str, Any] = {
                "r2": scores.r2[at, best],
                "average_precision": scores.average_precision[at, best],
                "f1_fires": scores.f1_fires[at, best],
                "f1_best": scores.f1_best[at, best],
                "family_r2": family_r2(matrix, family),
            }
        else:
            r2 = regressor_r2(matrix, family)
            best = r2.argmax(axis=1)
            measured = {"r2": r2[at, best]} | dict.fromkeys(
                ("average_precision", "f1_fires", "f1_best", "family_r2"), np.nan
            )
        tables.append(
            pd.DataFrame(
                {
                    "latent": at,
                    "kind": family.kind,
                    "family": family.family,
                    "label": [family.names[i] for i in best],
                    **measured,
                }
            )
        )
    long = pd.concat(tables, ignore_index=True)
    by_label = long.loc[long.groupby("latent")["r2"].idxmax()].reset_index(drop=True)
    whole = long.assign(family_r2=long["family_r2"].fillna(-1.0))
    by_whole = long.loc[whole.groupby("latent")["family_r2"].idxmax()].reset_index(drop=True)
    several = (by_label["r2"] < least_r2) & (by_whole["family_r2"] >= least_r2)
    by_whole["kind"] += ", several"
    chosen = by_label.where(~several, by_whole)
    chosen.loc[(chosen["r2"] < least_r2) & ~several, "kind"] = "other"
    dead = np.diff(matrix.indptr) == 0
    chosen.loc[dead, ["kind", "family", "label"]] = ["dead", "", ""]
    return Explanation(chosen, long, classes, least_r2)


def read_out(directions: ArrayLike, rows: ArrayLike, rates: ArrayLike) -> sparse.csc_array:
    """Codes of directions that read the data themselves: ``relu(x · d - t)``.

    The chance of labels: a random direction as the latent it stands for, with its firing rate.
    ``t`` is set so that direction j fires on the share ``rates[j]`` of the rows.

    Parameters
    ----------
    directions
        ``[n, d]``.
    rows
        ``[n_rows, d]`` activations, centred here.
    rates
        ``[n]`` shares of rows.

    Raises
    ------
    InputError
        When shapes do not fit or a rate is outside [0, 1].
    """
    x = np.asarray(rows, dtype=np.float64)
    unit, rate = unit_rows(directions, "directions"), np.asarray(rates, dtype=np.float64)
    if rate.shape != (len(unit),) or rate.min() < 0 or rate.max() > 1:
        raise InputError(f"rates: shape {rate.shape}; give a share from 0 to 1 for each direction")
    projected = (x - x.mean(axis=0)) @ unit.T
    columns = []
    for j, count in enumerate(np.rint(rate * len(x)).astype(np.int64)):
        column = projected[:, j]
        threshold = np.inf
        if count >= len(x):
            threshold = column.min() - 1.0
        elif count:
            threshold = np.partition(column, len(x) - count - 1)[len(x) - count - 1]
        columns.append(sparse.csc_array(np.clip(column - threshold, 0.0, None)[:, None]))
    return sparse.csc_array(sparse.hstack(columns, format="csc"))

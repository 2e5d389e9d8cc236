"""Fourier analysis on cyclic groups: basis, key frequencies, and the plane each one spans.

A function on Z_p is a constant plus waves of frequency k = 1 … (p-1)/2, one cosine and one sine
each; k and p - k are the same wave. Modular addition is learned as rotations: the model holds
``cos(2πk a/p)`` and ``sin(2πk a/p)`` for a few *key* frequencies and forms ``cos 2πk(a+b)/p`` and
``sin 2πk(a+b)/p`` from them (Nanda et al., arXiv 2301.05217, section 4). Within a frequency's
plane the phase is not identifiable, so ground truth here is a plane, never a direction.

Multiplication modulo a prime is addition of discrete logarithms, so its waves are those of the
exponents, on the p - 1 nonzero numbers; every function here takes the operation into account.

All functions take and return NumPy arrays. The rows of a table are the elements of the group, in
the group's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from husai.errors import InputError
from husai.tasks.modular import Operation

Array = npt.NDArray[np.float64]
Variable = Literal["answer", "a", "b"]


def group_elements(modulus: int, operation: Operation = "addition") -> npt.NDArray[np.int64]:
    """Numbers on which the operation is a cyclic group, in the order of the group.

    For addition and subtraction these are all of Z_p, 0 … p-1. For multiplication with p prime
    they are the powers ``1, g, g², …`` of the smallest primitive root: by their exponents,
    multiplying is adding modulo p - 1. 0 is not a member.

    Returns
    -------
    numpy.ndarray
        [order]: p, or p - 1 for multiplication.

    Raises
    ------
    InputError
        For multiplication when p is not an odd prime.
    """
    if operation != "multiplication":
        return np.arange(modulus, dtype=np.int64)
    for root in range(2, modulus):
        powers = [1]
        while (power := powers[-1] * root % modulus) not in (0, 1) and len(powers) < modulus:
            powers.append(power)
        if len(powers) == modulus - 1:
            return np.asarray(powers, dtype=np.int64)
    raise InputError(
        f"operation = 'multiplication' with modulus = {modulus}: the Fourier analysis needs an odd "
        "prime, whose nonzero numbers are a cyclic group"
    )


def frequencies(order: int) -> npt.NDArray[np.int64]:
    """All frequencies of a cyclic group, 1 … order // 2.

    For an even order the last, order / 2, has a cosine and no sine: it spans a line.
    """
    if order < 2:
        raise InputError(f"order = {order}: a group needs at least two elements")
    return np.arange(1, order // 2 + 1, dtype=np.int64)


def frequency_rows(k: int, order: int) -> list[int]:
    """Rows of :func:`fourier_basis` that belong to a frequency: cosine and, if any, sine."""
    return [2 * k - 1] if 2 * k == order else [2 * k - 1, 2 * k]


def fourier_basis(modulus: int) -> Array:
    """Return the real orthonormal Fourier basis of functions on Z_p.

    Row 0 is the constant ``1/sqrt(p)``; row ``2k - 1`` is ``sqrt(2/p) cos(2πk x/p)`` and row
    ``2k`` is ``sqrt(2/p) sin(2πk x/p)``, k = 1 … (p-1)/2. For even p the last row is the
    alternating ``(-1)^x / sqrt(p)``.

    Parameters
    ----------
    modulus
        p, or the order of another cyclic group; at least 2.

    Returns
    -------
    numpy.ndarray
        [p, p], rows orthonormal.
    """
    if modulus < 2:
        raise InputError(f"modulus = {modulus}; it must be at least 2")
    x = np.arange(modulus)
    basis = np.empty((modulus, modulus))
    basis[0] = 1 / np.sqrt(modulus)
    for k in range(1, (modulus - 1) // 2 + 1):
        # (k x) mod p keeps the angle small, so that rows are orthogonal to rounding at any p
        angle = 2 * np.pi * ((k * x) % modulus) / modulus
        basis[2 * k - 1] = np.sqrt(2 / modulus) * np.cos(angle)
        basis[2 * k] = np.sqrt(2 / modulus) * np.sin(angle)
    if modulus % 2 == 0:
        basis[-1] = (1 - 2.0 * (x % 2)) / np.sqrt(modulus)
    return basis


def basis_norms(table: npt.ArrayLike) -> Array:
    """Norm of each Fourier component of a table, [p].

    Parameters
    ----------
    table
        [p, d]: a vector for each element of Z_p, such as the embedding's number rows.
    """
    values = np.asarray(table, dtype=np.float64)
    return np.linalg.norm(fourier_basis(values.shape[0]) @ values, axis=1)


def frequency_powers(table: npt.ArrayLike) -> Array:
    """Squared norm of each frequency's components, [order // 2], in order of frequency."""
    squares = basis_norms(table) ** 2
    order = squares.shape[0]
    return np.asarray([squares[frequency_rows(k, order)].sum() for k in frequencies(order)])


def key_frequencies(table: npt.ArrayLike, min_share: float | None = None) -> list[int]:
    """Frequencies that stand out in a table, ascending.

    A frequency is key when it holds at least ``min_share`` of the squared norm of the table
    without its constant. Use the neuron-logit map ``W_U W_out`` of a grokked model, as Nanda et
    al. do (arXiv 2301.05217, section 4.1), or its embedding.

    Parameters
    ----------
    table
        [p, d].
    min_share
        In (0, 1). None is twice the share that each of the p // 2 frequencies has in white
        noise, and at least 2 %.

    Returns
    -------
    list of int
        Possibly empty: white noise has no key frequency.
    """
    powers = frequency_powers(table)
    if min_share is None:
        min_share = max(2 / len(powers), 0.02)
    elif not 0 < min_share < 1:
        raise InputError(f"min_share = {min_share}; it must be between 0 and 1")
    total = powers.sum()
    if total == 0:
        return []
    return [int(k) + 1 for k in np.flatnonzero(powers / total >= min_share)]


def canonical_frequencies(wanted: Sequence[int], order: int) -> list[int]:
    """Map frequencies to 1 … n // 2 (k and n - k are the same), without repeats, ascending."""
    folded = set()
    for k in wanted:
        residue = int(k) % order
        if residue == 0:
            raise InputError(f"frequency {k} is the constant in a group of order {order}")
        folded.add(min(residue, order - residue))
    return sorted(folded)


def value_table(
    values: npt.ArrayLike,
    modulus: int,
    operation: Operation = "addition",
    variable: Variable = "answer",
) -> Array:
    """Mean of the values for each element of the operation's group.

    Parameters
    ----------
    values
        [p*p, d] activations of all pairs in (a, b) order, averaged over the pairs that share the
        variable; or a table [p, d], which is put into the group's order.
    modulus, operation
        p and the task's operation, which determines the answer of a pair.
    variable
        What to group the pairs by: their answer, a or b.

    Returns
    -------
    numpy.ndarray
        [order, d] in float64, rows in the order of :func:`group_elements`.

    Raises
    ------
    InputError
        When the number of rows is neither p nor p², or for multiplication when p is not prime.
    """
    array = _group_values(values, modulus, operation)
    order = len(group_elements(modulus, operation))
    if array.shape[0] == order:
        return array
    grid = array.reshape(order, order, -1)
    if variable == "a":
        return grid.mean(1)
    if variable == "b":
        return grid.mean(0)
    # each answer has exactly one pair for every a
    by_answer = np.argsort(answer_indices(modulus, operation), kind="stable")
    return array[by_answer].reshape(order, order, -1).mean(1)


def answer_indices(modulus: int, operation: Operation = "addition") -> npt.NDArray[np.int64]:
    """Index of each pair's answer in :func:`group_elements`, for pairs in the group's order."""
    order = len(group_elements(modulus, operation))
    i, j = np.divmod(np.arange(order**2, dtype=np.int64), order)
    return (i - j if operation == "subtraction" else i + j) % order


def _group_values(values: npt.ArrayLike, modulus: int, operation: Operation) -> Array:
    """Put values of Z_p, or of all its pairs, into the order of the operation's group."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] not in (modulus, modulus**2):
        raise InputError(
            f"values has shape {array.shape}; with modulus {modulus} it needs {modulus} rows (one "
            f"per number) or {modulus**2} rows (all pairs in (a, b) order)"
        )
    if operation != "multiplication":
        return array
    elements = group_elements(modulus, operation)
    if array.shape[0] == modulus:
        return array[elements]
    return array[(elements[:, None] * modulus + elements[None, :]).ravel()]


def frequency_planes(
    values: npt.ArrayLike,
    wanted: Sequence[int],
    modulus: int,
    operation: Operation = "addition",
    variable: Variable = "answer",
) -> Array:
    """Return the plane of each frequency: the ground truth that features are compared with.

    The plane of k is spanned by the value's regression coefficients on ``cos(2πk s/p)`` and
    ``sin(2πk s/p)``, where s is the answer, a or b.

    Parameters
    ----------
    values
        [p*p, d] activations of all pairs in (a, b) order, or a table [p, d] such as the number
        rows of the embedding.
    wanted
        Frequencies; k and p - k are the same one.
    modulus, operation, variable
        As in :func:`value_table`; the last two matter for activations only.

    Returns
    -------
    numpy.ndarray
        [n_frequencies, 2, d] in the order of ``canonical_frequencies(wanted)``; each plane's two
        rows are orthonormal, their rotation within the plane arbitrary.

    Raises
    ------
    InputError
        When a frequency spans no plane: its two coefficient vectors are zero or parallel, or it is
        half of an even order and has only one.
    """
    table = value_table(values, modulus, operation, variable)
    order = table.shape[0]
    basis = fourier_basis(order)
    planes: list[Array] = []
    for k in canonical_frequencies(wanted, order):
        coefficients = basis[frequency_rows(k, order)] @ table
        _, singular, directions = np.linalg.svd(coefficients, full_matrices=False)
        if len(singular) < 2 or singular[1] <= 1e-9 * max(np.linalg.norm(table), singular[0]):
            raise InputError(
                f"frequency {k} spans no plane in these values (singular values {singular})"
            )
        planes.append(directions)
    return np.stack(planes)


def fraction_explained(
    values: npt.ArrayLike,
    wanted: Sequence[int],
    modulus: int,
    operation: Operation = "addition",
    variable: Variable | Literal["pair"] = "answer",
) -> float:
    """Share of the values' variance that lies at some frequencies, in [0, 1].

    Parameters
    ----------
    values
        [p*p, d] activations of all pairs in (a, b) order, or a table [p, d].
    wanted
        Frequencies; k and p - k are the same one.
    modulus, operation
        p and the task's operation.
    variable
        For activations: "answer", "a" or "b" count ``cos k s`` and ``sin k s`` of that variable;
        "pair" counts all products of {1, cos ka, sin ka} with {1, cos kb, sin kb} except the
        constant, the form of a neuron in Nanda et al., arXiv 2301.05217, section 4.2.

    Returns
    -------
    float
        Sum over the frequencies of the squared norm of the components, over the squared norm of
        the values about their mean. White noise gives about 2 n / (p - 1) for a table.
    """
    array = _group_values(values, modulus, operation)
    order = len(group_elements(modulus, operation))
    chosen = canonical_frequencies(wanted, order)
    total = float(((array - array.mean(0)) ** 2).sum())
    if total == 0:
        raise InputError("values are constant: there is no variance to explain")
    basis = fourier_basis(order)
    if variable == "pair":
        if array.shape[0] == order:
            raise InputError("variable = 'pair' needs the activations of all pairs, not a table")
        rows = [frequency_rows(k, order) for k in chosen]
        waves = basis[[0, *(row for pair in rows for row in pair)]]
        grid = array.reshape(order, order, -1)
        power = (np.einsum("xa,yb,abd->xyd", waves, waves, grid, optimize=True) ** 2).sum(-1)
        explained, first = 0.0, 1
        for pair in rows:
            these = slice(first, first + len(pair))
            explained += power[0, these].sum() + power[these, 0].sum() + power[these, these].sum()
            first += len(pair)
        return float(explained) / total
    powers = frequency_powers(value_table(values, modulus, operation, variable))
    pairs_per_row = array.shape[0] // order
    return float(pairs_per_row * powers[np.asarray(chosen, dtype=np.int64) - 1].sum()) / total


def gini(values: npt.ArrayLike) -> float:
    """Gini coefficient of non-negative values: 0 when equal, (n-1)/n when one holds everything."""
    x = np.sort(np.asarray(values, dtype=np.float64).ravel())
    total = x.sum()
    if x.size == 0 or x[0] < 0 or total == 0:
        raise InputError("a Gini coefficient needs non-negative values with a positive sum")
    ranks = np.arange(1, x.size + 1)
    return float(((2 * ranks - x.size - 1) * x).sum() / (x.size * total))

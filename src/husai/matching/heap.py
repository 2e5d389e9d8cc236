"""Binary heaps of (key, item) pairs, least key first, compiled for the loops that use them.

A heap is two arrays, keys and items, of which the first ``size`` entries are used.
"""

from __future__ import annotations

from typing import Any

from numba import njit


@njit(cache=True, nogil=True)
def sift_up(keys: Any, items: Any, place: int) -> None:
    """Move the entry at ``place``, the last of the heap, up to where it belongs."""
    key, item = keys[place], items[place]
    while place > 0:
        parent = (place - 1) >> 1
        if keys[parent] <= key:
            break
        keys[place] = keys[parent]
        items[place] = items[parent]
        place = parent
    keys[place] = key
    items[place] = item


@njit(cache=True, nogil=True)
def replace_top(keys: Any, items: Any, size: int, key: float, item: int) -> None:
    """Replace the least entry of a heap of ``size`` entries by another one."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and keys[child + 1] < keys[child]:
            child += 1
        if keys[child] >= key:
            break
        keys[place] = keys[child]
        items[place] = items[child]
        place = child
    keys[place] = key
    items[place] = item

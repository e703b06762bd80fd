"""Probed loops → the rows of their tables, each with the shortest history that explains it; nothing else.

The unknowns of a row are read off where only one of them can be: e's and the noise's own components. What is left,
a and b1 to b4, is fitted by least squares over all rows at once; the loops are of one length L.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.probe import Probe, Vector

Index = NDArray[np.signedinteger[Any]]
Mask = NDArray[np.bool_]
UPDATE = ("p", "q", "a", "d", "b0", "b1", "b2", "b3", "b4", "c")
P, Q, A, D, B0, B1, _, _, _, C = range(len(UPDATE))
HISTORY = 4
RESIDUAL = 1e-9  # of float64, in which probes compute: more than this is history that counts, or no row of this form
UNUSED = 1e-9  # less of a unit of noise than this is rounding
SINGULAR = 1e-12


def rows_of(runs: Probe) -> tuple[Vector, Mask]:
    """The rows of each loop, (B, L, 10) by UPDATE, and which of them explain nothing, (B, L)."""
    x, target, memory = runs.states[:, :-1], runs.states[:, 1:], runs.memory
    at = np.arange(runs.count)
    e, noise = 1 + at, 1 + runs.count + at
    rows = np.zeros((*memory.shape[:2], len(UPDATE)))
    rows[..., Q] = memory[:, at, e]
    rows[..., P] = _ratio(memory - _placed(rows[..., Q], e, x.shape), x)
    rows[..., C] = target[:, at, noise]
    rest = target - _placed(rows[..., C], noise, x.shape)
    rows[np.abs(rows[..., C]) <= UNUSED, C] = 0.0  # euler_ancestral draws in its last step too, and takes none of it
    of_e, held = target[:, at, e], rows[..., Q] != 0
    rows[..., B0] = np.divide(of_e, rows[..., Q], out=np.zeros_like(of_e), where=held)
    rows[..., D] = np.where(held, 0.0, of_e)
    rest -= rows[..., [B0]] * memory + _placed(rows[..., D], e, x.shape)
    limit = RESIDUAL * np.abs(target).max(2)
    unexplained = np.ones(rows.shape[:2], bool)
    for depth in range(HISTORY + 1):
        _fit(rows, runs, rest, limit, unexplained, depth)
    for loop in np.flatnonzero(unexplained.any(1)):
        _in_pairs(rows[loop], runs.states[loop], limit[loop], unexplained[loop])
    return rows, unexplained


def explained(rows: Vector, runs: Probe) -> Mask:
    """Whether each row of some tables, run on the loops' own states, gives the state after it. (B, L)."""
    x, target, count = runs.states[:, :-1], runs.states[:, 1:], runs.count
    at = np.arange(count)
    memory = rows[..., [P]] * x + _placed(rows[..., Q], 1 + at, x.shape)
    made = rows[..., [A]] * x + _placed(rows[..., D], 1 + at, x.shape)
    made += _placed(rows[..., C], 1 + count + at, x.shape)
    for k in range(min(HISTORY + 1, count)):
        made[:, k:] += rows[:, k:, [B0 + k]] * memory[:, : count - k]
    good: Mask = np.abs(made - target).max(2) <= RESIDUAL * np.abs(target).max(2)
    return good


def _fit(rows: Vector, runs: Probe, rest: Vector, limit: Vector, unexplained: Mask, depth: int) -> None:
    """Fit a and b1 … of the unexplained rows at one depth of history."""
    loop, j = np.nonzero(unexplained[:, depth:])
    j = j + depth
    if not len(j):
        return
    basis = np.stack([runs.states[loop, j], *(runs.memory[loop, j - k] for k in range(1, depth + 1))], 2)
    wanted = rest[loop, j]
    found = _solve(basis, wanted)
    fits = np.abs(np.einsum("rdk,rk->rd", basis, found) - wanted).max(1) <= limit[loop, j]
    loop, j, found = loop[fits], j[fits], found[fits]
    rows[loop, j, A] = found[:, 0]
    rows[loop, j, B1 : B1 + depth] = found[:, 1:]
    unexplained[loop, j] = False


def _in_pairs(rows: Vector, states: Vector, limit: Vector, unexplained: Mask) -> None:
    """Rows of one loop whose step began one evaluation before, with noise in between: a stochastic step's second half.

    Such a row needs the state before its partner, which x no longer tells apart from the noise. So every row writes its
    own update with d instead of m, and a partner's m is free to hold just what is missing: p·x + q·e, taken up here
    with b1 = 1.
    """
    second = np.flatnonzero(unexplained)
    if rows[~unexplained, B1:C].any() or not second[0] or unexplained[second - 1].any():
        return
    count = len(rows)
    at = np.arange(count)
    rows[:, A] += rows[:, B0] * rows[:, P]
    rows[:, D] = states[1 + at, 1 + at]
    rows[:, [P, Q, B0]] = 0.0
    for j in second:
        target = states[j + 1].copy()
        target[[1 + j, 1 + count + j]] = 0.0
        basis = np.stack([states[j], states[j - 1], np.eye(len(target))[j]], 1)
        found = _solve(basis[None], target[None])[0]
        unexplained[j] = np.abs(basis @ found - target).max() > limit[j]
        rows[j, A], rows[j - 1, P], rows[j - 1, Q] = found
        rows[j, B1] = 1.0


def _solve(basis: Vector, target: Vector) -> Vector:
    """Least squares of each (D, k) basis, the shortest solution where columns depend on each other."""
    size = np.linalg.norm(basis, axis=1)
    size[size == 0] = 1.0
    if basis.shape[2] == 1:
        one: Vector = np.einsum("rdk,rd->rk", basis, target) / size**2
        return one
    q, r = np.linalg.qr(basis / size[:, None, :])
    found = np.einsum("rkl,rl->rk", np.linalg.pinv(r, rcond=SINGULAR), np.einsum("rdk,rd->rk", q, target))
    scaled: Vector = found / size
    return scaled


def _ratio(part: Vector, whole: Vector) -> Vector:
    """The best factor of each vector of `whole`."""
    ratio: Vector = np.einsum("bjd,bjd->bj", part, whole) / np.einsum("bjd,bjd->bj", whole, whole)
    return ratio


def _placed(values: Vector, at: Index, shape: tuple[int, ...]) -> Vector:
    """Zeros of (B, L, D), but for one value in each of the last vectors."""
    out = np.zeros(shape)
    out[:, np.arange(len(at)), at] = values
    return out

"""A probed loop → the rows of its table, each with the shortest history that explains it; nothing else.

The unknowns of a row are read off where only one of them can be: e's and the noise's own components. What is left,
a and b1 to b4, is fitted by least squares over all rows at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.probe import Probe, Vector

Index = NDArray[np.signedinteger[Any]]
UPDATE = ("p", "q", "a", "d", "b0", "b1", "b2", "b3", "b4", "c")
P, Q, A, D, B0, B1, _, _, _, C = range(len(UPDATE))
HISTORY = 4
RESIDUAL = 2e-6  # schedulers compute in float32; a row that explains less is not linear in this form
UNUSED = 1e-9  # less of a unit of noise than this is rounding
SINGULAR = 1e-12


def rows_of(run: Probe) -> tuple[Vector, list[int]]:
    """The rows of a loop, (M, 10) by UPDATE, and the evaluations that no row explains."""
    rows = np.zeros((run.count, len(UPDATE)))
    at = np.arange(run.count)
    e, noise = 1 + at, 1 + run.count + at
    x, target = run.states[:-1], run.states[1:]
    rows[:, Q] = run.memory[at, e]
    rows[:, P] = _ratio(run.memory - _placed(rows[:, Q], e, x.shape), x)
    rows[:, C] = target[at, noise]
    rows[np.abs(rows[:, C]) <= UNUSED, C] = 0.0  # euler_ancestral draws in its last step too, and takes none of it
    held = rows[:, Q] != 0
    rows[held, B0] = target[at, e][held] / rows[held, Q]
    rows[~held, D] = target[at, e][~held]
    rest = target - _placed(target[at, noise], noise, x.shape) - rows[:, [B0]] * run.memory
    rest -= _placed(rows[:, D], e, x.shape)
    limit = RESIDUAL * np.abs(target).max(1)
    open_ = list(range(run.count))
    for depth in range(HISTORY + 1):
        open_ = _fit(rows, run, rest, limit, open_, depth)
    return (rows, open_) if not open_ else _in_pairs(rows, run, limit, open_)


def explained(rows: Vector, run: Probe) -> Vector:
    """Whether each row of a table, run on a loop's own states, gives the state after it. (M,) bool."""
    count, (x, target) = run.count, (run.states[:-1], run.states[1:])
    at = np.arange(count)
    memory = rows[:, [P]] * x + _placed(rows[:, Q], 1 + at, x.shape)
    made = rows[:, [A]] * x + _placed(rows[:, D], 1 + at, x.shape) + _placed(rows[:, C], 1 + count + at, x.shape)
    for k in range(min(HISTORY + 1, count)):
        made[k:] += rows[k:, [B0 + k]] * memory[: count - k]
    ok: Vector = np.abs(made - target).max(1) <= RESIDUAL * np.abs(target).max(1)
    return ok


def _fit(rows: Vector, run: Probe, rest: Vector, limit: Vector, open_: list[int], depth: int) -> list[int]:
    """Fit a and b1 … of the open rows at one depth of history. Returns those that are still open."""
    chosen = np.array([j for j in open_ if j >= depth], int)
    if not len(chosen):
        return open_
    basis = np.stack([run.states[chosen], *(run.memory[chosen - k] for k in range(1, depth + 1))], 2)
    found = _solve(basis, rest[chosen])
    error = np.abs(np.einsum("jdk,jk->jd", basis, found) - rest[chosen]).max(1)
    fits = error <= limit[chosen]
    rows[chosen[fits], A] = found[fits, 0]
    rows[chosen[fits], B1 : B1 + depth] = found[fits, 1:]
    done = set(chosen[fits].tolist())
    return [j for j in open_ if j not in done]


def _in_pairs(rows: Vector, run: Probe, limit: Vector, open_: list[int]) -> tuple[Vector, list[int]]:
    """Open rows whose step began one evaluation before, with noise in between: the second half of a stochastic step.

    It needs the state before its partner, which x' no longer tells apart from the noise. So the partner writes its own
    update with d instead of m, and its m is free to hold just what is missing: p·x + q·e, taken up here with b1 = 1.
    """
    still, partners = list[int](), {j - 1 for j in open_}
    if rows[:, B1:C].any() or any(j == 0 or j in partners for j in open_):
        return rows, open_
    at = np.arange(run.count)
    rows[:, A] += rows[:, B0] * rows[:, P]
    rows[:, D] = run.states[1 + at, 1 + at]
    rows[:, [P, Q, B0]] = 0.0
    for j in open_:
        e, noise = 1 + j, 1 + run.count + j
        target = run.states[j + 1].copy()
        target[[e, noise]] = 0.0
        basis = np.stack([run.states[j], run.states[j - 1], np.eye(len(target))[j]], 1)
        found = _solve(basis[None], target[None])[0]
        if np.abs(basis @ found - target).max() > limit[j]:
            still.append(j)
        rows[j, A], rows[j - 1, P], rows[j - 1, Q] = found
        rows[j, B1] = 1.0
    return rows, still


def _solve(basis: Vector, target: Vector) -> Vector:
    """Least squares of each (D, k) basis, the shortest solution where columns depend on each other."""
    size = np.linalg.norm(basis, axis=1)
    size[size == 0] = 1.0
    q, r = np.linalg.qr(basis / size[:, None, :])
    found = np.einsum("jkl,jl->jk", np.linalg.pinv(r, rcond=SINGULAR), np.einsum("jdk,jd->jk", q, target))
    scaled: Vector = found / size
    return scaled


def _ratio(part: Vector, whole: Vector) -> Vector:
    """The best factor of each row of `whole`."""
    ratio: Vector = np.einsum("jd,jd->j", part, whole) / np.einsum("jd,jd->j", whole, whole)
    return ratio


def _placed(values: Vector, at: Index, shape: tuple[int, ...]) -> Vector:
    """Zeros, but for one value in each row."""
    out = np.zeros(shape)
    out[np.arange(len(at)), at] = values
    return out

"""Total work over total speed, for devices that are fast at different layers.

Of the ``N_l`` useful rows of layer l, device i computes a share ``f_li``, which takes it at
least ``f_li * p_li`` seconds, ``p_li = c_li + w_li * N_l``. So the makespan is at least the
optimum of

    min T  s.t.  M_i + sum_l f_li * p_li <= T for all i,  sum_i f_li >= 1 for all l.

``M_i`` is the least time in which a message gets from rank 0 to device i and another one back:
before the first it can do nothing useful, and when its useful work is done the last must yet
be sent. So a device with ``M_i > T`` does no useful work, and the program holds for the others
alone. If the optimum for all devices exceeds every ``M_i`` it is a bound all the same: a plan
with a smaller makespan T would make the program feasible at the larger of T and all ``M_i``.

By weak duality any weights ``lambda_i >= 0`` of sum 1 give a bound,

    T >= sum_i lambda_i * M_i + sum_l v_l,   v_l = min_i lambda_i * p_li,

and dual solutions of the program are the best ones. ``v_l`` is what layer l is *worth*: if
useful rows of some layers are computed within a period, it is at least as long as their worth,

    period >= sum_i lambda_i * (busy time of i) >= sum_l v_l * (share of the rows of l).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from edgeflow_mpi.partition.bound.case import Case
from edgeflow_mpi.partition.timeline import Floats, Ints

CLEAR = 1e-9
"""Relative difference above which one time is taken to exceed another."""


@dataclass(frozen=True)
class Work:
    """``makespan_s`` is a bound by itself; ``value_s[l]`` what all of layer l is worth.

    ``weights`` are the lambda_i of these values; they sum to 1.
    """

    makespan_s: float
    value_s: Floats
    weights: Floats


def work_bound(case: Case) -> Work:
    """Total work over total speed, and the worth of every layer."""
    whole_s = case.fixed_s + case.row_s * case.count[:, None]
    whole_s = whole_s[case.work]
    waits_s = case.round_trip_s
    makespan_s = np.inf
    # Let the makespan be at least one limit and less than the next: devices that take longer
    # there and back do nothing useful, and it is at least the optimum on the others.
    for limit_s in sorted(set(waits_s.tolist()), reverse=True):
        used = np.flatnonzero(waits_s <= limit_s)
        weights = _best_weights(whole_s[:, used], waits_s[used])
        optimum_s = float(
            (weights * whole_s[:, used]).min(axis=1).sum() + (weights * waits_s[used]).sum()
        )
        makespan_s = min(makespan_s, max(optimum_s, limit_s))
        if optimum_s > limit_s * (1.0 + CLEAR):
            break  # whoever does useful work, the makespan is at least this optimum
    weights = _best_weights(whole_s, np.zeros(case.ranks))
    value_s = np.zeros(len(case.layers))
    value_s[case.work] = (weights * whole_s).min(axis=1)
    return Work(makespan_s, value_s, weights)


def _best_weights(whole_s: Floats, waits_s: Floats) -> Floats:
    """The lambda_i that make the bound largest; equal ones where HiGHS finds none.

    Parameters
    ----------
    whole_s : p_li, [layer, device].
    waits_s : M_i.
    """
    devices = len(waits_s)
    equal = np.full(devices, 1.0 / devices)
    unit_s = float(whole_s.min(axis=1).sum()) + float(waits_s.max())
    if unit_s <= 0.0 or devices == 1:
        return equal
    # Devices that are alike are one device with several times the speed.
    kinds: dict[bytes, int] = {}
    columns = np.ascontiguousarray(np.column_stack([whole_s.T, waits_s]))
    kind = np.array([kinds.setdefault(row.tobytes(), len(kinds)) for row in columns])
    first = np.array([int(np.flatnonzero(kind == k)[0]) for k in range(len(kinds))])
    many = np.bincount(kind)
    dual = _solve(whole_s[:, first] / unit_s / many, waits_s[first] / unit_s)
    if dual is None or dual.sum() <= 0.0:
        return equal
    weights: Floats = (dual / many)[kind]
    weights /= weights.sum()
    return weights


def _solve(times: Floats, waits: Floats) -> Floats | None:
    """The dual solution of the program for the devices' busy times, if HiGHS has one."""
    count, devices = times.shape
    # Variables: the shares, layer by layer, then T.
    busy_rows: Ints = np.tile(np.arange(devices), count)
    cover_rows = devices + np.repeat(np.arange(count), devices)
    shares = np.arange(count * devices)
    rows = np.concatenate([busy_rows, np.arange(devices), cover_rows])
    columns = np.concatenate([shares, np.full(devices, count * devices), shares])
    factors = np.concatenate([times.ravel(), np.full(devices, -1.0), np.full(len(shares), -1.0)])
    cost = np.zeros(count * devices + 1)
    cost[-1] = 1.0
    result = linprog(
        cost,
        A_ub=sparse.csr_array((factors, (rows, columns)), shape=(devices + count, len(cost))),
        b_ub=np.concatenate([-waits, np.full(count, -1.0)]),
        method="highs",
    )
    if result.status != 0:
        return None
    dual: Floats = np.maximum(-result.ineqlin.marginals[:devices], 0.0)
    return dual

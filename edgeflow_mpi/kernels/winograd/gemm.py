"""Products of a few tiles with a panel of weights: every sum stays in a register.

Rows of weights of one panel lie one behind the other, so that they stream through the nearest
cache, while the few tiles stay in it.
"""

from __future__ import annotations

from edgeflow_mpi.kernels.llvm.emit import I64, POINTER, Function, Value
from edgeflow_mpi.kernels.llvm.machine import Machine

UNROLLED = 4
"""Input channels in one turn; their number must be a multiple of it."""


def gemm_name(tiles: int) -> str:
    return f"gemm_{tiles}"


def emit_gemm(module: Value, machine: Machine, tiles: int) -> None:
    """``out[t, :] = sum_k samples[t, k] weights[k, :]`` for so many tiles t, as a function.

    Its parameters are samples, float32 between their tiles, weights, out, float32 between
    its tiles, and the number of k.
    """
    parameters = [POINTER, I64, POINTER, POINTER, I64, I64]
    f = Function(module, gemm_name(tiles), machine.lanes, parameters, inner=False)
    samples, samples_step, weights, out, out_step, channels = f.args
    vectors, lanes = machine.panel_vectors, machine.lanes
    rows = [samples]
    for _ in range(1, tiles):
        rows.append(f.at(rows[-1], samples_step))
    with f.reduction(channels, UNROLLED, [f.constant(0)] * (tiles * vectors)) as turn:
        panel = f.at(weights, f.mul(turn.index, machine.panel))
        for k in range(UNROLLED):
            columns = [f.load(panel, (k * vectors + j) * lanes) for j in range(vectors)]
            for t, row in enumerate(rows):
                sample = f.everywhere(row, turn.index, k)
                for j, column in enumerate(columns):
                    place = t * vectors + j
                    turn.sums[place] = f.fma(sample, column, turn.sums[place])
    for t in range(tiles):
        for j in range(vectors):
            f.store(turn.sums[t * vectors + j], out, j * lanes)
        out = f.at(out, out_step)
    f.finish()

"""What computes: an engine turns a layer and a span of its rows into a kernel.

Several engines may be able to do the same; which does it best is found out by measuring. To
add one, write one file beside this and name it in
:data:`edgeflow_mpi.kernels.registry.ENGINES` (docs/adding-an-engine.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.kernels.native import Bind
from edgeflow_mpi.spans import Span

Tensor = torch.Tensor


@dataclass(frozen=True)
class Kernel:
    """Computes rows ``rows`` of one layer.

    Call it with one tensor per layer input, in order, that holds exactly the rows
    ``needs[k]`` of it (the combined sum or maximum where the input's layer makes
    summands). The result may share memory with an input, and with what the kernel returned
    before: it is valid until the next call.

    Attributes
    ----------
    rows : Span
        The rows it computes; of a layer that makes summands, those that it reduces.
    needs : tuple of Span
        The rows of each input that it is given.
    name : str
        The operators, for people.
    run : callable
        (*inputs) -> result.
    engine : str
        Name of the engine that made it.
    into : callable or None
        (out, *inputs) -> anything: computes into ``out``, which has the result's shape and
        type and shares no memory with an input; the images of a batch may lie apart in it, and
        its channels may be some of a larger map's.
        None where a kernel cannot do so without a copy; :meth:`write` copies then.
    bind : callable or None
        (out, *inputs) -> the same as one call of machine code, or None where these tensors do
        not allow it (:data:`~edgeflow_mpi.kernels.native.Bind`).
    """

    rows: Span
    needs: tuple[Span, ...]
    name: str
    run: Callable[..., Tensor]
    engine: str = "aten"
    into: Callable[..., object] | None = None
    bind: Bind | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.run(*inputs)

    def write(self, out: Tensor, *inputs: Tensor) -> None:
        """Compute into ``out``: without a copy if the kernel can, with one if it cannot."""
        if self.into is not None:
            self.into(out, *inputs)
        else:
            out.copy_(self.run(*inputs))


class Engine(Protocol):
    """One way to compute layers.

    Attributes
    ----------
    name : str
        One lower-case word, unique: it stands in options, plans, profiles and reports.
    """

    name: str

    def available(self) -> bool:
        """Whether it works here: its package is installed, this processor can run it."""

    def prepare(
        self, graph: Graph, layer: Layer, rows: Span, weights: Mapping[str, Tensor], needs: Needs
    ) -> Kernel | None:
        """The kernel of non-empty ``rows`` of ``layer``; None where it cannot do these.

        Parameters
        ----------
        graph : the layer DAG, in which the shapes of the layer's inputs are found.
        layer : a layer of kind ``compute``.
        rows : what the kernel computes.
        weights : by name, at least those that the layer uses; the kernel may keep them.
        needs : the row algebra: ``needs.of(layer.name, rows)`` is what the kernel is given.

        Notes
        -----
        Work that does not depend on the request (packing weights, allocating scratch memory)
        belongs here. A kernel must agree with plain torch to the rounding of a few units in
        the last place times the square root of the number of summands, or say so by not
        being chosen (see the registry's error bound).
        """

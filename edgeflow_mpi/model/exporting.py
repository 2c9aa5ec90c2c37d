"""Capture a module as a functional program, and read its inputs and outputs."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from edgeflow_mpi.errors import ModelError
from edgeflow_mpi.model.info import INTEGER_LIMIT, InputSpec

_BRIEF_CHARS = 200


def export_module(module: nn.Module, args: Sequence[torch.Tensor], name: str) -> ExportedProgram:
    """Capture ``module`` at the shapes of ``args`` with ``torch.export``.

    Raises
    ------
    ModelError
        Where the module does not run on these inputs, or runs but cannot be captured.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(module, tuple(args))
    except Exception as error:
        raise _why_not(module, args, name, error) from error


def _why_not(
    module: nn.Module, args: Sequence[torch.Tensor], name: str, error: Exception
) -> ModelError:
    """Tell a model that cannot run on these inputs from one that cannot be captured."""
    shapes = " and ".join("x".join(map(str, arg.shape)) for arg in args)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            module(*args)
    except Exception as failure:  # noqa: BLE001 - becomes part of the answer
        return ModelError(
            f"{name} does not run on an input of {shapes} ({brief(failure)}): give the shape it "
            "takes with --input-shape."
        )
    return ModelError(
        f"torch.export cannot capture {name} ({brief(error)}): control flow or shapes that "
        "depend on data have to be written otherwise."
    )


def decompose(program: ExportedProgram, name: str) -> ExportedProgram:
    """The program in functional ATen operators, convolutions and linear layers kept.

    Raises
    ------
    ModelError
        Where the program changes its own state or its inputs, or cannot be decomposed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            functional: ExportedProgram = program.run_decompositions({})
    except Exception as error:
        raise ModelError(
            f"the exported program of {name} cannot be made functional ({brief(error)})."
        ) from error
    signature = functional.graph_signature
    if signature.buffers_to_mutate or signature.parameters_to_mutate:
        changed = next(
            iter((*signature.buffers_to_mutate.values(), *signature.parameters_to_mutate.values()))
        )
        raise ModelError(
            f"{name} is stateful: it changes {changed} at every run, so its answer depends on "
            "earlier ones; export it in eval mode."
        )
    if signature.user_inputs_to_mutate:
        changed = next(iter(signature.user_inputs_to_mutate.values()))
        raise ModelError(f"{name} writes into its input {changed}: let it work on a copy.")
    _name_results(functional)
    return functional


def _name_results(program: ExportedProgram) -> None:
    """Call what is taken of an operator's several results by that operator, not ``getitem_5``.

    Layers are shown under these names: ``batch_norm_2``, or ``split_part0`` and ``split_part1``.
    """
    taken = {node.name for node in program.graph.nodes}
    renamed: dict[str, str] = {}
    for call in program.graph.nodes:
        results = [node for node in call.users if node.target is operator.getitem]
        plain = call.name.removeprefix("_native_").removeprefix("native_")
        plain = plain.replace("_legit_no_training", "")
        for result in results:
            alone = len(results) == 1 and plain != call.name
            wanted = plain if alone else f"{plain}_part{result.args[1]}"
            if wanted not in taken:
                taken.add(wanted)
                renamed[result.name] = wanted
                result.name = wanted
    for spec in program.graph_signature.output_specs:
        if isinstance(spec.arg, TensorArgument):
            spec.arg.name = renamed.get(spec.arg.name, spec.arg.name)


def input_specs(program: ExportedProgram, name: str) -> tuple[InputSpec, ...]:
    """The tensor inputs in the order of the program's signature.

    Raises
    ------
    ModelError
        Where a shape is not fixed, or the program takes no tensor at all.
    """
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    specs = []
    for entry in program.graph_signature.input_specs:
        if entry.kind != InputKind.USER_INPUT or isinstance(entry.arg, ConstantArgument):
            continue
        value = nodes[entry.arg.name].meta.get("val")
        if not isinstance(entry.arg, TensorArgument) or not isinstance(value, torch.Tensor):
            raise ModelError(f"the input {entry.arg.name} of {name} is not a tensor.")
        if not all(isinstance(size, int) for size in value.shape):
            raise ModelError(
                f"the input {entry.arg.name} of {name} has a shape that is not fixed: give it "
                "with --input-shape."
            )
        specs.append(InputSpec(entry.arg.name, tuple(map(int, value.shape)), value.dtype))
    if not specs:
        raise ModelError(f"{name} takes no tensor, so there is nothing to run it on.")
    return tuple(specs)


def integer_limit(program: ExportedProgram) -> int:
    """One more than the largest integer that every embedding table takes."""
    tables = [
        node.args[0].meta["val"].shape[0]
        for node in program.graph.nodes
        if node.target is torch.ops.aten.embedding.default
    ]
    return min(tables, default=INTEGER_LIMIT)


def output_names(program: ExportedProgram, name: str) -> tuple[str, ...]:
    """Names of the tensor outputs: dictionary keys, field names, or ``output0``, ``output1``.

    A model that returns a single tensor has the one name ``output``.

    Raises
    ------
    ModelError
        Where no output is a tensor.
    """
    outputs = [
        entry.arg
        for entry in program.graph_signature.output_specs
        if entry.kind == OutputKind.USER_OUTPUT
    ]
    labels = _leaf_labels(program.call_spec.out_spec, len(outputs))
    names = tuple(
        label for label, arg in zip(labels, outputs, strict=True) if isinstance(arg, TensorArgument)
    )
    if not names:
        raise ModelError(f"{name} returns no tensor.")
    return names


def brief(error: BaseException) -> str:
    """Type and first line of an exception, for the middle of a sentence."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    text = lines[0].rstrip(".:") if lines else ""
    if len(text) > _BRIEF_CHARS:
        text = text[:_BRIEF_CHARS].rstrip() + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _leaf_labels(spec: pytree.TreeSpec | None, count: int) -> list[str]:
    numbered = [f"output{index}" for index in range(count)]
    if spec is None or spec.num_leaves != count:
        return numbered
    if spec.is_leaf():
        return ["output"]
    try:
        paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(range(count), spec))
    except (ValueError, TypeError, AttributeError):
        return numbered  # a container that does not tell the names of its fields
    labels = [".".join(_key_text(key) for key in path) for path, _ in paths]
    labels = [f"output{label}" if label[:1].isdigit() else label for label in labels]
    return labels if len(set(labels)) == count else numbered


def _key_text(key: object) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)

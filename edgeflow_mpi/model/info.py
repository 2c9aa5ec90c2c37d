"""What the stages after capture know of a model: little enough to be kept as text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from edgeflow_mpi.model.images import Preprocessing

INTEGER_LIMIT = 2
"""Random integers stay below it where no embedding table says how large they may be."""


@dataclass(frozen=True)
class InputSpec:
    """One input tensor of a model: its name, its shape with the batch first, its type."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What to feed a model with, and what its answers are called.

    Attributes
    ----------
    name : str
        As the user wrote it.
    inputs : tuple of InputSpec
        In the order of the module's arguments.
    output_names : tuple of str
        One for every tensor output, in the order in which the program returns them.
    preprocessing : Preprocessing or None
        Given where the single input is an image.
    categories : tuple of str or None
        Names of the classes along axis 1 of the first output.
    random_weights : bool
        Whether the weights are random; every printed result must then say so.
    weights_note : str
        Where the weights come from, in a few words.
    integer_limit : int
        One more than the largest integer that every embedding table of the model takes.
    """

    name: str
    inputs: tuple[InputSpec, ...]
    output_names: tuple[str, ...]
    preprocessing: Preprocessing | None
    categories: tuple[str, ...] | None
    random_weights: bool
    weights_note: str
    integer_limit: int = INTEGER_LIMIT

    @property
    def info(self) -> ModelInfo:
        """This and no more, without what a subclass adds."""
        return ModelInfo(**{f.name: getattr(self, f.name) for f in fields(ModelInfo)})


def info_to_json(info: ModelInfo) -> str:
    """One line of JSON that :func:`info_from_json` reads back."""
    inputs = [(spec.name, spec.shape, _type_name(spec.dtype)) for spec in info.inputs]
    how = None if info.preprocessing is None else asdict(info.preprocessing)
    plain = {f.name: getattr(info, f.name) for f in fields(ModelInfo)}
    return json.dumps({**plain, "inputs": inputs, "preprocessing": how})


def info_from_json(text: str) -> ModelInfo:
    """What :func:`info_to_json` wrote.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError
        For anything else.
    """
    values: dict[str, Any] = json.loads(text)
    how, categories = values["preprocessing"], values["categories"]
    if how is not None:
        how = Preprocessing(**{**how, "mean": tuple(how["mean"]), "std": tuple(how["std"])})
    inputs = tuple(
        InputSpec(name, tuple(shape), getattr(torch, dtype))
        for name, shape, dtype in values["inputs"]
    )
    return ModelInfo(
        **{
            **values,
            "inputs": inputs,
            "output_names": tuple(values["output_names"]),
            "preprocessing": how,
            "categories": None if categories is None else tuple(categories),
        }
    )


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""Build torchvision models by name, with what their published weights say about inputs."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from edgeflow_mpi.errors import ModelError
from edgeflow_mpi.model.images import Preprocessing
from edgeflow_mpi.model.torchvision_compat import import_torchvision
from edgeflow_mpi.model.weights import rename

_SLOW_INITIALISERS = ("googlenet", "inception_v3")
_VIDEO_FRAMES = 16
_FLOW_SIDE_PX = 128
_OLD_DENSENET_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")


@dataclass(frozen=True)
class TorchvisionModel:
    """A module in eval mode, and what is known of it.

    Attributes
    ----------
    module : nn.Module
        With seeded random weights.
    shapes : tuple of tuple of int
        The input shapes that the published weights were trained for, batch 1.
    preprocessing : Preprocessing or None
        For models of a single image.
    categories : tuple of str or None
        Names of the classes of the published weights.
    """

    module: nn.Module
    shapes: tuple[tuple[int, ...], ...]
    preprocessing: Preprocessing | None
    categories: tuple[str, ...] | None


def build(name: str, *, seed: int, weight_keys: Collection[str] | None) -> TorchvisionModel:
    """Construct a torchvision model without downloading anything.

    Parameters
    ----------
    name : str
        As ``torchvision.models.get_model`` takes it.
    seed : int
        Of the random initialisation.
    weight_keys : collection of str or None
        The keys of weights that will be loaded. Published weights of segmentation models
        contain an auxiliary head, and those of GoogLeNet and Inception expect the input
        to be rescaled inside the model: both are then switched on, as torchvision does.

    Raises
    ------
    ModelError
        For an unknown name, a detection model, or a builder that fails.
    """
    models = import_torchvision().models
    known = models.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}" if close else "for example resnet50"
        raise ModelError(f"torchvision has no model {name!r}: {hint}?")
    builder = models.get_model_builder(name)
    family = builder.__module__.split(".")[2]
    if family == "detection":
        raise ModelError(
            f"torchvision:{name} takes and returns lists of varying length, which torch.export "
            "cannot capture: give a classification or segmentation model."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = builder(**_arguments(builder, name, weight_keys))
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise ModelError(
                f"torchvision:{name} cannot be built ({type(error).__name__}: {reason})."
            ) from error
    assert isinstance(module, nn.Module)
    preset, categories = _published(models, name)
    return TorchvisionModel(
        module.eval(), _shapes(preset, family), _preprocessing(preset, family), categories
    )


def rename_published_keys(name: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring keys of published weight files to those that the module has today."""
    if name.startswith("densenet"):
        return rename(state, lambda key: _OLD_DENSENET_KEY.sub(r"\1\2", key))
    return state


def _arguments(
    builder: object, name: str, weight_keys: Collection[str] | None
) -> dict[str, object]:
    assert callable(builder)
    accepted = inspect.signature(builder).parameters
    arguments: dict[str, object] = {"weights": None}
    if "weights_backbone" in accepted:
        arguments["weights_backbone"] = None
    if name.removeprefix("quantized_") in _SLOW_INITIALISERS:
        # Their own initialiser draws every weight through scipy, for half a minute.
        arguments["init_weights"] = False
        if weight_keys is not None:
            arguments["transform_input"] = True
    if "aux_loss" in accepted and any(k.startswith("aux_classifier.") for k in weight_keys or ()):
        arguments["aux_loss"] = True
    return arguments


def _published(models: object, name: str) -> tuple[object, tuple[str, ...] | None]:
    """The transforms and class names that belong to the model's default weights."""
    weights = models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    categories = weights.meta.get("categories")
    return weights.transforms(), tuple(categories) if categories else None


def _preprocessing(preset: object, family: str) -> Preprocessing | None:
    if type(preset).__name__ not in ("ImageClassification", "SemanticSegmentation"):
        return None
    stretched = family == "segmentation"
    mean, std = preset.mean, preset.std  # type: ignore[attr-defined]
    return Preprocessing(
        resize=None if stretched else int(preset.resize_size[0]),  # type: ignore[attr-defined]
        crop=None if stretched else int(preset.crop_size[0]),  # type: ignore[attr-defined]
        mean=tuple(float(v) for v in mean),
        std=tuple(float(v) for v in std),
        interpolation=str(preset.interpolation.value),  # type: ignore[attr-defined]
    )


def _shapes(preset: object, family: str) -> tuple[tuple[int, ...], ...]:
    if family == "optical_flow":
        return ((1, 3, _FLOW_SIDE_PX, _FLOW_SIDE_PX),) * 2
    if family == "segmentation":
        side = int(preset.resize_size[0])  # type: ignore[attr-defined]
        return ((1, 3, side, side),)
    crop = [int(side) for side in preset.crop_size]  # type: ignore[attr-defined]
    if family == "video":
        return ((1, 3, _VIDEO_FRAMES, crop[0], crop[-1]),)
    return ((1, 3, crop[0], crop[-1]),)

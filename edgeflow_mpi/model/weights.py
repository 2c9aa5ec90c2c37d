"""Read weights from a file into a module, and check weights of any source."""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from edgeflow_mpi.errors import ModelError

_NESTING_KEYS = ("state_dict", "model", "model_state_dict")
_SHOWN = 3


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a ``.safetensors`` file or one written by ``torch.save``.

    The latter is read with ``weights_only=True``, so that no code in it can run; it may
    be nested under ``state_dict`` or ``model``. A ``module.`` before every key, which
    data-parallel training leaves behind, is removed.

    Raises
    ------
    ModelError
        Where the file is missing, damaged, or holds something else than tensors.
    """
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}.")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if state and all(key.startswith("module.") for key in state):
        state = rename(state, lambda key: key.removeprefix("module."))
    return state


def rename(
    state: dict[str, torch.Tensor], new_key: Callable[[str], str]
) -> dict[str, torch.Tensor]:
    """The same state dict under other keys; versions noted by ``torch.save`` are kept."""
    renamed = OrderedDict((new_key(key), value) for key, value in state.items())
    if hasattr(state, "_metadata"):
        renamed._metadata = state._metadata  # type: ignore[attr-defined]
    return renamed


def load_weights(module: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Copy a state dict into a module; every weight must be there, with its shape.

    Raises
    ------
    ModelError
        Naming the first few weights that are missing, unknown or of another shape.
    """
    expected = module.state_dict()
    for key, value in state.items():
        if key in expected and expected[key].shape != value.shape:
            raise ModelError(
                f"{path} does not fit the model: {key} is {list(value.shape)} in the file and "
                f"{list(expected[key].shape)} in the model."
            )
    try:
        missing, unknown = _load(module, state)
    except (RuntimeError, ValueError, KeyError) as error:
        lines = [line.strip() for line in str(error).split("\n") if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise ModelError(f"{path} does not fit the model: {reason}.") from error
    # A weight that shares its memory with one that was loaded was loaded with it.
    loaded = {expected[key].data_ptr() for key in expected.keys() - set(missing)}
    missing = [
        key
        for key in missing
        if not key.endswith("num_batches_tracked") and expected[key].data_ptr() not in loaded
    ]
    if missing:
        instead = f" and has {_few(unknown)} instead." if unknown else "."
        raise ModelError(f"{path} does not fit the model: it lacks {_few(missing)}{instead}")
    if unknown:
        raise ModelError(f"{path} does not fit the model, which has no {_few(unknown)}.")


def check_finite(
    parameters: Iterable[tuple[str, torch.Tensor]], buffers: Iterable[tuple[str, torch.Tensor]]
) -> None:
    """Refuse weights with a NaN, or with an infinity where that is no mask.

    Raises
    ------
    ModelError
        Naming the first such tensor.
    """
    for name, tensor in parameters:
        if _is_float(tensor) and not _all_finite(tensor):
            raise _not_finite(name)
    for name, tensor in buffers:
        # Attention masks are buffers of minus infinity; statistics of batch norm are not.
        is_statistic = name.endswith(("running_mean", "running_var"))
        if _is_float(tensor) and not (
            _all_finite(tensor) if is_statistic else not bool(tensor.isnan().any())
        ):
            raise _not_finite(name)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file  # late: other sources do without the package

    try:
        return load_file(path)
    except Exception as error:
        raise _unreadable(path, error) from error


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unreadable(path, error) from error
    while isinstance(content, Mapping) and not _is_state(content):
        nested = next((content[k] for k in _NESTING_KEYS if k in content), None)
        if nested is None:
            break
        content = nested
    if not isinstance(content, Mapping) or not _is_state(content):
        raise ModelError(
            f"{path} holds no state dict (names and tensors): save one with "
            "torch.save(module.state_dict(), FILE)."
        )
    return content if isinstance(content, dict) else dict(content)


def _is_state(content: Mapping[object, object]) -> bool:
    return bool(content) and all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items()
    )


def _load(module: nn.Module, state: dict[str, torch.Tensor]) -> tuple[list[str], list[str]]:
    """Copy what fits; the keys that the file lacks and those that the module lacks."""
    try:
        keys = module.load_state_dict(state, strict=False)
    except (ValueError, KeyError):
        # Some modules want to know the version of their layout, which only files of
        # torch.save carry: take it that the file has today's.
        versioned = rename(state, lambda key: key)
        versioned._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
        keys = module.load_state_dict(versioned, strict=False)
    return list(keys.missing_keys), list(keys.unexpected_keys)


def _few(keys: list[str]) -> str:
    rest = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _is_float(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _all_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _not_finite(name: str) -> ModelError:
    return ModelError(
        f"the weight {name} has values that are not finite (NaN or infinity): the model cannot "
        "give a meaningful answer."
    )


def _unreadable(path: Path, error: Exception) -> ModelError:
    if isinstance(error, pickle.UnpicklingError):
        return ModelError(
            f"{path} is damaged or holds more than tensors: write it with "
            "torch.save(module.state_dict(), FILE), or as .safetensors."
        )
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return ModelError(f"the weights file {path} cannot be read ({reason}).")

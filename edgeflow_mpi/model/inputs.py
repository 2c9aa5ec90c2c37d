"""Turn files into requests: the input tensors of one inference each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgeflow_mpi.errors import InputError
from edgeflow_mpi.model.images import (
    IMAGE_SUFFIXES,
    Preprocessing,
    image_to_tensor,
    photo_crops,
    read_image,
    sample_photos,
)
from edgeflow_mpi.model.info import InputSpec, ModelInfo

_SEED = 0
_ARRAY_SUFFIXES = (".npy", ".npz")
_IMAGES_CHECKED = 16


@dataclass(frozen=True)
class Request:
    """The inputs of one inference.

    Attributes
    ----------
    name : str
        Where they come from, for the printed result.
    tensors : tuple of torch.Tensor
        One per input of the model, contiguous, with its exact shape and type.
    samples : int or None
        How many samples of the batch are the user's, where they do not fill it.
    """

    name: str
    tensors: tuple[torch.Tensor, ...]
    samples: int | None = None


def check_readable(paths: Sequence[Path]) -> None:
    """Find out what is wrong with files of inputs before there is a model that they must fit.

    Every array is read, and of images as many as that is done for at once.

    Raises
    ------
    InputError
        Where one is missing or damaged.
    """
    checked = 0
    for path in paths:
        if path.suffix in _ARRAY_SUFFIXES and not path.is_dir():
            _require_file(path)
            _read_arrays(path)
            continue
        for image in _images_at(path):
            if checked == _IMAGES_CHECKED:
                return
            read_image(image)
            checked += 1


def load_inputs(path: Path | Sequence[Path] | None, model: ModelInfo) -> tuple[Request, ...]:
    """The requests that a file, several images, a folder of images, or nothing gives.

    Parameters
    ----------
    path : Path, sequence of Path or None
        Image files or a folder of them: one sample each, sorted by name within a folder;
        a model of batch N takes N samples a request, and the last one is repeated where
        they run out. A ``.npy`` file is the single input, and a ``.npz`` file has an array
        for every input, under the input's name or in order; an array of k × N samples
        makes k requests. None stands for a photograph, or for random numbers where the
        input is no image.
    model : ModelInfo
        Says what its inputs have to be.

    Returns
    -------
    tuple of Request
        At least one.

    Raises
    ------
    InputError
        Where a file cannot be read or does not fit the model.
    """
    if path is None:
        return (_default_request(model),)
    paths = [path] if isinstance(path, Path) else list(path)
    if len(paths) == 1 and paths[0].suffix in _ARRAY_SUFFIXES:
        return _array_requests(paths[0], model)
    return _image_requests([image for p in paths for image in _images_at(p)], model)


def _default_request(model: ModelInfo) -> Request:
    if model.preprocessing is not None:
        photo = sample_photos()[0]
        spec, preprocessing = model.inputs[0], model.preprocessing
        batch, channels, height, width = spec.shape
        sample = _image_sample(photo, spec, preprocessing).unsqueeze(0)
        if batch == 1:
            return Request(f"the photograph {photo.name} from scikit-learn", (sample,))
        # Different samples, so that mixing them up would show.
        shape = (channels, height, width)
        others = photo_crops(batch - 1, shape, preprocessing, _SEED, spec.dtype)
        name = f"the photograph {photo.name} from scikit-learn and {batch - 1} crops like it"
        return Request(name, (torch.cat((sample, others)),))
    generator = torch.Generator().manual_seed(_SEED)
    tensors = tuple(_random(spec, model.integer_limit, generator) for spec in model.inputs)
    return Request(f"random numbers, seed {_SEED}", tensors)


def _random(spec: InputSpec, limit: int, generator: torch.Generator) -> torch.Tensor:
    if spec.dtype.is_floating_point or spec.dtype.is_complex:
        wide = spec.dtype if spec.dtype.is_complex else torch.float32
        return torch.randn(spec.shape, dtype=wide, generator=generator).to(spec.dtype)
    return torch.randint(limit, spec.shape, generator=generator).to(spec.dtype)


def _images_at(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise InputError(
                f"the folder {path} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})."
            )
        return found
    if not path.exists():
        raise InputError(f"there is no input {path}.")
    return [path]


def _image_requests(paths: list[Path], model: ModelInfo) -> tuple[Request, ...]:
    if model.preprocessing is None:
        raise InputError(
            f"{model.name} takes {_wanted(model.inputs)}, which is not an image: give its inputs "
            "as a .npy or .npz file."
        )
    spec, preprocessing = model.inputs[0], model.preprocessing
    batch = spec.shape[0]
    requests = []
    for start in range(0, len(paths), batch):
        group = paths[start : start + batch]
        samples = [_image_sample(p, spec, preprocessing) for p in group]
        name = group[0].name + (f" … {group[-1].name}" if len(group) > 1 else "")
        missing = batch - len(group)
        if missing:
            name += f" (the last image {missing + 1} times, to fill the batch of {batch})"
            samples += samples[-1:] * missing
        own = len(group) if missing else None
        requests.append(Request(name, (torch.stack(samples),), own))
    return tuple(requests)


def _image_sample(path: Path, spec: InputSpec, preprocessing: Preprocessing) -> torch.Tensor:
    _, channels, height, width = spec.shape
    return image_to_tensor(read_image(path), (channels, height, width), spec.dtype, preprocessing)


def _array_requests(path: Path, model: ModelInfo) -> tuple[Request, ...]:
    """Cut the arrays of a file into as many requests as they hold."""
    _require_file(path)
    arrays = _assign(_read_arrays(path), path, model)
    tensors = [_checked(a, spec, path) for a, spec in zip(arrays, model.inputs, strict=True)]
    counts = {
        t.shape[0] // spec.shape[0] if spec.shape else 1
        for t, spec in zip(tensors, model.inputs, strict=True)
    }
    if len(counts) != 1:
        raise InputError(f"the arrays in {path} hold different numbers of requests.")
    count = counts.pop()
    if count == 1:
        return (Request(path.name, tuple(tensors)),)
    pieces = [torch.chunk(t, count) for t in tensors]
    return tuple(
        Request(f"{path.name}[{index}]", tuple(piece[index].clone() for piece in pieces))
        for index in range(count)
    )


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"there is no input {path}.")


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of a file by its name; a ``.npy`` file has one without a name."""
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"": content}
        with content:
            return {name: content[name] for name in content.files}
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path} is not a NumPy file that can be read ({reason}).") from error


def _assign(arrays: dict[str, np.ndarray], path: Path, model: ModelInfo) -> tuple[np.ndarray, ...]:
    """The array of every input: by name where all names are there, else in order."""
    names = [spec.name for spec in model.inputs]
    if all(name in arrays for name in names):
        return tuple(arrays[name] for name in names)
    if len(arrays) == len(names):
        return tuple(arrays.values())
    raise InputError(
        f"{path} has the arrays {', '.join(arrays) or 'none'}, and {model.name} needs "
        f"{', '.join(names)}."
    )


def _checked(array: np.ndarray, spec: InputSpec, path: Path) -> torch.Tensor:
    """An array as a tensor of the input's type, with its shape but for k times the batch."""
    where = f"{path}: the array for {spec.name}"
    shape = array.shape
    fits = shape == spec.shape or (
        len(shape) == len(spec.shape) > 0
        and shape[1:] == spec.shape[1:]
        and shape[0] > 0
        and shape[0] % spec.shape[0] == 0
    )
    if not fits:
        raise InputError(f"{where} has the shape {_size(shape)} in place of {_size(spec.shape)}.")
    kinds = "f" if spec.dtype.is_floating_point else "iu" if spec.dtype != torch.bool else "b"
    kinds = "c" if spec.dtype.is_complex else kinds
    if array.dtype.kind not in kinds:
        raise InputError(f"{where} is of type {array.dtype} in place of {_type_name(spec.dtype)}.")
    try:
        given = torch.from_numpy(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("=")))
    except TypeError as error:
        raise InputError(f"{where} is of type {array.dtype}, which torch does not have.") from error
    tensor = given.to(spec.dtype).contiguous()
    if kinds in ("f", "c") and not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{where} has values that are not finite (NaN or infinity).")
    if kinds == "iu" and not bool((tensor.to(torch.int64) == given.to(torch.int64)).all()):
        raise InputError(f"{where} has values that do not fit {_type_name(spec.dtype)}.")
    return tensor


def _wanted(specs: Sequence[InputSpec]) -> str:
    return " and ".join(f"{_size(s.shape)} of {_type_name(s.dtype)}" for s in specs)


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "()"


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

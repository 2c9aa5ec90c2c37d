"""Read images and turn them into input tensors of a model.

Decoding goes through Pillow, so grayscale, palette, transparency, 16-bit values and the
orientation that cameras note in the file are all brought to plain RGB or gray pixels.
"""

from __future__ import annotations

import importlib.util
import random
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from edgeflow_mpi.errors import InputError

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
)

_PHOTOS = ("china.jpg", "flower.jpg")

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a model.

    Attributes
    ----------
    resize, crop : int or None
        Length of the shorter side in pixels after resizing, and side of the centre crop,
        at the size the model was published for; at another input size their ratio is
        kept. Both are None where the whole image is stretched to the input's size.
    mean, std : tuple of float
        Per channel, in units of the 0..1 range: ``(pixel / 255 - mean) / std``.
    interpolation : str
        ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
    """

    resize: int | None
    crop: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"


IMAGENET = Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GRAY = Preprocessing(1, 1, (0.0,), (1.0,))


def read_image(path: Path) -> Image.Image:
    """Decode an image file, upright, in whatever mode it has.

    Raises
    ------
    InputError
        Where the file is missing, is no image, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
                return ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise InputError(f"there is no image {path}.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image that can be read.") from error
    except Exception as error:  # decoders of damaged files raise whatever they stumble on
        raise InputError(f"the image {path} cannot be read ({_brief(error)}).") from error


def image_to_tensor(
    image: Image.Image,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    preprocessing: Preprocessing,
) -> torch.Tensor:
    """One sample of a model's input from an image.

    Parameters
    ----------
    image : PIL.Image.Image
        Any mode.
    shape : tuple of int
        (channels, height, width); channels must be 1 or 3.
    dtype : torch.dtype
        A floating type gives normalised values; ``torch.uint8`` gives the pixels.
    preprocessing : Preprocessing
        Resizing and normalisation.

    Returns
    -------
    torch.Tensor
        Of ``shape`` and ``dtype``.
    """
    channels, height, width = shape
    fitted = _fit(_plain(image, channels), height, width, preprocessing)
    pixels = torch.from_numpy(np.array(fitted, dtype=np.uint8)).reshape(height, width, channels)
    pixels = pixels.permute(2, 0, 1).contiguous()
    return pixels if dtype == torch.uint8 else normalised(pixels, preprocessing).to(dtype)


def normalised(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Pixels 0..255, shape (..., channels, height, width), as float32 values for the model."""
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32).reshape(-1, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float32).reshape(-1, 1, 1)
    return (pixels.to(torch.float32) / 255 - mean) / std


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """Eight-bit gray or RGB pixels; what is transparent becomes white."""
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.int64)
        scale = 257 if values.max(initial=0) > 255 else 1
        image = Image.fromarray((values // scale).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8))
    elif "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("L" if channels == 1 else "RGB")


def _fit(image: Image.Image, height: int, width: int, how: Preprocessing) -> Image.Image:
    """Resize, and crop the centre, to exactly ``height`` x ``width``."""
    resampling = _RESAMPLING[how.interpolation]
    if how.resize is None or how.crop is None:
        return image.resize((width, height), resampling)
    # The same numbers as torchvision's where the input is a square of side `crop`: the
    # shorter side becomes round(crop * ratio), the longer one is truncated.
    ratio = how.resize / how.crop
    target_w, target_h = max(1, round(width * ratio)), max(1, round(height * ratio))
    if image.width * target_h <= image.height * target_w:
        size = (target_w, max(target_h, image.height * target_w // image.width))
    else:
        size = (max(target_w, image.width * target_h // image.height), target_h)
    # A ratio below one leaves less than the input needs; the border is then black, as a
    # centre crop of torchvision pads it.
    resized = image.resize(size, resampling)
    left = round((size[0] - width) / 2.0)
    top = round((size[1] - height) / 2.0)
    return resized.crop((left, top, left + width, top + height))


def sample_photos() -> tuple[Path, ...]:
    """Two real photographs that the scikit-learn package ships.

    Raises
    ------
    InputError
        Where scikit-learn is not installed, or installed without them.
    """
    # Found, not imported: the import takes a second and is not needed.
    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations or []) if package else []:
        photos = tuple(Path(folder) / "datasets" / "images" / name for name in _PHOTOS)
        if all(photo.is_file() for photo in photos):
            return photos
    raise InputError(
        "the default photograph comes with the scikit-learn package, which is not installed: "
        "install scikit-learn, or name an image with --input."
    )


def photo_crops(
    count: int,
    shape: tuple[int, int, int],
    preprocessing: Preprocessing,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Different crops of the sample photographs.

    Parameters
    ----------
    count : int
        Number of crops.
    shape : tuple of int
        (channels, height, width) of each.
    preprocessing : Preprocessing
        Normalisation and interpolation; the crop is stretched to the shape.
    seed : int
        Chooses the crops.
    dtype : torch.dtype
        As in :func:`image_to_tensor`.

    Returns
    -------
    torch.Tensor
        Of shape ``(count, *shape)``.

    Raises
    ------
    InputError
        Where the photographs are not there.
    """
    photos = [read_image(path) for path in sample_photos()]
    choose = random.Random(seed)
    stretch = Preprocessing(
        None, None, preprocessing.mean, preprocessing.std, preprocessing.interpolation
    )
    crops = []
    for index in range(count):
        photo = photos[index % len(photos)]
        side = choose.randint(min(photo.size) // 3, min(photo.size))
        left = choose.randint(0, photo.width - side)
        top = choose.randint(0, photo.height - side)
        crop = photo.crop((left, top, left + side, top + side))
        crops.append(image_to_tensor(crop, shape, dtype, stretch))
    return torch.stack(crops)


def _brief(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__

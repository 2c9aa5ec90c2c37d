"""Requests from images, folders, arrays and nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgeflow_mpi.errors import InputError
from edgeflow_mpi.model import images
from edgeflow_mpi.model.exporting import (
    decompose,
    export_module,
    input_specs,
    integer_limit,
    output_names,
)
from edgeflow_mpi.model.images import (
    GRAY,
    IMAGENET,
    Preprocessing,
    image_to_tensor,
    photo_crops,
    read_image,
    sample_photos,
)
from edgeflow_mpi.model.inputs import check_readable, load_inputs
from edgeflow_mpi.model.load import LoadedModel
from edgeflow_mpi.model.torchvision_compat import import_torchvision

RED, BLUE = (255, 0, 0), (0, 0, 255)
PLAIN = Preprocessing(None, None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Add(nn.Module):
    """Takes any tensors."""

    def forward(self, first: torch.Tensor, second: torch.Tensor | None = None) -> torch.Tensor:
        return first + 1 if second is None else first + second


def model_of(
    *examples: torch.Tensor,
    preprocessing: Preprocessing | None = None,
    module: nn.Module | None = None,
) -> LoadedModel:
    module = module or Add()
    program = decompose(export_module(module, examples, "m"), "m")
    return LoadedModel(
        name="m",
        program=program,
        module=module,
        inputs=input_specs(program, "m"),
        output_names=output_names(program, "m"),
        preprocessing=preprocessing,
        categories=None,
        random_weights=False,
        weights_note="",
        integer_limit=integer_limit(program),
    )


@pytest.fixture(scope="module")
def single() -> LoadedModel:
    return model_of(torch.zeros(1, 3, 4, 6), preprocessing=PLAIN)


@pytest.fixture(scope="module")
def batched() -> LoadedModel:
    return model_of(torch.zeros(2, 3, 4, 6), preprocessing=PLAIN)


@pytest.fixture(scope="module")
def pair() -> LoadedModel:
    return model_of(torch.zeros(2, 4), torch.zeros(2, 1))


def write_image(path: Path, color: object = RED, mode: str = "RGB") -> Path:
    Image.new(mode, (12, 8), color).save(path)  # type: ignore[arg-type]
    return path


# Images


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        pytest.param("RGB", (255, 0, 51), (1.0, 0.0, 0.2), id="rgb"),
        pytest.param("L", 51, (0.2, 0.2, 0.2), id="gray"),
        pytest.param("1", 1, (1.0, 1.0, 1.0), id="bilevel"),
        pytest.param("RGBA", (255, 0, 0, 0), (1.0, 1.0, 1.0), id="transparent-is-white"),
        pytest.param("RGBA", (255, 0, 51, 255), (1.0, 0.0, 0.2), id="opaque"),
        pytest.param("LA", (51, 255), (0.2, 0.2, 0.2), id="gray-alpha"),
        pytest.param("I;16", 51 * 257, (0.2, 0.2, 0.2), id="16-bit"),
        pytest.param("I", 51, (0.2, 0.2, 0.2), id="integers"),
        pytest.param("F", 51.0, (0.2, 0.2, 0.2), id="floats"),
        pytest.param("CMYK", (0, 255, 255, 0), (1.0, 0.0, 0.0), id="cmyk"),
    ],
)
def test_every_mode_becomes_rgb(
    mode: str, color: object, expected: tuple[float, float, float]
) -> None:
    image = Image.new(mode, (5, 5), color)  # type: ignore[arg-type]
    tensor = image_to_tensor(image, (3, 2, 2), torch.float32, PLAIN)
    assert tensor.shape == (3, 2, 2)
    torch.testing.assert_close(tensor[:, 0, 0], torch.tensor(expected), atol=2e-3, rtol=0)


def test_palettes_and_their_transparency_are_resolved(tmp_path: Path) -> None:
    palette = Image.new("RGB", (4, 4), BLUE).convert("P")
    palette.save(tmp_path / "p.png")
    palette.save(tmp_path / "t.png", transparency=palette.getpixel((0, 0)))
    opaque = image_to_tensor(read_image(tmp_path / "p.png"), (3, 2, 2), torch.float32, PLAIN)
    clear = image_to_tensor(read_image(tmp_path / "t.png"), (3, 2, 2), torch.float32, PLAIN)
    assert float(opaque[0].max()) < 0.1 and float(opaque[2].min()) > 0.9
    assert torch.equal(clear, torch.ones(3, 2, 2))


def test_the_orientation_of_a_camera_is_respected(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4), RED)
    image.paste(BLUE, (0, 0, 6, 2))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.png", exif=exif)
    upright = image_to_tensor(read_image(tmp_path / "turned.png"), (3, 4, 6), torch.uint8, PLAIN)
    assert upright[:, 0, 0].tolist() == list(RED)
    assert upright[:, 3, 0].tolist() == list(BLUE)


def test_one_channel_is_gray_and_bytes_stay_pixels() -> None:
    image = Image.new("RGB", (4, 4), (51, 51, 51))
    gray = image_to_tensor(image, (1, 4, 4), torch.float32, GRAY)
    torch.testing.assert_close(gray, torch.full((1, 4, 4), 0.2))
    assert image_to_tensor(image, (3, 2, 2), torch.uint8, IMAGENET).unique().tolist() == [51]


@pytest.mark.parametrize(
    ("width", "height"),
    [
        pytest.param(61, 40, id="wide"),
        pytest.param(33, 70, id="tall"),
        pytest.param(9, 9, id="tiny"),
    ],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_classification_images_are_those_of_torchvision(
    width: int, height: int, interpolation: str
) -> None:
    import_torchvision()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    preset = ImageClassification(
        crop_size=28, resize_size=32, interpolation=InterpolationMode(interpolation)
    )
    ours = Preprocessing(32, 28, IMAGENET.mean, IMAGENET.std, interpolation)
    torch.testing.assert_close(
        image_to_tensor(image, (3, 28, 28), torch.float32, ours), preset(image)
    )


def test_an_oblong_input_is_cropped_from_the_middle() -> None:
    image = Image.new("RGB", (30, 90), RED)
    image.paste(BLUE, (0, 30, 30, 60))
    how = Preprocessing(10, 10, PLAIN.mean, PLAIN.std)
    pixels = image_to_tensor(image, (3, 10, 30), torch.uint8, how)
    assert pixels[:, 5, 15].tolist() == list(BLUE)


def test_photo_crops_differ_from_each_other_and_are_the_same_for_a_seed() -> None:
    crops = photo_crops(4, (3, 16, 16), IMAGENET, seed=0)
    assert crops.shape == (4, 3, 16, 16)
    assert len({float(crop.sum()) for crop in crops}) == 4
    assert torch.equal(crops, photo_crops(4, (3, 16, 16), IMAGENET, seed=0))
    assert not torch.equal(crops, photo_crops(4, (3, 16, 16), IMAGENET, seed=1))


# Requests


def test_an_image_is_one_request(single: LoadedModel, tmp_path: Path) -> None:
    path = write_image(tmp_path / "red.png")
    (request,) = load_inputs(path, single)
    assert request.name == "red.png"
    assert request.tensors[0].shape == (1, 3, 4, 6)
    assert request.tensors[0].is_contiguous()
    assert request.tensors[0][0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_a_folder_is_sorted_and_other_files_are_left_alone(
    single: LoadedModel, tmp_path: Path
) -> None:
    write_image(tmp_path / "b.png", BLUE)
    write_image(tmp_path / "a.JPG")
    (tmp_path / "notes.txt").write_text("no image")
    assert [r.name for r in load_inputs(tmp_path, single)] == ["a.JPG", "b.png"]


def test_batches_are_filled_with_the_last_image(tmp_path: Path) -> None:
    model = model_of(torch.zeros(3, 3, 4, 6), preprocessing=PLAIN)
    paths = [write_image(tmp_path / f"{i}.png", (51 * i, 0, 0)) for i in range(5)]
    first, second = load_inputs(paths, model)
    assert first.name == "0.png … 2.png"
    assert second.name == "3.png … 4.png (the last image 2 times, to fill the batch of 3)"
    assert (first.samples, second.samples) == (None, 2)
    reds = [request.tensors[0][:, 0, 0, 0] for request in (first, second)]
    torch.testing.assert_close(reds[0], torch.tensor([0.0, 0.2, 0.4]))
    torch.testing.assert_close(reds[1], torch.tensor([0.6, 0.8, 0.8]))


def test_the_default_is_a_photograph_and_a_batch_has_different_samples() -> None:
    image = model_of(torch.zeros(1, 3, 16, 16), preprocessing=IMAGENET)
    (request,) = load_inputs(None, image)
    assert request.name == "the photograph china.jpg from scikit-learn"
    assert float(request.tensors[0].std()) > 0.1
    (batch,) = load_inputs(None, model_of(torch.zeros(3, 3, 16, 16), preprocessing=IMAGENET))
    assert batch.name.endswith("and 2 crops like it")
    assert torch.equal(batch.tensors[0][:1], request.tensors[0])
    assert len({float(sample.sum()) for sample in batch.tensors[0]}) == 3


def test_the_default_of_other_inputs_is_random_numbers_that_fit() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 2)

        def forward(self, tokens: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return self.table(tokens) * scale

    model = model_of(torch.zeros(1, 40, dtype=torch.int64), torch.zeros(1, 1, 1), module=Lookup())
    (request,) = load_inputs(None, model)
    tokens, scale = request.tensors
    assert request.name == "random numbers, seed 0"
    assert tokens.dtype == torch.int64
    assert 1 < int(tokens.max()) < 50 and int(tokens.min()) >= 0
    assert torch.equal(load_inputs(None, model)[0].tensors[1], scale)
    (flags,) = load_inputs(None, model_of(torch.zeros(8, dtype=torch.int32)))[0].tensors
    assert flags.dtype == torch.int32 and set(flags.tolist()) <= {0, 1}


def test_arrays_hold_one_request_or_several(batched: LoadedModel, tmp_path: Path) -> None:
    array = np.arange(6 * 3 * 4 * 6, dtype=np.float64).reshape(6, 3, 4, 6)
    np.save(tmp_path / "one.npy", array[:2])
    np.save(tmp_path / "three.npy", array.astype(">f4"))
    (one,) = load_inputs(tmp_path / "one.npy", batched)
    assert one.name == "one.npy" and one.tensors[0].dtype == torch.float32
    three = load_inputs(tmp_path / "three.npy", batched)
    assert [r.name for r in three] == ["three.npy[0]", "three.npy[1]", "three.npy[2]"]
    stacked = torch.cat([r.tensors[0] for r in three])
    assert torch.equal(stacked, torch.from_numpy(array).float())


def test_arrays_are_matched_by_name_then_by_order(pair: LoadedModel, tmp_path: Path) -> None:
    first, second = np.ones((4, 4), np.float32), np.full((4, 1), 2, np.float32)
    np.savez(tmp_path / "named.npz", labels=np.zeros(4), second=second, first=first)
    np.savez(tmp_path / "ordered.npz", a=first, b=second)
    for name in ("named.npz", "ordered.npz"):
        requests = load_inputs(tmp_path / name, pair)
        assert len(requests) == 2
        assert [tuple(t.shape) for t in requests[1].tensors] == [(2, 4), (2, 1)]
        assert float(requests[0].tensors[1][0, 0]) == 2.0


# What cannot be used


def broken_png(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:200])


def text_as_png(path: Path) -> None:
    path.write_text("no image")


def empty_folder(path: Path) -> None:
    path.mkdir()


def nothing(path: Path) -> None:
    pass


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)


def array(value: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.save(path, value)


GOOD = np.zeros((1, 3, 4, 6), np.float32)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        pytest.param("x.png", nothing, "there is no input", id="missing"),
        pytest.param("x.png", text_as_png, "is not an image that can be read.", id="text"),
        pytest.param("x.png", broken_png, "cannot be read (", id="damaged"),
        pytest.param("folder", empty_folder, "has no images (.bmp", id="empty-folder"),
        pytest.param("x.npy", nothing, "there is no input", id="no-array"),
        pytest.param("x.npy", text_as_png, "is not a NumPy file that can be read", id="no-numpy"),
        pytest.param("x.npz", text_as_png, "is not a NumPy file that can be read", id="no-npz"),
        pytest.param("x.npy", pickled, "is not a NumPy file that can be read", id="pickle"),
        pytest.param(
            "x.npy", array(GOOD[:, :2]), "has the shape 1x2x4x6 in place of 1x3x4x6.", id="shape"
        ),
        pytest.param("x.npy", array(GOOD[0]), "has the shape 3x4x6 in place of", id="no-batch"),
        pytest.param("x.npy", array(GOOD[:0]), "has the shape 0x3x4x6", id="empty"),
        pytest.param(
            "x.npy", array(GOOD.astype(np.uint8)), "of type uint8 in place of float32.", id="type"
        ),
        pytest.param("x.npy", array(GOOD + np.nan), "not finite", id="nan"),
        pytest.param("x.npy", array(np.full_like(GOOD, np.inf)), "not finite", id="inf"),
        pytest.param("x.npy", array(GOOD.astype(float) + 1e300), "not finite", id="overflow"),
    ],
)
def test_files_that_cannot_be_used_are_one_sentence(
    name: str, write: Callable[[Path], None], message: str, single: LoadedModel, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_inputs(tmp_path / name, single)
    assert "\n" not in str(caught.value)


def test_a_batch_that_does_not_divide_the_samples_is_refused(
    batched: LoadedModel, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 3, 4, 6), np.float32))
    with pytest.raises(InputError, match="has the shape 3x3x4x6 in place of 2x3x4x6"):
        load_inputs(tmp_path / "x.npy", batched)


def test_arrays_that_do_not_belong_together_are_refused(pair: LoadedModel, tmp_path: Path) -> None:
    one = np.zeros((2, 4), np.float32)
    np.savez(tmp_path / "few.npz", first=one)
    with pytest.raises(InputError, match="has the arrays first, and m needs first, second"):
        load_inputs(tmp_path / "few.npz", pair)
    np.savez(tmp_path / "uneven.npz", first=one, second=np.zeros((4, 1), np.float32))
    with pytest.raises(InputError, match="hold different numbers of requests"):
        load_inputs(tmp_path / "uneven.npz", pair)


def test_integers_must_fit_their_type(tmp_path: Path) -> None:
    model = model_of(torch.zeros(2, dtype=torch.uint8))
    np.save(tmp_path / "x.npy", np.array([1, 300]))
    with pytest.raises(InputError, match="has values that do not fit uint8"):
        load_inputs(tmp_path / "x.npy", model)
    np.save(tmp_path / "x.npy", np.array([1, 255]))
    assert load_inputs(tmp_path / "x.npy", model)[0].tensors[0].tolist() == [1, 255]


def test_an_image_for_a_model_of_something_else_is_refused(
    pair: LoadedModel, tmp_path: Path
) -> None:
    path = write_image(tmp_path / "x.png")
    with pytest.raises(InputError, match="m takes 2x4 of float32 and 2x1 of float32, which is not"):
        load_inputs(path, pair)


def test_missing_photographs_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(InputError, match="install scikit-learn, or name an image with --input"):
        sample_photos()


def test_files_that_cannot_be_read_are_found_before_there_is_a_model(tmp_path: Path) -> None:
    picture, array = tmp_path / "red.png", tmp_path / "x.npy"
    Image.new("RGB", (6, 4), RED).save(picture)
    np.save(array, np.zeros(3))
    check_readable([tmp_path, picture, array])
    for path, content in ((picture, picture.read_bytes()[:20]), (array, b"no numbers")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=re.escape(path.name)):
            check_readable([path])
    with pytest.raises(InputError, match="there is no input"):
        check_readable([tmp_path / "none.npz"])

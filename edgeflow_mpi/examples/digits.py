"""A small network for handwritten digits, trained here and run over MPI.

The network is a real DAG in miniature: residual blocks whose branches are added, and
Inception blocks whose branches are concatenated. It learns the 8 x 8 pixel digits that
scikit-learn ships in some seconds. Three commands show that the distributed run gives the
same prediction for every image that it has not been trained on::

    python -m edgeflow_mpi.examples.digits train --out digits.pt2
    mpirun -n 3 python -m edgeflow_mpi.run --model digits.pt2 \\
        --input digits-heldout.npz --output answers.npz
    python -m edgeflow_mpi.examples.digits compare --model digits.pt2 \\
        --heldout digits-heldout.npz --answers answers.npz
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edgeflow_mpi.errors import EdgeflowError, InputError
from edgeflow_mpi.model.inputs import load_inputs
from edgeflow_mpi.model.load import load_model
from edgeflow_mpi.model.reference import reference_outputs
from edgeflow_mpi.progress import ConsoleProgress, NoProgress, Progress

CLASSES = 10
SIDE_PX = 8
BRIGHTEST = 16.0
HELD_OUT = 360
TRAINING_BATCH = 64
PEAK_LEARNING_RATE = 0.01


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and ReLU, keeping the size of the map at stride 1."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; the shortcut is a projection where needed."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvNorm(channels_in, channels, 3, stride)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class Inception(nn.Module):
    """Four branches of different reach, concatenated: 1 x 1, 3 x 3, 5 x 5 and a pool."""

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__()
        self.near = ConvNorm(channels_in, width, 1)
        self.middle = nn.Sequential(ConvNorm(channels_in, width, 1), ConvNorm(width, width, 3))
        self.far = nn.Sequential(ConvNorm(channels_in, width, 1), ConvNorm(width, width, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNorm(channels_in, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.near(x), self.middle(x), self.far(x), self.pool(x)), dim=1)


class DigitsNet(nn.Module):
    """Stem, residual and Inception blocks on 8 rows and on 4, global pooling, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNorm(1, 16, 3),
            Residual(16, 16),
            Inception(16, 8),
            Residual(32, 48, stride=2),
            Inception(48, 16),
        )
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, 10)`` of images ``(N, 1, 8, 8)`` with values from 0 to 1."""
        maps = self.features(images)
        logits: torch.Tensor = self.classifier(maps.mean(dim=(2, 3)))
        return logits


@dataclass(frozen=True)
class Digits:
    """Images ``(N, 1, 8, 8)`` in 0..1 and their labels ``(N,)``, in two disjoint parts."""

    images: torch.Tensor
    labels: torch.Tensor
    heldout_images: torch.Tensor
    heldout_labels: torch.Tensor


def load_digits(seed: int) -> Digits:
    """The digits of scikit-learn, shuffled, with 360 of 1797 held out.

    Raises
    ------
    InputError
        Where scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise InputError("this example needs scikit-learn: pip install scikit-learn.") from error
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = torch.from_numpy(pixels / BRIGHTEST).float().reshape(-1, 1, SIDE_PX, SIDE_PX)
    targets = torch.from_numpy(labels).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, held_out = order[HELD_OUT:], order[:HELD_OUT]
    return Digits(images[train], targets[train], images[held_out], targets[held_out])


def train(digits: Digits, *, epochs: int, seed: int, progress: Progress) -> DigitsNet:
    """Train from scratch, on images shifted by up to one pixel; the same for a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitsNet().train()
        steps_per_epoch = len(digits.images) // TRAINING_BATCH
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, PEAK_LEARNING_RATE, total_steps=epochs * steps_per_epoch
        )
        for epoch in range(epochs):
            order = torch.randperm(len(digits.images))
            for step in range(steps_per_epoch):
                chosen = order[step * TRAINING_BATCH : (step + 1) * TRAINING_BATCH]
                logits = network(_shifted(digits.images[chosen]))
                loss = F.cross_entropy(logits, digits.labels[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            progress.update(f"epoch {epoch + 1} of {epochs}, loss {loss.item():.4f}")
    return network.eval()


def _shifted(images: torch.Tensor) -> torch.Tensor:
    """Every image moved by -1, 0 or 1 pixels in both directions, at random."""
    windows = F.pad(images, (1, 1, 1, 1)).unfold(2, SIDE_PX, 1).unfold(3, SIDE_PX, 1)
    down, right = torch.randint(3, (2, len(images)))
    return windows[torch.arange(len(images)), :, down, right]


def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images whose largest logit is that of their label."""
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).float().mean())


def save(network: DigitsNet, digits: Digits, out: Path, *, batch: int) -> Path:
    """Write the program for images in batches, and next to it the held-out images.

    Returns
    -------
    Path
        The ``.npz`` file with ``images``, which ``--input`` takes, and ``labels``.

    Raises
    ------
    InputError
        Where a file cannot be written.
    """
    heldout = out.with_name(f"{out.stem}-heldout.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (digits.heldout_images[:batch],))
        try:
            torch.export.save(program, out)
            np.savez(
                heldout,
                images=digits.heldout_images.numpy(),
                labels=digits.heldout_labels.numpy(),
            )
        except (OSError, RuntimeError) as error:
            raise InputError(f"{out} cannot be written ({error}).") from error
    return heldout


def compare(model_path: Path, heldout: Path, answers: Path) -> tuple[int, int, float]:
    """Predictions of a distributed run against those of plain torch.

    Parameters
    ----------
    model_path, heldout : Path
        What :func:`save` wrote.
    answers : Path
        What ``--output`` wrote for ``--input heldout``.

    Returns
    -------
    same, count : int
        Number of images with the same prediction, and of all images.
    accuracy : float
        Share of right predictions in ``answers``.

    Raises
    ------
    EdgeflowError
        Where a file cannot be read or belongs to another run.
    """
    model = load_model(
        str(model_path), weights=None, input_shapes=None, seed=0, progress=NoProgress()
    )
    try:
        with np.load(heldout) as file:
            labels = file["labels"]
        with np.load(answers) as file:
            logits = file[model.output_names[0]].reshape(-1, CLASSES)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{answers} or {heldout} cannot be used ({error}).") from error
    if len(logits) != len(labels):
        raise InputError(f"{answers} has answers for {len(logits)} images, not for {len(labels)}.")
    requests = load_inputs(heldout, model)
    plain = torch.cat([reference_outputs(model, r.tensors, torch.float32)[0] for r in requests])
    predicted = logits.argmax(1)
    same = int((predicted == plain.argmax(1).numpy()).sum())
    return same, len(plain), float((predicted == labels).mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "train":
            return _train_command(options, ConsoleProgress())
        same, count, right = compare(options.model, options.heldout, options.answers)
    except EdgeflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{same} of {count} predictions are those of plain torch; "
        f"{100 * right:.1f} % of the held-out images are recognised."
    )
    return 0 if same == count else 1


def _train_command(options: argparse.Namespace, progress: ConsoleProgress) -> int:
    # Layers this small gain nothing from a second thread, and lose much on a busy machine.
    torch.set_num_threads(1)
    if options.out.suffix != ".pt2":
        raise InputError(f"the program has to be written to a .pt2 file, not to {options.out}.")
    if not options.out.absolute().parent.is_dir():
        raise InputError(f"{options.out} cannot be written: there is no such folder.")
    if options.batch < 1 or HELD_OUT % options.batch:
        raise InputError(f"a batch of {options.batch} does not divide {HELD_OUT} held-out images.")
    digits = load_digits(options.seed)
    with progress.step(f"train on {len(digits.images)} digits"):
        network = train(digits, epochs=options.epochs, seed=options.seed, progress=progress)
    right = accuracy(network, digits.heldout_images, digits.heldout_labels)
    heldout = save(network, digits, options.out, batch=options.batch)
    print(f"{100 * right:.1f} % of {HELD_OUT} held-out images are recognised.")
    print(f"The model is in {options.out}, the held-out images are in {heldout}.")
    print(
        f"Now run: mpirun -n 3 python -m edgeflow_mpi.run --model {options.out} "
        f"--input {heldout} --output answers.npz"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgeflow_mpi.examples.digits",
        description="Train a small residual and Inception network on handwritten digits.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train, and write the model and held-out images")
    training.add_argument("--out", type=Path, default=Path("digits.pt2"), help="a .pt2 file")
    training.add_argument("--epochs", type=int, default=20, choices=range(1, 1001), metavar="N")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument(
        "--batch", type=int, default=8, help="images in one inference; must divide 360"
    )
    checking = commands.add_parser("compare", help="compare a run's answers with plain torch")
    checking.add_argument("--model", type=Path, default=Path("digits.pt2"))
    checking.add_argument("--heldout", type=Path, default=Path("digits-heldout.npz"))
    checking.add_argument("--answers", type=Path, default=Path("answers.npz"))
    return parser


if __name__ == "__main__":
    sys.exit(main())

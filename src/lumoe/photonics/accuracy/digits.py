"""A small convolutional network for scikit-learn's handwritten digits, the real data that the core is tried on.

The 1 797 images of 8×8 pixels are the test set of Alpaydin and Kaynak's Optical Recognition of Handwritten Digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from lumoe.errors import UserError
from lumoe.files import atomic_path
from lumoe.progress import track

NETWORK, DATASET = "digits-cnn", "sklearn-digits"
_BATCH = 64


@dataclass(frozen=True)
class Training:
    """How a network is trained: passes over the training images, the highest learning rate, and the order's seed."""

    epochs: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Digits:
    """Images [n, 1, 8, 8] in [0, 1] and labels [n], split in two."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load(test_share: float = 1 / 3) -> Digits:
    """Return the digits, split once and for all by class."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    indices = range(len(labels))
    train, test = train_test_split(indices, test_size=test_share, random_state=0, stratify=labels)
    targets = torch.tensor(labels)
    return Digits(images[train], targets[train], images[test], targets[test])


def build() -> nn.Sequential:
    """Return the untrained network: three 3×3 convolutions and one linear layer, 6 438 weights and biases."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 28, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(112, 10),
    )


def train(model: nn.Module, digits: Digits, training: Training) -> None:
    """Train `model` in place with AdamW and a falling rate; every other batch is shifted by up to one pixel."""
    generator = torch.Generator().manual_seed(training.seed)
    count = len(digits.train_images)
    steps = training.epochs * -(-count // _BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=steps)
    model.train()
    for _ in track(range(training.epochs), "epochs"):
        for batch in torch.split(torch.randperm(count, generator=generator), _BATCH):
            images = _shifted(digits.train_images[batch], generator)
            loss = nn.functional.cross_entropy(model(images), digits.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    down, across = torch.randint(0, 3, (2,), generator=generator).tolist()
    if float(torch.rand(1, generator=generator)) < 0.5:
        return images
    return nn.functional.pad(images, [1] * 4)[..., down : down + 8, across : across + 8]


def trained(training: Training) -> nn.Sequential:
    """Return the network trained from scratch; the same numbers for the same training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = build()
    train(model, load(), training)
    return model


@torch.no_grad()
def correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return whether each image is classified rightly, [n] of bool."""
    return torch.as_tensor(model(images).argmax(-1) == labels)


def save(model: nn.Module, path: str | Path) -> None:
    """Write the network's parameters as safetensors."""
    with atomic_path(path) as temporary:
        save_file(model.state_dict(), temporary)


def read(path: str | Path) -> nn.Sequential:
    """Read a network that :func:`save` wrote.

    Raises:
        UserError: no such file, or not this network's parameters.
    """
    model = build()
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:
        raise UserError(f"{path}: not the parameters of {NETWORK} ({' '.join(str(error).split())[:120]})") from None
    return model.eval()

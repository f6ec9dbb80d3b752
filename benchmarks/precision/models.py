"""The flows that the figures of precision are of, with the images that each is measured on."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.sizes import parameters_of
from nflows_mixer.data import ImageData, load_images
from nflows_mixer.flows import ImageFlow, Pixels, load_weights, mixerflow
from nflows_mixer.noise import uniform_noise
from nflows_mixer.training import FlowModule, Recipe, fit

SEED, MOVED = 0, 0.003
DIGITS: dict[str, Any] = {
    "patch_size": 2,
    "num_layers": 2,
    "hidden_features": 64,
    "norm": "batch",
    "pixels": Pixels(logit=1e-3),
}
DIGITS_RECIPE = Recipe(steps=300, batch_size=100, learning_rate=3e-3, warmup=0.05)
SMALL = (3, 8, 12)


@dataclass
class Model:
    """A flow to measure, with images that it was not trained on and facts for the report."""

    name: str
    flow: ImageFlow
    test: Tensor
    facts: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """Return what the report says of it, ready for JSON."""
        return {
            "name": self.name,
            "parameters": parameters_of(self.flow),
            "image_shape": list(self.flow.image_shape),
            "levels": self.flow.dequantization.levels,
            **self.facts,
        }


def initialized(flow: ImageFlow, images: Tensor) -> ImageFlow:
    """Initialize ActNorm from images, with noise that depends on the seed alone."""
    noise = uniform_noise(SEED, 0, torch.arange(len(images)), flow.image_shape)
    return flow.initialize(images, noise=noise)


def moved(flow: ImageFlow, std: float) -> ImageFlow:
    """Move every parameter off its start at random, in place."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += std * torch.randn_like(parameter)
    return flow


def trained(
    flow: ImageFlow, recipe: Recipe, data: ImageData, seed: int
) -> tuple[ImageFlow, dict[str, Any]]:
    """Train a flow as the package does, on the CPU; return it, from its file, and the results."""
    with tempfile.TemporaryDirectory() as folder:
        results = fit(
            FlowModule(flow, recipe, seed=seed),
            data,
            folder,
            accelerator="cpu",
            enable_progress_bar=False,
        )
        return load_weights(Path(folder) / "weights.safetensors", flow), results


def digits_models() -> list[Model]:
    """Return a small flow on scikit-learn's digits, as it starts and after some training."""
    data = load_images("digits", seed=SEED)
    described = data.describe()
    assert data.test is not None
    test = data.test.images()

    def built() -> ImageFlow:
        torch.manual_seed(SEED)
        return mixerflow(image_shape=data.image_shape, levels=data.levels, **DIGITS)

    start = initialized(built(), data.train.images(slice(DIGITS_RECIPE.batch_size)))
    flow, results = trained(built(), DIGITS_RECIPE, data, SEED)
    training = {
        "recipe": asdict(DIGITS_RECIPE),
        "bits_per_dim": results["bits_per_dim"],
        "train_seconds": results["train_seconds"],
    }
    facts = {**described, "seed": SEED}
    return [
        Model("digits, untrained", start, test, {"made": "ActNorm initialized", **facts}),
        Model("digits, trained", flow, test, {"made": "trained", **facts, **training}),
    ]


def preset_models() -> list[Model]:
    """Return the preset ``cifar10`` as it starts, moved off it, and moved with smaller images."""
    facts: dict[str, Any] = {"data": "made images: smooth colours with grain", "seed": SEED}
    train, test = made_images(64, (3, 32, 32)), made_images(64, (3, 32, 32), seed=1)

    def built(train: Tensor, std: float = 0.0) -> ImageFlow:
        torch.manual_seed(SEED)
        flow = mixerflow("cifar10", image_shape=tuple(train.shape[1:]))
        return initialized(moved(flow, std), train)

    crop = (..., slice(0, SMALL[1]), slice(0, SMALL[2]))
    small = f"cifar10 preset on {' x '.join(map(str, SMALL))}, moved"
    start = {"made": "ActNorm initialized", **facts}
    off = {"made": f"moved off its start by {MOVED:g}, then ActNorm initialized", **facts}
    return [
        Model("cifar10 preset, untrained", built(train), test, start),
        Model("cifar10 preset, moved", built(train, MOVED), test, off),
        Model(small, built(train[crop], MOVED), test[crop], off),
    ]


def input_images(test: Tensor, levels: int, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Return the images of each kind.

    Args:
        test: uint8 [N, C, H, W], which the flow was not trained on.
        levels: number of pixel values.
        count: images of a kind, at most.
        seed: of the noise.

    Returns:
        Kind -> uint8 [n, C, H, W]: test images, uniform noise, every pixel of one value,
        checkerboards of black and white in cells of 1, 2 and 4 pixels, and inverted test images.
    """
    test = test[:count]
    shape = tuple(test.shape[1:])
    index = torch.arange(len(test))
    noise = (uniform_noise(seed, 0, index, shape) * levels).to(torch.uint8)
    values = torch.linspace(0, levels - 1, min(count, levels)).round().to(torch.uint8)
    constant = values.reshape(-1, 1, 1, 1).expand(-1, *shape).contiguous()
    return {
        "test": test,
        "uniform noise": noise,
        "constant": constant,
        "checkerboard": checkerboards(shape, levels)[:count],
        "inverted test": levels - 1 - test,
    }


def checkerboards(shape: tuple[int, ...], levels: int) -> Tensor:
    """Return black and white boards in cells of 1, 2 and 4 pixels, both ways round."""
    rows, columns = torch.meshgrid(*map(torch.arange, shape[1:]), indexing="ij")
    boards = [(rows // cell + columns // cell + way) % 2 for cell in (1, 2, 4) for way in (0, 1)]
    stacked = torch.stack(boards).to(torch.uint8) * (levels - 1)
    return stacked[:, None].expand(-1, *shape).contiguous()


def made_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    r"""Return images of 256 levels that stand in for photographs.

    .. math:: x = \lfloor 128 + 45\, \mathrm{up}(a) + 8\, b \rfloor, \qquad
              a \in \mathbb R^{C \times 4 \times 4},\ b \in \mathbb R^{C \times H \times W}

    with standard normal a and b, a brought to H x W by bilinear interpolation, and clamped to
    0 ... 255: smooth colours with a little grain.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, shape[0], 4, 4, generator=generator)
    smooth = F.interpolate(coarse, shape[1:], mode="bilinear", align_corners=True)
    grain = torch.randn(count, *shape, generator=generator)
    return (128 + 45 * smooth + 8 * grain).floor().clamp(0, 255).to(torch.uint8)

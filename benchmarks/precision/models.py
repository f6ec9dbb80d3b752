"""The flows that the figures of precision are of, with the images that each is measured on."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.precision.inputs import made_images
from nflows_mixer.data import ImageData, load_images
from nflows_mixer.flows import ImageFlow, Pixels, load_weights, mixerflow, read_metadata
from nflows_mixer.flows.weights import architecture_of
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
            "parameters": sum(p.numel() for p in self.flow.parameters()),
            "image_shape": list(self.flow.image_shape),
            "levels": self.flow.dequantization.levels,
            **self.facts,
            "architecture": architecture_of(self.flow),
        }


def initialized(flow: ImageFlow, images: Tensor) -> ImageFlow:
    """Initialise ActNorm from images, with noise that depends on the seed alone."""
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
        Model("digits, untrained", start, test, {"made": "ActNorm initialised", **facts}),
        Model("digits, trained", flow, test, {"made": "trained", **facts, **training}),
    ]


def preset_models(images: str | None = None) -> list[Model]:
    """Return the preset ``cifar10`` as it starts, moved off it, and moved with smaller images.

    Args:
        images: .npz file of real images of 3 x 32 x 32; made ones are used where None.
    """
    if images is None:
        facts: dict[str, Any] = {"data": "made images: smooth colours with grain", "seed": SEED}
        train, test = made_images(64, (3, 32, 32)), made_images(64, (3, 32, 32), seed=1)
    else:
        data = load_images(images, seed=SEED)
        assert data.test is not None
        facts = {**data.describe(), "seed": SEED}
        train, test = data.train.images(slice(64)), data.test.images(slice(64))

    def built(train: Tensor, std: float = 0.0) -> ImageFlow:
        torch.manual_seed(SEED)
        flow = mixerflow("cifar10", image_shape=tuple(train.shape[1:]))
        return initialized(moved(flow, std), train)

    crop = (..., slice(0, SMALL[1]), slice(0, SMALL[2]))
    small = f"cifar10 preset on {' x '.join(map(str, SMALL))}, moved"
    start = {"made": "ActNorm initialised", **facts}
    off = {"made": f"moved off its start by {MOVED:g}, then ActNorm initialised", **facts}
    return [
        Model("cifar10 preset, untrained", built(train), test, start),
        Model("cifar10 preset, moved", built(train, MOVED), test, off),
        Model(small, built(train[crop], MOVED), test[crop], off),
    ]


def model_of_file(weights: str, source: str | None, root: str) -> Model:
    """Return the flow of a weights file, with the test images of its data.

    Args:
        weights: what training wrote.
        source: for ``load_images``; what the file names where None.
        root: likewise.
    """
    described = json.loads(read_metadata(weights).get("data", "{}"))
    source = source or described.get("data")
    if source is None:
        raise SystemExit(f"error: {weights} does not name its data; give --data")
    data, flow = load_images(source, root=root), load_weights(weights)
    if flow.image_shape != data.image_shape or flow.dequantization.levels != data.levels:
        raise SystemExit(
            f"error: expected images of {flow.image_shape} for {weights}, got {data.image_shape} "
            f"of {source}; give others with --data"
        )
    if flow._takes_context:
        raise SystemExit("error: expected a flow without context; these figures give it none")
    held_out = data.validation if data.test is None else data.test
    facts = {"made": "weights of a file", **data.describe()}
    return Model(Path(weights).name, flow, held_out.images(slice(400)), facts)

"""What a run writes down: figures, history, curves, samples, and where numbers broke."""

import io
import json
import math
import time

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from nflows_mixer.data import ImageData
from nflows_mixer.evaluation import evaluate
from nflows_mixer.training import FlowModule, ImageDataModule, Recipe, find_non_finite
from nflows_mixer.transforms import AffineCoupling
from tests.training import initialized, noise_data, pixels, plain, plain_trainer, run, tiny

# Evaluation.


@pytest.mark.parametrize("decay", [None, 0.8])
def test_figures_are_those_of_evaluate(tmp_path, decay):
    data = noise_data((620, 12, 503))  # the batches of evaluation have 500
    module = FlowModule(tiny(), Recipe(1e-2, steps=3, batch_size=10, ema_decay=decay), seed=9)
    results = run(module, data, tmp_path, validate_every=3)
    # Of the images trained on, as many as are held out.
    parts = {"train": data.train.subset(slice(503)), "validation": data.validation}
    parts["test"] = data.test
    for (part, dataset), images in zip(parts.items(), (503, 12, 503)):
        bits = evaluate(module.evaluated, dataset, seed=9).double()
        assert results["evaluated_images"][part] == len(bits) == images
        assert results["bits_per_dim"][part] == pytest.approx(bits.mean().item(), abs=2e-6)
        assert results["worst_image"][part] == pytest.approx(bits.max().item(), abs=2e-6)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    last = json.loads((tmp_path / "history.json").read_text())[-1]
    assert last["validation/bits_per_dim"] == pytest.approx(results["bits_per_dim"]["validation"])
    assert last["validation/worst_image"] == pytest.approx(results["worst_image"]["validation"])


@plain
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_broken_image_breaks_the_mean_and_the_worst(value):
    data, flow = noise_data((20, 12, 510)), initialized(tiny())
    broken = data.test.images(3)
    log_prob = flow.log_prob

    def breaking(images, *arguments):
        hit = (images == broken).flatten(1).all(1)
        return log_prob(images, *arguments).masked_fill(hit, -value)

    flow.log_prob = breaking
    recipe = Recipe(batch_size=10)
    trainer = plain_trainer()
    module = FlowModule(flow, recipe)
    trainer.test(module, datamodule=ImageDataModule(data, recipe), verbose=False)
    figures = {name: figure.item() for name, figure in trainer.callback_metrics.items()}
    for name in ("test/bits_per_dim", "test/worst_image"):
        assert figures.pop(name) == pytest.approx(value, nan_ok=True)
    figures = {k: v for k, v in figures.items() if "evaluated_images" not in k}
    assert len(figures) == 4 and all(map(math.isfinite, figures.values()))


def test_data_without_a_test_part_report_the_validation_part(tmp_path):
    data = noise_data()
    data = ImageData("noise", data.train, data.validation, None, levels=17)
    results = run(FlowModule(tiny(), Recipe(steps=1, batch_size=10)), data, tmp_path)
    assert list(results["bits_per_dim"]) == list(results["worst_image"]) == ["train", "validation"]
    assert (tmp_path / "results.md").read_text().startswith("| noise, 12 validation images |")


def test_data_of_other_levels_than_the_flow_are_refused(tmp_path):
    """Bits per dimension of 256 levels beside reference models of 17 would compare nothing."""
    module = FlowModule(tiny(levels=256), Recipe(steps=1, batch_size=10))
    with pytest.raises(ValueError, match="levels"):
        run(module, noise_data(), tmp_path)


# Numbers that are not finite.


def attributes_of(flow):
    return {name: sorted(vars(part)) for name, part in flow.named_modules()}


def test_forward_pass_that_breaks_is_traced_to_the_innermost_part():
    flow = initialized(tiny())
    coupling = next(name for name, m in flow.named_modules() if isinstance(m, AffineCoupling))
    before = attributes_of(flow)
    with torch.no_grad():
        flow.get_submodule(coupling).conditioner.final.bias.fill_(1e4)
    found = find_non_finite(flow, pixels(5), None, None)
    assert found.startswith(f"'{coupling}' (AffineCoupling) made values that are not finite")
    assert attributes_of(flow) == before
    parameter = next(flow.parameters())
    parameter.data.flatten()[0] = math.nan
    name = next(name for name, _ in flow.named_parameters())
    assert find_non_finite(flow, pixels(5), None, None) == (
        f"the parameter {name!r} is not finite already"
    )


def test_gradient_alone_that_breaks_and_nothing():
    flow = initialized(tiny())
    flow.log_prob(pixels(5)).mean().backward()
    assert find_non_finite(flow, pixels(5), None, None) == (
        "the forward pass and the gradients of a second run are finite"
    )
    name, parameter = list(flow.named_parameters())[3]
    parameter.grad.flatten()[0] = math.nan
    found = find_non_finite(flow, pixels(5), None, None)
    assert found == f"the forward pass is finite, and the gradients are not of {name!r}"


def test_base_that_breaks_is_not_called_finite():
    flow = initialized(tiny())
    with torch.no_grad():
        flow._distribution.location.fill_(1e25)  # its square is beyond float32
    assert not torch.isfinite(flow.log_prob(pixels(5))).any()
    assert "_distribution" in find_non_finite(flow, pixels(5), None, None)


# What is written down.


class Figures(Callback):
    def __init__(self):
        self.bits, self.rates = [], []

    def on_train_start(self, *_):
        self.started = time.process_time()

    def on_train_end(self, *_):
        self.of_all = time.process_time() - self.started

    def on_train_batch_end(self, trainer, module, *_):
        self.bits.append(module.training_bits)

    def on_validation_start(self, *_):
        end = time.process_time() + 1.5
        while time.process_time() < end:
            pass


def test_history_files_and_events(tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    figures = Figures()
    recipe = Recipe(1e-2, steps=5, batch_size=10, ema_decay=0.5)
    module = FlowModule(tiny(), recipe, seed=2)
    options = {"validate_every": 3, "record_every": 2, "callbacks": (figures,)}
    results = run(module, noise_data(), tmp_path, **options)
    history = json.loads((tmp_path / "history.json").read_text())
    entries = [e for e in history if "train/bits_per_dim" in e]
    assert [e["step"] for e in history] == [2, 3, 4, 5]
    assert [e["step"] for e in entries] == [2, 4, 5]
    for entry, first in zip(entries, (0, 2, 4)):
        bits = torch.cat(figures.bits[first : entry["step"]])
        assert entry["train/bits_per_dim"] == pytest.approx(bits.mean().item())
        assert entry["train/worst_image"] == pytest.approx(bits.max().item())
        assert entry["learning_rate"] == pytest.approx(1e-2 * recipe.schedule(entry["step"]))
        assert entry["images_per_second"] > 0 and entry["peak_memory_mb"] > 10
    assert results["images_per_second"] > 0 and results["peak_memory_mb"] > 10
    # Without the 1.5 s of a validation; the figure is rounded.
    assert 0 < results["train_cpu_seconds"] < figures.of_all - 1.5 + 0.05
    for name in ("samples.png", "curve.png", "samples/step-00000003.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in set().union(*history) - {"step"}:
        logged = [(e.step, e.value) for e in events.Scalars(name)]
        expected = [(e["step"], e[name]) for e in history if name in e]
        for step, value in expected:
            assert any(s == step and v == pytest.approx(value, rel=1e-6) for s, v in logged)
    (image,) = events.Images("samples")
    assert image.step == 3
    grid = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("L"))
    assert grid.shape == (32, 32)

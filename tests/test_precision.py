"""Precision: the kept figures, and what is measured, on flows with known answers."""

import json
import math
from pathlib import Path

import pytest
import torch
from nflows.transforms import CompositeTransform, Transform
from torch import distributions

from benchmarks.precision.measure import (
    PRECISIONS,
    in_precision,
    jacobian_figures,
    own_samples,
    round_trip,
    square_integral,
)
from benchmarks.precision.models import checkerboards, input_images, made_images
from nflows_mixer.flows import ImageFlow, mixerflow
from nflows_mixer.transforms import PixelScaling

KEPT = Path(__file__).parents[1] / "benchmarks/precision/results.json"
FLOAT64, FLOAT32 = PRECISIONS[:2]
FIGURES = ("largest", "mean", "smallest", "value")
KINDS = {"test", "uniform noise", "constant", "checkerboard", "inverted test"}


@pytest.fixture(scope="module")
def written():
    return json.loads(KEPT.read_text())


class Wrong(Transform):
    """Twice the inputs, with a log-det and an inverse that are each wrong by a given amount."""

    def __init__(self, error=0.0, logabsdet_error=0.0):
        super().__init__()
        self.error, self.logabsdet_error = error, logabsdet_error

    def forward(self, inputs, context=None):
        right = inputs[0].numel() * math.log(2)
        return 2 * inputs, inputs.new_full((len(inputs),), right + self.logabsdet_error)

    def inverse(self, inputs, context=None):
        return inputs / 2 + self.error, -self.forward(inputs)[1]


class Poisoned(Wrong):
    """One value of the first image becomes NaN, on the way back too."""

    def forward(self, inputs, context=None):
        outputs, logabsdet = super().forward(inputs)
        outputs[0, 0, 0, 0] = math.nan
        return outputs, logabsdet


def test_every_figure_is_finite_or_says_why_there_is_none(written):
    def look(value):
        if isinstance(value, dict):
            missing = [key for key in FIGURES if value.get(key, 0) is None]
            assert not missing or value["why"], value
            for each in value.values():
                look(each)
        elif isinstance(value, list):
            for each in value:
                look(each)
        elif isinstance(value, float):
            assert math.isfinite(value)

    look({key: value for key, value in written.items() if key != "versions"})


def test_trained_flow_is_exact_in_float64(written):
    model = next(model for model in written["models"] if model["name"] == "digits, trained")
    assert model["split_hash"] and model["recipe"]["steps"] and model["seed"] == 0
    precision = model["precisions"]["float64"]
    for figures in precision["inputs"].values():
        assert figures["non_finite"] == 0
        assert figures["round_trip"]["largest"] / model["levels"] < 1e-6
        assert figures["logabsdet"]["largest"] < 1e-8
    assert precision["own_samples"]["difference"]["largest"] < 1e-6


def test_densities_of_two_pixels_integrate_to_one(written):
    for row in written["two_pixels"]["rows"]:
        assert row["integral"]["value"] == pytest.approx(1, abs=1e-3)
        mass = row["mass of the range"]["value"]
        assert mass <= 1
        within = 5 * row["standard error"] + 1e-3
        assert row["sum over all images"] == pytest.approx(mass, abs=within)


def test_round_trip_finds_an_error_of_known_size():
    pixels = torch.rand(6, 1, 2, 2, dtype=torch.float64)
    right = torch.full((2,), 4 * math.log(2), dtype=torch.float64)
    found = round_trip(Wrong(0.25, 0.5), pixels, FLOAT64, batch_size=4, logabsdet=right)
    assert found["round_trip"] == pytest.approx({"largest": 0.25, "mean": 0.25})
    assert found["logabsdet"] == pytest.approx({"images": 2, "largest": 0.5, "mean": 0.5})
    assert found["non_finite"] == 0 and found["images"] == 6


def test_round_trip_counts_what_is_not_finite():
    pixels = torch.rand(5, 1, 2, 2, dtype=torch.float64)
    found = round_trip(Poisoned(0.25), pixels, FLOAT64)
    # A latent and a pixel, of 20 latents, 5 log-dets and 20 pixels.
    assert found["non_finite"] == pytest.approx(2 / 45)
    assert found["round_trip"]["largest"] == pytest.approx(0.25)
    alone = round_trip(Poisoned(), pixels[:1], FLOAT64)
    assert alone["non_finite"] == pytest.approx(2 / 9)
    assert alone["round_trip"]["largest"] is None and alone["round_trip"]["why"]


def test_singular_values_of_a_scaling_are_its_scale():
    layers = [PixelScaling(4), PixelScaling(8)]
    pixels = torch.rand(2, 1, 2, 3, dtype=torch.float64)
    depths, logabsdets = jacobian_figures(layers, pixels)
    for depth, scale in zip(depths, (1 / 4, 1 / 32)):
        assert depth["layer"] == "PixelScaling"
        assert depth["largest"] == pytest.approx(scale, rel=1e-12)
        assert depth["smallest"] == pytest.approx(scale, rel=1e-12)
    assert logabsdets.tolist() == pytest.approx([-6 * math.log(32)] * 2)


def test_singular_values_that_overflow_say_so():
    pixels = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    depths, logabsdets = jacobian_figures([Wrong(), Infinite()], pixels)
    assert depths[0]["largest"] == pytest.approx(2)
    assert depths[1]["largest"] is None and depths[1]["why"]
    assert logabsdets.isnan().all()


class Infinite(Wrong):
    def forward(self, inputs, context=None):
        return inputs * math.inf, inputs.new_zeros(len(inputs))


def test_jacobian_of_a_flow_has_its_log_det():
    flow = mixerflow(image_shape=(1, 6, 6), patch_size=2, levels=17, num_layers=2, norm="batch")
    flow.initialize(torch.randint(17, (60, 1, 6, 6), dtype=torch.uint8))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    copied = in_precision(flow, FLOAT64)
    pixels = 17 * torch.rand(2, 1, 6, 6, dtype=torch.float64)
    _, logabsdets = jacobian_figures(list(copied._transform._transforms), pixels)
    found = round_trip(copied._transform, pixels, FLOAT64, logabsdet=logabsdets)
    assert found["logabsdet"]["largest"] < 1e-10 and found["round_trip"]["largest"] < 1e-10
    assert own_samples(copied, 20, FLOAT64)["difference"]["largest"] < 1e-8
    # Half precision in the conditioners is not free, and leaves the flow itself in float32.
    half = round_trip(in_precision(flow, FLOAT32)._transform, pixels, PRECISIONS[3])
    assert half["round_trip"]["largest"] < 1 and half["non_finite"] == 0
    assert next(flow.parameters()).dtype == torch.float32


def test_own_samples_find_a_log_det_of_another_sign():
    class OneWay(Wrong):
        def inverse(self, inputs, context=None):
            return inputs / 2, self.forward(inputs)[1]

    flow = in_precision(ImageFlow(OneWay(), (1, 1, 2), levels=4), FLOAT64)
    found = own_samples(flow, 10, FLOAT64)
    assert found["difference"]["largest"] == pytest.approx(4 * math.log(2))
    broken = CompositeTransform([Wrong(math.nan)])
    found = own_samples(in_precision(ImageFlow(broken, (1, 1, 2), levels=4), FLOAT64), 4, FLOAT64)
    # 8 values, the 4 log-probabilities that could not be found, of 16.
    assert found["non_finite"] == pytest.approx(12 / 16) and found["difference"]["why"]


@pytest.mark.parametrize("stretched", [False, True])
def test_integral_of_a_normal_distribution(stretched):
    normal = distributions.Normal(torch.tensor(0.3, dtype=torch.float64), 2.0)

    def log_density(points):
        return normal.log_prob(points).sum(1)

    assert square_integral(log_density, -40, 44, 500, stretched) == pytest.approx(1, abs=1e-8)
    part = (normal.cdf(torch.tensor(3.0)) - normal.cdf(torch.tensor(-1.0))).item()
    found = square_integral(log_density, -1, 3, 500, stretched)
    assert found == pytest.approx(part**2, rel=1e-5)


def test_inputs_by_hand():
    test = torch.tensor([0, 16, 3, 4], dtype=torch.uint8).reshape(1, 1, 2, 2).repeat(20, 1, 1, 1)
    images = input_images(test, 17, 18)
    assert set(images) == KINDS
    assert images["inverted test"][0].flatten().tolist() == [16, 0, 13, 12]
    assert images["constant"].flatten(1).tolist() == [[value] * 4 for value in range(17)]
    assert images["uniform noise"].max() <= 16 and len(images["test"]) == 18
    board = checkerboards((1, 2, 2), 17)
    assert board[0].flatten().tolist() == [0, 16, 16, 0]
    assert board[3].flatten().tolist() == [16] * 4
    assert all(batch.dtype == torch.uint8 for batch in images.values())
    made = made_images(3, (3, 8, 8))
    assert made.shape == (3, 3, 8, 8) and torch.equal(made, made_images(3, (3, 8, 8)))

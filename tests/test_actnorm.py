"""ActNorm: what is set from data, when, and in which precision."""

import copy

import pytest
import torch

from nflows_mixer.transforms import ActNorm


@pytest.mark.parametrize(
    "shape, inputs, axes",
    [
        (6, (500, 6), (0,)),
        (3, (50, 3, 4, 5), (0, 2, 3)),
        ((3, 4, 5), (500, 3, 4, 5), (0,)),
        ((3, 4), (200, 3, 4, 5), (0, 3)),
    ],
)
def test_first_training_batch_comes_out_normalized(shape, inputs, axes):
    norm = ActNorm(shape).double()
    outputs, _ = norm(3 + 5 * torch.randn(inputs, dtype=torch.float64))
    mean, variance = outputs.mean(axes), outputs.var(axes, unbiased=False)
    torch.testing.assert_close(mean, torch.zeros_like(mean))
    torch.testing.assert_close(variance, torch.ones_like(variance))


def test_second_batch_does_not_initialize_again():
    norm = ActNorm(4)
    norm(torch.randn(100, 4))
    before = norm.log_scale.clone()
    norm(7 * torch.randn(100, 4))
    assert torch.equal(norm.log_scale, before)


@pytest.mark.parametrize("parameters", [torch.float32, torch.float64])
@pytest.mark.parametrize("data", [torch.float32, torch.float64])
def test_parameters_keep_their_own_dtype(parameters, data):
    norm = ActNorm(4).to(parameters)
    norm.initialize(torch.randn(10, 4, dtype=data))
    assert norm.log_scale.dtype == norm.shift.dtype == parameters


def test_batch_of_one_is_finite():
    norm = ActNorm(4)
    inputs = torch.randn(1, 4)
    outputs, logabsdet = norm(inputs)
    assert torch.equal(outputs, torch.zeros(1, 4)) and logabsdet.item() == 0
    torch.testing.assert_close(norm.inverse(outputs)[0], inputs)


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.5])
def test_constant_feature_keeps_its_scale(value):
    norm = ActNorm(2)
    inputs = torch.randn(64, 2)
    inputs[:, 1] = value
    outputs, _ = norm(inputs)
    assert norm.log_scale[1] == 0
    assert outputs[:, 1].abs().max() < 1e-3
    assert outputs[:, 0].std(unbiased=False).item() == pytest.approx(1, abs=1e-4)


def test_small_but_real_variation_is_normalized():
    norm = ActNorm(1).double()
    outputs, _ = norm(1e-4 * torch.randn(100, 1, dtype=torch.float64))
    assert outputs.std(unbiased=False).item() == pytest.approx(1)


@pytest.mark.parametrize("call", ["forward", "inverse"])
def test_use_before_initialization_is_an_error_that_names_initialize(call):
    norm = ActNorm(4).eval()
    with pytest.raises(RuntimeError, match="initialize"):
        getattr(norm, call)(torch.randn(3, 4))
    with pytest.raises(RuntimeError, match="initialize"):
        ActNorm(4).train().inverse(torch.randn(3, 4))


def test_state_survives_save_and_load_into_a_new_one():
    norm = ActNorm(4)
    norm.initialize(torch.randn(50, 4))
    fresh = ActNorm(4).eval()
    fresh.load_state_dict(norm.state_dict())
    inputs = torch.randn(3, 4)
    assert torch.equal(fresh(inputs)[0], norm(inputs)[0])
    fresh.train()(9 * inputs)
    assert torch.equal(fresh.log_scale, norm.log_scale)


def test_loading_an_uninitialized_state_is_remembered_too():
    norm = ActNorm(4)
    norm.initialize(torch.randn(50, 4))
    norm.load_state_dict(ActNorm(4).state_dict())
    with pytest.raises(RuntimeError, match="initialize"):
        norm.eval()(torch.randn(3, 4))


def test_deepcopy_before_initialization_is_on_its_own():
    norm = ActNorm(4)
    twin = copy.deepcopy(norm)
    norm.initialize(torch.randn(50, 4))
    assert norm.initialized and not twin.initialized


def test_batch_with_nan_is_an_error():
    batch = torch.randn(8, 4)
    batch[2, 1] = torch.nan
    with pytest.raises(ValueError, match="finite mean and variance, got 1 values"):
        ActNorm(4).initialize(batch)


def test_batch_whose_variance_overflows_is_an_error():
    batch = 1e30 * torch.randn(8, 4)
    with pytest.raises(ValueError, match=r"got 0 values that are not finite, of up to \de\+30"):
        ActNorm(4).initialize(batch)

"""Figures over a data set, importance weights, and neighbours, with known answers."""

import json
import math

import pytest
import torch

from nflows_mixer.data.dataset import ImageDataset
from nflows_mixer.evaluation import (
    evaluate,
    memorisation_report,
    nearest_images,
    round_trip_error,
    summary,
)
from nflows_mixer.flows import ImageFlow, mixerflow
from nflows_mixer.likelihood import (
    bits_per_dim,
    log_mean_exp,
    log_prob_draws,
)
from nflows_mixer.transforms import PixelScaling
from tests.helpers import moved, pixels


def small_flow(**options):
    arguments = {"image_shape": (1, 6, 6), "patch_size": 2, "levels": 17, "num_layers": 2}
    flow = mixerflow(**{**arguments, "hidden_features": 16, **options}).double()
    context = options.get("num_classes") and torch.randint(options["num_classes"], (60,))
    return moved(flow.initialize(pixels(60), context), 0.05)


def normal_flow(shape=(1, 1, 2), levels=4):
    """Pixels scaled to [0, 1], and a normal of standard deviation 0.3 around 0.4."""
    flow = ImageFlow(PixelScaling(levels, 0.0, 1.0), shape, levels=levels).double()
    with torch.no_grad():
        flow._distribution.location.fill_(0.4)
        flow._distribution.log_scale.fill_(math.log(0.3))
    return flow


def test_log_mean_exp_of_large_and_missing_values():
    values = torch.tensor([[-10_000.0, 1.0], [-10_000.0, math.nan]])
    result = log_mean_exp(values)
    assert result[0].item() == -10_000 and result[1].isnan() and result.dtype == torch.float32


@pytest.mark.parametrize("bound", ["average", "importance"])
def test_evaluate_over_several_draws(bound):
    flow, images = small_flow(), pixels(6)
    draws = log_prob_draws(flow, images, 4, seed=5)
    expected = draws.mean(0) if bound == "average" else draws.exp().mean(0).log()
    bits = evaluate(flow, images, seed=5, draws=4, bound=bound, batch_size=4)
    torch.testing.assert_close(bits, bits_per_dim(expected, (1, 6, 6)))


def test_evaluate_uses_running_statistics_and_keeps_a_nan():
    flow, images = small_flow(norm="batch"), pixels(20)
    alone = evaluate(flow.train(), images, batch_size=1)
    torch.testing.assert_close(evaluate(flow, images), alone, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        flow._distribution.location[0, 0, 0] = math.nan
    assert evaluate(flow, images).isnan().all()


def test_round_trip_error_is_in_pixel_ranges():
    images = pixels(5)
    assert round_trip_error(small_flow(), images) < 1e-12

    class Lossy(PixelScaling):
        def inverse(self, inputs, context=None):
            outputs, logabsdet = super().inverse(inputs)
            return outputs + 1.7, logabsdet

    lossy = ImageFlow(Lossy(17), (1, 6, 6), levels=17)
    assert round_trip_error(lossy, images) == pytest.approx(0.1)


def test_evaluate_splits_over_processes_and_reads_data_sets():
    flow, images = small_flow().train(), pixels(20)
    whole = evaluate(flow, images, seed=3, draws=2)
    for rank in range(3):
        rows = range(rank, 20, 3)
        part = evaluate(flow, images, seed=3, draws=2, rows=rows, batch_size=4)
        torch.testing.assert_close(part, whole[rank::3])
    dataset = ImageDataset(images.flip(0), rows=torch.arange(19, -1, -1))
    torch.testing.assert_close(evaluate(flow, dataset, seed=3, draws=2), whole)
    assert evaluate(flow, images, rows=[]).shape == (0,)
    assert all(module.training for module in flow.modules())
    assert not torch.equal(evaluate(flow, images, seed=4, draws=2), whole)
    assert evaluate(flow, images[:0]).shape == (0,)


def test_data_set_is_read_a_batch_at_a_time():
    sizes = []

    class Counting(ImageDataset):
        def images(self, index=slice(None)):
            batch = super().images(index)
            sizes.append(len(batch))
            assert batch.dtype == torch.uint8
            return batch

    evaluate(small_flow(), Counting(pixels(11)), batch_size=4)
    assert sizes == [4, 4, 3]


def test_evaluate_hands_each_image_its_own_label():
    flow, images = small_flow(num_classes=3), pixels(12)
    dataset = ImageDataset(images, torch.arange(12) % 3)
    bits = evaluate(flow, dataset, dataset.labels(), seed=1, batch_size=5, draws=2)
    rows = torch.tensor([7, 2])
    part = evaluate(flow, dataset, dataset.labels(), seed=1, draws=2, rows=rows)
    torch.testing.assert_close(part, bits[rows])
    swapped = evaluate(flow, dataset, (dataset.labels() + 1) % 3, seed=1, draws=2)
    assert (swapped != bits).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rows": [0, 5]}, "rows from 0 to 4, got 0 to 5"),
        ({"rows": [-1]}, "rows from 0 to 4"),
        ({"bound": "best"}, "bound to be one of 'average', 'importance'"),
        ({"draws": 0}, "num_samples to be a positive integer"),
        ({"batch_size": 0}, "batch_size to be a positive integer"),
        ({"context": torch.zeros(3, 2)}, "one row for each of 5 images"),
    ],
)
def test_evaluate_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(normal_flow(), pixels(5, (1, 1, 2), 4), **arguments)


def test_draws_want_one_index_for_each_image():
    with pytest.raises(ValueError, match="index with one row for each of 5 images"):
        log_prob_draws(normal_flow(), pixels(5, (1, 1, 2), 4), 2, index=torch.arange(4))


def test_summary_by_hand():
    report = summary(torch.tensor([1.0, 2.0, 6.0]))
    # Variance (4 + 1 + 9) / 2 = 7.
    assert report == {
        "images": 3,
        "mean": 3.0,
        "standard_error": pytest.approx(math.sqrt(7 / 3)),
        "best": 1.0,
        "worst": 6.0,
        "non_finite": 0,
    }
    assert json.loads(json.dumps(report)) == report
    broken = summary(torch.tensor([1.0, math.nan, math.inf]))
    assert math.isnan(broken["mean"]) and math.isnan(broken["worst"]) and broken["non_finite"] == 2
    assert math.isnan(summary(torch.tensor([1.0]))["standard_error"])
    with pytest.raises(ValueError, match="one value or more"):
        summary(torch.empty(0))


def test_neighbours_by_hand():
    dataset = torch.tensor([[0, 0], [3, 4], [255, 255], [0, 0]], dtype=torch.uint8)
    dataset = dataset.reshape(4, 1, 1, 2)
    samples = torch.tensor([[0, 0], [254, 255]], dtype=torch.uint8).reshape(2, 1, 1, 2)
    for batch_size in (1, 2, 100):
        indices, distances = nearest_images(samples, dataset, k=3, batch_size=batch_size)
        assert indices.tolist() == [[0, 3, 1], [2, 1, 0]]
        assert distances[0].tolist() == [0.0, 0.0, 12.5]
        assert distances[1, :2].tolist() == [0.5, (251**2 + 251**2) / 2]


def test_neighbours_are_exact_for_large_images():
    """Sums beyond float32: images that differ in one pixel by one."""
    base = torch.randint(200, 256, (1, 3, 64, 64), dtype=torch.uint8)
    other = base.clone()
    other[0, 2, 63, 63] -= 1
    dataset = ImageDataset(torch.cat([other, base, base]))
    indices, distances = nearest_images(base, dataset, k=2, batch_size=2)
    assert indices.tolist() == [[1, 2]] and distances.tolist() == [[0.0, 0.0]]
    assert nearest_images(base, dataset, k=3)[1][0, 2].item() == 1 / (3 * 64 * 64)


def test_neighbours_say_what_is_wrong():
    images = pixels(3)
    with pytest.raises(ValueError, match="4 images or more, got 3"):
        nearest_images(images, images, k=4)
    with pytest.raises(ValueError, match="uint8 samples"):
        nearest_images(images.float(), images)
    with pytest.raises(ValueError, match="uint8 images of shape"):
        nearest_images(images, pixels(3, (1, 4, 9)))
    with pytest.raises(ValueError, match="a crop of at most 6 x 6 pixels, got 7 x 7"):
        nearest_images(images, images, crop=7)
    with pytest.raises(ValueError, match="a crop of at most 6 x 6 pixels, got 6 x 0"):
        nearest_images(images, images, crop=(6, 0))
    with pytest.raises(ValueError, match="one image or more"):
        round_trip_error(small_flow(), images[:0])


def test_neighbours_of_a_crop_by_hand():
    """Outside the crop everything may differ; of odd remainders less is left out at the top."""
    sample = torch.zeros(1, 1, 5, 4, dtype=torch.uint8)
    dataset = torch.full((3, 1, 5, 4), 255, dtype=torch.uint8)
    dataset[0, 0, 1:4, 1:3] = 7
    dataset[1, 0, 1:3, 1:3] = 1
    dataset[1, 0, 3, 1:3] = torch.tensor([2, 5])
    dataset[2, 0, 1:3] = 3
    indices, distances = nearest_images(sample, dataset, k=3, crop=(3, 2), batch_size=2)
    assert indices.tolist() == [[1, 0, 2]]
    assert distances.tolist() == [[(4 * 1 + 4 + 25) / 6, 49.0, (4 * 9 + 2 * 255**2) / 6]]
    indices, distances = nearest_images(sample, dataset, k=3, crop=2)
    assert indices.tolist() == [[1, 2, 0]] and distances.tolist() == [[1.0, 9.0, 49.0]]
    whole = nearest_images(sample, dataset, k=3)
    assert torch.equal(whole[1], nearest_images(sample, dataset, k=3, crop=(5, 4))[1])


@pytest.mark.parametrize("crop", [None, (4, 3)])
def test_mirrored_neighbours_are_those_of_mirrored_images(crop):
    samples, dataset = pixels(4, (3, 5, 6)), pixels(20, (3, 5, 6))
    dataset[7] = samples[2].flip(-1)
    indices, distances = nearest_images(samples, dataset, 20, 6, crop=crop, flipped=True)
    assert indices[2, 0] == 7 and distances[2, 0] == 0
    assert nearest_images(samples, dataset, crop=crop)[1].min() > 0
    top, left = (0, 0) if crop is None else (0, 1)
    height, width = crop or (5, 6)
    part = (..., slice(top, top + height), slice(left, left + width))
    for sample, rows, found in zip(samples.double(), indices, distances):
        views = torch.stack([dataset.double(), dataset.flip(-1).double()])
        by_hand = (views - sample)[part].square().flatten(2).mean(2).amin(0)
        torch.testing.assert_close(found, by_hand[rows], rtol=0, atol=1e-9)
        assert torch.equal(found, found.sort().values) and rows.unique().numel() == 20


def test_memorisation_report_by_hand():
    train = torch.tensor([[0, 0], [10, 10], [20, 40]], dtype=torch.uint8).reshape(3, 1, 1, 2)
    samples, held_out = train[[1, 0]].clone(), train + 3
    samples[1, 0, 0, 0] = 4
    report = memorisation_report(samples, ImageDataset(train), held_out, k=2)
    assert json.loads(json.dumps(report)) == report
    assert report["crop"] == [1, 2] and report["flipped"] is False
    assert report["indices"] == [[1, 0], [0, 1]]
    assert report["distances"] == [[0.0, 100.0], [8.0, (36 + 100) / 2]]
    assert report["samples"] == {"images": 2, "smallest": 0.0, "median": 4.0, "mean": 4.0}
    assert report["held_out"] == {"images": 3, "smallest": 9.0, "median": 9.0, "mean": 9.0}
    # Mirrored, (4, 0) is as far; of its left half alone, it is 4 from 0.
    mirrored = memorisation_report(samples, train, held_out, k=1, crop=1, flipped=True)
    assert mirrored["crop"] == [1, 1] and mirrored["flipped"] is True
    assert mirrored["distances"] == [[0.0], [16.0]]
    for name, given in (("samples", (samples[:0], held_out)), ("held", (samples, held_out[:0]))):
        with pytest.raises(ValueError, match=rf"{name}.* \[N, C, H, W\], N > 0"):
            memorisation_report(given[0], train, given[1])
    with pytest.raises(ValueError, match=r"held-out images of shape \[1, 1, 2\], got \[1, 2, 1\]"):
        memorisation_report(samples, train, held_out.transpose(2, 3))

"""A trainer of one's own: copies, stages, figures, optimizers and batches as Lightning's users know
them."""

import copy
import io
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from nflows_mixer import data, distributions, flows, training
from nflows_mixer.data import ImageDataset
from nflows_mixer.distributions import DiagonalNormal, NormalMixture, ProductDistribution, StudentT
from nflows_mixer.evaluation import Evaluation
from nflows_mixer.flows import Pixels, denseflow
from nflows_mixer.training import (
    AtomicCheckpointIO,
    FlowModule,
    History,
    HybridModule,
    ImageDataModule,
    Recipe,
    ShuffledBatches,
)
from nflows_mixer.training.progress_bar import ProgressBar
from tests.training import SHAPE, initialized, noise_data, pixels, plain, plain_trainer, tiny

# Copies.

RECIPE = Recipe(1e-2, steps=2, batch_size=10, ema_decay=0.9, layer_rates={"*": 0.5})


def trained(kind=FlowModule, **options):
    """A module that has everything that training leaves on it."""
    classes = options.get("num_classes")
    module = kind(tiny(), RECIPE, **options)
    images = ImageDataModule(noise_data(classes=classes), RECIPE)
    trainer = plain_trainer(2)
    trainer.fit(module, datamodule=images)
    trainer.test(module, datamodule=images, verbose=False)
    return module


OBJECTS = {
    "FlowModule": lambda: FlowModule(tiny(), RECIPE),
    "FlowModule, trained": trained,
    "FlowModule, conditional": lambda: FlowModule(tiny(num_classes=3), RECIPE, conditional=True),
    "HybridModule, trained": lambda: trained(HybridModule, num_classes=3),
    "ImageFlow": lambda: initialized(tiny(pixels=Pixels(logit=1e-3))),
    "ImageFlow, DenseFlow": lambda: denseflow(units=[2], modules=[1], image_shape=(1, 8, 8)),
    "DequantizedFlow": lambda: initialized(tiny()).deterministic,
    "DiagonalNormal": lambda: DiagonalNormal(SHAPE),
    "StudentT": lambda: StudentT(SHAPE),
    "NormalMixture": lambda: NormalMixture(SHAPE),
    "ProductDistribution": lambda: ProductDistribution({"a": DiagonalNormal(SHAPE)}),
    "ImageDataset": lambda: ImageDataset(pixels(3), torch.arange(3)),
    "ImageData": lambda: noise_data(classes=3),
    "ImageDataModule": lambda: ImageDataModule(noise_data(), RECIPE),
    "ShuffledBatches": lambda: ShuffledBatches(5, 2, 4),
    "Recipe": lambda: RECIPE,
    "Evaluation": Evaluation,
    "Architecture": lambda: tiny().architecture,
    "Pixels": lambda: Pixels(logit=1e-3),
    "Preset": lambda: flows.MIXERFLOW_PRESETS["cifar10"],
    "History": lambda: History("out"),
    "ProgressBar": ProgressBar,
    "AtomicCheckpointIO": AtomicCheckpointIO,
}


def saved_whole(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@plain
@pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS.keys())
def test_public_objects_are_copied_pickled_saved_whole_and_sent_to_processes(make):
    thing = make()
    ways = copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)), saved_whole
    for way in (*ways, lambda it: pickle.loads(ForkingPickler.dumps(it))):
        again = way(thing)
        assert type(again) is type(thing)
        if isinstance(thing, torch.nn.Module):
            state = again.state_dict()
            assert state.keys() == thing.state_dict().keys()
            assert all(
                torch.equal(value, state[name]) for name, value in thing.state_dict().items()
            )


def test_no_public_class_is_forgotten():
    public = [getattr(room, name) for room in (data, flows, training) for name in room.__all__]
    public += [getattr(distributions, name) for name in dir(distributions)]
    kinds = {
        kind for kind in public if isinstance(kind, type) and not kind.__name__.startswith("_")
    }
    ours = {kind.__name__ for kind in kinds if kind.__module__.startswith("nflows_mixer")}
    assert ours - {"BaseDistribution", "Unset"} <= {name.partition(",")[0] for name in OBJECTS}


@plain
def test_copy_of_a_moving_average_follows_as_the_original():
    """To the last digit, buffers of integers included."""
    module = trained()
    again = pickle.loads(pickle.dumps(module))
    with torch.no_grad():
        for each in (module, again):
            for parameter in each.flow.parameters():
                parameter += 1
            each.average.update_parameters(each.flow)
    expected, got = module.average.state_dict(), again.average.state_dict()
    assert all(torch.equal(value, got[name]) for name, value in expected.items())
    assert int(got["n_averaged"]) == 3

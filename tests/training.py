"""What the tests of training share: small flows and data, a Trainer, and the loop by hand."""

import json
import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from nflows_mixer.data import ImageData, ImageDataset
from nflows_mixer.flows import denseflow, mixerflow
from nflows_mixer.likelihood import bits_per_dim
from nflows_mixer.nn import DenseAttentionConditioner
from nflows_mixer.noise import uniform_noise
from nflows_mixer.training import FlowModule, ImageDataModule, ShuffledBatches, fit
from nflows_mixer.transforms import ActNorm
from tests import helpers
from tests.helpers import moved

SHAPE = (1, 4, 4)
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
_SCRIPT = Path(sys.executable).with_name("nflows-mixer")
COMMAND = [str(_SCRIPT)] if _SCRIPT.exists() else [sys.executable, "-m", "nflows_mixer"]
"""The command as a user has it, where the package is installed."""
QUIET_COMMAND = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def plain(test):
    """A test of a plain Trainer, which gives the advice that fit() leaves out."""
    for message in (".*does not have many workers", ".*LeafSpec.* is deprecated"):
        test = pytest.mark.filterwarnings(f"ignore:{message}")(test)
    return test


def tiny(**options):
    arguments = {"image_shape": SHAPE, "patch_size": 2, "levels": 17, "num_layers": 1}
    arguments |= {"num_flow_layers": 1, "hidden_features": 8, "shift": None}
    return mixerflow(**arguments | options)


pixels = partial(helpers.pixels, shape=SHAPE)


def noise_data(sizes=(20, 12, 8), classes=None):
    def part(size):
        return ImageDataset(pixels(size), None if classes is None else torch.arange(size) % classes)

    return ImageData("noise", *map(part, sizes), levels=17)


def initialized(flow, context=None, amount=0.1):
    """The flow some way from where it starts, so that all its parts matter."""
    return moved(flow.initialize(pixels(40), context), amount)


def plain_trainer(steps=-1, **options):
    arguments = {"max_steps": steps, "max_epochs": -1, "logger": False, **QUIET}
    arguments |= {"enable_checkpointing": False, "enable_model_summary": False}
    arguments |= {"num_sanity_val_steps": 0, "use_distributed_sampler": False}
    arguments |= {"val_check_interval": 1000, "check_val_every_n_epoch": None}
    return Trainer(**arguments | options)


def train(module, data, **options):
    """The recipe's steps with Lightning, without files; the module afterwards."""
    trainer = plain_trainer(module.recipe.steps, **options)
    trainer.fit(module, datamodule=ImageDataModule(data, module.recipe, module.seed))
    assert trainer.global_step == module.recipe.steps
    return module


def train_by_hand(flow, data, recipe, seed, micro=1, left_out=()):
    """The same without any of the training room's parts but its order of rows."""
    size, total = recipe.batch_size, recipe.steps
    adam = torch.optim.Adam(flow.parameters(), recipe.learning_rate, recipe.betas, fused=True)
    rising = int(total * recipe.warmup)
    norms = []
    batches = ShuffledBatches(len(data.train), size, total, seed=seed)
    for step, rows in enumerate(batches):
        if step < rising:
            factor = (step + 1) / rising
        else:
            factor = 0.5 * (1 + math.cos(math.pi * (step - rising) / (total - rising)))
        adam.param_groups[0]["lr"] = recipe.learning_rate * factor
        adam.zero_grad()
        for number, part in enumerate(rows.split(size // micro)):
            batch = data.train[part]
            dtype = next(flow.parameters()).dtype
            index = number * len(part) + torch.arange(len(part))
            noise = uniform_noise(seed, 1 + step, index, SHAPE, dtype)
            if step == number == 0:
                flow.initialize(*batch, noise=noise)
            log_prob = flow.log_prob(*batch, noise=noise)
            (bits_per_dim(log_prob, SHAPE).mean() / micro).backward()
        norms.append(nn.utils.clip_grad_norm_(flow.parameters(), recipe.gradient_clip).item())
        if step not in left_out:
            adam.step()
    return norms


def run(module, data, out, **options):
    """``fit`` on the CPU, without a bar, and without validation unless it is asked for."""
    return fit(module, data, out, **{"validate_every": 1000, **QUIET, **options})


def assert_same(first, second):
    expected, got = first.state_dict(), second.state_dict()
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


def norms_of(flow):
    return [part for part in flow.modules() if isinstance(part, ActNorm)]


class Recording(FlowModule):
    """Keeps what the loss was given."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.seen = []

    def loss(self, images, context, noise, labels):
        self.seen.append((images.clone(), noise.clone()))
        return super().loss(images, context, noise, labels)


class StopAt(Callback):
    """An error in the middle of a step, after its batch has begun."""

    def __init__(self, step):
        self.step = step

    def on_before_backward(self, trainer, *_):
        if trainer.global_step == self.step:
            raise InterruptedError("stopped here")


def most_moved(flow, start):
    moved = [not torch.equal(a, b) for a, b in zip(start, flow.parameters())]
    return sum(moved) > len(moved) / 2


def history(out):
    return json.loads((out / "history.json").read_text())


NETWORK = {"hidden_channels": 4, "num_layers": 1, "growth": 4, "attention_channels": 4}
LEARNED = {"dequantization": "variational", "noise_channels": 4}


def tiny_denseflow(conditioner=None, **options):
    arguments = {"image_shape": SHAPE, "levels": 17, "dequantization": "uniform"}
    arguments |= {"units": (2, 1), "modules": (1, 1), "growth": 2}
    network = partial(DenseAttentionConditioner, **NETWORK | (conditioner or {}))
    return denseflow(**arguments | {"conditioner": network} | options)

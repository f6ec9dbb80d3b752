"""Bits per dimension after equal steps, of MixerFlows that differ in the linear block alone.

    python -m benchmarks.scaling.likelihood --data train.npz --test test.npz
    python -m benchmarks.scaling.likelihood --data train.npz --test test.npz --steps 5 \
        --seeds '[0]' --evaluated 100 --out runs/scaling

On long rows: CIFAR-10 in patches of 8 x 8, 16 rows of 192. The files hold ``images``, uint8
[N, 32, 32, 3]; the split is that of ``nflows_mixer.data.load_images``. Writes likelihood.json and
likelihood.md here.
"""

import logging
import time
import warnings
from pathlib import Path

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer

from benchmarks import tables
from benchmarks.scaling.models import NAMES, mixer
from benchmarks.sizes import parameters_of
from benchmarks.timing import environment, given
from nflows_mixer.data import load_images
from nflows_mixer.likelihood import bits_per_dim, log_prob_draws
from nflows_mixer.training import FlowModule, ImageDataModule, Recipe

HERE = Path(__file__).parent
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # what it says of itself


def trained(flow, data, recipe, seed):
    """Train the flow; return the CPU seconds."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning on few processes that load images
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=recipe.steps,
            max_epochs=-1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        module = FlowModule(flow, recipe, seed=seed)
        trainer.fit(module, datamodule=ImageDataModule(data, recipe, seed))
    return time.process_time() - start


def bits(flow, part, count):
    """Mean bits/dim of the first images of a part, by one draw of the noise each."""
    return bits_per_dim(log_prob_draws(flow, part.images(slice(count)), 1), part.image_shape).mean()


def main(
    data: str,
    test: str,
    name: str = "CIFAR-10",
    linears: list[str] = ["lu", "butterfly", "kronecker", "butterfly-root", "none"],  # noqa: B006
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    patch_size: int = 8,
    layers: int = 4,
    flow_layers: int = 2,
    hidden_features: int = 64,
    steps: int = 300,
    batch_size: int = 48,
    learning_rate: float = 1e-3,
    evaluated: int = 1000,
    out: str = str(HERE),
):
    """Bits per dimension after equal steps, of MixerFlows that differ in the linear block alone.

    Args:
        data: .npz file of images to train on.
        test: .npz file of images to report.
        name: of the data set, for the report.
        linears: linear blocks, see ``benchmarks.scaling.models.mixer``.
        seeds: of the parameters, the order of the images and the noise; one run for each.
        patch_size: of all layers.
        layers: mixer layers.
        flow_layers: in each channel flow and each patch flow.
        hidden_features: width of the conditioners.
        steps: of the optimizer.
        batch_size: images per step.
        learning_rate: its peak; a warm-up of a twentieth of the steps, a cosine to zero.
        evaluated: test images.
        out: folder for likelihood.json and likelihood.md.
    """
    asked = given(locals())
    torch.set_num_threads(1)
    images = load_images(data, test_data=test)
    recipe = Recipe(learning_rate, steps=steps, batch_size=batch_size, warmup=0.05)
    model = {
        "patch_size": patch_size,
        "num_layers": layers,
        "num_flow_layers": flow_layers,
        "hidden_features": hidden_features,
    }
    runs = []
    for seed in seeds:
        for linear in linears:
            torch.manual_seed(seed)
            flow = mixer(linear, images.image_shape[1], **model)
            seconds = trained(flow, images, recipe, seed)
            found = bits(flow, images.test, evaluated).item()
            runs.append(
                {
                    "linear": linear,
                    "seed": seed,
                    "parameters": parameters_of(flow),
                    "bits_per_dim": found,
                    "train_cpu_seconds": round(seconds, 1),
                }
            )
            print(f"{NAMES[linear]}, seed {seed}: {found:.3f} bits/dim, {seconds:.0f} s")
    results = {
        **images.describe(),
        **asked,
        "runs": runs,
        **environment(),
    }
    tables.write("likelihood", Path(out, "likelihood.json"), results)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

"""Train a class-conditional MixerFlow on handwritten digits; draw digits to order; read them.

    python examples/class_conditional.py

One flow models p(x | c) for each class c of digits. With Bayes' rule it is also a classifier,
argmax_c of log p(x | c) + log p(c), and a model of all digits, the sum over c of p(x | c) p(c).
Writes classes.png (a row for each class) beside what every run writes.
"""

from pathlib import Path

import torch
from jsonargparse import auto_cli

from nflows_mixer.data import load_images
from nflows_mixer.evaluation import draw_samples, save_grids
from nflows_mixer.flows import Pixels, mixerflow
from nflows_mixer.likelihood import bits_per_dim, log_prob_draws
from nflows_mixer.training import FlowModule, Recipe, fit, table, write_results

DRAWS = 4  # of dequantisation noise, for each held-out image


def measure(flow, images, labels, priors, seed):
    """Bits/dim of p(x | c) and of p(x), for each image, and the accuracy of Bayes' rule."""
    every = (torch.full((len(images),), c) for c in range(len(priors)))
    draws = [log_prob_draws(flow, images, DRAWS, context=c, seed=seed) for c in every]
    given_class = torch.stack(draws, dim=-1)  # draws, images, classes: the same noise for all
    joint = given_class + priors.log()
    accuracy = (joint.mean(0).argmax(-1) == labels).double().mean().item()
    conditional = given_class.mean(0)[torch.arange(len(labels)), labels]
    marginal = joint.logsumexp(-1).mean(0)
    shape = flow.image_shape
    return bits_per_dim(conditional, shape), bits_per_dim(marginal, shape), accuracy


def main(
    layers: int = 4,
    steps: int = 1000,
    learning_rate: float = 3e-3,
    temperature: float = 0.8,
    seed: int = 0,
    out: str = "runs/class_conditional",
    overwrite: bool = False,
):
    """Train a class-conditional MixerFlow on handwritten digits; draw digits to order; read them.

    Args:
        layers: mixer layers.
        steps: optimizer steps, of 100 images.
        learning_rate: its peak.
        temperature: of the samples; 1 is the model itself.
        seed: of the split, the start, the batches and the noise.
        out: folder for what is written.
        overwrite: whether a run that is there is deleted.
    """
    torch.manual_seed(seed)
    data = load_images("digits", seed=seed)
    flow = mixerflow(
        image_shape=data.image_shape,
        levels=data.levels,
        patch_size=2,
        num_layers=layers,
        hidden_features=64,
        num_classes=data.num_classes,
        pixels=Pixels(logit=1e-3),  # on a linear scale ink is far from a background of zeros
    )
    recipe = Recipe(learning_rate, steps=steps, batch_size=100, warmup=0.05)
    module = FlowModule(flow, recipe, conditional=True, seed=seed)
    facts = {"name": "MixerFlow, p(image, given its class)"}
    picture = Path(out, "classes.png")
    if overwrite:
        picture.unlink(missing_ok=True)  # fit deletes the files of a run alone
    results = fit(module, data, out, overwrite=overwrite, facts=facts)

    counts = data.train.labels().bincount(minlength=data.num_classes)
    test, labels = data.test[:]
    bits, marginal, accuracy = measure(flow, test, labels, counts / counts.sum(), seed)
    results |= {"accuracy": accuracy, "marginal_bits_per_dim": marginal.mean().item()}
    results |= {"draws": DRAWS, "conditional_bits_per_dim": bits.mean().item()}
    results["notes"] = [
        f"By Bayes' rule {accuracy:.1%} of the test images are read rightly, and p(image) has "
        f"{marginal.mean().item():.3f} bits/dim,",
        f"p(image, given its class) {bits.mean().item():.3f}, with {DRAWS} dequantisation draws.",
    ]
    write_results(results, out)
    classes = torch.arange(data.num_classes)
    drawn = draw_samples(flow, 8, temperature, seed, context=classes)
    real = torch.cat([test[labels == c][:8] for c in classes])
    panels = {"held-out images": real, f"samples, temperature {temperature:g}": drawn}
    save_grids(picture, panels, data.levels, row_labels=list("0123456789"))
    print(f"\n{table(results)}\nsee {out}")


if __name__ == "__main__":
    auto_cli(main)

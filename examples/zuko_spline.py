"""A neural spline flow of zuko as the patch flow of a MixerFlow, on handwritten digits.

    python examples/zuko_spline.py

The one line that makes it so is `patch_flow=partial(zuko.flows.NSF, ...)`. The log-determinant of a
mixer layer is compared with that of autograd's Jacobian at the end.
"""

from functools import partial

import torch
import zuko
from jsonargparse import auto_cli

from nflows_mixer.data import load_images
from nflows_mixer.flows import Pixels, mixerflow
from nflows_mixer.training import FlowModule, Recipe, fit, table, write_results
from nflows_mixer.transforms import PatchMixerTransform, RationalQuadraticCoupling


def logabsdet_error(flow):
    """Largest |log-det - log|det of autograd's Jacobian|| of a mixer layer, over five inputs."""
    layer = [m for m in flow.double().modules() if isinstance(m, PatchMixerTransform)][-1]
    errors = []
    for image in torch.randn(5, 1, *layer.image_shape, dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0], image)
        expected = torch.linalg.slogdet(jacobian.reshape(image.numel(), -1)).logabsdet
        errors.append((layer(image)[1] - expected).abs().item())
    return max(errors)


def main(steps: int = 500, seed: int = 0, out: str = "runs/zuko_spline", overwrite: bool = False):
    """A neural spline flow of zuko as the patch flow of a MixerFlow, on handwritten digits.

    Args:
        steps: optimizer steps, of 100 images.
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
        num_layers=2,
        num_flow_layers=2,
        hidden_features=64,
        channel_flow=RationalQuadraticCoupling,
        patch_flow=partial(zuko.flows.NSF, transforms=1, hidden_features=(64, 64)),
        pixels=Pixels(logit=1e-3),  # on a linear scale ink is far from a background of zeros
    )
    recipe = Recipe(3e-3, steps=steps, batch_size=100, warmup=0.05)
    module = FlowModule(flow, recipe, seed=seed)
    facts = {"name": "MixerFlow, patch flow of zuko"}
    results = fit(module, data, out, overwrite=overwrite, facts=facts)
    results["logabsdet_error"] = logabsdet_error(flow)
    results["notes"] = [
        f"The log-determinant of a mixer layer is within {results['logabsdet_error']:.0e} of "
        "autograd's, in float64.",
    ]
    write_results(results, out)
    print(f"\n{table(results)}\nsee {out}")


if __name__ == "__main__":
    auto_cli(main)

"""An nflows project that uses the installed nflows-mixer: run outside the repository."""

import sys
from importlib.metadata import version
from pathlib import Path

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import (
    CompositeTransform,
    MaskedAffineAutoregressiveTransform,
    ReversePermutation,
)

before = set(sys.modules)
import nflows_mixer  # noqa: E402
from nflows_mixer.flows import mixerflow  # noqa: E402
from nflows_mixer.transforms import LULinear, PatchMixerTransform  # noqa: E402

pulled = {name.split(".")[0] for name in set(sys.modules) - before}
extras = pulled & {"torchvision", "sklearn", "matplotlib", "tqdm", "zuko", "normflows", "lightning"}
assert not extras, f"importing nflows_mixer pulled {extras}"
package = Path(nflows_mixer.__file__).parent
assert "site-packages" in package.parts and (package / "py.typed").exists()
assert version("nflows-mixer") == nflows_mixer.__version__

torch.manual_seed(0)
shape = (1, 8, 8)


def maf(features):
    return CompositeTransform(
        [ReversePermutation(features), MaskedAffineAutoregressiveTransform(features, 32)]
    )


transform = CompositeTransform(
    [PatchMixerTransform(shape, 2, channel_flow=maf, patch_flow=LULinear) for _ in range(2)]
)
flow = Flow(transform, StandardNormal(shape))
images = torch.rand(64, *shape).cumsum(-1)
optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
losses = []
for _ in range(60):
    loss = -flow.log_prob(images).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0] - 20, losses
with torch.no_grad():
    latents, _ = transform(images)
    assert (transform.inverse(latents)[0] - images).abs().max() < 1e-3
    assert flow.sample(3).shape == (3, *shape)
pixels = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
# The preset has the paper's BatchNorm: its density is exact in evaluation mode.
ready = mixerflow("cifar10", num_layers=2).initialize(pixels).eval()
assert ready.log_prob(pixels).isfinite().all() and ready.sample(2).dtype == torch.uint8
print(f"nflows-mixer {version('nflows-mixer')}, torch {torch.__version__}, "
      f"Python {sys.version.split()[0]}: loss {losses[0]:.1f} -> {losses[-1]:.1f}")  # fmt: skip

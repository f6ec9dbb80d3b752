"""The same MixerFlow inside a flow of zuko."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.speed.variants.base import Setting, Variant
from nflows_mixer.adapters import to_zuko
from nflows_mixer.transforms import UniformDequantization


def inside_zuko(setting: Setting) -> Variant:
    """``to_zuko`` of the library's flow, over a fixed normal base."""
    flow = setting.flow()
    return Variant(ZukoImages(flow), setting, flow.image_shape)


class ZukoImages(nn.Module):
    """Dequantized images in a flow of zuko."""

    def __init__(self, flow) -> None:
        super().__init__()
        import zuko

        shape = flow.image_shape
        base = zuko.lazy.UnconditionalDistribution(
            zuko.distributions.DiagNormal,
            torch.zeros(shape),
            torch.ones(shape),
            ndims=3,
            buffer=True,
        )
        self.dequantization = UniformDequantization(flow.dequantization.levels)
        self.flow = zuko.lazy.Flow(to_zuko(flow.deterministic), base)

    def log_prob(self, images: Tensor) -> Tensor:
        """Log-likelihoods [B], one draw of the bound."""
        values, of_noise = self.dequantization(images)
        return of_noise + self.flow().log_prob(values)

    def sample(self, num_samples: int) -> Tensor:
        """Images, uint8 [num_samples, C, H, W]."""
        return self.dequantization.inverse(self.flow().sample((num_samples,)))[0]

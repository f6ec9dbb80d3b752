"""Glow of normflows."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from benchmarks.speed.variants.base import Setting, Unavailable, Variant
from benchmarks.speed.variants.glow import LEVELS, STEPS, channels_of_levels, of_equal_size
from nflows_mixer.transforms import PixelScaling, UniformDequantization


def normflows_glow(setting: Setting) -> Variant:
    """Three levels of eight of its GlowBlock, after each its Squeeze."""
    try:
        import normflows  # noqa: F401
    except ImportError as error:
        raise Unavailable(str(error)) from error
    shape = setting.flow().image_shape
    flow = of_equal_size(setting, partial(NormflowsGlow, shape))
    return Variant(flow, setting, shape, products=False)


class NormflowsGlow(nn.Module):
    """Dequantised images in a ``NormalizingFlow``, which runs from noise to data.

    Args:
        image_shape: (C, H, W).
        width: of the conditioners.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        import normflows as nf

        flows = []
        for channels in list(channels_of_levels(image_shape))[::-1]:
            flows += [nf.flows.GlowBlock(channels, width) for _ in range(STEPS)]
            flows.append(nf.flows.Squeeze())
        channels, height, width = image_shape
        side = 2**LEVELS
        latent = (channels * side**2, height // side, width // side)
        self.dequantization = UniformDequantization()
        self.scaling = PixelScaling(256)
        self.flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(latent), flows)

    def log_prob(self, images: Tensor) -> Tensor:
        """Log-likelihoods [B], one draw of the bound."""
        values, of_noise = self.dequantization(images)
        values, of_scaling = self.scaling(values)
        return of_noise + of_scaling + self.flow.log_prob(values)

    def sample(self, num_samples: int) -> Tensor:
        """Images, uint8 [num_samples, C, H, W]."""
        values, _ = self.scaling.inverse(self.flow.sample(num_samples)[0])
        return self.dequantization.inverse(values)[0]

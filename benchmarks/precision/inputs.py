"""Images that figures are of: test images, noise, and images like none in the data."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nflows_mixer.noise import uniform_noise


def input_images(test: Tensor, levels: int, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Return the images of each kind.

    Args:
        test: uint8 [N, C, H, W], which the flow was not trained on.
        levels: number of pixel values.
        count: images of a kind, at most.
        seed: of the noise.

    Returns:
        Kind -> uint8 [n, C, H, W]: test images, uniform noise, every pixel of one value,
        checkerboards of black and white in cells of 1, 2 and 4 pixels, and inverted test images.
    """
    test = test[:count]
    shape = tuple(test.shape[1:])
    index = torch.arange(len(test))
    noise = (uniform_noise(seed, 0, index, shape) * levels).to(torch.uint8)
    values = torch.linspace(0, levels - 1, min(count, levels)).round().to(torch.uint8)
    constant = values.reshape(-1, 1, 1, 1).expand(-1, *shape).contiguous()
    return {
        "test": test,
        "uniform noise": noise,
        "constant": constant,
        "checkerboard": checkerboards(shape, levels)[:count],
        "inverted test": levels - 1 - test,
    }


def checkerboards(shape: tuple[int, ...], levels: int) -> Tensor:
    """Return black and white boards in cells of 1, 2 and 4 pixels, both ways round."""
    rows, columns = torch.meshgrid(*map(torch.arange, shape[1:]), indexing="ij")
    boards = [(rows // cell + columns // cell + way) % 2 for cell in (1, 2, 4) for way in (0, 1)]
    stacked = torch.stack(boards).to(torch.uint8) * (levels - 1)
    return stacked[:, None].expand(-1, *shape).contiguous()


def made_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    r"""Return images of 256 levels that stand in for photographs.

    .. math:: x = \lfloor 128 + 45\, \mathrm{up}(a) + 8\, b \rfloor, \qquad
              a \in \mathbb R^{C \times 4 \times 4},\ b \in \mathbb R^{C \times H \times W}

    with standard normal a and b, a brought to H x W by bilinear interpolation, and clamped to
    0 ... 255: smooth colours with a little grain.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, shape[0], 4, 4, generator=generator)
    smooth = F.interpolate(coarse, shape[1:], mode="bilinear", align_corners=True)
    grain = torch.randn(count, *shape, generator=generator)
    return (128 + 45 * smooth + 8 * grain).floor().clamp(0, 255).to(torch.uint8)

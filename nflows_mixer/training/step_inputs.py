"""Images and noise of a training step, as a function of the seed, the step and the place."""

from __future__ import annotations

import torch
from torch import Tensor

from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.noise import uniform_noise

FLIPS = 2**63
"""Added to the number of a step, it names the stream of flips: no run has as many steps, so that
none of its noise comes from there."""


def draw_step(
    flow: ImageFlow, images: Tensor, seed: int, step: int, index: Tensor, flip: bool
) -> tuple[Tensor, Tensor]:
    """Return training images as a step sees them, mirrored at random or not, and their noise.

    Args:
        flow: what is trained; the noise has the dtype of its parameters.
        images: uint8 [B, C, H, W].
        seed: of the run.
        step: counted from 0. The noise of step t is number 1 + t; number 0 is that of evaluation.
        index: integers [B], the place of each image in the global batch.
        flip: whether each is mirrored with probability 1/2.

    Example:
        >>> from nflows_mixer.flows import mixerflow
        >>> flow = mixerflow(image_shape=(1, 4, 4), patch_size=2, shift=None)
        >>> images = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
        >>> seen, noise = draw_step(flow, images, 0, 0, torch.arange(5), flip=False)
        >>> torch.equal(seen, images), noise.shape
        (True, torch.Size([5, 1, 4, 4]))
    """
    if flip:
        images = random_flips(images, seed, 1 + step, index)
    return images, flow.draw_noise(seed, 1 + step, index, next(flow.parameters()).dtype)


def random_flips(images: Tensor, seed: int, number: int, index: Tensor) -> Tensor:
    r"""Mirror each image left to right with probability 1/2.

    .. math:: x'_{n,c,i,j} = \begin{cases} x_{n,c,i,W-1-j} & \text{where } u_n < 1/2 \\
              x_{n,c,i,j} & \text{elsewhere} \end{cases}, \qquad
              u_n = u(\mathrm{seed}, 2^{63} + \mathrm{number}, \mathrm{index}_n)

    There is no state, as for the noise: a run that is resumed, or split over other numbers of
    processes, mirrors the same images. Nothing waits for the device.

    Args:
        images: [B, C, H, W], of any dtype.
        seed: of the run.
        number: 1 + the step.
        index: integers [B], the place of each image in the global batch.

    Returns:
        Images like those that were given.

    References:
        DenseFlow, Appendix C.

    Example:
        >>> rows = torch.tensor([1, 2]).expand(6, 1, 1, 2)
        >>> random_flips(rows, seed=0, number=1, index=torch.arange(6))[:, 0, 0].tolist()
        [[2, 1], [2, 1], [2, 1], [1, 2], [1, 2], [1, 2]]
    """
    uniform = uniform_noise(seed, FLIPS + number, index, (1, 1, 1))
    return torch.where(uniform < 0.5, images.flip(-1), images)

"""What chance adds to the images of a step, as a function of where they are used."""

from __future__ import annotations

import torch
from torch import Tensor

from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.noise import uniform_noise

FLIPS = 2**63
"""Added to the number of a step, it names the stream of flips: no run has as many steps, so that
none of its noise comes from there."""


def draw_noise(flow: ImageFlow, seed: int, number: int, index: Tensor) -> Tensor:
    """Return all noise that the flow takes for these images, of the dtype of its parameters.

    Args:
        flow: what takes it.
        seed: of the run.
        number: 0 in evaluation, and 1 + step in training.
        index: integers [B]: the place of each image in the data set, or in the global batch.

    Example:
        >>> from nflows_mixer.flows import mixerflow
        >>> flow = mixerflow(image_shape=(1, 4, 4), patch_size=2, shift=None).double()
        >>> noise = draw_noise(flow, seed=0, number=1, index=torch.arange(5))
        >>> noise.shape, noise.dtype
        (torch.Size([5, 1, 4, 4]), torch.float64)
    """
    return flow.draw_noise(seed, number, index, next(flow.parameters()).dtype)


def draw_step(
    flow: ImageFlow, images: Tensor, seed: int, step: int, index: Tensor, flip: bool
) -> tuple[Tensor, Tensor]:
    """Return training images as a step sees them, mirrored at random or not, and their noise.

    Args:
        flow: what is trained.
        images: uint8 [B, C, H, W].
        seed: of the run.
        step: counted from 0.
        index: integers [B], the place of each image in the global batch.
        flip: whether each is mirrored with probability 1/2.

    Example:
        >>> from nflows_mixer.flows import mixerflow
        >>> flow = mixerflow(image_shape=(1, 4, 4), patch_size=2, shift=None)
        >>> images = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
        >>> seen, noise = draw_step(flow, images, 0, 0, torch.arange(5), flip=False)
        >>> torch.equal(seen, images), torch.equal(noise, draw_noise(flow, 0, 1, torch.arange(5)))
        (True, True)
    """
    if flip:
        images = random_flips(images, seed, 1 + step, index)
    return images, draw_noise(flow, seed, 1 + step, index)


def random_flips(images: Tensor, seed: int, number: int, index: Tensor) -> Tensor:
    r"""Mirror each image left to right with probability 1/2.

    .. math:: x'_{n,c,i,j} = \begin{cases} x_{n,c,i,W-1-j} & \text{where } u_n < 1/2 \\
              x_{n,c,i,j} & \text{elsewhere} \end{cases}, \qquad
              u_n = u(\mathrm{seed}, 2^{63} + \mathrm{number}, \mathrm{index}_n)

    As of the noise, there is no state: a run that is resumed, or split over other numbers of
    processes, mirrors the same images. Nothing waits for the device.

    Args:
        images: [B, C, H, W], of any dtype.
        seed: of the run.
        number: of the step, as for ``draw_noise``.
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

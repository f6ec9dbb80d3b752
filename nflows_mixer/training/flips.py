"""Images that are mirrored at random, as a function of the seed, the step and the place."""

from __future__ import annotations

import torch
from torch import Tensor

from nflows_mixer.noise import uniform_noise

FLIPS = 2**63
"""Added to the number of a step, it names the stream of flips: no run has as many steps, so that
none of its noise comes from there."""


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

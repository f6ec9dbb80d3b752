"""Uniform noise as a function of where it is used, not of what was drawn before."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from nflows_mixer._checks import mismatch

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def uniform_noise(
    seed: int,
    step: int,
    index: Tensor,
    event_shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Noise in [0, 1) that is a function of (seed, step, index of the image, place in it).

    .. math:: u_{n, d} = 2^{-24} \lfloor 2^{-8}\,
              \mathrm{Philox}_\mathrm{seed}(\lfloor d / 4 \rfloor, \mathrm{index}_n,
              \mathrm{step})_{d \bmod 4} \rfloor

    There is no state: a run that is resumed, a batch that is split over processes or computed
    again, and a CPU and a GPU all see the same noise for the same image of the same step.

    Args:
        seed: of the run, 0 to 2^64 - 1.
        step: of the training, or number of the draw, 0 to 2^64 - 1.
        index: of each image, integers [B] from 0 to 2^32 - 1: its place in the global batch in
            training, in the data set in evaluation.
        event_shape: shape of one image.
        dtype: of the noise, float32 or float64; both have the same values.

    Returns:
        ``[B, *event_shape]``, on the device of ``index``.

    Raises:
        ValueError: if the seed or the step is negative or too large, or ``index`` is no row of
            integers.

    References:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011 (Philox4x32-10).

    Example:
        >>> both = uniform_noise(0, 7, torch.tensor([0, 1]), (3, 8, 8))
        >>> torch.equal(both[1:], uniform_noise(0, 7, torch.tensor([1]), (3, 8, 8)))
        True
    """
    for name, value in (("seed", seed), ("step", step)):
        if not 0 <= value < 2**64:
            raise mismatch("uniform_noise", f"a {name} from 0 to 2**64 - 1", value, "count from 0")
    if index.dim() != 1 or index.is_floating_point():
        got = f"{index.dtype} of shape {list(index.shape)}"
        raise mismatch("uniform_noise", "integers [B], one for each image", got, "use arange")
    size = math.prod(event_shape)
    blocks = torch.arange((size + 3) // 4, device=index.device)
    words = philox((blocks[None], index[:, None].long(), *_halves(step)), _halves(seed))
    flat = rearrange(torch.stack(words, dim=-1), "b block word -> b (block word)")[:, :size]
    return ((flat >> 8).to(dtype) * 2.0**-24).reshape(len(index), *event_shape)


def philox(
    counter: tuple[Tensor, Tensor, Tensor | int, Tensor | int], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Encrypt a counter of four 32-bit words by ten rounds of Philox: four random words.

    One round maps :math:`(c_0, c_1, c_2, c_3)` to
    :math:`(\mathrm{hi}(M_1 c_2) \oplus c_1 \oplus k_0,\ \mathrm{lo}(M_1 c_2),\
    \mathrm{hi}(M_0 c_0) \oplus c_3 \oplus k_1,\ \mathrm{lo}(M_0 c_0))`, and the key grows by
    constants between rounds.

    Args:
        counter: four words, as int64 tensors that broadcast, or numbers.
        key: two words.

    Returns:
        Four words, int64 from 0 to 2^32 - 1.

    References:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011, Section 3.3.

    Example:
        >>> zero = torch.zeros(1, dtype=torch.long)
        >>> [hex(word.item()) for word in philox((zero, zero, zero, zero), (0, 0))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(
        *map(torch.as_tensor, counter[:2]),
        *(torch.as_tensor(word, device=counter[0].device) for word in counter[2:]),
    )
    k0, k1 = key
    for _ in range(10):
        # The products wrap at 64 bits; masking takes the sign's copies off the upper half.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (second >> 32 & _WORD) ^ c1 ^ k0,
            second & _WORD,
            (first >> 32 & _WORD) ^ c3 ^ k1,
            first & _WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def _halves(number: int) -> tuple[int, int]:
    return number & _WORD, number >> 32

"""Noise as a function of where it is used, not of what was drawn before."""

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
        seed: seed of the run, 0 to 2^64 - 1.
        step: training step, or number of the draw, 0 to 2^64 - 1.
        index: integers [B] from 0 to 2^32 - 1, the place of each image in the global batch in
            training, in the data set in evaluation.
        event_shape: shape of one image.
        dtype: float32 or float64; both have the same values.

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


def to_normal(uniform: Tensor) -> Tensor:
    r"""Turn uniform noise in [0, 1) into as much standard normal noise, two by two.

    .. math:: (\varepsilon_1, \varepsilon_2) = \sqrt{-2 \log(1 - u_1)}\,
              (\cos 2 \pi u_2,\ \sin 2 \pi u_2)

    The first half of each row holds :math:`u_1` and the second :math:`u_2`. The largest value that
    24 bits make is 5.8.

    Args:
        uniform: [B, N] with an even N.

    Returns:
        [B, N], a function of each row.

    Raises:
        ValueError: if N is odd.

    References:
        Box and Muller, A note on the generation of random normal deviates, 1958.

    Example:
        >>> noise = to_normal(uniform_noise(0, 0, torch.arange(100), (100,)))
        >>> round(noise.mean().item(), 1) + 0.0, round(noise.std().item(), 1)
        (0.0, 1.0)
    """
    if uniform.shape[1] % 2:
        raise mismatch("to_normal", "an even number of columns", uniform.shape[1], "draw one more")
    first, second = uniform.chunk(2, dim=1)
    radius = (-2 * torch.log1p(-first)).sqrt()
    angle = 2 * math.pi * second
    return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)


def mixed_noise(
    seed: int,
    step: int,
    index: Tensor,
    parts: Sequence[tuple[str, Sequence[int]]],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Noise of several kinds, side by side; the first part is that of ``uniform_noise``.

    Args:
        seed, step, index, dtype: as in ``uniform_noise``.
        parts: kind ("uniform" or "normal") of each part, and its shape for one image.

    Returns:
        [B, N], the parts flattened one behind the other.

    Example:
        >>> noise = mixed_noise(0, 7, torch.tensor([0, 1]), [("uniform", (3, 4)), ("normal", (5,))])
        >>> noise.shape, torch.equal(noise[0, :12], uniform_noise(0, 7, torch.arange(1), (12,))[0])
        (torch.Size([2, 17]), True)
    """
    sizes = [math.prod(shape) for _, shape in parts]
    # Normal noise is made of pairs.
    drawn = [size + size % 2 if kind == "normal" else size for size, (kind, _) in zip(sizes, parts)]
    pieces = uniform_noise(seed, step, index, (sum(drawn),), dtype).split(drawn, dim=1)
    made = [
        to_normal(piece)[:, :size] if kind == "normal" else piece
        for piece, size, (kind, _) in zip(pieces, sizes, parts)
    ]
    return torch.cat(made, dim=1)


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
    device = counter[0].device
    # Not as_tensor, whose copy of a number to a device waits for it.
    words = (w if isinstance(w, Tensor) else torch.full((), w, device=device) for w in counter)
    c0, c1, c2, c3 = torch.broadcast_tensors(*words)
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

"""Base distributions on any event shape, images among them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from nflows.distributions.base import Distribution
from torch import Tensor, distributions, nn

from nflows_mixer._checks import check_event, check_positive, mismatch


class BaseDistribution(Distribution):
    """Base of the bases: log_prob and sample of a factorised torch distribution.

    A subclass says which one in ``as_torch(temperature)``, with ``temperature`` multiplying every
    scale. The context is accepted, and has no influence, as for nflows' own StandardNormal.

    Args:
        shape: event shape, such as (C, H, W).
    """

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__()
        self.shape = torch.Size((shape,) if isinstance(shape, int) else shape)

    def as_torch(self, temperature: float = 1.0) -> distributions.Distribution:
        """Return the distribution of one event as a ``torch.distributions.Distribution``."""
        raise TypeError(f"{type(self).__name__} is abstract: use one of its subclasses")

    def _log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        check_event(inputs, self.shape, type(self).__name__, "build the base for this shape")
        return self.as_torch(1.0).log_prob(inputs).flatten(1).sum(1)

    def sample(
        self,
        num_samples: int,
        context: Tensor | None = None,
        batch_size: int | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw samples: ``[num_samples, *shape]``, or ``[context_size, num_samples, *shape]``.

        Args:
            num_samples: how many, for each row of the context if there is one.
            context: [context_size, F], read for its size only.
            batch_size: accepted as nflows does; a draw from a base needs no chunks.
            temperature: multiplies the scales; 1 is the distribution itself, 0 its location (of a
                mixture, that of a component drawn by its weight).

        Raises:
            ValueError: if ``num_samples`` is not a positive integer, or the temperature is
                negative or not finite.
        """
        check_positive("sample", "num_samples", num_samples)
        if not (math.isfinite(temperature) and temperature >= 0):
            raise mismatch("sample", "a temperature of at least 0", temperature, "1 is the default")
        leading = (num_samples,) if context is None else (context.shape[0], num_samples)
        # A scale of 0 is a distribution only in the limit, so the limit of the draw stands in.
        draw = self.as_torch(max(temperature, torch.finfo(torch.float32).tiny))
        with torch.no_grad():
            return draw.sample(leading)

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        return self.sample(num_samples, context)


class DiagonalNormal(BaseDistribution):
    r"""Normal distribution with its own mean and scale for each dimension.

    .. math:: p(z) = \prod_d \mathcal N(z_d;\ m_d,\ e^{2 s_d})

    Starts as the standard normal, and stays that where it is not learnable.

    Args:
        shape: event shape, such as (C, H, W).
        learnable: whether mean and log-scale are parameters (2 per dimension) or fixed at 0.

    References:
        Kingma and Dhariwal, Glow, 2018 (learned prior); 2 x 3072 of MixerFlow's 11.34M parameters.

    Example:
        >>> base = DiagonalNormal((3, 32, 32))
        >>> base.log_prob(base.sample(5)).shape
        torch.Size([5])
    """

    def __init__(self, shape: int | Sequence[int], learnable: bool = True) -> None:
        super().__init__(shape)
        _learn(self, learnable, location=torch.zeros(self.shape), log_scale=torch.zeros(self.shape))

    def as_torch(self, temperature: float = 1.0) -> distributions.Normal:
        """One normal per dimension."""
        scale = temperature * self.log_scale.exp()
        return distributions.Normal(self.location, scale, validate_args=False)


class StudentT(BaseDistribution):
    r"""Student's t distribution for each dimension: tails heavier than the normal's.

    .. math:: p(z) = \prod_d t_\nu\big((z_d - m_d) e^{-s_d}\big)\, e^{-s_d}

    Args:
        shape: event shape, such as (C, H, W).
        degrees_of_freedom: ``nu``; 1 is the Cauchy distribution, large values approach the normal.
        learnable: whether location and log-scale are parameters (2 per dimension) or fixed at 0.

    Raises:
        ValueError: if ``degrees_of_freedom`` is not above 0.

    References:
        MixerFlow, Section 10, "Training instabilities" (fat-tailed bases).

    Example:
        >>> cauchy = StudentT((1, 2, 2), degrees_of_freedom=1.0)
        >>> cauchy.log_prob(torch.zeros(1, 1, 2, 2)).exp().item()  # pi ** -4
        0.0102...
    """

    def __init__(
        self, shape: int | Sequence[int], degrees_of_freedom: float = 5.0, learnable: bool = True
    ) -> None:
        super().__init__(shape)
        if not degrees_of_freedom > 0:
            raise mismatch(
                "StudentT", "degrees_of_freedom above 0", degrees_of_freedom, "1 is the Cauchy"
            )
        self.degrees_of_freedom = float(degrees_of_freedom)
        _learn(self, learnable, location=torch.zeros(self.shape), log_scale=torch.zeros(self.shape))

    def as_torch(self, temperature: float = 1.0) -> distributions.StudentT:
        """One t distribution per dimension."""
        scale = temperature * self.log_scale.exp()
        freedom = torch.full_like(scale, self.degrees_of_freedom)
        return distributions.StudentT(freedom, self.location, scale, validate_args=False)


class NormalMixture(BaseDistribution):
    r"""Mixture of normals for each dimension, at the start a spike and a slab around 0.

    .. math:: p(z) = \prod_d \sum_k \pi_{dk}\, \mathcal N(z_d;\ m_{dk},\ e^{2 s_{dk}}),
              \qquad \pi_{dk} = \mathrm{softmax}_k(w_{dk})

    Args:
        shape: event shape, such as (C, H, W).
        scales: standard deviations at the start, one per component; they differ so that the
            components do not stay copies of each other.
        learnable: whether weights, means and log-scales are parameters (3 per dimension and
            component) or fixed.

    Raises:
        ValueError: if a scale is not above 0, or there is none.

    References:
        MixerFlow, Section 10, "Training instabilities" (Gaussian spike and slab).

    Example:
        >>> base = NormalMixture((1, 8, 8), scales=(0.1, 1.0))
        >>> base.sample(3).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        scales: Sequence[float] = (0.1, 1.0),
        learnable: bool = True,
    ) -> None:
        super().__init__(shape)
        if not scales or min(scales) <= 0:
            raise mismatch("NormalMixture", "scales above 0", scales, "give one per component")
        components = (*self.shape, len(scales))
        _learn(
            self,
            learnable,
            location=torch.zeros(components),
            log_scale=torch.tensor(scales).log().expand(components).clone(),
            weight_logits=torch.zeros(components),
        )

    def as_torch(self, temperature: float = 1.0) -> distributions.MixtureSameFamily:
        """One mixture per dimension."""
        weights = distributions.Categorical(logits=self.weight_logits, validate_args=False)
        scale = temperature * self.log_scale.exp()
        components = distributions.Normal(self.location, scale, validate_args=False)
        return distributions.MixtureSameFamily(weights, components, validate_args=False)


def _learn(module: nn.Module, learnable: bool, **starts: Tensor) -> None:
    for name, start in starts.items():
        if learnable:
            module.register_parameter(name, nn.Parameter(start))
        else:
            module.register_buffer(name, start)

"""The package's own bases, on any event shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from nflows.distributions.base import Distribution
from torch import Tensor, distributions, nn

from nflows_mixer._checks import as_python, as_size, check_positive, mismatch, wrong_event


class BaseDistribution(Distribution):
    """Base of the bases: log_prob and sample of a factorized torch distribution.

    A subclass says which one in ``as_torch(temperature)``, with ``temperature`` multiplying every
    scale. The context is accepted, and has no influence, as for nflows' own StandardNormal.

    Args:
        shape: event shape, such as (C, H, W).
        learnable: whether ``starts`` are parameters, or buffers.
        starts: tensors of the distribution by their names.
    """

    def __init__(
        self, shape: int | Sequence[int], learnable: bool = False, **starts: Tensor
    ) -> None:
        super().__init__()
        self.shape = as_size(shape)
        for name, start in starts.items():
            if learnable:
                self.register_parameter(name, nn.Parameter(start))
            else:
                self.register_buffer(name, start)

    def as_torch(self, temperature: float = 1.0) -> distributions.Distribution:
        """Return the distribution of one event as a ``torch.distributions.Distribution``."""
        raise TypeError(
            f"{type(self).__name__}.as_torch: expected one family of distributions, got none; ask "
            "a base that has one, or each of the parts of a product"
        )

    def _log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        if inputs.shape[1:] != self.shape:
            raise wrong_event(
                inputs, self.shape, type(self).__name__, "build the base for this shape"
            )
        log_prob = self.as_torch(1.0).log_prob(inputs)
        return log_prob if log_prob.dim() == 1 else log_prob.flatten(1).sum(1)

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
        num_samples = check_positive("sample", "num_samples", num_samples)
        if not (math.isfinite(temperature) and temperature >= 0):
            raise mismatch("sample", "a temperature of at least 0", temperature, "1 is the default")
        leading = (num_samples,) if context is None else (context.shape[0], num_samples)
        # A scale of 0 is a distribution only in the limit, so the limit of the draw stands in.
        draw = self.as_torch(max(temperature, torch.finfo(torch.float32).tiny))
        with torch.no_grad():
            return draw.sample(leading)

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        return self.sample(num_samples, context)

    @property
    def has_rsample(self) -> bool:
        """Whether ``rsample`` can be called."""
        return self.as_torch().has_rsample

    def rsample(self, num_samples: int) -> Tensor:
        """Draw ``[num_samples, *shape]`` with gradients of the parameters, by reparametrization."""
        return self.as_torch().rsample((num_samples,))

    def _mean(self, context: Tensor | None) -> Tensor:
        mean = self.as_torch().mean
        return mean if context is None else mean.expand(len(context), *self.shape)


class DiagonalNormal(BaseDistribution):
    r"""Normal distribution with its own mean and scale for each dimension.

    .. math:: p(z) = \prod_d \mathcal N(z_d;\ m_d,\ e^{2 s_d})

    Starts as the standard normal, and stays that where it is not learnable.

    Args:
        shape: event shape, such as (C, H, W).
        learnable: whether mean and log-scale are parameters (2 per dimension) or fixed at 0.
        per_channel: whether all positions of a channel, the first axis, share them.

    References:
        Kingma and Dhariwal, Glow, 2018 (learned prior); 2 x 3072 of MixerFlow's 11.34M parameters.

    Example:
        >>> base = DiagonalNormal((3, 32, 32))
        >>> base.log_prob(base.sample(5)).shape
        torch.Size([5])
        >>> sum(p.numel() for p in DiagonalNormal((3, 32, 32), per_channel=True).parameters())
        6
    """

    def __init__(
        self, shape: int | Sequence[int], learnable: bool = True, per_channel: bool = False
    ) -> None:
        own = tuple(as_size(shape))
        if per_channel:
            own = (own[0], *(1 for _ in own[1:]))
        zeros = {"location": torch.zeros(own), "log_scale": torch.zeros(own)}
        super().__init__(shape, learnable, **zeros)

    def as_torch(self, temperature: float = 1.0) -> distributions.Normal:
        """One normal per dimension."""
        scale = temperature * self.log_scale.exp()
        return distributions.Normal(
            self.location.expand(self.shape), scale.expand(self.shape), validate_args=False
        )


class StudentT(BaseDistribution):
    r"""Student's t distribution for each dimension: tails heavier than the normal's.

    .. math:: p(z) = \prod_d t_\nu\big((z_d - m_d) e^{-s_d}\big)\, e^{-s_d}

    Args:
        shape, learnable: as ``DiagonalNormal``.
        degrees_of_freedom: ``nu``; 1 is the Cauchy distribution, large values approach the normal.

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
        if not degrees_of_freedom > 0:
            expected, advice = "degrees_of_freedom above 0", "1 is the Cauchy"
            raise mismatch("StudentT", expected, degrees_of_freedom, advice)
        own = as_size(shape)
        zeros = {"location": torch.zeros(own), "log_scale": torch.zeros(own)}
        super().__init__(own, learnable, **zeros)
        self.degrees_of_freedom = float(degrees_of_freedom)

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
        shape: as ``DiagonalNormal``.
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
        scales = as_python(scales)
        if not scales or min(scales) <= 0:
            raise mismatch("NormalMixture", "scales above 0", scales, "give one per component")
        components = (*as_size(shape), len(scales))
        super().__init__(
            shape,
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


class ProductDistribution(BaseDistribution):
    r"""Independent parts of one flat latent, each with a base of its own.

    .. math:: p(z) = \prod_i p_i(z_i), \qquad z = [z_1, \dots, z_n] \in \mathbb R^D

    What a multi-scale flow ends in (see ``MultiScaleTransform``): parts that were dropped on the
    way, and the rest.

    Args:
        parts: name -> base of that part, in the order in which the latent holds them.

    Shapes:
        latents [B, D], with the parts flattened one behind the other.

    Raises:
        ValueError: if there is no part, or a name cannot be that of a module.
        TypeError: if a part is no base of this package.

    References:
        Dinh et al., Density estimation using Real NVP, 2017, Section 3.6; DenseFlow, Section 2.3.

    Example:
        >>> parts = {"split_1": DiagonalNormal((6, 2, 2), learnable=False), "final": StudentT(3)}
        >>> base = ProductDistribution(parts)
        >>> base.sample(5).shape, base.log_prob(base.sample(5)).shape
        (torch.Size([5, 27]), torch.Size([5]))
    """

    def __init__(self, parts: Mapping[str, BaseDistribution]) -> None:
        owner = "ProductDistribution"
        taken = dir(nn.ModuleDict)
        if not parts or any(not name or "." in name or name in taken for name in parts):
            advice = "name each part by a word that no method of a ModuleDict has"
            raise mismatch(owner, "named parts", list(parts), advice)
        for name, part in parts.items():
            if not isinstance(part, BaseDistribution):
                raise TypeError(
                    f"{owner}: expected bases of nflows_mixer.distributions, got "
                    f"{type(part).__name__} for {name!r}; use one of these"
                )
        super().__init__(sum(math.prod(part.shape) for part in parts.values()))
        self.parts = nn.ModuleDict(parts)
        self.sizes = [math.prod(part.shape) for part in parts.values()]

    def _log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        if inputs.shape[1:] != self.shape:
            raise wrong_event(
                inputs, self.shape, "ProductDistribution", "build the base for this latent"
            )
        total = inputs.new_zeros(len(inputs))
        for part, latents in zip(self._bases(), inputs.split(self.sizes, dim=1)):
            total = total + part.log_prob(latents.reshape(-1, *part.shape))
        return total

    def sample(
        self,
        num_samples: int,
        context: Tensor | None = None,
        batch_size: int | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw latents; arguments and errors are those of ``BaseDistribution.sample``."""
        drawn = [
            part.sample(num_samples, context, batch_size, temperature) for part in self._bases()
        ]
        leading = 1 if context is None else 2
        return torch.cat([latents.flatten(leading) for latents in drawn], dim=-1)

    @property
    def has_rsample(self) -> bool:
        """Whether all parts have one."""
        return all(part.has_rsample for part in self._bases())

    def rsample(self, num_samples: int) -> Tensor:
        """Draw latents with gradients of the parameters."""
        return torch.cat([part.rsample(num_samples).flatten(1) for part in self._bases()], dim=1)

    def _mean(self, context: Tensor | None) -> Tensor:
        mean = torch.cat([part.mean().flatten() for part in self._bases()])
        return mean if context is None else mean.expand(len(context), -1)

    def _bases(self) -> list[BaseDistribution]:
        return [cast(BaseDistribution, part) for part in self.parts.values()]


def standard_normal_log_prob(noise: Tensor) -> Tensor:
    r"""Log-density of standard normal noise.

    .. math:: \log q(e) = -\tfrac12 \sum_d \big(e_d^2 + \log 2 \pi\big)

    Args:
        noise: [B, ...].

    Returns:
        [B], in nats.

    Example:
        >>> standard_normal_log_prob(torch.zeros(1, 2)).exp().item()  # 1 / (2 pi)
        0.159...
    """
    dimensions = math.prod(noise.shape[1:])
    constant = dimensions * math.log(2 * math.pi)
    return -0.5 * (noise.square().flatten(1).sum(1) + constant)

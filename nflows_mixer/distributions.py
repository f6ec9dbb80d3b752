"""Base distributions on any event shape, images among them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from nflows.distributions.base import Distribution
from torch import Tensor, distributions, nn

from nflows_mixer._checks import check_positive, mismatch, wrong_event


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
        self.shape = _as_size(shape)
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
        own = tuple(_as_size(shape))
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
        zeros = {"location": torch.zeros(shape), "log_scale": torch.zeros(shape)}
        super().__init__(shape, learnable, **zeros)
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
        if not scales or min(scales) <= 0:
            raise mismatch("NormalMixture", "scales above 0", scales, "give one per component")
        components = (*_as_size(shape), len(scales))
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
        TypeError: if a part is no base of this module.

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


class TorchBase(BaseDistribution):
    r"""Any distribution of torch as a base: those of zuko and nflows' ``BoxUniform`` among them.

    .. math:: p(z) = \prod_b p_b(z_b) \quad \text{over the batch of the distribution}

    Its tensors become buffers, and parameters where they are parameters, so that they follow the
    dtype and the device of the flow. Outside of its support the density is zero, and no error.

    Args:
        distribution: its batch shape and event shape together are the shape of one latent.

    Example:
        >>> uniform = distributions.Uniform(torch.zeros(3), torch.ones(3))
        >>> TorchBase(uniform).log_prob(torch.full((2, 3), 0.5))
        tensor([0., 0.])
    """

    def __init__(self, distribution: distributions.Distribution) -> None:
        super().__init__(distribution.batch_shape + distribution.event_shape)
        self._distribution = distribution
        for name, tensor in _tensors_of(distribution).items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor.detach().clone())

    def as_torch(self, temperature: float = 1.0) -> distributions.Distribution:
        """The distribution, of the tensors as they are now."""
        if temperature != 1.0:
            got = f"{temperature} for {type(self._distribution).__name__}"
            advice = "use a base of nflows_mixer.distributions, or temperature=1"
            raise mismatch("sample", "a base whose scales are known", got, advice)
        return _with_tensors(self._distribution, {**self._parameters, **self._buffers})


class ModuleBase(Distribution):
    """A base of zuko (a lazy distribution without context) or of normflows.

    Args:
        base: a module that returns a distribution of torch, or one with ``log_prob(z)`` that
            returns samples and their log-densities when called with a number.
        shape: of one latent.

    Example:
        >>> import normflows as nf
        >>> ModuleBase(nf.distributions.DiagGaussian(3), (3,)).sample(2).shape
        torch.Size([2, 3])
    """

    def __init__(self, base: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.base = base
        self.shape = _as_size(shape)

    def _log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        density: Any = self.base if hasattr(self.base, "log_prob") else self.base()
        log_prob = density.log_prob(inputs)
        return log_prob if log_prob.dim() == 1 else log_prob.flatten(1).sum(1)

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        count = num_samples if context is None else num_samples * len(context)
        if hasattr(self.base, "log_prob"):
            samples = self.base(count)[0]
        else:
            samples = self.base().sample((count,))
        leading = (num_samples,) if context is None else (len(context), num_samples)
        return samples.reshape(*leading, *self.shape)


def as_base(base: Any, shape: Sequence[int], owner: str) -> Distribution:
    """Return a distribution of any library as the base of a flow.

    Args:
        base: a distribution of nflows, of torch (zuko's, nflows' ``BoxUniform``), a lazy one of
            zuko that takes no context, or one of normflows.
        shape: of one latent.
        owner: whose argument this is, for the error.

    Raises:
        TypeError: if it is none of these.
        ValueError: if it is for latents of another shape.

    Example:
        >>> normal = distributions.Normal(torch.zeros(1, 4, 4), torch.ones(1, 4, 4))
        >>> as_base(normal, (1, 4, 4), "example").sample(2).shape
        torch.Size([2, 1, 4, 4])
    """
    library = {kind.__module__.split(".")[0] for kind in type(base).__mro__}
    if isinstance(base, distributions.Distribution):
        base = TorchBase(base)
    elif isinstance(base, nn.Module) and not isinstance(base, Distribution):
        if library & {"zuko", "normflows"}:
            try:
                base = ModuleBase(base, shape)
                drawn = base.sample(1).shape[1:]
                base.log_prob(torch.zeros(1, *drawn).to(next(base.parameters(), torch.empty(0))))
            except Exception as error:
                got = f"{type(base).__name__}, which raises {type(error).__name__}: {error}"
                advice = "a base takes no context, and has log_prob and samples"
                raise mismatch(owner, f"a base of latents {tuple(shape)}", got, advice) from error
    if not isinstance(base, Distribution):
        raise TypeError(
            f"{owner}: expected a base of nflows, torch, zuko or normflows, got "
            f"{type(base).__name__}; a base of your own subclasses nflows' Distribution"
        )
    own = getattr(base, "shape", getattr(base, "_shape", None))
    if own is not None and tuple(own) != tuple(shape):
        got, advice = f"{tuple(own)} of {type(base).__name__}", "build it for these latents"
        raise mismatch(owner, f"a base of shape {tuple(shape)}", got, advice)
    return base


def _tensors_of(distribution: distributions.Distribution, prefix: str = "") -> dict[str, Tensor]:
    """Tensors that a distribution of torch is made of, those of the ones within it too."""
    found: dict[str, Tensor] = {}
    for name, value in vars(distribution).items():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, distributions.Distribution):
            found |= _tensors_of(value, f"{prefix}{name}_")
    return found


def _with_tensors(
    distribution: distributions.Distribution, tensors: Mapping[str, Tensor], prefix: str = ""
) -> distributions.Distribution:
    """A copy of a distribution of torch, made of other tensors."""
    copied = copy.copy(distribution)
    copied._validate_args = False
    for name, value in vars(distribution).items():
        if isinstance(value, Tensor):
            vars(copied)[name] = tensors[f"{prefix}{name}"]
        elif isinstance(value, distributions.Distribution):
            vars(copied)[name] = _with_tensors(value, tensors, f"{prefix}{name}_")
    return copied


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


def _as_size(shape: int | Sequence[int]) -> torch.Size:
    return torch.Size((shape,) if isinstance(shape, int) else shape)

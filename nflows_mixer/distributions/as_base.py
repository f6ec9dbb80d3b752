"""A distribution of any library made into the base of a flow."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nflows.distributions.base import Distribution, NoMeanException
from torch import Tensor, distributions, nn

from nflows_mixer._checks import as_size, libraries_of, mismatch
from nflows_mixer.distributions.bases import BaseDistribution


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
    given = type(base).__name__
    if isinstance(base, distributions.Distribution):
        if _is_discrete(base):
            advice = "a flow is a density of real latents"
            raise mismatch(owner, "a base of real latents", f"{given}, a discrete one", advice)
        base = TorchBase(base)
    elif isinstance(base, nn.Module) and not isinstance(base, Distribution):
        if libraries_of(base) & {"zuko", "normflows"}:
            try:
                base = ModuleBase(base, shape)
                drawn = base.sample(1).shape[1:]
                base.log_prob(torch.zeros(1, *drawn).to(next(base.parameters(), torch.empty(0))))
            except Exception as error:
                got = f"{given}, which raises {type(error).__name__}: {error}"
                advice = "a base takes no context, and has log_prob and samples"
                raise mismatch(owner, f"a base of latents {tuple(shape)}", got, advice) from error
    if not isinstance(base, Distribution):
        raise TypeError(
            f"{owner}: expected a base of nflows, torch, zuko or normflows, got "
            f"{given}; a base of your own subclasses nflows' Distribution"
        )
    own = shape_of(base)
    if own is not None and tuple(own) != tuple(shape):
        got, advice = f"{tuple(own)} of {given}", "build it for these latents"
        raise mismatch(owner, f"a base of shape {tuple(shape)}", got, advice)
    return base


def shape_of(base: Distribution) -> Sequence[int] | None:
    """Shape of one latent, which bases of this package and of nflows say; None for others.

    Args:
        base: any distribution of nflows.

    Example:
        >>> from nflows.distributions import StandardNormal
        >>> shape_of(StandardNormal([3]))
        torch.Size([3])
    """
    return getattr(base, "shape", getattr(base, "_shape", None))


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
        self.shape = as_size(shape)

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

    def _mean(self, context: Tensor | None) -> Tensor:
        density = None if hasattr(self.base, "log_prob") else self.base()
        try:
            mean = getattr(density, "mean", None)
        except NotImplementedError:
            mean = None
        if mean is None:
            raise NoMeanException(
                f"mean: expected a base that knows its mean, got {type(self.base).__name__}, which "
                "does not; average samples, or use a base of nflows_mixer.distributions"
            )
        return mean if context is None else mean.expand(len(context), *self.shape)


def _is_discrete(distribution: distributions.Distribution) -> bool:
    """Whether its support is; one that does not say its support is taken for real."""
    try:
        return getattr(distribution.support, "is_discrete", False)
    except NotImplementedError:
        return False


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

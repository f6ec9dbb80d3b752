"""What the builders share: how their arguments are put together, checked and made a flow."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from nflows.distributions.base import Distribution
from nflows.transforms import Transform
from torch import nn

from nflows_mixer._checks import (
    as_python,
    check_choice,
    check_image_shape,
    check_levels,
    check_positive,
    mismatch,
)
from nflows_mixer.core.context import takes_context
from nflows_mixer.core.factory import UNSET, Unset, call_factory
from nflows_mixer.flows.architecture import Architecture
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.pixels import NOISE_CHANNELS, DequantizationLike, noise_networks
from nflows_mixer.flows.presets import Preset
from nflows_mixer.nn import ClassEmbedding
from nflows_mixer.transforms import UniformDequantization, VariationalDequantization
from nflows_mixer.transforms.variational import nearly_uniform_noise, small_variational


class Spec:
    """Base of the arguments of a builder that describe a flow, a dataclass with their defaults."""

    image_shape: tuple[int, int, int]
    levels: int | None
    norm: str | None | Unset
    context_features: int | None
    num_classes: int | None

    def check(self, owner: str, sizes: Collection[str], factories: Collection[str]) -> None:
        """Raise unless what both builders take is right, sizes are, and factories are factories.

        Args:
            owner: the builder.
            sizes: names of arguments that are positive, or not given.
            factories: names of arguments that are factories, or not given.
        """
        check_image_shape(self.image_shape, owner)
        if self.levels is not None:
            check_levels(owner, self.levels)
        if self.norm is not UNSET:
            check_choice(owner, "norm", self.norm, ("layer", "batch", None))
        for name in (*sizes, "context_features", "num_classes"):
            if getattr(self, name) is not None:
                check_positive(owner, name, getattr(self, name))
        for name in factories:
            if (value := getattr(self, name)) is None:
                continue
            if isinstance(value, nn.Module):
                got, advice = f"a ready {type(value).__name__}", "all layers would share it"
                raise mismatch(owner, f"{name} as a factory", got, f"{advice}: pass a class")
            if not callable(value):
                advice = "pass a class or a function, functools.partial for its keywords"
                raise mismatch(owner, f"{name} as a factory", repr(value), advice)

    @property
    def features(self) -> int | None:
        """Length of the context that conditioners see: of labels that of their vectors."""
        if self.num_classes is not None and self.context_features is None:
            return 16
        return self.context_features

    def embedding(self, classes: int) -> nn.Module:
        """Return what makes a context of labels."""
        return ClassEmbedding(classes, self.features or 0)

    @property
    def offered_norm(self) -> dict[str, Any]:
        """The norm, where it is given, for the factories that take one."""
        return {} if self.norm is UNSET else {"norm": self.norm}

    def assemble(
        self,
        builder: str,
        transform: Transform,
        base: Distribution,
        dequantization: DequantizationLike,
        noise_channels: int | None,
        memory: str,
        layers: type[Transform],
        advice: str,
    ) -> ImageFlow:
        """Return the flow of these parts, which knows what it is made of.

        Args:
            builder: its name.
            transform: from pixels to latents.
            base: of the latents.
            dequantization: its name or a factory, see ``Pixels``; not read for real images.
            noise_channels: of a learned one.
            memory: of the backward pass.
            layers: the class of those that are to take the context; a warning says how many do not.
            advice: what to do about these.
        """
        classes, shape = self.num_classes, check_image_shape(self.image_shape, builder)
        if self.features is None and takes_context(base):
            got = f"{type(base).__name__}, which takes context"
            advice = "give context_features, or num_classes for labels"
            raise mismatch(builder, "a base without context in a flow without one", got, advice)
        if dequantization == "uniform":
            dequantization = UniformDequantization
        elif dequantization == "variational-small":
            dequantization = small_variational
        elif dequantization == "variational":
            channels = noise_channels or NOISE_CHANNELS
            network, encoder = noise_networks(channels)
            dequantization = partial(
                VariationalDequantization,
                noise=partial(nearly_uniform_noise, conditioner=network),
                encoder=encoder,
                context_features=channels,
            )
        offered = {"image_shape": shape, "levels": self.levels, "checkpoint": memory != "full"}
        flow = ImageFlow(
            transform,
            shape,
            base,
            self.levels,
            self.features,
            None if classes is None else self.embedding(classes),
            None if self.levels is None else call_factory(dequantization, **offered),
        )
        flow.architecture = Architecture(builder, dict(vars(self)))
        found = [part for part in flow.modules() if isinstance(part, layers)]
        unread = sum(not takes_context(layer) for layer in found)
        if self.features is not None and unread:
            warnings.warn(
                f"{builder}: {unread} of {len(found)} {layers.__name__}s take no context and stay "
                f"unconditional; {advice}",
                stacklevel=4,
            )
        return flow


def specify(
    builder: Callable[..., ImageFlow],
    spec: Callable[..., Any],
    presets: Mapping[str, Preset],
    arguments: Mapping[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Return the spec of a builder's arguments, and those of them that its caller gave.

    Args:
        builder: where an argument is ``UNSET`` if not given, None is a choice.
        spec: its dataclass.
        presets: of the builder.
        arguments: all of them.

    Raises:
        ValueError: if there is no preset of that name, or an argument is wrong.
        TypeError: if one is missing.
    """
    owner, preset = builder.__name__, arguments["preset"]
    parameters = inspect.signature(builder).parameters
    changes = {
        name: as_python(value)
        for name, value in arguments.items()
        if name not in ("preset", "compile", "memory")
        and value is not UNSET
        and (value is not None or parameters[name].default is UNSET)
    }
    known: Mapping[str, Any] = {}
    if preset is not None:
        check_choice(owner, "preset", preset, tuple(presets))
        known = presets[preset].arguments
    fields = dataclasses.fields(spec)  # type: ignore[arg-type]
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    if missing := sorted(set(required) - {*known, *changes}):
        raise TypeError(
            f"{owner}: expected a preset, or {' and '.join(required)}, got no "
            f"{', '.join(missing)}; name one of {', '.join(presets)}, or give what is missing"
        )
    return spec(**{**known, **changes}), changes

"""What builders share whose flows are a chain of maps of images behind the scaling of pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from nflows.transforms import Transform
from torch import nn

from nflows_mixer._checks import check_image_shape, mismatch
from nflows_mixer.core.factory import UNSET
from nflows_mixer.distributions import as_base
from nflows_mixer.flows.builder import Spec
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.mixerflow_spec import Base, is_ready
from nflows_mixer.flows.pixels import Pixels
from nflows_mixer.transforms import ReversibleCompositeTransform

LINEAR = Pixels(conv1x1=False)
"""A linear scale of pixels alone."""


class ChainSpec(Spec):
    """Base of the arguments of such a builder, a dataclass with their defaults."""

    base: Base
    pixels: Pixels
    norm = UNSET  # LayerNorm is part of a transformer

    def check_ends(self, owner: str) -> None:
        """Raise unless what stands at the ends of the chain, pixels and base, is right.

        Args:
            owner: the builder.

        Raises:
            ValueError: if it is not.
        """
        if self.pixels is None:
            object.__setattr__(self, "pixels", LINEAR)
        elif not isinstance(self.pixels, Pixels):
            raise mismatch(owner, "pixels as Pixels(...)", repr(self.pixels), "build one")
        if not is_ready(self.base) and not callable(self.base):
            advice = "pass a distribution, or a factory shape -> distribution"
            raise mismatch(owner, "a base", repr(self.base), advice)

    def build(
        self,
        owner: str,
        maps: Callable[[tuple[int, int, int]], Iterable[Transform]],
        layers: type[Transform],
        network_of: Callable[[Any], nn.Module],
        compile: bool,
        memory: str,
    ) -> ImageFlow:
        """Return the flow of this chain.

        Args:
            owner: the builder.
            maps: image shape (C, H, W) -> the maps, from data to noise, which keep it.
            layers: the class of the parts that have networks.
            network_of: the network of one, which is compiled where that is asked for.
            compile: whether ``torch.compile`` compiles the networks.
            memory: of the backward pass.
        """
        image_shape = check_image_shape(self.image_shape, owner)
        shape = self.pixels.shape(image_shape)
        parts = [*self.pixels.transforms(image_shape, self.levels), *maps(shape)]
        transform = ReversibleCompositeTransform(parts, memory=memory, compile=compile)
        if transform.compiled is not None:
            for part in transform.modules():
                if isinstance(part, layers):
                    transform.compiled.attach(network_of(part))
        made: Any = self.base
        base = as_base(made if is_ready(made) else made(shape), shape, f"{owner}.base")
        noise = self.pixels.dequantization, self.pixels.noise_channels
        return self.assemble(owner, transform, base, *noise, memory, layers, "")

"""What a MixerFlow is made of, as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, Union

from nflows.distributions.base import Distribution
from nflows.transforms import Transform
from torch import Tensor, distributions, nn

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.core.factory import UNSET, Unset, call_factory
from nflows_mixer.distributions import DiagonalNormal
from nflows_mixer.flows.builder import Spec
from nflows_mixer.flows.pixels import Pixels
from nflows_mixer.transforms import AffineCoupling, LULinear, PatchTransform

OWNER = "mixerflow"
SHIFT_PERIOD = 4
NETWORK = ("conditioner", "norm", "hidden_features")
"""Arguments of the networks of row flows."""

RowFlowFactory = Callable[..., Union[Transform, nn.Module]]
"""Row length -> flow: a class such as ``zuko.flows.NSF``, a function, a ``functools.partial``."""
PatchSize = Union[int, Sequence[int], Callable[[tuple[int, int, int]], PatchTransform]]
"""p, (height, width), or image shape -> patches."""
Shift = Union[int, Sequence[int], None]
LocalFlow = Callable[[tuple[int, int, int]], Transform]
"""Image shape -> a transform that keeps it, such as ``GlowSteps``."""
ReadyBase = Union[Distribution, distributions.Distribution, nn.Module]
Base = Union[ReadyBase, Callable[[tuple[int, ...]], ReadyBase]]
"""A distribution of nflows, torch, zuko or normflows, or a factory of one: shape -> base."""


@dataclass(frozen=True)
class MixerFlowSpec(Spec):
    """The arguments of ``mixerflow`` that describe the flow, with their defaults, checked."""

    image_shape: tuple[int, int, int]
    patch_size: Any
    levels: int | None = 256
    num_layers: Any = 30
    num_flow_layers: Any = 4
    channel_flow: RowFlowFactory = AffineCoupling
    patch_flow: RowFlowFactory = AffineCoupling
    linear: RowFlowFactory | None = LULinear
    conditioner: Callable[..., nn.Module] | None = None
    hidden_features: int | None = None
    norm: str | None | Unset = UNSET
    shift: Any = 1
    mask: Any = "halves"
    alternate: bool | None = None
    local_flow: Any = None
    base: Base = DiagonalNormal
    context_features: int | None = None
    num_classes: int | None = None
    positions: Callable[[int], Tensor] | None = None
    pixels: Pixels = Pixels()

    def __post_init__(self) -> None:
        factories = ["channel_flow", "patch_flow", "linear", "conditioner", "positions", "base"]
        if is_ready(self.base):
            factories.remove("base")
        self.check(OWNER, ("hidden_features",), factories)
        for count in self.flow_layers.values():
            check_positive(OWNER, "num_flow_layers", count)
        if not self.scales:
            advice = "give one number, or one for each scale"
            raise mismatch(OWNER, "num_layers of at least one scale", self.num_layers, advice)
        for count in self.scales:
            check_positive(OWNER, "num_layers", count)
        if self.pixels is None:
            object.__setattr__(self, "pixels", Pixels())
        elif not isinstance(self.pixels, Pixels):
            raise mismatch(OWNER, "pixels as Pixels(...)", repr(self.pixels), "build one")
        if self.alternate not in (None, True, False):
            advice = "leave it out for the usual"
            raise mismatch(OWNER, "alternate of True or False", repr(self.alternate), advice)
        for local in self.local_flows():
            if local is None or (callable(local) and not isinstance(local, nn.Module)):
                continue
            advice = "pass a class or a function: each layer has its own"
            raise mismatch(OWNER, "local_flow as a factory", repr(local), advice)

    def _masks(self) -> list[str]:
        """The mask of each layer, if there is a list."""
        if isinstance(self.mask, str):
            return [self.mask] * sum(self.scales)
        if not isinstance(self.mask, Sequence):
            raise mismatch(OWNER, "the name of a mask, or a list", repr(self.mask), "give one")
        return list(self.mask)

    @property
    def scales(self) -> list[int]:
        """Mixer layers of each scale."""
        given = self.num_layers
        return list(given) if isinstance(given, Sequence) else [given]

    @property
    def flow_layers(self) -> dict[str, int]:
        """Flow layers of a channel flow and of a patch flow."""
        given, names = self.num_flow_layers, ("channel_flow", "patch_flow")
        counts = list(given) if isinstance(given, Sequence) else [given, given]
        if len(counts) != len(names):
            expected = "num_flow_layers as one number, or a pair for channel and patch flows"
            raise mismatch(OWNER, expected, given, "give one of these")
        return dict(zip(names, counts))

    def patches(self) -> list[Callable[[tuple[int, int, int]], PatchTransform]]:
        """A factory of the patches of each layer."""
        sizes = per_layer("patch_size", self.patch_size, sum(self.scales))
        masks = per_layer("mask", self._masks(), sum(self.scales))
        return [
            partial(call_factory, cut, mask=mask, seed=index)
            if callable(cut)
            else partial(PatchTransform, patch_size=cut, mask=mask, seed=index)
            for index, (cut, mask) in enumerate(zip(sizes, masks))
        ]

    def local_flows(self) -> list[LocalFlow | None]:
        """The local flow before each layer, and that behind the last one; None for none."""
        count = sum(self.scales)
        if isinstance(self.local_flow, Sequence) and not isinstance(self.local_flow, str):
            given: list[Any] = list(self.local_flow)
            if len(given) not in (count, count + 1):
                expected = f"one local_flow for all, or a list of {count} or {count + 1} entries"
                advice = "give one for each layer, and perhaps one for behind the last"
                raise mismatch(OWNER, expected, f"{len(given)}", advice)
            return given + [None] * (count + 1 - len(given))
        of_all: list[Any] = [self.local_flow] * count
        return [*of_all, None]

    def shifts(self) -> list[Shift]:
        """The shift of each layer, None where it is none."""
        of_each = per_layer("shift", self.shift, sum(self.scales))
        if of_each and _is_one(self.shift):
            return [s if i % SHIFT_PERIOD == 0 else None for i, s in enumerate(of_each)]
        return of_each


def per_layer(name: str, value: Any, num_layers: int) -> list[Any]:
    """Return an argument as a list with one entry for each layer.

    Two integers are a pair, and no list of two.

    Args:
        name: of the argument, for the error.
        value: what was given.
        num_layers: mixer layers.

    Raises:
        ValueError: if it is neither one for all layers nor a list of that length.

    Example:
        >>> per_layer("patch_size", [2, (2, 4), 4], 3)
        [2, (2, 4), 4]
    """
    if _is_one(value):
        return [value] * num_layers
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise mismatch(OWNER, f"{name} for all layers, or a list", repr(value), "give one")
    if len(value) != num_layers:
        expected = f"one {name} for each of {num_layers} layers"
        advice = "give one for all, or a list of that length"
        raise mismatch(OWNER, expected, f"{len(value)}", advice)
    return list(value)


def _is_one(value: Any) -> bool:
    if isinstance(value, Sequence):
        return len(value) == 2 and all(isinstance(size, Integral) for size in value)
    return value is None or isinstance(value, Integral) or callable(value)


def is_ready(base: Any) -> bool:
    """Whether a base is a distribution of any library already, and no factory of one."""
    return isinstance(base, (Distribution, distributions.Distribution, nn.Module))

"""What a DenseFlow is made of, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nflows_mixer._checks import (
    check_choice,
    check_image_shape,
    check_levels,
    check_positive,
    mismatch,
)
from nflows_mixer.flows.dequantization import (
    CHANNELS,
    DEQUANTIZATIONS,
    check_dequantization,
)
from nflows_mixer.transforms.coupling import LOG_SCALES
from nflows_mixer.transforms.dense_flow_block import PRECONDITIONING

OWNER = "denseflow"


@dataclass(frozen=True)
class DenseFlowArchitecture:
    """What a DenseFlow is made of; the defaults are DenseFlow-74-10 as published, but for tokens.

    Args:
        image_shape: (C, H, W); H and W are multiples of 2 to the number of blocks.
        levels: number of pixel values.
        units: of each block. Each block but the first begins with a squeeze, of whose channels
            half are dropped.
        modules: glow-like modules in each unit, block by block.
        growth: channels of noise behind each unit but the last of a block; 0 for none. Some block
            has to have two units.
        augmentation: where noise is appended: "units", as above, or "input", ``growth`` channels
            to the squeezed image alone.
        preconditioning: what the noise is computed from: of "units" the representations of this
            "block" (as published), of "all" blocks (as the paper says), or of the "previous" unit
            alone; of "input" a "learned" q(e | x), as VFlow; None for white noise, for either.
        conditioner: network of the couplings: "fused", or Glow's, "conv".
        hidden_channels: of the conditioner; where None 48 of the fused one, 512 of Glow's.
        dense_layers: of the dense block of a fused conditioner.
        dense_growth: of that dense block.
        dense: whether a fused conditioner has its dense block.
        attention: whether it has its attention.
        attention_channels: that this attention works in.
        heads: of the attention.
        landmarks: of the attention.
        tokens: of the attention: "positions", as in the paper, or "reshaped", as published.
        scale: of the modules' couplings, see ``AffineCoupling``; that of noise is "tanh".
        swap: whether modules end with a swap of the halves (as published; not in the paper).
        dequantization: "variational" or "uniform".
        dequantization_channels: width of the networks of a variational dequantisation, and of
            those of q(e | x).
        learned_prior: whether the prior of the last representation has a mean and a scale for
            each channel (as published) or is standard normal (as in the paper).
        context_features: length of the context that conditioners and cross-unit networks take;
            None for none.
        num_classes: of class labels, given as context in the place of vectors: integers [B], of
            which each has a learned vector of ``context_features`` (16 where that is None).

    Raises:
        ValueError: if a choice is unknown, a size does not fit another, or an option would not be
            read.

    References:
        DenseFlow, Sections 2 and 3.1, Table 4.

    Example:
        >>> DenseFlowArchitecture((3, 32, 32)).growth
        10
    """

    image_shape: tuple[int, int, int]
    levels: int = 256
    units: Sequence[int] = (6, 4, 1)
    modules: Sequence[int] = (5, 6, 20)
    growth: int = 10
    augmentation: str = "units"
    preconditioning: str | None = "block"
    conditioner: str = "fused"
    hidden_channels: int | None = None
    dense_layers: int = 7
    dense_growth: int = 64
    dense: bool = True
    attention: bool = True
    attention_channels: int = 24
    heads: int = 1
    landmarks: int = 4
    tokens: str = "positions"
    scale: str = "tanh"
    swap: bool = True
    dequantization: str = "variational"
    dequantization_channels: int = CHANNELS
    learned_prior: bool = True
    context_features: int | None = None
    num_classes: int | None = None

    def __post_init__(self) -> None:
        _, height, width = check_image_shape(self.image_shape, OWNER)
        check_levels(OWNER, self.levels)
        for name in ("units", "modules"):
            sizes = getattr(self, name)
            if not isinstance(sizes, Sequence) or isinstance(sizes, str) or not sizes:
                advice = "such as (6, 4, 1)"
                raise mismatch(OWNER, f"{name} as one number for each block", sizes, advice)
            for size in sizes:
                check_positive(OWNER, name, size)
        if len(self.units) != len(self.modules):
            expected = f"modules for each of {len(self.units)} blocks"
            raise mismatch(OWNER, expected, self.modules, "give as many as there are units")
        factor = 2 ** len(self.units)
        if height % factor or width % factor:
            expected = f"a height and width that {factor} divides, for {len(self.units)} blocks"
            raise mismatch(OWNER, expected, (height, width), "use fewer blocks, or pad the images")
        for name in ("dense_layers", "dense_growth", "attention_channels", "heads", "landmarks"):
            check_positive(OWNER, name, getattr(self, name))
        for name in ("hidden_channels", "context_features", "num_classes"):
            if getattr(self, name) is not None:
                check_positive(OWNER, name, getattr(self, name))
        for name, choices in [
            ("augmentation", ("units", "input")),
            ("conditioner", ("fused", "conv")),
            ("tokens", ("positions", "reshaped")),
            ("scale", tuple(LOG_SCALES)),
        ]:
            check_choice(OWNER, name, getattr(self, name), choices)
        learned = self.growth and self.preconditioning == "learned"
        kind = "variational" if learned else self.dequantization
        check_choice(OWNER, "dequantization", self.dequantization, DEQUANTIZATIONS)
        check_dequantization(OWNER, kind, self.dequantization_channels)
        if self.growth != 0:
            check_positive(OWNER, "growth", self.growth)
        places = {"units": PRECONDITIONING, "input": ("learned", None)}
        known = places[self.augmentation] if self.growth else (*PRECONDITIONING, "learned")
        check_choice(OWNER, "preconditioning", self.preconditioning, known)
        if self.growth and self.augmentation == "units" and max(self.units) == 1:
            expected = "a block of two units or more, for noise between them"
            advice = "split a unit in two, or pass growth=0"
            raise mismatch(OWNER, expected, f"units={tuple(self.units)}", advice)
        self._check_read()

    def _check_read(self) -> None:
        """Refuse options that this architecture would not read."""
        if not (self.dense or self.attention):
            raise mismatch(OWNER, "a dense block or attention", "neither", "leave one of them on")
        for name in unread(vars(self)):
            default: Any = type(self).__dataclass_fields__[name].default
            value = getattr(self, name)
            if value != default:
                got = f"conditioner={self.conditioner!r}, dense={self.dense}, "
                got += f"attention={self.attention}, growth={self.growth}"
                raise mismatch(OWNER, f"what reads {name}={value!r}", got, f"leave {name} out")

    @property
    def width(self) -> int:
        """Hidden channels of the conditioner."""
        if self.hidden_channels is None:
            return {"fused": 48, "conv": 512}[self.conditioner]
        return self.hidden_channels

    @property
    def embedded_features(self) -> int | None:
        """Length of the context that the networks see, of labels that of their vectors."""
        if self.num_classes is not None and self.context_features is None:
            return 16
        return self.context_features


def unread(arguments: Mapping[str, Any]) -> list[str]:
    """Return the options that an architecture of these arguments would not read.

    Args:
        arguments: of ``DenseFlowArchitecture``; what is left out is at its default.

    Example:
        >>> unread({"dense": False, "growth": 0})
        ['dense_layers', 'dense_growth', 'augmentation', 'preconditioning']
    """
    fields = DenseFlowArchitecture.__dataclass_fields__

    def value(name: str) -> Any:
        return arguments.get(name, fields[name].default)

    fused, noisy = value("conditioner") == "fused", value("growth") != 0
    learned = noisy and value("preconditioning") == "learned"
    readers = {
        ("dense", "attention"): fused,
        ("dense_layers", "dense_growth"): fused and value("dense"),
        ("attention_channels", "heads", "landmarks", "tokens"): fused and value("attention"),
        ("augmentation", "preconditioning"): noisy,
        ("dequantization_channels",): learned or value("dequantization") == "variational",
    }
    return [name for names, read in readers.items() if not read for name in names]

"""Every transform of nflows, zuko and normflows that could be a channel or patch flow.

A row is a factory of the flow as its library gives it, with no more arguments than it needs; the
same rows are measured by ``run.py`` and asserted by ``tests/test_compatibility.py``, which also
asks that no class of the three libraries is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import normflows as nf
import torch
import zuko
from nflows import transforms as nflows_transforms
from nflows.nn.nets import ResidualNet
from torch import nn

from nflows_mixer import transforms as ours

WIDTH = 32
SPLINE = {"num_bins": 8, "tails": "linear", "tail_bound": 3.0}


@dataclass(frozen=True)
class Row:
    """A flow of rows.

    ``make`` takes the row length. ``context`` says that it is built for a context of 3 features.
    ``refused`` says that it cannot be one, and is an error when it is built. ``precision`` is the
    largest error, relative to max(1, |x|), of its round trip and log-det in float64: above 1e-8
    only where the library itself computes in float32 or to a tolerance, as ``because`` says.
    """

    make: Callable[[int], Any]
    context: bool = False
    refused: bool = False
    precision: float = 1e-8
    because: str = ""


def refused(make: Callable[[int], Any]) -> Row:
    return Row(make, refused=True)


def named(module: Any, *names: str) -> dict[str, Row]:
    """Rows of classes that need the row length alone."""
    return {name: Row(getattr(module, name)) for name in names}


def network(inputs: int, outputs: int) -> nn.Module:
    return ResidualNet(inputs, outputs, hidden_features=WIDTH, num_blocks=1)


def nflows_coupling(name: str, **options) -> Callable[[int], Any]:
    kind = getattr(nflows_transforms, name)
    return lambda d: kind(torch.arange(d) % 2, network, **options)


def nflows_masked(name: str, **options) -> Callable[[int], Any]:
    kind = getattr(nflows_transforms, name)
    return lambda d: kind(features=d, hidden_features=WIDTH, num_blocks=1, **options)


def nflows_cdf(name: str) -> Callable[[int], Any]:
    kind = getattr(nflows_transforms, name)
    return lambda d: kind([d], **SPLINE)


def piecewise_masked(kind: Any) -> Callable[[int], Any]:
    return lambda d: kind(10, features=d, hidden_features=WIDTH, num_blocks=1)


def normflows_network(d: int, outputs: int) -> nn.Module:
    return nf.nets.MLP([d, WIDTH, outputs], init_zeros=False)


def normflows_coupling(d: int) -> Any:
    # It conditions on the first half, and moves the second.
    return nf.flows.AffineCouplingBlock(normflows_network(d - d // 2, 2 * (d // 2)))


def normflows_masked_affine(d: int) -> Any:
    mask = torch.arange(d) % 2
    return nf.flows.MaskedAffineFlow(mask, normflows_network(d, d), normflows_network(d, d))


def normflows_residual(d: int) -> Any:
    return nf.flows.Residual(nf.nets.LipschitzMLP([d, WIDTH, d], init_zeros=False))


def unconditional(kind: Any, *shapes: str) -> Callable[[int], Any]:
    def make(d: int) -> Any:
        starts = {
            "matrix": lambda: torch.eye(d) + 0.05 * torch.randn(d, d),
            "order": lambda: torch.randperm(d),
        }
        buffer = "order" in shapes
        arguments = [starts[shape]() for shape in shapes]
        return zuko.lazy.UnconditionalTransform(kind, *arguments, buffer=buffer)

    return make


WIDENED = "nflows' inverse widens the last bin by 1e-6"
FLOAT32 = "nflows keeps its tensors in float32"
FREE = "MaskedAffineAutoregressiveTransform"
QUADRATIC = "MaskedPiecewiseQuadraticAutoregressiveTransform"
RATIONAL = "MaskedPiecewiseRationalQuadraticAutoregressiveTransform"
SPLINES = ("PiecewiseCubic", "PiecewiseQuadratic", "PiecewiseRationalQuadratic")
nft = nflows_transforms

NFLOWS = {
    **named(nft, "ActNorm", "BatchNorm", "RandomPermutation", "ReversePermutation"),
    "AffineScalarTransform": Row(lambda d: nft.AffineScalarTransform(2.0, 3.0)),
    "AffineTransform": Row(lambda d: nft.AffineTransform(2.0, 3.0)),
    "AdditiveCouplingTransform": Row(nflows_coupling("AdditiveCouplingTransform")),
    "AffineCouplingTransform": Row(nflows_coupling("AffineCouplingTransform")),
    "CompositeCDFTransform": Row(
        lambda d: nft.CompositeCDFTransform(nft.Sigmoid(), nft.PiecewiseRationalQuadraticCDF([d]))
    ),
    "CompositeTransform": Row(
        lambda d: nft.CompositeTransform([nft.ReversePermutation(d), nft.LULinear(d)])
    ),
    "GatedLinearUnit": refused(lambda d: nft.GatedLinearUnit()),
    "HouseholderSequence": Row(lambda d: nft.HouseholderSequence(d, 4)),
    "IdentityTransform": Row(lambda d: nft.IdentityTransform()),
    "InverseTransform": Row(
        lambda d: nft.InverseTransform(
            nft.MaskedAffineAutoregressiveTransform(d, WIDTH, num_blocks=1)
        )
    ),
    "LULinear": Row(lambda d: nft.LULinear(d, identity_init=True)),
    "LeakyReLU": Row(lambda d: nft.LeakyReLU(), precision=1e-6, because=FLOAT32),
    "LogTanh": Row(lambda d: nft.LogTanh()),
    "Logit": refused(lambda d: nft.Logit()),
    FREE: Row(nflows_masked(FREE, use_batch_norm=True)),
    f"{FREE}, context": Row(nflows_masked(FREE, context_features=3), context=True),
    "MaskedPiecewiseCubicAutoregressiveTransform": refused(
        piecewise_masked(nft.MaskedPiecewiseCubicAutoregressiveTransform)
    ),
    "MaskedPiecewiseLinearAutoregressiveTransform": refused(
        piecewise_masked(nft.MaskedPiecewiseLinearAutoregressiveTransform)
    ),
    QUADRATIC: Row(nflows_masked(QUADRATIC, **SPLINE)),
    RATIONAL: Row(nflows_masked(RATIONAL, **SPLINE)),
    f"{RATIONAL}, tails=None": refused(nflows_masked(RATIONAL)),
    "MultiscaleCompositeTransform": refused(lambda d: nft.MultiscaleCompositeTransform(1)),
    "NaiveLinear": refused(partial(nft.NaiveLinear, orthogonal_initialization=False)),
    "OneByOneConvolution": refused(nft.OneByOneConvolution),
    "Permutation": Row(lambda d: nft.Permutation(torch.randperm(d))),
    **{
        f"{name}CouplingTransform": Row(nflows_coupling(f"{name}CouplingTransform", **SPLINE))
        for name in SPLINES
    },
    "PiecewiseLinearCouplingTransform": Row(
        nflows_coupling("PiecewiseLinearCouplingTransform", **SPLINE),
        precision=1e-3,
        because=WIDENED,
    ),
    "PiecewiseRationalQuadraticCouplingTransform, tails=None": refused(
        nflows_coupling("PiecewiseRationalQuadraticCouplingTransform")
    ),
    **{f"{name}CDF": Row(nflows_cdf(f"{name}CDF")) for name in SPLINES},
    "PiecewiseLinearCDF": Row(nflows_cdf("PiecewiseLinearCDF"), precision=1e-3, because=WIDENED),
    "PointwiseAffineTransform": Row(
        lambda d: nft.PointwiseAffineTransform(torch.ones(d), torch.full((d,), 2.0))
    ),
    "QRLinear": Row(lambda d: nft.QRLinear(d, num_householder=4)),
    "SVDLinear": Row(lambda d: nft.SVDLinear(d, num_householder=4)),
    "Sigmoid": refused(lambda d: nft.Sigmoid()),
    "SqueezeTransform": refused(lambda d: nft.SqueezeTransform()),
    "Tanh": refused(lambda d: nft.Tanh()),
}

ODE = "an ODE, solved to atol=1e-6 and rtol=1e-5"
HIDDEN = {"hidden_features": (WIDTH,)}
ZUKO = {
    **named(zuko.flows, "ElementWiseTransform", "GF"),
    **{
        name: Row(partial(getattr(zuko.flows, name), **HIDDEN))
        for name in ("BPF", "GeneralCouplingTransform", "MAF", "MaskedAutoregressiveTransform")
        + ("NICE", "NSF", "RealNVP", "SOSPF")
    },
    "CNF": Row(partial(zuko.flows.CNF, **HIDDEN), precision=1e-3, because=ODE),
    "CNF, exact=False": refused(partial(zuko.flows.CNF, exact=False)),
    "ElementWiseTransform, context": Row(
        lambda d: zuko.flows.ElementWiseTransform(d, 3, **HIDDEN), context=True
    ),
    "FFJTransform": Row(partial(zuko.flows.FFJTransform, **HIDDEN), precision=1e-3, because=ODE),
    "GMM": refused(zuko.flows.GMM),
    "MAF, context": Row(lambda d: zuko.flows.MAF(d, 3, **HIDDEN), context=True),
    "MAF, passes=2": Row(partial(zuko.flows.MAF, passes=2, **HIDDEN)),
    "NAF": Row(partial(zuko.flows.NAF, transforms=2, **HIDDEN)),
    "NCSF": refused(zuko.flows.NCSF),
    "NSF, context": Row(lambda d: zuko.flows.NSF(d, 3, **HIDDEN), context=True),
    "UNAF": Row(partial(zuko.flows.UNAF, transforms=2, **HIDDEN)),
    **{
        f"UnconditionalTransform({kind.__name__})": row(unconditional(kind, *shapes))
        for row, kind, *shapes in [
            (refused, zuko.transforms.ExpTransform),
            (Row, zuko.transforms.LULinearTransform, "matrix"),
            (Row, zuko.transforms.PermutationTransform, "order"),
            (Row, zuko.transforms.RotationTransform, "matrix"),
            (refused, zuko.transforms.SoftclipTransform),
        ]
    },
    "LULinearTransform, raw": refused(lambda d: zuko.transforms.LULinearTransform(torch.eye(d))),
}

CIRCULAR = nf.flows.CircularAutoregressiveRationalQuadraticSpline
COUPLED = nf.flows.CoupledRationalQuadraticSpline
MASKED = nf.flows.MaskedAffineAutoregressive
NORMFLOWS = {
    **named(nf.flows, "InvertibleAffine", "LULinearPermute", "Permute"),
    "ActNorm": Row(lambda d: nf.flows.ActNorm((d,))),
    "AffineConstFlow": Row(lambda d: nf.flows.AffineConstFlow((d,))),
    "AffineCoupling": refused(lambda d: nf.flows.AffineCoupling(normflows_network(d, d))),
    "AffineCouplingBlock": Row(normflows_coupling),
    "AutoregressiveRationalQuadraticSpline": Row(
        lambda d: nf.flows.AutoregressiveRationalQuadraticSpline(d, 1, WIDTH)
    ),
    "BatchNorm": refused(lambda d: nf.flows.BatchNorm()),
    "CCAffineConst": Row(lambda d: nf.flows.CCAffineConst((d,), 3), context=True),
    "CircularAutoregressiveRationalQuadraticSpline": refused(lambda d: CIRCULAR(d, 1, WIDTH, [0])),
    "CircularCoupledRationalQuadraticSpline": refused(
        lambda d: nf.flows.CircularCoupledRationalQuadraticSpline(d, 1, WIDTH, [0])
    ),
    "Composite": Row(
        lambda d: nf.flows.Composite([nf.flows.LULinearPermute(d), normflows_coupling(d)])
    ),
    "CoupledRationalQuadraticSpline": Row(lambda d: COUPLED(d, 1, WIDTH)),
    "CoupledRationalQuadraticSpline, context": Row(lambda d: COUPLED(d, 1, WIDTH, 3), context=True),
    "GlowBlock": refused(lambda d: nf.flows.GlowBlock(d, WIDTH)),
    "HamiltonianMonteCarlo": refused(
        lambda d: nf.flows.HamiltonianMonteCarlo(None, 1, torch.zeros(d), torch.zeros(d))
    ),
    "Invertible1x1Conv": refused(nf.flows.Invertible1x1Conv),
    "MaskedAffineAutoregressive": Row(lambda d: MASKED(d, WIDTH, num_blocks=1)),
    "MaskedAffineAutoregressive, context": Row(
        lambda d: MASKED(d, WIDTH, 3, num_blocks=1), context=True
    ),
    "MaskedAffineFlow": Row(normflows_masked_affine),
    "Merge": refused(lambda d: nf.flows.Merge()),
    "MetropolisHastings": refused(lambda d: nf.flows.MetropolisHastings(None, None, 1)),
    "PeriodicShift": refused(lambda d: nf.flows.PeriodicShift([0])),
    "PeriodicWrap": refused(lambda d: nf.flows.PeriodicWrap([0])),
    "Planar": refused(lambda d: nf.flows.Planar((d,))),
    "Planar, act='leaky_relu'": Row(
        lambda d: nf.flows.Planar((d,), act="leaky_relu"),
        precision=1e-6,
        because="normflows computes its slope in float32",
    ),
    "Radial": refused(lambda d: nf.flows.Radial((d,))),
    "Residual": Row(normflows_residual),
    "Reverse": Row(lambda d: nf.flows.Reverse(normflows_coupling(d))),
    "Split": refused(lambda d: nf.flows.Split()),
    "Squeeze": refused(lambda d: nf.flows.Squeeze()),
}

OURS = {
    **named(ours, "ActNorm", "FlowLayer", "LULinear", "RLULinear", "ResidualTransform"),
    **{
        name: Row(partial(getattr(ours, name), hidden_features=WIDTH))
        for name in ("AdditiveCoupling", "AffineCoupling", "RationalQuadraticCoupling")
    },
    "AffineCoupling, context": Row(
        partial(ours.AffineCoupling, hidden_features=WIDTH, context_features=3), context=True
    ),
}

CATALOGUE: dict[str, dict[str, Row]] = {
    "nflows_mixer": OURS,
    "nflows": NFLOWS,
    "zuko": ZUKO,
    "normflows": NORMFLOWS,
}

"""Transforms, by name: the properties of test_properties.py run over all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import normflows as nf
import torch
import zuko
from nflows import transforms as nflows_transforms
from nflows.nn.nets import ResidualNet
from nflows.transforms import MaskedAffineAutoregressiveTransform, Transform
from torch import Tensor

from nflows_mixer.adapters.normflows import from_normflows
from nflows_mixer.core.composite import CompositeTransform
from nflows_mixer.flows import Pixels, mixerflow
from nflows_mixer.nn import (
    MLP,
    ConvConditioner,
    DenseAttentionConditioner,
    DenseConditioner,
    DenseEncoder,
    LipschitzMLP,
    ResidualMLP,
    learned_positions,
    sinusoidal_positions,
)
from nflows_mixer.transforms import (
    ActNorm,
    AdditiveCoupling,
    AffineAutoregressive,
    AffineCoupling,
    ButterflyLinear,
    ChannelMixingTransform,
    ConditionalNoise,
    CrossUnitCoupling,
    DenseFlowBlock,
    FlowLayer,
    FullLinear,
    GlowStep,
    InverseTransform,
    InvertibleConv1x1,
    KroneckerLinear,
    LearnedAugmentation,
    LogitTransform,
    LULinear,
    MultiScaleTransform,
    PatchMixerTransform,
    PatchMixingTransform,
    PatchTransform,
    PermutePixels,
    PixelScaling,
    RationalQuadraticCoupling,
    ReshapeTransform,
    ResidualTransform,
    ReversibleCompositeTransform,
    RLULinear,
    ShiftTransform,
    SqueezeAndSplit,
    SqueezeTransform,
    UniformDequantization,
    VariationalDequantization,
    identity_maf,
)
from nflows_mixer.transforms.variational import NEARLY_UNIFORM
from tests import baseline_registry


@dataclass(frozen=True)
class Case:
    """A transform to be tested.

    ``shape`` is that of one input, ``context_shape`` that of its context where this is no vector,
    ``domain`` draws inputs, ``std`` is that of the noise put on every parameter, ``any_shape`` says
    that no input shape is wrong, and ``compiles`` that ``torch.compile(fullgraph=True)`` takes it
    whole, which is not asked of those that are made of the same parts as another, or are variants
    that lead to the same code. A transform that draws noise has the shape of one draw in ``noise``.
    """

    make: Callable[[], Transform]
    shape: tuple[int, ...]
    context_features: int | None = None
    domain: Callable[..., Tensor] = torch.randn
    std: float = 0.05
    any_shape: bool = False
    compiles: bool = True
    out_shape: tuple[int, ...] | None = None
    context_shape: tuple[int, ...] | None = None
    noise: tuple[int, ...] | None = None

    @property
    def context(self) -> tuple[int, ...] | None:
        """Shape of one context, None where there is none."""
        features = self.context_features
        return self.context_shape or (None if features is None else (features,))

    def draw(self, batch: int, dtype=torch.float64, device="cpu") -> tuple[Tensor | None, ...]:
        """The arguments of a call: inputs and context, and noise where it is taken."""
        options = {"dtype": dtype, "device": device}
        inputs = self.domain(batch, *self.shape, **options)
        context = None if self.context is None else torch.randn(batch, *self.context, **options)
        if self.noise is None:
            return inputs, context
        draw = torch.rand if self.make().noise_kind == "uniform" else torch.randn
        return inputs, context, draw(batch, *self.noise, **options)


noisy = partial(Case, std=0.1, compiles=False)

LEVELS = 17


def pixels(*shape: int, dtype=None, device="cpu") -> Tensor:
    """Integer inputs, whatever the dtype of the transform is."""
    return torch.randint(LEVELS, shape, dtype=torch.uint8, device=device)


lipschitz = partial(LipschitzMLP, hidden_features=16)
narrow = partial(ResidualMLP, hidden_features=16)
image_net = partial(torch.nn.Conv2d, kernel_size=3, padding=1)
with_context = partial(ResidualMLP, hidden_features=16, context_features=3)
conv = partial(ConvConditioner, hidden_channels=8)
dense = partial(DenseConditioner, hidden_channels=8, num_layers=1, growth=4)
fused = partial(
    DenseAttentionConditioner,
    hidden_channels=8,
    num_layers=2,
    growth=4,
    attention_channels=4,
    norm="batch",
)


def maf(features: int, context_features: int | None = None) -> Transform:
    return MaskedAffineAutoregressiveTransform(
        features, 16, context_features=context_features, num_blocks=1, use_batch_norm=True
    )


def nflows_coupling(features: int) -> Transform:
    return nflows_transforms.AffineCouplingTransform(
        torch.arange(features) % 2, lambda i, o: ResidualNet(i, o, hidden_features=16)
    )


def coupling(features: int, **options) -> AffineCoupling:
    return AffineCoupling(features, narrow, **options)


def conditional_layer(features: int) -> FlowLayer:
    return FlowLayer(features, flow=partial(AffineCoupling, conditioner=with_context))


def layer(features: int) -> FlowLayer:
    return FlowLayer(features, flow=coupling)


def mixer(image_shape, patch_size=2, flow=layer, **options) -> PatchMixerTransform:
    return PatchMixerTransform(image_shape, patch_size, flow, flow, **options)


def glow(channels: int, steps: int = 2, composite=CompositeTransform) -> Transform:
    """A few steps of Glow with its own coupling network."""
    return composite([GlowStep(channels, conv) for _ in range(steps)])


def whole(
    shape=(1, 6, 4), context_features=None, out_shape=None, compiles=False, **options
) -> Case:
    """A small MixerFlow, of dequantized pixels."""
    return Case(
        lambda: image_flow(image_shape=shape, context_features=context_features, **options),
        shape,
        context_features,
        lambda *sizes, **like: 4 * torch.rand(*sizes, **like),
        compiles=compiles,
        out_shape=out_shape,
    )


def image_flow(**options) -> Transform:
    """The transform of a small MixerFlow, pixel scaling and all."""
    shape = {"image_shape": (1, 6, 4), "patch_size": 2}
    sizes = {"levels": 4, "num_layers": 2, "num_flow_layers": 2, "hidden_features": 16}
    return mixerflow(**{**shape, **sizes, **options})._transform


TRANSFORMS: dict[str, Case] = {
    "PatchTransform": Case(lambda: PatchTransform((2, 4, 6), (2, 3)), (2, 4, 6), out_shape=(4, 12)),
    "PatchTransform-band": Case(
        lambda: PatchTransform((2, 4, 6), 2, "band"), (2, 4, 6), out_shape=(2, 24), compiles=False
    ),
    "PatchTransform-stripe": Case(
        lambda: PatchTransform((2, 4, 6), 2, "stripe"), (2, 4, 6), out_shape=(3, 16), compiles=False
    ),
    "PatchTransform-dilated": Case(
        lambda: PatchTransform((2, 4, 6), (2, 3), "dilated"), (2, 4, 6), out_shape=(4, 12)
    ),
    "PermutePixels-global": Case(lambda: PermutePixels((2, 4, 6), seed=3), (2, 4, 6)),
    "PermutePixels-local": Case(
        lambda: PermutePixels((2, 4, 6), "local", (2, 3), seed=3), (2, 4, 6)
    ),
    "SqueezeTransform": Case(lambda: SqueezeTransform(2), (1, 4, 6), out_shape=(4, 2, 3)),
    "SqueezeTransform-3": Case(lambda: SqueezeTransform(3), (2, 3, 6), out_shape=(18, 1, 2)),
    "ReshapeTransform": Case(
        lambda: ReshapeTransform((8,), (2, 2, 2)), (8,), out_shape=(2, 2, 2), compiles=False
    ),
    "PixelScaling": Case(lambda: PixelScaling(17), (2, 3), any_shape=True),
    "LogitTransform": Case(lambda: LogitTransform(0.05), (2, 3), domain=torch.rand, any_shape=True),
    "ActNorm": Case(lambda: ActNorm(5), (5,)),
    "ActNorm-channels": Case(lambda: ActNorm(3), (3, 2, 4)),
    "ActNorm-activations": Case(lambda: ActNorm((3, 2, 4)), (3, 2, 4)),
    "LULinear": Case(lambda: LULinear(6), (6,)),
    "LULinear-no-bias": Case(lambda: LULinear(6, bias=False), (6,), compiles=False),
    "RLULinear": Case(lambda: RLULinear(7), (7,)),
    "InvertibleConv1x1": Case(lambda: InvertibleConv1x1(3), (3, 2, 4)),
    "ButterflyLinear": Case(lambda: ButterflyLinear(6), (6,)),
    "ButterflyLinear-three": Case(lambda: ButterflyLinear(12, (2, 3, 2)), (12,), compiles=False),
    "ButterflyLinear-prime": Case(lambda: ButterflyLinear(7, bias=False), (7,), compiles=False),
    "KroneckerLinear": Case(lambda: KroneckerLinear(6), (6,)),
    "AffineAutoregressive": Case(lambda: AffineAutoregressive(6, 16), (6,)),
    "AffineAutoregressive-narrow": Case(
        lambda: AffineAutoregressive(11, 4, num_blocks=2, scale="tanh"), (11,), compiles=False
    ),
    "AffineAutoregressive-nflows": Case(
        lambda: AffineAutoregressive(6, 16, scale="nflows"), (6,), compiles=False
    ),
    "AffineAutoregressive-batch-norm": Case(
        lambda: AffineAutoregressive(6, 16, num_blocks=2, norm="batch"), (6,), compiles=False
    ),
    "AffineAutoregressive-context": Case(
        lambda: AffineAutoregressive(6, 16, context_features=3), (6,), context_features=3
    ),
    "PatchMixing-autoregressive": Case(
        lambda: PatchMixingTransform(AffineAutoregressive(4, 16)), (4, 6), compiles=False
    ),
    "FlowLayer-autoregressive": Case(
        lambda: FlowLayer(
            6, linear=RLULinear, flow=partial(AffineAutoregressive, hidden_features=16)
        ),
        (6,),
        compiles=False,
    ),
    "Reversible": Case(
        lambda: ReversibleCompositeTransform([ActNorm(6), coupling(6), LULinear(6)]),
        (6,),
        compiles=False,
    ),
    "Composite-images": Case(
        lambda: CompositeTransform(
            [ActNorm(3), InvertibleConv1x1(3), AffineCoupling(3, image_net)]
        ),
        (3, 2, 4),
        # Each does by itself; in this chain torch 2.15 assumes strides of the convolution's output
        # that it does not have.
        compiles=False,
    ),
    "AffineCoupling": Case(lambda: coupling(7), (7,)),
    "AffineCoupling-second": Case(lambda: coupling(7, conditioning="second"), (7,), compiles=False),
    "AffineCoupling-tanh": Case(lambda: coupling(6, scale="tanh"), (6,)),
    "AffineCoupling-sigmoid": Case(lambda: coupling(6, scale="sigmoid"), (6,)),
    "AffineCoupling-softplus": Case(lambda: coupling(6, scale="softplus"), (6,), compiles=False),
    "AffineCoupling-context": Case(
        lambda: AffineCoupling(7, with_context), (7,), context_features=3
    ),
    "AffineCoupling-mlp": Case(lambda: AffineCoupling(6, partial(MLP, hidden_features=16)), (6,)),
    "AffineCoupling-mlp-batch-norm": Case(
        lambda: AffineCoupling(6, partial(MLP, hidden_features=16, norm="batch")),
        (6,),
        compiles=False,
    ),
    "AffineCoupling-images": Case(
        lambda: AffineCoupling(3, partial(torch.nn.Conv2d, kernel_size=3, padding=1)), (3, 2, 4)
    ),
    "AdditiveCoupling": Case(lambda: AdditiveCoupling(7, narrow), (7,)),
    "AdditiveCoupling-second": Case(
        lambda: AdditiveCoupling(7, narrow, conditioning="second"), (7,), compiles=False
    ),
    "RationalQuadraticCoupling": Case(lambda: RationalQuadraticCoupling(7, narrow), (7,)),
    "RationalQuadraticCoupling-second": Case(
        lambda: RationalQuadraticCoupling(7, narrow, num_bins=4, conditioning="second"),
        (7,),
        compiles=False,
    ),
    "RationalQuadraticCoupling-context": Case(
        lambda: RationalQuadraticCoupling(7, with_context), (7,), context_features=3, compiles=False
    ),
    "RationalQuadraticCoupling-images": Case(
        lambda: RationalQuadraticCoupling(
            3, partial(torch.nn.Conv2d, kernel_size=3, padding=1), num_bins=4, tail_bound=2.0
        ),
        (3, 2, 4),
    ),
    "ResidualTransform": Case(lambda: ResidualTransform(6, lipschitz), (6,), compiles=False),
    "ResidualTransform-context": Case(
        lambda: ResidualTransform(6, partial(lipschitz, context_features=3)),
        (6,),
        context_features=3,
        compiles=False,
    ),
    "FlowLayer": Case(lambda: layer(6), (6,)),
    "FlowLayer-context": Case(lambda: conditional_layer(6), (6,), context_features=3),
    "FlowLayer-maf": Case(lambda: FlowLayer(6, linear=RLULinear, flow=maf), (6,), compiles=False),
    "FlowLayer-flow-alone": Case(lambda: FlowLayer(6, None, None, coupling), (6,)),
    "ChannelMixing": Case(lambda: ChannelMixingTransform(layer(6)), (4, 6), compiles=False),
    "ChannelMixing-context": Case(
        lambda: ChannelMixingTransform(conditional_layer(6)), (4, 6), context_features=3
    ),
    "ChannelMixing-nflows": Case(
        lambda: ChannelMixingTransform(nflows_coupling(6)), (4, 6), compiles=False
    ),
    "ChannelMixing-positions": Case(
        lambda: ChannelMixingTransform(
            AffineCoupling(6, partial(narrow, context_features=5)), learned_positions(4, 2)
        ),
        (4, 6),
        context_features=3,
    ),
    "PatchMixing": Case(lambda: PatchMixingTransform(layer(4)), (4, 6), compiles=False),
    "PatchMixing-context": Case(
        lambda: PatchMixingTransform(conditional_layer(4)), (4, 6), context_features=3
    ),
    "PatchMixing-maf": Case(lambda: PatchMixingTransform(maf(4)), (4, 6), compiles=False),
    "PatchMixing-maf-context": Case(
        lambda: PatchMixingTransform(maf(4, context_features=3)),
        (4, 6),
        context_features=3,
        compiles=False,
    ),
    "PatchMixing-positions": Case(
        lambda: PatchMixingTransform(
            AffineCoupling(4, partial(narrow, context_features=4)), sinusoidal_positions(6, 4)
        ),
        (4, 6),
        compiles=False,
    ),
    "PatchMixer": Case(lambda: mixer((2, 4, 4)), (2, 4, 4), compiles=False),
    "PatchMixer-dilated": Case(
        lambda: mixer((2, 4, 6), layout="dilated"), (2, 4, 6), compiles=False
    ),
    "PatchMixer-band": Case(lambda: mixer((1, 4, 6), layout="band"), (1, 4, 6), compiles=False),
    "PatchMixer-context": Case(
        lambda: mixer((1, 4, 6), flow=conditional_layer), (1, 4, 6), context_features=3
    ),
    "Shift": Case(lambda: ShiftTransform((1, 6, 6), 2, 1, mixer), (1, 6, 6), compiles=False),
    "Shift-rectangular": Case(
        lambda: ShiftTransform(
            (2, 4, 6), (2, 3), (1, 2), lambda shape: mixer(shape, (2, 3), flow=coupling_or_lu)
        ),
        (2, 4, 6),
        compiles=False,
    ),
    "Shift-context": Case(
        lambda: ShiftTransform((1, 6, 4), 2, 1, partial(mixer, flow=conditional_layer)),
        (1, 6, 4),
        context_features=3,
    ),
    "MixerFlow": whole(compiles=True),
    "MixerFlow-constant-memory": whole(compiles=True, memory="constant"),
    "MixerFlow-butterfly": whole(linear=ButterflyLinear),
    "MixerFlow-kronecker": whole((2, 6, 4), linear=KroneckerLinear),
    "MixerFlow-bounded": whole(
        channel_flow=partial(AffineCoupling, scale="sigmoid"),
        patch_flow=partial(AffineCoupling, scale="sigmoid"),
        linear=None,
        pixels=Pixels(logit=0.05),
    ),
    "MixerFlow-maf": whole(
        channel_flow=identity_maf,
        patch_flow=identity_maf,
        linear=RLULinear,
        norm="batch",
        shift=None,
    ),
    "MixerFlow-additive-squeezed": whole(
        (1, 4, 8),
        out_shape=(4, 2, 4),
        pixels=Pixels(squeeze=2),
        patch_size=(1, 2),
        shift=None,
        channel_flow=AdditiveCoupling,
    ),
    "MixerFlow-positions": whole(
        context_features=3, positions=partial(learned_positions, features=2)
    ),
    "MixerFlow-batch-norm": whole(norm="batch"),
    "MixerFlow-batch-norm-mlp": whole(norm="batch", conditioner=MLP, shift=None),
    "MixerFlow-patch-sizes": whole(
        patch_size=[(1, 2), partial(PatchTransform, patch_size=2, layout="dilated")], shift=None
    ),
    "ChannelMixing-zuko": Case(
        lambda: ChannelMixingTransform(zuko.flows.NSF(6, transforms=2, hidden_features=(16,))),
        (4, 6),
        compiles=False,
    ),
    "PatchMixing-zuko-context": Case(
        lambda: PatchMixingTransform(zuko.flows.MAF(4, 3, hidden_features=(16,))),
        (4, 6),
        context_features=3,
        compiles=False,
    ),
    "PatchMixing-zuko-positions": Case(
        lambda: PatchMixingTransform(
            zuko.flows.NICE(4, 5, transforms=1, hidden_features=(16,)), learned_positions(6, 2)
        ),
        (4, 6),
        context_features=3,
        compiles=False,
    ),
    "PatchMixing-normflows": Case(
        lambda: PatchMixingTransform(
            from_normflows(nf.flows.CoupledRationalQuadraticSpline(4, 1, 16, 3), 4)
        ),
        (4, 6),
        context_features=3,
        compiles=False,
    ),
    "PatchMixer-libraries": Case(
        lambda: PatchMixerTransform(
            (1, 4, 6), 2, partial(zuko.flows.NSF, transforms=1), nf.flows.LULinearPermute
        ),
        (1, 4, 6),
        compiles=False,
    ),
    "InverseTransform-maf": Case(
        lambda: ChannelMixingTransform(InverseTransform(maf(4))), (3, 4), compiles=False
    ),
    "MixerFlow-spline": whole(
        channel_flow=partial(RationalQuadraticCoupling, num_bins=4), num_layers=1, shift=None
    ),
    "MixerFlow-residual": whole(patch_flow=ResidualTransform, num_flow_layers=1, shift=None),
    "Composite-mixed-context": Case(
        lambda: ChannelMixingTransform(
            nflows_transforms.CompositeTransform(
                [
                    maf(6),
                    nflows_transforms.CompositeTransform([conditional_layer(6), maf(6)]),
                    nflows_transforms.InverseTransform(maf(6, 3)),
                ]
            )
        ),
        (4, 6),
        context_features=3,
        compiles=False,
    ),
    "FullLinear": Case(lambda: FullLinear(6), (6,)),
    "InvertibleConv1x1-full": Case(lambda: InvertibleConv1x1(3, "full"), (3, 2, 4), compiles=False),
    "SqueezeAndSplit": Case(lambda: SqueezeAndSplit(2), (1, 4, 6), out_shape=(4, 2, 3)),
    "GlowStep": Case(lambda: GlowStep(4, fused), (4, 2, 4), compiles=False),
    "GlowStep-layer-norm": Case(lambda: GlowStep(4, partial(fused, norm="layer")), (4, 2, 4)),
    "GlowStep-conv": Case(lambda: GlowStep(4, conv, "exp", "lu"), (4, 2, 4)),
    "GlowStep-no-swap": Case(lambda: GlowStep(4, conv, swap=False), (4, 2, 4), compiles=False),
    "GlowStep-odd": Case(lambda: GlowStep(5, conv), (5, 2, 3), compiles=False),
    "GlowStep-context": Case(
        lambda: GlowStep(4, partial(conv, context_features=3)), (4, 2, 4), context_features=3
    ),
    "ConditionalNoise-vector": Case(
        lambda: ConditionalNoise(4, 3, num_steps=2, scale=1.7, conditioner=dense),
        (4, 2, 3),
        context_features=3,
        compiles=False,
    ),
    "ConditionalNoise-maps": Case(
        lambda: ConditionalNoise(4, 3, num_steps=2, conditioner=dense),
        (4, 2, 3),
        context_shape=(3, 2, 3),
    ),
    "DenseFlowBlock-no-noise": Case(
        lambda: DenseFlowBlock(4, 2, partial(GlowStep, conditioner=conv), growth=0), (4, 2, 4)
    ),
    "Composite-glow": Case(lambda: glow(4), (4, 2, 4)),
    "Reversible-glow": Case(
        lambda: glow(4, composite=partial(ReversibleCompositeTransform, anchors=1)), (4, 2, 4)
    ),
    "Reversible-glow-checkpoint": Case(
        lambda: glow(4, composite=partial(ReversibleCompositeTransform, memory="checkpoint")),
        (4, 2, 4),
    ),
    "MultiScale-glow": Case(
        lambda: MultiScaleTransform(
            [
                SqueezeTransform(2),
                glow(4),
                SqueezeAndSplit(2),
                glow(8),
                SqueezeAndSplit(1),
                glow(4),
            ],
            (1, 8, 4),
        ),
        (1, 8, 4),
        out_shape=(32,),
    ),
    "MultiScale-mixer": Case(
        lambda: MultiScaleTransform(
            [mixer((1, 8, 4)), SqueezeAndSplit(2, 3), mixer((3, 4, 2), (2, 1))], (1, 8, 4)
        ),
        (1, 8, 4),
        out_shape=(32,),
        compiles=False,
    ),
    "MultiScale-context": Case(
        lambda: MultiScaleTransform(
            [
                mixer((1, 4, 4), flow=conditional_layer),
                SqueezeAndSplit(2),
                GlowStep(2, partial(conv, context_features=3)),
            ],
            (1, 4, 4),
        ),
        (1, 4, 4),
        context_features=3,
        out_shape=(16,),
        compiles=False,
    ),
    "Composite-of-nflows": Case(
        lambda: nflows_transforms.CompositeTransform(
            [
                mixer((1, 4, 4), flow=nflows_transforms.RandomPermutation),
                mixer((1, 4, 4), flow=nflows_coupling),
            ]
        ),
        (1, 4, 4),
        compiles=False,
    ),
}

TRANSFORMS |= {
    f"Baseline-{name}": Case(make, shape, compiles=False)
    for name, (make, shape) in baseline_registry.LAYERS.items()
}
TRANSFORMS |= {
    f"Baseline-{name}": Case(
        make,
        baseline_registry.SHAPE,
        domain=lambda *s, **k: 4 * torch.rand(*s, **k),
        compiles=False,
        out_shape=(16,),
    )
    for name, make in baseline_registry.FLOWS.items()
}


def coupling_or_lu(features: int) -> Transform:
    """One patch is left inside a shift of a 2 x 2 grid: a coupling needs two."""
    return coupling(features) if features > 1 else LULinear(features)


# Those that draw noise.

encoder = partial(DenseEncoder, hidden_channels=8, num_layers=1, growth=4)
step = partial(GlowStep, conditioner=conv)
conditional_step = partial(GlowStep, conditioner=partial(conv, context_features=3))


def learned_augmentation(channels: int, noise_channels: int) -> LearnedAugmentation:
    noise = ConditionalNoise(noise_channels, 5, num_steps=1, conditioner=dense)
    return LearnedAugmentation(channels, noise.channels, noise, encoder(channels, 5, stride=1))


def rebuilt(channels: int) -> ReversibleCompositeTransform:
    """A unit whose activations are rebuilt in the backward pass."""
    return ReversibleCompositeTransform([GlowStep(channels, conv) for _ in range(2)], anchors=1)


def blocks(preconditioning: str | None, **options) -> MultiScaleTransform:
    """Three DenseFlow blocks of 2, 2 and 1 units."""
    first = DenseFlowBlock(4, 2, step, 1, preconditioning, **options)
    # "all" reads what was before at the resolution of the block: 4 times the channels each time.
    everything = preconditioning == "all"
    options["earlier_channels"] = 4 * (4 + 4) if everything else 0
    second = DenseFlowBlock(10, 2, step, 1, preconditioning, **options)
    options["earlier_channels"] = 4 * (32 + 10 + 10) if everything else 0
    third = DenseFlowBlock(3, 1, step, 1, preconditioning, **options)
    parts = [SqueezeTransform(2), first, SqueezeAndSplit(2), second, SqueezeAndSplit(2, 3), third]
    return MultiScaleTransform(parts, (1, 8, 8))


appending = partial(noisy, shape=(3, 2, 4), noise=(2, 2, 4), out_shape=(5, 2, 4))
block = partial(noisy, shape=(2, 2, 4), noise=(4, 2, 4), out_shape=(6, 2, 4))

TRANSFORMS |= {
    "UniformDequantization": noisy(
        lambda: UniformDequantization(LEVELS),
        (1, 4, 4),
        noise=(1, 4, 4),
        domain=pixels,
        any_shape=True,
    ),
    "VariationalDequantization": noisy(
        lambda: VariationalDequantization(
            (2, 2, 4), LEVELS, partial(NEARLY_UNIFORM, conditioner=dense), encoder, 5
        ),
        (2, 2, 4),
        noise=(8, 1, 2),
        domain=pixels,
    ),
    "CrossUnitCoupling-white": appending(lambda: CrossUnitCoupling(3, 2)),
    "CrossUnitCoupling": appending(lambda: CrossUnitCoupling(3, 2, 4), context_shape=(4, 2, 4)),
    "CrossUnitCoupling-exp": appending(
        lambda: CrossUnitCoupling(3, 2, 4, scale="exp"), context_shape=(4, 2, 4)
    ),
    "CrossUnitCoupling-vector": appending(lambda: CrossUnitCoupling(3, 2, 4), context_features=4),
    "LearnedAugmentation": appending(lambda: learned_augmentation(3, 2)),
    "DenseFlowBlock": block(lambda: DenseFlowBlock(2, 3, partial(GlowStep, conditioner=fused), 2)),
    "DenseFlowBlock-all": block(lambda: DenseFlowBlock(2, 3, step, 2, "all")),
    "DenseFlowBlock-previous": block(lambda: DenseFlowBlock(2, 3, step, 2, "previous")),
    "DenseFlowBlock-white": block(lambda: DenseFlowBlock(2, 3, step, 2, None)),
    "DenseFlowBlock-context-of-couplings": block(
        lambda: DenseFlowBlock(2, 3, step, 2, context_features=3), context_features=3
    ),
    "DenseFlowBlock-context-of-units": block(
        lambda: DenseFlowBlock(2, 3, conditional_step, 2), context_features=3
    ),
    "DenseFlowBlock-reversible": block(lambda: DenseFlowBlock(2, 3, rebuilt, 2)),
    "DenseFlowBlock-mixer": noisy(
        lambda: DenseFlowBlock(2, 2, lambda channels: mixer((channels, 4, 4)), 1, "previous"),
        (2, 4, 4),
        noise=(1, 4, 4),
        out_shape=(3, 4, 4),
    ),
    "MultiScale": noisy(lambda: blocks("block"), (1, 8, 8), noise=(20,), out_shape=(84,)),
    "MultiScale-all": noisy(
        lambda: blocks("all", context_features=3),
        (1, 8, 8),
        noise=(20,),
        out_shape=(84,),
        context_features=3,
    ),
    "MultiScale-input": noisy(
        lambda: MultiScaleTransform(
            [
                SqueezeTransform(2),
                learned_augmentation(4, 2),
                glow(6),
                SqueezeAndSplit(2),
                glow(12),
            ],
            (1, 4, 8),
        ),
        (1, 4, 8),
        noise=(16,),
        out_shape=(48,),
    ),
    "MultiScale-mixers": noisy(
        lambda: MultiScaleTransform(
            [
                mixer((1, 4, 4), flow=conditional_layer),
                CrossUnitCoupling(1, 1),
                SqueezeAndSplit(2),
                CrossUnitCoupling(4, 2, context_features=3),
                mixer((6, 2, 2), 1),
            ],
            (1, 4, 4),
        ),
        (1, 4, 4),
        noise=(24,),
        out_shape=(40,),
        context_features=3,
    ),
}

DETERMINISTIC = {name: case for name, case in TRANSFORMS.items() if case.noise is None}

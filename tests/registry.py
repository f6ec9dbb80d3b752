"""Transforms, by name: the properties of test_properties.py run over all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
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
    GridConditioner,
    ImageTransformerConditioner,
    LipschitzMLP,
    ResidualMLP,
    TransformerConditioner,
    learned_positions,
    sinusoidal_positions,
)
from nflows_mixer.transforms import (
    ActNorm,
    AdditiveCoupling,
    AffineAutoregressive,
    AffineCoupling,
    ButterflyLinear,
    CausalPatchTransform,
    ChannelMixingTransform,
    ConditionalNoise,
    CrossUnitCoupling,
    DenseFlowBlock,
    FlowLayer,
    FullLinear,
    GlowStep,
    GlowSteps,
    InverseTransform,
    InvertibleConv1x1,
    JetCoupling,
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
    jet_coupling,
)
from nflows_mixer.transforms.variational import nearly_uniform_noise, small_variational
from tests import baseline_registry


@dataclass(frozen=True)
class Case:
    """A transform to be tested.

    ``shape`` is that of one input, ``context_shape`` that of its context where this is no vector,
    ``domain`` draws inputs, ``std`` is that of the noise put on every parameter, ``any_shape`` says
    that no input shape is wrong, and ``compiles`` that ``torch.compile(fullgraph=True)`` takes it
    whole, which is not asked of those in NOT_COMPILED. A transform that draws noise has the shape
    of one draw in ``noise``.
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
row = partial(Case, shape=(6,))
odd_row = partial(Case, shape=(7,))
matrix = partial(Case, shape=(4, 6))
image = partial(Case, shape=(3, 2, 4))
features = partial(Case, shape=(4, 2, 4))
wide = partial(Case, shape=(2, 4, 6))

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


steps = partial(GlowSteps, num_steps=2, hidden_channels=8)
tokens = partial(TransformerConditioner, hidden_features=8, num_heads=2)


def with_maps(inputs: int, outputs: int, context_features: int | None = None):
    """Convolutions that see the context at every pixel."""
    return ConvConditioner(inputs, outputs, 8, context_features)


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


def whole(shape=(1, 6, 4), context_features=None, out_shape=None, **options) -> Case:
    """A small MixerFlow, of dequantized pixels."""
    return Case(
        lambda: image_flow(image_shape=shape, context_features=context_features, **options),
        shape,
        context_features,
        lambda *sizes, **like: 4 * torch.rand(*sizes, **like),
        out_shape=out_shape,
    )


def image_flow(**options) -> Transform:
    """The transform of a small MixerFlow, pixel scaling and all."""
    shape = {"image_shape": (1, 6, 4), "patch_size": 2}
    sizes = {"levels": 4, "num_layers": 2, "num_flow_layers": 2, "hidden_features": 16}
    return mixerflow(**{**shape, **sizes, **options})._transform


TRANSFORMS: dict[str, Case] = {
    "PatchTransform": wide(lambda: PatchTransform((2, 4, 6), (2, 3)), out_shape=(4, 12)),
    "PatchTransform-band": wide(lambda: PatchTransform((2, 4, 6), 2, "band"), out_shape=(2, 24)),
    "PatchTransform-stripe": wide(
        lambda: PatchTransform((2, 4, 6), 2, "stripe"), out_shape=(3, 16)
    ),
    "PatchTransform-dilated": wide(
        lambda: PatchTransform((2, 4, 6), (2, 3), "dilated"), out_shape=(4, 12)
    ),
    "PermutePixels-global": wide(lambda: PermutePixels((2, 4, 6), seed=3)),
    "PermutePixels-local": wide(lambda: PermutePixels((2, 4, 6), "local", (2, 3), seed=3)),
    "SqueezeTransform": Case(lambda: SqueezeTransform(2), (1, 4, 6), out_shape=(4, 2, 3)),
    "SqueezeTransform-3": Case(lambda: SqueezeTransform(3), (2, 3, 6), out_shape=(18, 1, 2)),
    "ReshapeTransform": Case(
        lambda: ReshapeTransform((8,), (2, 2, 2)), (8,), out_shape=(2, 2, 2), compiles=False
    ),
    "PixelScaling": Case(lambda: PixelScaling(17), (2, 3), any_shape=True),
    "LogitTransform": Case(lambda: LogitTransform(0.05), (2, 3), domain=torch.rand, any_shape=True),
    "ActNorm": Case(lambda: ActNorm(5), (5,)),
    "ActNorm-channels": image(lambda: ActNorm(3)),
    "ActNorm-activations": image(lambda: ActNorm((3, 2, 4))),
    "LULinear": row(lambda: LULinear(6)),
    "LULinear-no-bias": row(lambda: LULinear(6, bias=False)),
    "RLULinear": odd_row(lambda: RLULinear(7)),
    "InvertibleConv1x1": image(lambda: InvertibleConv1x1(3)),
    "ButterflyLinear": row(lambda: ButterflyLinear(6)),
    "ButterflyLinear-three": Case(lambda: ButterflyLinear(12, (2, 3, 2)), (12,)),
    "ButterflyLinear-prime": odd_row(lambda: ButterflyLinear(7, bias=False)),
    "KroneckerLinear": row(lambda: KroneckerLinear(6)),
    "KroneckerLinear-three": Case(lambda: KroneckerLinear(12, (2, 3, 2), bias=False), (12,)),
    "AffineAutoregressive": row(lambda: AffineAutoregressive(6, 16)),
    "AffineAutoregressive-narrow": Case(
        lambda: AffineAutoregressive(11, 4, num_blocks=2, scale="tanh"), (11,)
    ),
    "AffineAutoregressive-nflows": row(lambda: AffineAutoregressive(6, 16, scale="nflows")),
    "AffineAutoregressive-batch-norm": row(
        lambda: AffineAutoregressive(6, 16, num_blocks=2, norm="batch")
    ),
    "AffineAutoregressive-context": row(
        lambda: AffineAutoregressive(6, 16, context_features=3), context_features=3
    ),
    "PatchMixing-autoregressive": matrix(lambda: PatchMixingTransform(AffineAutoregressive(4, 16))),
    "FlowLayer-autoregressive": row(
        lambda: FlowLayer(
            6, linear=RLULinear, flow=partial(AffineAutoregressive, hidden_features=16)
        )
    ),
    "Reversible": row(lambda: ReversibleCompositeTransform([ActNorm(6), coupling(6), LULinear(6)])),
    "Composite-images": image(
        lambda: CompositeTransform([ActNorm(3), InvertibleConv1x1(3), AffineCoupling(3, image_net)])
    ),
    "AffineCoupling": odd_row(lambda: coupling(7)),
    "AffineCoupling-second": odd_row(lambda: coupling(7, conditioning="second")),
    "AffineCoupling-checkerboard": row(
        lambda: coupling(6, mask="checkerboard", axes=(2, 3), conditioning="second")
    ),
    "AffineCoupling-mask": odd_row(lambda: coupling(7, mask=[i in (0, 3) for i in range(7)])),
    "AffineCoupling-tanh": row(lambda: coupling(6, scale="tanh")),
    "AffineCoupling-sigmoid": row(lambda: coupling(6, scale="sigmoid")),
    "AffineCoupling-softplus": row(lambda: coupling(6, scale="softplus")),
    "AffineCoupling-context": odd_row(lambda: AffineCoupling(7, with_context), context_features=3),
    "AffineCoupling-mlp": row(lambda: AffineCoupling(6, partial(MLP, hidden_features=16))),
    "AffineCoupling-mlp-batch-norm": row(
        lambda: AffineCoupling(6, partial(MLP, hidden_features=16, norm="batch"))
    ),
    "AffineCoupling-transformer": odd_row(lambda: AffineCoupling(7, tokens)),
    "AffineCoupling-of-patches": matrix(
        lambda: AffineCoupling(4, partial(tokens, token_features=6, context_features=3)),
        context_features=3,
    ),
    "AffineCoupling-images": image(lambda: AffineCoupling(3, image_net)),
    "AdditiveCoupling": odd_row(lambda: AdditiveCoupling(7, narrow)),
    "AdditiveCoupling-second": odd_row(lambda: AdditiveCoupling(7, narrow, conditioning="second")),
    "RationalQuadraticCoupling": odd_row(lambda: RationalQuadraticCoupling(7, narrow)),
    "RationalQuadraticCoupling-second": odd_row(
        lambda: RationalQuadraticCoupling(7, narrow, num_bins=4, conditioning="second")
    ),
    "RationalQuadraticCoupling-context": odd_row(
        lambda: RationalQuadraticCoupling(7, with_context), context_features=3
    ),
    "RationalQuadraticCoupling-images": image(
        lambda: RationalQuadraticCoupling(3, image_net, num_bins=4, tail_bound=2.0)
    ),
    "ResidualTransform": row(lambda: ResidualTransform(6, lipschitz)),
    "ResidualTransform-context": row(
        lambda: ResidualTransform(6, partial(lipschitz, context_features=3)), context_features=3
    ),
    "FlowLayer": row(lambda: layer(6)),
    "FlowLayer-context": row(lambda: conditional_layer(6), context_features=3),
    "FlowLayer-maf": row(lambda: FlowLayer(6, linear=RLULinear, flow=maf)),
    "FlowLayer-flow-alone": row(lambda: FlowLayer(6, None, None, coupling)),
    "ChannelMixing": matrix(lambda: ChannelMixingTransform(layer(6))),
    "ChannelMixing-context": matrix(
        lambda: ChannelMixingTransform(conditional_layer(6)), context_features=3
    ),
    "ChannelMixing-nflows": matrix(lambda: ChannelMixingTransform(nflows_coupling(6))),
    "ChannelMixing-positions": matrix(
        lambda: ChannelMixingTransform(
            AffineCoupling(6, partial(narrow, context_features=5)), learned_positions(4, 2)
        ),
        context_features=3,
    ),
    "PatchMixing": matrix(lambda: PatchMixingTransform(layer(4))),
    "PatchMixing-context": matrix(
        lambda: PatchMixingTransform(conditional_layer(4)), context_features=3
    ),
    "PatchMixing-maf": matrix(lambda: PatchMixingTransform(maf(4))),
    "PatchMixing-maf-context": matrix(
        lambda: PatchMixingTransform(maf(4, context_features=3)), context_features=3
    ),
    "PatchMixing-positions": matrix(
        lambda: PatchMixingTransform(
            AffineCoupling(4, partial(narrow, context_features=4)), sinusoidal_positions(6, 4)
        )
    ),
    "PatchMixer": Case(lambda: mixer((2, 4, 4)), (2, 4, 4)),
    "PatchMixer-dilated": wide(lambda: mixer((2, 4, 6), layout="dilated")),
    "PatchMixer-band": Case(lambda: mixer((1, 4, 6), layout="band"), (1, 4, 6)),
    "PatchMixer-context": Case(
        lambda: mixer((1, 4, 6), flow=conditional_layer), (1, 4, 6), context_features=3
    ),
    "PatchMixer-checkerboard": wide(lambda: mixer((2, 4, 6), mask="checkerboard")),
    "PatchMixer-random": wide(lambda: mixer((2, 4, 6), mask="random", layout="dilated")),
    "Shift": Case(lambda: ShiftTransform((1, 6, 6), 2, 1, mixer), (1, 6, 6)),
    "Shift-rectangular": wide(
        lambda: ShiftTransform(
            (2, 4, 6), (2, 3), (1, 2), lambda shape: mixer(shape, (2, 3), flow=coupling_or_lu)
        )
    ),
    "Shift-context": Case(
        lambda: ShiftTransform((1, 6, 4), 2, 1, partial(mixer, flow=conditional_layer)),
        (1, 6, 4),
        context_features=3,
    ),
    "MixerFlow": whole(),
    "MixerFlow-small": whole(num_layers=1, num_flow_layers=1),
    "MixerFlow-constant-memory": whole(memory="constant"),
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
    "ChannelMixing-zuko": matrix(
        lambda: ChannelMixingTransform(zuko.flows.NSF(6, transforms=2, hidden_features=(16,)))
    ),
    "PatchMixing-zuko-context": matrix(
        lambda: PatchMixingTransform(zuko.flows.MAF(4, 3, hidden_features=(16,))),
        context_features=3,
    ),
    "PatchMixing-zuko-positions": matrix(
        lambda: PatchMixingTransform(
            zuko.flows.NICE(4, 5, transforms=1, hidden_features=(16,)), learned_positions(6, 2)
        ),
        context_features=3,
    ),
    "PatchMixing-normflows": matrix(
        lambda: PatchMixingTransform(
            from_normflows(nf.flows.CoupledRationalQuadraticSpline(4, 1, 16, 3), 4)
        ),
        context_features=3,
    ),
    "PatchMixer-libraries": Case(
        lambda: PatchMixerTransform(
            (1, 4, 6), 2, partial(zuko.flows.NSF, transforms=1), nf.flows.LULinearPermute
        ),
        (1, 4, 6),
    ),
    "InverseTransform-maf": Case(lambda: ChannelMixingTransform(InverseTransform(maf(4))), (3, 4)),
    "MixerFlow-spline": whole(
        channel_flow=partial(RationalQuadraticCoupling, num_bins=4), num_layers=1, shift=None
    ),
    "MixerFlow-checkerboard": whole((1, 6, 6), num_layers=1, mask="checkerboard", alternate=True),
    "MixerFlow-local": whole(
        local_flow=[steps, None, partial(GlowSteps, num_steps=2, conditioner=with_maps)],
        context_features=3,
    ),
    "MixerFlow-transformer": whole(
        (1, 4, 4),
        num_layers=1,
        conditioner=partial(TransformerConditioner, num_heads=2),
        context_features=3,
        shift=None,
    ),
    "MixerFlow-grid": whole(
        (1, 6, 6),
        num_layers=1,
        channel_flow=partial(AffineCoupling, mask="columns"),
        patch_flow=partial(AffineCoupling, mask="checkerboard"),
        conditioner=GridConditioner,
        context_features=3,
        shift=None,
    ),
    "MixerFlow-scales": whole(
        (1, 4, 4),
        out_shape=(16,),
        num_layers=[1, 1],
        patch_size=[2, 1],
        num_flow_layers=1,
        shift=None,
        memory="constant",
    ),
    "MixerFlow-residual": whole(patch_flow=ResidualTransform, num_flow_layers=1, shift=None),
    "Composite-mixed-context": matrix(
        lambda: ChannelMixingTransform(
            nflows_transforms.CompositeTransform(
                [
                    maf(6),
                    nflows_transforms.CompositeTransform([conditional_layer(6), maf(6)]),
                    nflows_transforms.InverseTransform(maf(6, 3)),
                ]
            )
        ),
        context_features=3,
    ),
    "FullLinear": row(lambda: FullLinear(6)),
    "InvertibleConv1x1-full": image(lambda: InvertibleConv1x1(3, "full")),
    "SqueezeAndSplit": Case(lambda: SqueezeAndSplit(2), (1, 4, 6), out_shape=(4, 2, 3)),
    "GlowStep": features(lambda: GlowStep(4, fused)),
    "GlowStep-layer-norm": features(lambda: GlowStep(4, partial(fused, norm="layer"))),
    "GlowStep-conv": features(lambda: GlowStep(4, conv, "exp", "lu")),
    "GlowStep-no-swap": features(lambda: GlowStep(4, conv, swap=False)),
    "GlowStep-odd": Case(lambda: GlowStep(5, conv), (5, 2, 3)),
    "GlowStep-second": features(lambda: GlowStep(4, conv, conditioning="second")),
    "GlowSteps": Case(lambda: GlowSteps((1, 4, 6), 3, 8), (1, 4, 6)),
    "GlowSteps-context": image(
        lambda: GlowSteps((3, 2, 4), 2, squeeze=1, conditioner=conv, context_features=3),
        context_features=3,
    ),
    "GlowStep-context": features(
        lambda: GlowStep(4, partial(conv, context_features=3)), context_features=3
    ),
    "ConditionalNoise-vector": Case(
        lambda: ConditionalNoise(4, 3, num_steps=2, scale=1.7, conditioner=dense),
        (4, 2, 3),
        context_features=3,
    ),
    "ConditionalNoise-maps": Case(
        lambda: ConditionalNoise(4, 3, num_steps=2, conditioner=dense),
        (4, 2, 3),
        context_shape=(3, 2, 3),
    ),
    "DenseFlowBlock-no-noise": features(
        lambda: DenseFlowBlock(4, 2, partial(GlowStep, conditioner=conv), growth=0)
    ),
    "Composite-glow": features(lambda: glow(4)),
    "Reversible-glow": features(
        lambda: glow(4, composite=partial(ReversibleCompositeTransform, anchors=1))
    ),
    "Reversible-glow-checkpoint": features(
        lambda: glow(4, composite=partial(ReversibleCompositeTransform, memory="checkpoint"))
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
    "MultiScale-small": Case(
        lambda: MultiScaleTransform([glow(4, 1), SqueezeAndSplit(2), glow(8, 1)], (4, 4, 2)),
        (4, 4, 2),
        out_shape=(32,),
    ),
    "MultiScale-mixer": Case(
        lambda: MultiScaleTransform(
            [mixer((1, 8, 4)), SqueezeAndSplit(2, 3), mixer((3, 4, 2), (2, 1))], (1, 8, 4)
        ),
        (1, 8, 4),
        out_shape=(32,),
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
    ),
    "Composite-of-nflows": Case(
        lambda: nflows_transforms.CompositeTransform(
            [
                mixer((1, 4, 4), flow=nflows_transforms.RandomPermutation),
                mixer((1, 4, 4), flow=nflows_coupling),
            ]
        ),
        (1, 4, 4),
    ),
}

# Made of the same parts as another, or leading to the same code. Each part of Composite-images
# compiles by itself; in this chain torch 2.15 assumes strides of the convolution's output that it
# does not have.
NOT_COMPILED = """
PatchTransform-band PatchTransform-stripe LULinear-no-bias ButterflyLinear-three
KroneckerLinear-three ButterflyLinear-prime AffineAutoregressive-narrow
AffineAutoregressive-nflows AffineAutoregressive-batch-norm PatchMixing-autoregressive
FlowLayer-autoregressive Reversible Composite-images AffineCoupling-second AffineCoupling-softplus
AffineCoupling-mlp-batch-norm AdditiveCoupling-second RationalQuadraticCoupling-second
RationalQuadraticCoupling-context ResidualTransform ResidualTransform-context FlowLayer-maf
ChannelMixing ChannelMixing-nflows PatchMixing PatchMixing-maf PatchMixing-maf-context
PatchMixing-positions PatchMixer PatchMixer-dilated PatchMixer-band Shift Shift-rectangular
ChannelMixing-zuko PatchMixing-zuko-context PatchMixing-zuko-positions PatchMixing-normflows
PatchMixer-libraries InverseTransform-maf Composite-mixed-context InvertibleConv1x1-full GlowStep
GlowStep-no-swap GlowStep-odd ConditionalNoise-vector MultiScale-mixer MultiScale-context
Composite-of-nflows PatchMixer-context ChannelMixing-context FlowLayer-context
AffineAutoregressive Composite-glow RationalQuadraticCoupling-images MixerFlow
MixerFlow-constant-memory MixerFlow-butterfly MixerFlow-kronecker MixerFlow-bounded MixerFlow-maf
MixerFlow-additive-squeezed MixerFlow-positions MixerFlow-batch-norm MixerFlow-batch-norm-mlp
MixerFlow-patch-sizes MixerFlow-spline MixerFlow-residual MixerFlow-checkerboard MixerFlow-local
MixerFlow-transformer MixerFlow-scales GlowSteps-context GlowStep-second PatchMixer-random
AffineCoupling-of-patches
MultiScale-glow Reversible-glow-checkpoint
""".split()
for name in NOT_COMPILED:
    TRANSFORMS[name] = replace(TRANSFORMS[name], compiles=False)

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
            (2, 2, 4), LEVELS, partial(nearly_uniform_noise, conditioner=dense), encoder, 5
        ),
        (2, 2, 4),
        noise=(8, 1, 2),
        domain=pixels,
    ),
    "small_variational": noisy(
        lambda: small_variational((2, 2, 4), LEVELS), (2, 2, 4), noise=(8, 1, 2), domain=pixels
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

# Causal transformers over patches.

causal = partial(CausalPatchTransform, hidden_features=8, num_blocks=1, num_heads=2)


def causal_patches(image_shape: tuple[int, int, int], patch_size: int, **options) -> Transform:
    """Two in opposite orders, from images to images."""
    patches = PatchTransform(image_shape, patch_size, mask=options.pop("mask", "halves"))
    sizes = patches.n_patches, patches.channels
    flows = [causal(*sizes, reverse=reverse, **options) for reverse in (False, True)]
    return CompositeTransform([patches, *flows, InverseTransform(copy.deepcopy(patches))])


TRANSFORMS |= {
    "CausalPatches": Case(lambda: causal(5, 3), (5, 3)),
    "CausalPatches-reverse": Case(
        lambda: causal(5, 3, reverse=True, scale="sigmoid"), (5, 3), compiles=False
    ),
    "CausalPatches-context": Case(
        lambda: causal(4, 3, context_features=2, start_token=True), (4, 3), context_features=2
    ),
    "CausalPatches-rotary": Case(
        lambda: causal(4, 3, positions="rotary", scale="softplus", soft_clip=4.0), (4, 3)
    ),
    "CausalPatches-rotary-start": Case(
        lambda: causal(4, 3, positions="rotary", scale="tanh", start_token=True),
        (4, 3),
        compiles=False,
    ),
    "CausalPatches-images": Case(
        lambda: causal_patches((2, 4, 4), 2, mask="checkerboard"), (2, 4, 4), compiles=False
    ),
}

# Couplings by vision transformers.

vit = partial(jet_coupling, patch_size=2, hidden_features=8, num_blocks=1, num_heads=2)
on_images = partial(ImageTransformerConditioner, image_size=(2, 3), hidden_features=8, num_heads=2)

TRANSFORMS |= {
    "JetCoupling": Case(lambda: JetCoupling(5, partial(ResidualMLP, hidden_features=8)), (5,)),
    "JetCoupling-channels": Case(lambda: vit((2, 4, 4), index=3), (2, 4, 4)),
    "JetCoupling-checkerboard": Case(
        lambda: vit((1, 4, 4), "checkerboard", conditioning="second", context_features=2),
        (1, 4, 4),
        context_features=2,
        compiles=False,
    ),
    "JetCoupling-rows": Case(lambda: vit((1, 4, 4), "rows"), (1, 4, 4), compiles=False),
    "AffineCoupling-image-transformer": Case(
        lambda: AffineCoupling(4, partial(on_images, context_features=2), context_features=2),
        (4, 2, 3),
        context_features=2,
        compiles=False,
    ),
}

DETERMINISTIC = {name: case for name, case in TRANSFORMS.items() if case.noise is None}
LEARNABLE = {name for name, case in TRANSFORMS.items() if list(case.make().parameters())}

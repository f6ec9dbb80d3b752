"""Transforms, each a subclass of ``nflows.transforms.Transform``.

``forward(inputs, context=None) -> (outputs, logabsdet)`` runs from data to noise, ``inverse``
back; ``logabsdet`` is [B], the log-determinant of the Jacobian of the direction taken.
"""

from nflows_mixer.core.composite import CompositeTransform, InverseTransform
from nflows_mixer.transforms.actnorm import ActNorm
from nflows_mixer.transforms.augmentation import CrossUnitCoupling, LearnedAugmentation
from nflows_mixer.transforms.autoregressive import AffineAutoregressive, identity_maf
from nflows_mixer.transforms.causal_patches import CausalPatchTransform, causal_patch_flow
from nflows_mixer.transforms.coupling import AdditiveCoupling, AffineCoupling, Coupling
from nflows_mixer.transforms.dense_flow_block import DenseFlowBlock
from nflows_mixer.transforms.flow_layer import FlowLayer
from nflows_mixer.transforms.glow_step import GlowStep
from nflows_mixer.transforms.glow_steps import GlowSteps
from nflows_mixer.transforms.initialize import initialize, initialize_identity
from nflows_mixer.transforms.jet import JetCoupling, jet_coupling
from nflows_mixer.transforms.linear import (
    FullLinear,
    InvertibleConv1x1,
    LinearBlock,
    LULinear,
    RLULinear,
)
from nflows_mixer.transforms.masks import mask_order
from nflows_mixer.transforms.mixing import (
    ChannelMixingTransform,
    PatchMixerTransform,
    PatchMixingTransform,
)
from nflows_mixer.transforms.multiscale import MultiScaleTransform
from nflows_mixer.transforms.patches import PatchTransform
from nflows_mixer.transforms.permute import PermutePixels
from nflows_mixer.transforms.pixels import LogitTransform, PixelScaling
from nflows_mixer.transforms.reshape import ReshapeTransform
from nflows_mixer.transforms.residual import ResidualTransform
from nflows_mixer.transforms.reversible import ReversibleCompositeTransform
from nflows_mixer.transforms.shift import ShiftTransform
from nflows_mixer.transforms.spline import RationalQuadraticCoupling
from nflows_mixer.transforms.squeeze import SqueezeAndSplit, SqueezeTransform
from nflows_mixer.transforms.stochastic import StochasticTransform, UniformDequantization
from nflows_mixer.transforms.structured import ButterflyLinear, KroneckerLinear
from nflows_mixer.transforms.variational import (
    ConditionalNoise,
    VariationalDequantization,
    small_variational,
)

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "AffineAutoregressive",
    "AffineCoupling",
    "ButterflyLinear",
    "CausalPatchTransform",
    "ChannelMixingTransform",
    "CompositeTransform",
    "ConditionalNoise",
    "Coupling",
    "CrossUnitCoupling",
    "DenseFlowBlock",
    "FlowLayer",
    "FullLinear",
    "GlowStep",
    "GlowSteps",
    "InverseTransform",
    "InvertibleConv1x1",
    "JetCoupling",
    "KroneckerLinear",
    "LULinear",
    "LinearBlock",
    "LearnedAugmentation",
    "LogitTransform",
    "MultiScaleTransform",
    "PatchMixerTransform",
    "PatchMixingTransform",
    "PatchTransform",
    "PermutePixels",
    "PixelScaling",
    "RLULinear",
    "RationalQuadraticCoupling",
    "ReshapeTransform",
    "ResidualTransform",
    "ReversibleCompositeTransform",
    "ShiftTransform",
    "SqueezeAndSplit",
    "SqueezeTransform",
    "StochasticTransform",
    "UniformDequantization",
    "VariationalDequantization",
    "causal_patch_flow",
    "identity_maf",
    "jet_coupling",
    "initialize",
    "initialize_identity",
    "mask_order",
    "small_variational",
]

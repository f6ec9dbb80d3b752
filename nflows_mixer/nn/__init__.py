"""Conditioner networks: they know nothing of flows."""

from nflows_mixer.nn.causal_transformer import CausalTransformer
from nflows_mixer.nn.conditioner import Conditioner
from nflows_mixer.nn.context import (
    ClassEmbedding,
    OneHotClasses,
    TakesLabels,
    learned_positions,
    sinusoidal_positions,
)
from nflows_mixer.nn.dense_attention import DenseAttentionConditioner
from nflows_mixer.nn.dense_block import (
    ConvConditioner,
    CrossUnitNetwork,
    DenseBlock,
    DenseConditioner,
    DenseEncoder,
)
from nflows_mixer.nn.grid import GridConditioner
from nflows_mixer.nn.lipschitz import LipschitzMLP
from nflows_mixer.nn.masked import MaskedMLP, MaskedResidualMLP
from nflows_mixer.nn.mlp import MLP
from nflows_mixer.nn.norm import BatchNorm1d, BatchNorm2d, ChannelLayerNorm, all_reduce_batch_norm
from nflows_mixer.nn.nystrom import NystromAttention
from nflows_mixer.nn.residual import ResidualMLP
from nflows_mixer.nn.transformer import (
    ImageTransformerConditioner,
    TransformerBlock,
    TransformerConditioner,
    VisionTransformer,
)

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "CausalTransformer",
    "ChannelLayerNorm",
    "ClassEmbedding",
    "Conditioner",
    "ConvConditioner",
    "CrossUnitNetwork",
    "DenseAttentionConditioner",
    "DenseBlock",
    "DenseConditioner",
    "DenseEncoder",
    "GridConditioner",
    "ImageTransformerConditioner",
    "LipschitzMLP",
    "MLP",
    "MaskedMLP",
    "MaskedResidualMLP",
    "NystromAttention",
    "OneHotClasses",
    "ResidualMLP",
    "TakesLabels",
    "TransformerBlock",
    "TransformerConditioner",
    "VisionTransformer",
    "all_reduce_batch_norm",
    "learned_positions",
    "sinusoidal_positions",
]

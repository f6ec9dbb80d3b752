"""Hybrid training: a density and a classifier on one set of embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.data import ImageDataset
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.likelihood import bits_per_dim
from nflows_mixer.nn import TakesLabels
from nflows_mixer.nn.conditioner import zero_linear
from nflows_mixer.training.module import FlowModule
from nflows_mixer.training.moving_average import moving_average
from nflows_mixer.training.recipe import Recipe

UNLABELLED = -1


class HybridModule(FlowModule):
    r"""Joint training of a flow and a linear classifier of its latents, z = f(x).

    .. math:: \mathrm{loss} = \frac1B \Big(\sum_{n \in L} -\log p(y_n \mid z_n)
              + \mathrm{weight} \sum_n -\frac{\log p(x_n)}{D \log 2}\Big), \qquad
              p(y \mid z) = \mathrm{softmax}(W z + b)_y

    L are the labelled images of the batch of B; those with label -1 count in the second term alone,
    which is semi-supervised training (``hide_labels`` makes such data). A weight below 1 favours
    the classifier. A sum over images, the loss is the same in however many parts or processes. The
    latents of a flow that appends noise hold it, too, and its accuracy is that of one draw of it.

    Args:
        flow: the flow, without a context.
        recipe: how it is trained.
        num_classes: of the labels.
        weight: of bits per dimension beside the cross-entropy in nats.
        seed: of the noise and the flips.

    Shapes:
        batches: (images uint8 [B, C, H, W], labels [B] from 0 to num_classes - 1, or -1).

    Raises:
        ValueError: if labels are missing or out of range, or the flow is conditional.

    References:
        Nalisnick et al., Hybrid models with deep and invertible features, 2019, Sections 3.1 and
        3.2; MixerFlow, Section 5.5.

    Example:
        >>> from nflows_mixer.flows import mixerflow
        >>> flow = mixerflow(image_shape=(1, 8, 8), patch_size=2, levels=17, num_layers=1)
        >>> HybridModule(flow, Recipe(), num_classes=10, weight=0.1).head
        Linear(in_features=64, out_features=10, bias=True)
    """

    def __init__(
        self,
        flow: ImageFlow,
        recipe: Recipe,
        num_classes: int,
        weight: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(flow, recipe, conditional=False, seed=seed)
        check_positive("HybridModule", "num_classes", num_classes)
        if not 0 <= weight < math.inf:
            expected = "a weight of 0 or more"
            raise mismatch("HybridModule", expected, weight, "1 weighs bits/dim as one nat")
        if flow.context_features is not None or isinstance(
            flow._embedding_net, (nn.Embedding, TakesLabels)
        ):
            raise mismatch(
                "HybridModule",
                "a flow without context",
                "a conditional one",
                "a classifier that is given the labels would learn nothing",
            )
        self.weight = weight
        self.head = zero_linear(_latent_features(flow), num_classes)
        self.head_average = (
            None if recipe.ema_decay is None else moving_average(self.head, recipe.ema_decay)
        )

    @property
    def evaluated_head(self) -> nn.Module:
        """The classifier that belongs to ``evaluated``."""
        return self.head if self.head_average is None else self.head_average.module

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        """Make the step, and let both moving averages follow."""
        super().optimizer_step(*arguments, **keywords)
        if self.head_average is not None:
            self.head_average.update_parameters(self.head)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the flow's groups, and the classifier's at the full learning rate."""
        head = {"params": list(self.head.parameters()), "lr": self.recipe.learning_rate}
        return [*super().parameter_groups(), head]

    def loss(
        self, images: Tensor, context: Tensor | None, noise: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the joint objective, and the bits per dimension of each image, [B]."""
        latents, log_prob = self.flow.transform_and_log_prob(images, context, noise)
        bits = bits_per_dim(log_prob, self.flow.image_shape)
        labels = self._checked(labels)
        logits = self.head(latents.flatten(1))
        total = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
        return total / len(labels) + self.weight * bits.mean(), bits

    def figures(
        self, images: Tensor, context: Tensor | None, noise: Tensor, labels: Tensor | None
    ) -> dict[str, Tensor]:
        """Return bits per dimension, and of labelled images cross-entropy in nats and accuracy."""
        labels = self._checked(labels)
        figures = self.predictions(images, context, noise)
        logits = figures.pop("logits")
        known = (labels != UNLABELLED).to(logits.dtype)
        cross_entropy = F.cross_entropy(logits, labels.clamp_min(0), reduction="none")
        correct = (logits.argmax(1) == labels).to(logits.dtype)
        return {
            **figures,
            "cross_entropy": cross_entropy * known,
            "accuracy": correct * known,
            "labelled": known,
        }

    def predictions(
        self, images: Tensor, context: Tensor | None, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return bits_per_dim [B], and the classifier's logits [B, num_classes]."""
        latents, log_prob = self.evaluated.transform_and_log_prob(images, context, noise)
        bits = bits_per_dim(log_prob, self.flow.image_shape)
        return {"bits_per_dim": bits, "logits": self.evaluated_head(latents.flatten(1))}

    def summarise(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the classifier's figures over labelled images; NaN for a part without any."""
        labelled = means["labelled"]
        classified = {name: means[name] / labelled for name in ("cross_entropy", "accuracy")}
        return {**means, **classified}

    def _checked(self, labels: Tensor | None) -> Tensor:
        expected = f"labels from 0 to {self.head.out_features - 1}, or -1"
        if labels is None:
            raise mismatch("HybridModule", expected, "images alone", "use data with labels")
        if labels.is_floating_point():
            raise mismatch("HybridModule", expected, labels.dtype, "pass class indices")
        low, high = (value.item() for value in torch.aminmax(labels))
        if low < UNLABELLED or high >= self.head.out_features:
            got = f"labels from {low} to {high}"
            raise mismatch("HybridModule", expected, got, "count classes from 0")
        return labels.long()


def _latent_features(flow: ImageFlow) -> int:
    """Pixels, and the noise that a stochastic transform appends to them; no other map adds any."""
    of_pixels = flow.dequantization.noise_shape(flow.image_shape)
    appended = math.prod(flow.noise_shape) - math.prod(of_pixels)
    return math.prod(flow.image_shape) + appended


def hide_labels(images: ImageDataset, kept: int, seed: int = 0) -> ImageDataset:
    """Return the same images with the labels of all but ``kept`` of them set to -1.

    Args:
        images: with labels, of which some may be hidden already.
        kept: images that keep theirs, drawn at random.
        seed: of the draw.

    Raises:
        ValueError: if there are no labels, or fewer than ``kept``.

    Example:
        >>> from nflows_mixer.data import load_images
        >>> digits = hide_labels(load_images("digits").train, kept=100)
        >>> int((digits.labels() >= 0).sum()), len(digits)
        (100, 1344)
    """
    labels = images.labels().clone()
    known = (labels != UNLABELLED).nonzero().flatten()
    if not 0 <= kept <= len(known):
        expected = f"0 to {len(known)} labels to keep"
        raise mismatch("hide_labels", expected, kept, "that is how many there are")
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    labels[known[order[kept:]]] = UNLABELLED
    return images.with_labels(labels)

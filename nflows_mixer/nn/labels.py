"""Class labels as context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nflows_mixer._checks import check_sizes, mismatch


class ClassEmbedding(nn.Embedding):
    r"""A learned vector for each class: the embedding net of a class-conditional flow.

    .. math:: c_n = E_{\ell_n,:}, \qquad \ell_n \in \{0, \dots, K - 1\}

    Args:
        num_classes: K.
        features: length of each vector; they start as draws from a standard normal.

    Shapes:
        labels [B] of an integer dtype; outputs [B, features].

    Raises:
        ValueError: if a size is not positive, or labels are not a row of integers from 0 to K - 1.

    References:
        Mirza and Osindero, Conditional generative adversarial nets, 2014 (labels as an input).

    Example:
        >>> ClassEmbedding(10, features=16)(torch.tensor([3, 7])).shape
        torch.Size([2, 16])
    """

    def __init__(self, num_classes: int, features: int) -> None:
        check_sizes("ClassEmbedding", num_classes=num_classes, features=features)
        super().__init__(num_classes, features)

    def forward(self, labels: Tensor) -> Tensor:
        """Look up [B] labels: [B, features]."""
        expected = f"labels [B], integers from 0 to {self.num_embeddings - 1}"
        if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            got = f"{labels.dtype} of shape {list(labels.shape)}"
            raise mismatch("ClassEmbedding", expected, got, "pass one class index per image")
        # Labels come with the images, so they are checked as those are, at the boundary.
        if labels.numel():
            lowest, highest = torch.aminmax(labels)
            if lowest < 0 or highest >= self.num_embeddings:
                got = f"labels from {lowest.item()} to {highest.item()}"
                raise mismatch("ClassEmbedding", expected, got, "count classes from 0")
        return super().forward(labels.long())

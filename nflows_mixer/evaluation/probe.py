"""Linear probes: what a linear classifier reads from frozen embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nflows_mixer._checks import check_positive, mismatch
from nflows_mixer.data.dataset import ImageDataset
from nflows_mixer.evaluation.embeddings import embeddings, top_level_layers
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.likelihood import device_of

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""What a linear probe chooses its L2 penalty from."""

_ROWS = 8192
Classifier = Callable[[Tensor], Tensor]
"""Features [N, D] -> logits [N, K]."""


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    seed: int = 0,
    steps: int = 2000,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    r"""Multinomial logistic regression on standardised features.

    .. math:: \min_{W, b}\ \frac1N \sum_n -\log \mathrm{softmax}(W e_n + b)_{y_n} +
              \frac{\lambda}{2} \|W\|^2

    The penalty is the one of ``PENALTIES`` with the smallest loss on a tenth of the training
    part, which is then fitted whole. The minimum is sought by Adam on batches of 256, with a
    learning rate that falls to 0. The test part is looked at once, at the end.

    Args:
        train: features [N, D], N > 1, float32 or float64, such as ``embeddings``.
        train_labels: integers [N], from 0.
        test: features [M, D], of the same type.
        test_labels: integers [M], from 0.
        seed: of the split and of the batches.
        steps: of Adam.
        device: where to fit; a batch at a time is moved there.

    Returns:
        A dictionary of the test part's loss (cross-entropy, in nats) and accuracy, the training
        part's train_loss and train_accuracy, and the penalty that was chosen.

    Raises:
        ValueError: if shapes do not fit, labels are no class indices, or a feature is not finite.

    References:
        MixerFlow, Section 5.5 and Table 7; Alain and Bengio, Understanding intermediate layers
        using linear classifier probes, 2017.

    Example:
        >>> labels = torch.arange(200) % 2
        >>> features = torch.stack([labels.float(), torch.randn(200)], dim=1)
        >>> linear_probe(features, labels, features, labels, steps=200)["accuracy"]
        1.0
    """
    steps = check_positive("linear_probe", "steps", steps)
    for name, features, labels in (("train", train, train_labels), ("test", test, test_labels)):
        _check(name, features, labels, train.shape[-1])
    if len(train) < 2:
        raise mismatch("linear_probe", "2 training images or more", len(train), "add some")
    classes = 1 + int(max(train_labels.max().item(), test_labels.max().item()))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=generator)
    held_out, fitted = order.tensor_split([max(1, len(train) // 10)])
    deviation, mean = (part.to(device) for part in torch.std_mean(train, dim=0, correction=0))
    # What is constant but for rounding tells nothing, and must not be blown up.
    constant = deviation <= 1e-6 * (mean.abs() + deviation.max())
    scale = torch.where(constant, 0.0, 1 / deviation)

    def fit(rows: Tensor, penalty: float) -> Classifier:
        weight = mean.new_zeros(len(mean), classes).requires_grad_()
        bias = mean.new_zeros(classes).requires_grad_()
        optimizer = torch.optim.Adam([weight], lr=1e-2, weight_decay=penalty)
        optimizer.add_param_group({"params": [bias], "weight_decay": 0.0})
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        size, order = min(256, len(rows)), rows[:0]

        def classify(part: Tensor) -> Tensor:
            return (part.to(device) - mean) * scale @ weight + bias

        with torch.enable_grad():
            for _ in range(steps):
                if len(order) < size:
                    order = rows[torch.randperm(len(rows), generator=generator)]
                batch, order = order[:size], order[size:]
                targets = train_labels[batch].long().to(device)
                optimizer.zero_grad()
                F.cross_entropy(classify(train[batch]), targets).backward()
                optimizer.step()
                schedule.step()
        return classify

    chosen = [_score(fit(fitted, p), train[held_out], train_labels[held_out]) for p in PENALTIES]
    losses = [figures["loss"] for figures in chosen]
    penalty = PENALTIES[losses.index(min(losses))]
    final = fit(torch.arange(len(train)), penalty)
    of_train = {f"train_{k}": v for k, v in _score(final, train, train_labels).items()}
    return {**_score(final, test, test_labels), **of_train, "penalty": penalty}


def probe_depths(
    flow: ImageFlow,
    train: ImageDataset,
    test: ImageDataset,
    depths: Sequence[int] | None = None,
    seed: int = 0,
    steps: int = 2000,
    batch_size: int = 500,
) -> list[dict[str, float | int | str]]:
    """Linear probes of the embeddings at each depth of a flow, which stays as it is.

    The embeddings of one depth at a time are kept, as float32 on the CPU; the probes are fitted on
    the flow's device.

    Args:
        flow: any flow on images that takes no context.
        train: labelled images to fit.
        test: labelled images to score.
        depths: which of ``top_level_layers``, 0 the first; all of them where None.
        seed: of the probes.
        steps: of each probe.
        batch_size: images at a time.

    Returns:
        For each depth a row of a table, of the depth, the name of its layer, and what
        ``linear_probe`` found.

    Raises:
        ValueError: if a data set has no labels, or there is no such layer.

    References:
        MixerFlow, Section 5.5 and Table 7 (the last depth).

    Example:
        >>> from nflows_mixer.transforms import PixelScaling
        >>> flow = ImageFlow(PixelScaling(2), (1, 2, 2), levels=2)
        >>> images = torch.randint(2, (100, 1, 2, 2), dtype=torch.uint8)
        >>> dataset = ImageDataset(images, labels=images[:, 0, 0, 0].long())
        >>> [row["layer"] for row in probe_depths(flow, dataset, dataset, steps=10)]
        ['PixelScaling']
    """
    layers = top_level_layers(flow)
    labels = train.labels(), test.labels()
    table: list[dict[str, float | int | str]] = []
    for depth in range(len(layers)) if depths is None else depths:
        features = [embeddings(flow, part, depth, batch_size=batch_size) for part in (train, test)]
        result = linear_probe(
            features[0], labels[0], features[1], labels[1], seed, steps, device_of(flow)
        )
        place = depth % len(layers)
        table.append({"depth": place, "layer": type(layers[place]).__name__, **result})
    return table


@torch.no_grad()
def _score(classify: Classifier, features: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean loss and accuracy."""
    loss, right = 0.0, 0
    for part, targets in zip(features.split(_ROWS), labels.long().split(_ROWS)):
        logits = classify(part)
        targets = targets.to(logits.device)
        loss += F.cross_entropy(logits.double(), targets, reduction="sum").item()
        right += int((logits.argmax(1) == targets).sum().item())
    return {"loss": loss / len(features), "accuracy": right / len(features)}


def _check(name: str, features: Tensor, labels: Tensor, length: int) -> None:
    if features.dim() != 2 or features.shape[1] != length or not len(features):
        expected = f"{name} features [N, {length}], N > 0"
        raise mismatch("linear_probe", expected, list(features.shape), "flatten the embeddings")
    if not features.is_floating_point():
        raise mismatch("linear_probe", f"real {name} features", features.dtype, "use .float()")
    if labels.shape != features.shape[:1] or labels.is_floating_point() or labels.min() < 0:
        got = f"{labels.dtype} {list(labels.shape)}"
        expected = f"{name} labels from 0, one for each of {len(features)} images"
        raise mismatch("linear_probe", expected, got, "pass class indices")
    broken = sum(int((~part.isfinite()).sum().item()) for part in features.split(_ROWS))
    if broken:
        got = f"{broken} that are NaN or infinite"
        raise mismatch("linear_probe", f"finite {name} features", got, "look at the flow")

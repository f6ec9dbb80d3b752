"""Training of a flow on images, for Lightning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Union, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from nflows.transforms import BatchNorm
from torch import Tensor
from torchmetrics import CatMetric

from nflows_mixer._checks import as_python, mismatch
from nflows_mixer._distributed import all_reduce_sum
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.weights import check_state
from nflows_mixer.likelihood import bits_per_dim
from nflows_mixer.nn import all_reduce_batch_norm
from nflows_mixer.training.batches import ImageDataModule, PartInBatches
from nflows_mixer.training.diagnosis import clip_gradient, find_non_finite
from nflows_mixer.training.flips import random_flips
from nflows_mixer.training.moving_average import moving_average
from nflows_mixer.training.recipe import Recipe
from nflows_mixer.training.skipping import MOST_SKIPPED, SkippedUpdates
from nflows_mixer.transforms import ActNorm

PRECISIONS = ("32-true", "64-true", "bf16-mixed")
Batch = Union[Tensor, Sequence[Tensor]]
"""Images [B, C, H, W], or (images,), or (images, labels)."""


def check_precision(precision: object) -> None:
    """Raise unless a flow can be trained in it: a Trainer takes more, and replaces some of them."""
    if str(precision) not in (*PRECISIONS, "32", "64", "bf16"):
        raise mismatch(
            "FlowModule",
            f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}",
            precision,
            "log-determinants need float32, and steps that overflow would be left out",
        )


class FlowModule(LightningModule):
    r"""Maximum likelihood training of any flow on images.

    .. math:: \mathrm{loss} = -\frac{1}{B D \log 2} \sum_n \log p(x_n + u_n), \qquad
              u_n = u(\mathrm{seed}, \mathrm{step}, n)

    The noise of an image, all that the flow draws, and whether it is mirrored are functions of the
    seed, the step and its place in the global batch, so that a run that is resumed, or split over
    other numbers of processes, goes on with the same numbers. The first batch initializes ActNorm,
    over all processes together, before the moving average starts. A loss or gradient that is not
    finite stops the run before the parameters change, with the name of the layer it came from; or,
    where the recipe has a ``gradient_skip``, the update is left out, with a warning.

    Args:
        flow: what is trained; ``ImageFlow.from_flow`` makes one of any nflows flow.
        recipe: how; a ``decay_every`` that it leaves out is set by an ``ImageDataModule``.
        conditional: whether the labels of the batches are the flow's context.
        seed: of the noise and the flips.

    Shapes:
        batches: images uint8 [B, C, H, W], alone or in a tuple, or (images, labels). Under
            several processes, rank r of W has the images r, r + W, ... of the global batch.

    Logged figures:
        NAME/bits_per_dim and NAME/worst_image; of held-out images NAME/evaluated_images, too. NAME
        is train, validation or test, with the number of the loader behind it where there are many
        (test/1), or what an ``ImageDataModule`` calls its part.

    Raises:
        TypeError: if the flow is no ``ImageFlow``.
        ValueError: if a flow of several processes has a part that cannot be trained so, or a batch
            is of another form.
        FloatingPointError: if the loss or a gradient is not finite, or eleven updates in a row
            would be left out.

    References:
        MixerFlow, Section 5 and Table 8.

    Example:
        >>> from nflows_mixer.flows import mixerflow
        >>> flow = mixerflow(image_shape=(1, 8, 8), patch_size=2, levels=17, num_layers=2)
        >>> module = FlowModule(flow, Recipe(ema_decay=0.999))
        >>> images = torch.randint(17, (20, 1, 8, 8), dtype=torch.uint8)
        >>> module.evaluated is module.average.module
        True
    """

    def __init__(
        self, flow: ImageFlow, recipe: Recipe, conditional: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        if not isinstance(flow, ImageFlow):
            raise TypeError(
                f"FlowModule: expected an ImageFlow, got {type(flow).__name__}; "
                "ImageFlow.from_flow(flow, image_shape) makes one of any nflows flow on images"
            )
        self.flow = flow
        self.recipe = recipe
        self.conditional = conditional
        self.seed = as_python(seed)
        self.average = None if recipe.ema_decay is None else moving_average(flow, recipe.ema_decay)
        self._norms = [part for part in flow.modules() if isinstance(part, ActNorm)]
        if recipe.whiten and not self._norms:
            advice = "call initialize of nflows_mixer.transforms, or leave whiten out"
            raise mismatch("FlowModule", "an ActNorm, whose start is whiten's", "none", advice)
        self.skipped_updates = SkippedUpdates(recipe.gradient_skip)
        self._micro_batch = (0, 0)  # step, and how many images of it came before
        self._last: tuple[Tensor, Tensor | None, Tensor, Tensor] | None = None
        self._metrics: dict[int, dict[str, CatMetric]] = {}  # by loader, and by figure
        self._counted: dict[int, int] = {}  # images of this process, by loader

    @property
    def evaluated(self) -> ImageFlow:
        """The moving average, if there is one: it is evaluated, sampled and saved."""
        return self.flow if self.average is None else cast(ImageFlow, self.average.module)

    def setup(self, stage: str) -> None:
        """Take an epoch of the data for one; batch normalization sees all processes' batch."""
        check_precision(self.trainer.precision)
        images = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(images, ImageDataModule):
            self.recipe = self.recipe.resolved(len(images.data.train))
        if self.trainer.world_size > 1:
            if any(isinstance(part, BatchNorm) for part in self.flow.modules()):
                raise mismatch(
                    "FlowModule",
                    "normalization over all processes",
                    "nflows' BatchNorm, which would see the images of each process alone",
                    "build the flow with norm='actnorm', or train on one device",
                )
            all_reduce_batch_norm(self.flow)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and its schedule, as the recipe says."""
        optimizer = self.recipe.optimizer_of(self.parameter_groups())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.recipe.schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what is trained, in groups by learning rate."""
        return self.recipe.parameter_groups(self.flow)

    def on_fit_start(self) -> None:
        """Begin in training mode, which Lightning leaves to the module, and with a fresh count."""
        self.train()
        self._micro_batch = (-1, 0)
        self._follow()

    def on_train_start(self) -> None:
        """Say how a trainer that is longer than the recipe will go on.

        Not before: the number of its steps is that of a loader, which is to be made when a
        checkpoint has been read.
        """
        planned, steps = self.trainer.estimated_stepping_batches, self.recipe.steps
        if planned > steps and self._follows_recipe:
            beyond = self.recipe.learning_rate * self.recipe.schedule(steps)
            end = f"the learning rate beyond is {beyond:g}"
            warnings.warn(
                f"FlowModule: expected at most the recipe's {steps} steps, got a trainer that "
                f"makes {planned}; {end if beyond else 'training ends with the recipe'}",
                stacklevel=2,
            )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """Number the batch, and initialize ActNorm from the first one of all processes.

        Where the recipe is done, and steps beyond would be at a rate of 0, training ends.
        """
        recipe = self.recipe
        if self.global_step >= recipe.steps and self._follows_recipe:
            if not recipe.schedule(self.global_step):
                self.trainer.should_stop = True
                return -1  # Lightning's word for no more batches in this epoch
        if self._micro_batch[0] != self.global_step:
            self._micro_batch = (self.global_step, 0)
            self.skipped_updates.begin_step(self.flow)
        self.initialize(batch)
        return None

    @property
    def _follows_recipe(self) -> bool:
        """Whether the learning rate is the recipe's."""
        return not is_overridden("configure_optimizers", self, FlowModule)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Count the images of the step, of which more may come."""
        step, before = self._micro_batch
        self._micro_batch = (step, before + len(self._split(batch)[0]))

    def initialize(self, batch: Batch) -> None:
        """Initialize every ActNorm that is not yet, with the noise of the present step.

        Linear blocks, too, where the recipe whitens.

        Args:
            batch: this process's part of the first batch; its first part, where gradients are
                accumulated. On the flow's device.
        """
        if not self._initialized:
            images, context, noise = self._drawn(batch)
            self.flow.initialize(images, context, noise, self.recipe.whiten)
            self._follow()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of this process's part of the batch."""
        images, context, noise = self._drawn(batch)
        # The noise is our own, and a data set whose first batch was right is taken to go on so,
        # rather than that each step waits for the device.
        asked = self.flow.validate_args
        self.flow.validate_args = asked and (self.device.type == "cpu" or batch_idx == 0)
        try:
            loss, bits = self.loss(images, context, noise, self._labels(batch))
        finally:
            self.flow.validate_args = asked
        self._last = (images, context, noise, loss.detach())
        self.training_bits = bits = bits.detach()
        self.log("train/bits_per_dim", bits.mean(), prog_bar=True, logger=self._to_logger)
        self.log("train/worst_image", bits.max(), logger=self._to_logger)
        return loss

    def loss(
        self, images: Tensor, context: Tensor | None, noise: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return what is minimised, and the bits per dimension of each image, [B].

        Args:
            images: uint8 [B, C, H, W].
            context: [B, F], or None.
            noise: ``[B, *flow.noise_shape]``.
            labels: integers [B], for objectives that read them.
        """
        bits = bits_per_dim(self.flow.log_prob(images, context, noise), self.flow.image_shape)
        return bits.mean(), bits

    def figures(
        self, images: Tensor, context: Tensor | None, noise: Tensor, labels: Tensor | None
    ) -> dict[str, Tensor]:
        """Return what is reported of held-out images, each figure [B]; bits_per_dim among them.

        The arguments are those of ``loss``.
        """
        return self.predictions(images, context, noise)

    def predictions(
        self, images: Tensor, context: Tensor | None, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return what ``Trainer.predict`` says of images: bits_per_dim [B]; arguments as ``loss``.

        It needs no labels, but for those that are the flow's context.
        """
        log_prob = self.evaluated.log_prob(images, context, noise)
        return {"bits_per_dim": bits_per_dim(log_prob, self.flow.image_shape)}

    def summarise(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what is reported of the means of all figures over the images of a part."""
        return means

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient as the recipe says; leave out an update or stop where it leaps."""
        if gradient_clip_val is not None:
            expected = "no gradient_clip_val, as the recipe has a gradient_clip"
            raise mismatch("FlowModule", expected, gradient_clip_val, "set it in the recipe")
        # What is frozen has gradients, too, which are no part of the step. A warm-up may be at a
        # rate of 0; the initial one is there where a schedule is.
        groups = optimizer.param_groups
        moving = [group for group in groups if group.get("initial_lr", group["lr"]) > 0]
        parameters = [p for group in moving for p in group["params"]]
        norm = clip_gradient(parameters, self.recipe.gradient_clip)
        assert self._last is not None
        images, context, noise, loss = self._last
        skipped = self.skipped_updates
        # All processes make the update, or none.
        if not all_reduce_sum((~skipped.follows(norm, loss)).float()):
            skipped.make()
        elif skipped.allowed:
            skipped.leave_out(optimizer, self.global_step, norm.item())
        else:
            where = find_non_finite(self.flow, images, context, noise)
            expected = "a finite loss and gradient"
            advice = "or leave such updates out (gradient_skip=100)"
            if skipped.limit is not None:
                expected += (
                    f" of norm up to {skipped.limit:g} after {MOST_SKIPPED} updates left out"
                )
                advice = "or raise gradient_skip"
            raise FloatingPointError(
                f"step {self.global_step}: expected {expected}, got a loss of "
                f"{loss.item():g} and a gradient of norm {norm.item():g}: {where}; lower the "
                f"learning rate {self.recipe.learning_rate:g}, warm up for longer, {advice}; the "
                "checkpoint before, if there is one, is intact"
            )

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        """Make the step, and let the moving average follow.

        Lightning's WeightAveraging would follow after the batch, when a checkpoint may be written.
        """
        super().optimizer_step(*arguments, **keywords)
        if self.average is not None:
            self.average.update_parameters(self.flow)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep the figures of this process's images, each once."""
        if self.trainer.sanity_checking and not self._initialized:
            self._parts(batch)  # all that can be checked before the first batch of training
        else:
            self._evaluate(dataloader_idx, batch)

    test_step = validation_step

    def predict_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Return ``predictions`` of this process's images, with the noise of evaluation."""
        images, context, noise = self._held_out(dataloader_idx, batch)
        with torch.autocast(self.device.type, enabled=False):
            return self.predictions(images, context, noise)

    def on_validation_epoch_start(self) -> None:
        """Start to count."""
        self._metrics, self._counted = {}, {}

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Log the mean over all images of all processes, and the worst image."""
        trainer: Any = self.trainer
        self._log_figures("validation", trainer.val_dataloaders, len(trainer.num_val_batches))

    def on_test_epoch_end(self) -> None:
        """Log the mean over all images of all processes, and the worst image."""
        trainer: Any = self.trainer
        self._log_figures("test", trainer.test_dataloaders, len(trainer.num_test_batches))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *arguments: Any, **keywords: Any) -> Any:
        """Read a module from a checkpoint of Lightning's, into ``flow=`` with ``recipe=``.

        Both are objects, which a checkpoint has none of: build the flow as it was. For weights to
        use, ``load_weights`` needs neither.
        """
        try:
            return super().load_from_checkpoint(checkpoint_path, *arguments, **keywords)
        except TypeError as error:
            if "required positional argument" not in str(error):
                raise
            expected = "the arguments of the module by name, such as flow=... and recipe=..."
            advice = (
                "a checkpoint has tensors alone: build the flow as it was, or take the weights of "
                "a run, load_weights('weights.safetensors'), which say what it was"
            )
            raise mismatch(
                f"{cls.__name__}.load_from_checkpoint", expected, error, advice
            ) from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how many updates were left out, so that a resumed run gives up where it would."""
        checkpoint["skipped_updates"] = self.skipped_updates.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model, by name."""
        check_state(self.state_dict(), checkpoint["state_dict"], "checkpoint")
        # Earlier checkpoints have none.
        self.skipped_updates.load(checkpoint.get("skipped_updates", (0, 0)))

    @torch.no_grad()
    def _evaluate(self, loader: int, batch: Batch) -> None:
        """Keep the figures of a batch; processes may have different numbers of them."""
        images, context, noise = self._held_out(loader, batch)
        # What is reported is computed in the parameters' precision, whatever training used.
        with torch.autocast(self.device.type, enabled=False):
            figures = self.figures(images, context, noise, self._labels(batch))
        # Alone they stay on the CPU, as not every device has float64.
        device = self.device if self.trainer.world_size > 1 else torch.device("cpu")
        metrics = self._metrics.setdefault(loader, {})
        for name, values in figures.items():
            if name not in metrics:
                metrics[name] = CatMetric("disable").to(device)
                metrics[name].set_dtype(torch.float64)
            metrics[name].update(values.to(device).double())

    def _held_out(self, loader: int, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
        """Images, context and the noise of evaluation, which follows the place in the loader."""
        images, context = self._split(batch)
        before = self._counted.get(loader, 0)
        self._counted[loader] = before + len(images)
        index = self._index(images, before)
        noise = self.flow.draw_noise(self.seed, 0, index, next(self.flow.parameters()).dtype)
        return images, context, noise

    def _log_figures(self, stage: str, loaders: Any, count: int) -> None:
        """Log means over the images of all processes; the worst one; how many."""
        logged: dict[str, Tensor] = {}
        for loader, metrics in sorted(self._metrics.items()):  # some may have no batch
            name = stage if count == 1 else f"{stage}/{loader}"
            # The trainer's data module may be that of an earlier call.
            part = getattr(loaders[loader], "dataset", None) if isinstance(loaders, list) else None
            if isinstance(part, PartInBatches):
                name = part.name
            figures = {key: metric.compute() for key, metric in metrics.items()}
            bits = figures["bits_per_dim"]
            means = self.summarise({key: values.mean() for key, values in figures.items()})
            others = {"worst_image": bits.max(), "evaluated_images": bits.new_tensor(len(bits))}
            logged |= {f"{name}/{key}": value for key, value in {**means, **others}.items()}
        for key, value in logged.items():
            self.log(key, value, sync_dist=True, logger=self._to_logger)

    @property
    def _to_logger(self) -> bool | None:
        """False while training with a ``History``, which sends figures to the loggers itself."""
        trainer = self._trainer
        if trainer is None or trainer.state.fn != TrainerFn.FITTING:
            return None
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        kept = any(getattr(callback, "logs_figures", False) for callback in callbacks)
        return False if kept else None  # True would warn of a trainer without loggers

    @property
    def _initialized(self) -> bool:
        return all(norm.initialized for norm in self._norms)

    def _parts(self, batch: Batch) -> Sequence[Tensor]:
        """Images, and labels where there are some; other batches are refused."""
        parts = [batch] if isinstance(batch, Tensor) else batch
        tensors = isinstance(parts, (list, tuple)) and all(isinstance(p, Tensor) for p in parts)
        if not (tensors and 1 <= len(parts) <= 2):
            got = f"a {type(batch).__name__}"
            if isinstance(batch, Mapping):
                got += f" of {', '.join(map(repr, batch))}"
            elif isinstance(parts, (list, tuple)):
                got += f" of ({', '.join(type(part).__name__ for part in parts)})"
            expected = "batches of images, (images,) or (images, labels)"
            advice = "give the DataLoader a collate_fn that makes one of these"
            raise mismatch("FlowModule", expected, got, advice)
        return parts

    def _split(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return self._parts(batch)[0], self._labels(batch) if self.conditional else None

    def _labels(self, batch: Batch) -> Tensor | None:
        parts = self._parts(batch)
        labels = parts[1] if len(parts) == 2 else None
        if self.conditional and labels is None:
            raise mismatch(
                "FlowModule", "batches of (images, labels)", "images alone", "conditional=False"
            )
        return labels

    @property
    def last_context(self) -> Tensor | None:
        """Context of this process's last training batch, if there was one."""
        return None if self._last is None else self._last[1]

    def _drawn(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
        """Images of the present step, mirrored if the recipe says so, context and noise."""
        images, context = self._split(batch)
        step, before = self._micro_batch
        index = self._index(images, before)
        # Number 0 is the noise of evaluation.
        noise = self.flow.draw_noise(self.seed, 1 + step, index, next(self.flow.parameters()).dtype)
        if self.recipe.flip:
            images = random_flips(images, self.seed, 1 + step, index)
        return images, context, noise

    def _follow(self) -> None:
        """Let a moving average that has seen no step start where the flow is, flags included."""
        if self.average is not None and not int(self.average.n_averaged):
            self.average.module.load_state_dict(self.flow.state_dict())

    def _index(self, images: Tensor, before: int) -> Tensor:
        """Places in the global batch of images of which this process had some ``before``."""
        place = before + torch.arange(len(images), device=images.device)
        processes = 1 if self._trainer is None else self._trainer.world_size
        return place * processes + self.global_rank

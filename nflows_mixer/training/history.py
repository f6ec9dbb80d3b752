"""The history of a run: curves, samples, speed and memory."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from nflows_mixer._checks import check_positive
from nflows_mixer._distributed import all_reduce_max, all_reduce_sum
from nflows_mixer._files import write_json
from nflows_mixer.evaluation import draw_samples, save_curves, save_grids
from nflows_mixer.evaluation.attempt import attempt
from nflows_mixer.nn import TakesLabels
from nflows_mixer.training.module import FlowModule


class History(Callback):
    """Curves of bits per dimension, learning rate, speed and memory; sample grids at validation.

    The history is part of the checkpoint, so that a resumed run goes on with its curve. Written to
    ``out``: ``history.json``, ``curve.png``, ``samples/step-*.png``, and all of it to the
    trainer's TensorBoard logger, if it has one.

    Args:
        out: folder.
        every: steps between two entries, each of which is the mean over these steps.
        num_samples: images of a grid, of which there are eight in a row.
        seed: of the grids' latents, which are the same at every step.

    Example:
        >>> History("runs/example").entries
        []
    """

    logs_figures = True  # so that the module leaves the loggers to it while it is trained

    def __init__(
        self, out: str | Path, every: int = 10, num_samples: int = 64, seed: int = 0
    ) -> None:
        check_positive("History", "every", every)
        self.out = Path(out)
        self.every = every
        self.num_samples = num_samples
        self.seed = seed
        self.entries: list[dict[str, float]] = []
        self.seconds = self.cpu_seconds = 0.0
        self._window: list[Tensor] = []
        self._started = self._paused = _clocks()
        self._timed = 0  # batches of the window since the clock was started
        self._step = 0
        self._drawable = True

    def state_dict(self) -> dict[str, Any]:
        """Return the history and the time spent, for the checkpoint."""
        window = [figures.tolist() for figures in self._window]
        times = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        return {"entries": self.entries, "window": window, **times}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the history of a checkpoint."""
        self.entries, self.seconds = list(state_dict["entries"]), state_dict["seconds"]
        self.cpu_seconds = state_dict.get("cpu_seconds", math.nan)  # earlier ones have none
        self._window = [torch.tensor(f, dtype=torch.float64) for f in state_dict["window"]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        example = next(pl_module.parameters())
        self._window = [figures.to(example) for figures in self._window]
        self._step = trainer.global_step
        self._started = _clocks()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add a batch, and every few steps an entry."""
        assert isinstance(pl_module, FlowModule)
        bits = pl_module.training_bits
        self._timed += 1
        self._window.append(torch.stack([bits.sum(), bits.new_tensor(len(bits)), bits.max()]))
        step = trainer.global_step
        if step == self._step:  # one part of a batch of several
            return
        self._step = step
        if step % self.every and step != trainer.max_steps:
            return
        window = torch.stack(self._window)
        total, count, images = all_reduce_sum(
            torch.stack([*window[:, :2].sum(0), window[-self._timed :, 1].sum()])
        ).tolist()
        worst = all_reduce_max(window[:, 2].max()).item()
        elapsed, of_cpu = _clocks() - self._started
        entry = {
            "step": step,
            "train/bits_per_dim": total / count,
            "train/worst_image": worst,
            "learning_rate": max(group["lr"] for group in trainer.optimizers[0].param_groups),
            "images_per_second": images / float(elapsed),
            "peak_memory_mb": peak_memory_mb(pl_module.device),
        }
        self.entries.append(entry)
        figures = {name: value for name, value in entry.items() if name != "step"}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step)
        self.seconds += float(elapsed)
        self.cpu_seconds += float(of_cpu)
        self._window, self._timed, self._started = [], 0, _clocks()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clocks."""
        self._paused = _clocks()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the validation figures, and draw."""
        assert isinstance(pl_module, FlowModule)
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        figures = {k: v.item() for k, v in trainer.callback_metrics.items() if "validation" in k}
        # At the number of steps made, as for the curves of training; Lightning's is one less.
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)
        figures.pop("validation/evaluated_images", None)
        self.entries.append({"step": trainer.global_step, **figures})
        if trainer.is_global_zero:
            self.write()
            self.draw(trainer, pl_module)
        self._started += _clocks() - self._paused

    def draw(self, trainer: Trainer, module: FlowModule) -> None:
        """Write a grid of samples; the trainer's random state is not touched."""
        if not self._drawable:
            return
        step, levels = trainer.global_step, module.flow.dequantization.levels
        path = self.out / "samples" / f"step-{step:08d}.png"

        def write() -> Tensor:
            samples = sample_grid(module, self.num_samples, module.last_context, self.seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_grids(path, {f"samples at step {step:,}": samples}, levels)
            return samples

        samples = attempt("samples/step-*.png", write)
        self._drawable = samples is not None  # it is said once
        if samples is None:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_images("samples", samples / (levels - 1), step)

    def write(self, references: Mapping[str, float] | None = None) -> None:
        """Write the history and its curve, with horizontal lines to compare it with."""
        write_json(self.out / "history.json", self.entries)
        curves = {
            name: [(e["step"], e[key]) for e in self.entries if key in e]
            for name, key in (
                ("training batches", "train/bits_per_dim"),
                ("validation images", "validation/bits_per_dim"),
            )
        }
        save_curves(self.out / "curve.png", curves, "bits/dim", references)


def _clocks() -> np.ndarray:
    """Wall time, and CPU time of this process; seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def sample_grid(
    module: FlowModule, num_samples: int, given: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Samples of the evaluated flow, of classes in turn or of the context given, where it has one.

    Args:
        module: what is trained.
        num_samples: how many, at most.
        given: context of some images, for a flow that takes another context than labels.
        seed: of the latents.
    """
    flow = module.evaluated
    if given is None or isinstance(flow._embedding_net, TakesLabels):
        return draw_samples(flow, num_samples, seed=seed)
    return draw_samples(flow, 1, seed=seed, context=given[:num_samples])


def peak_memory_mb(device: torch.device) -> float:
    """Most memory that this process has held so far, in MB: of the GPU, or of the CPU.

    Args:
        device: where the model is.

    Example:
        >>> peak_memory_mb(torch.device("cpu")) > 10
        True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    # In kilobytes, on macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6

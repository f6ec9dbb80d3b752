"""What a run writes down while it trains: curves, samples, speed and memory."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from nflows_mixer._distributed import all_reduce_max, all_reduce_sum
from nflows_mixer._files import replace_file
from nflows_mixer.evaluation import draw_samples, save_curves, save_grids
from nflows_mixer.training.module import FlowModule


class Record(Callback):
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
        >>> Record("runs/example").history
        []
    """

    def __init__(
        self, out: str | Path, every: int = 10, num_samples: int = 64, seed: int = 0
    ) -> None:
        self.out = Path(out)
        self.every = every
        self.num_samples = num_samples
        self.seed = seed
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self._window: list[Tensor] = []
        self._elapsed = self._started = 0.0
        self._timed = 0  # batches of the window since the clock was started

    def state_dict(self) -> dict[str, Any]:
        """Return the history and the time spent, for the checkpoint."""
        window = [figures.tolist() for figures in self._window]
        return {"history": self.history, "window": window, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the history of a checkpoint."""
        self.history, self.seconds = list(state_dict["history"]), state_dict["seconds"]
        self._window = [torch.tensor(figures) for figures in state_dict["window"]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._window = [figures.to(pl_module.device) for figures in self._window]
        self._elapsed, self._started = 0.0, time.perf_counter()

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
        if step % self.every and step != trainer.max_steps:
            return
        if self.history and self.history[-1]["step"] == step:  # more batches of the same step
            return
        window = torch.stack(self._window)
        total, count, images = all_reduce_sum(
            torch.stack([*window[:, :2].sum(0), window[-self._timed :, 1].sum()])
        ).tolist()
        worst = all_reduce_max(window[:, 2].max()).item()
        elapsed = self._elapsed + time.perf_counter() - self._started
        entry = {
            "step": step,
            "train/bits_per_dim": total / count,
            "train/worst_image": worst,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "images_per_second": images / elapsed,
            "peak_memory_mb": peak_memory_mb(pl_module.device),
        }
        self._add(trainer, entry)
        self.seconds += elapsed
        self._window, self._elapsed, self._started = [], 0.0, time.perf_counter()
        self._timed = 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._elapsed += time.perf_counter() - self._started

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the validation figures, and draw."""
        assert isinstance(pl_module, FlowModule)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        figures = {k: v.item() for k, v in trainer.callback_metrics.items() if "validation" in k}
        self._add(trainer, {"step": trainer.global_step, **figures})
        if trainer.is_global_zero:
            self.write()
            self.draw(trainer, pl_module)
        self._started = time.perf_counter()

    def draw(self, trainer: Trainer, module: FlowModule) -> None:
        """Write a grid of samples; the trainer's random state is not touched."""
        context = None
        if module.conditional:
            classes = module.flow._embedding_net.num_embeddings
            context = torch.arange(self.num_samples, device=module.device) % classes
        samples = draw_samples(
            module.evaluated,
            1 if context is not None else self.num_samples,
            seed=self.seed,
            context=context,
        )
        samples = samples.reshape(-1, *module.flow.image_shape).cpu()
        step, levels = trainer.global_step, module.flow.dequantization.levels
        path = self.out / "samples" / f"step-{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_grids(path, {f"samples at step {step:,}": samples}, levels)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_images("samples", samples / (levels - 1), step)

    def write(self, references: Mapping[str, float] | None = None) -> None:
        """Write the history and its curve, with horizontal lines to compare it with."""
        content = json.dumps(self.history, indent=1) + "\n"
        replace_file(self.out / "history.json", content.encode())
        curves = {
            name: [(e["step"], e[key]) for e in self.history if key in e]
            for name, key in (
                ("training batches", "train/bits_per_dim"),
                ("validation images", "validation/bits_per_dim"),
            )
        }
        save_curves(self.out / "curve.png", curves, "bits/dim", references)

    def _add(self, trainer: Trainer, entry: dict[str, float]) -> None:
        self.history.append(entry)
        figures = {name: value for name, value in entry.items() if name != "step"}
        for logger in trainer.loggers:
            logger.log_metrics(figures, int(entry["step"]))


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

"""The progress bar of a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, one for the whole run: its steps, and bits per dimension.

    A run has no epochs to speak of, as its batches go through all passes over the data.

    Example:
        >>> ProgressBar().refresh_rate
        1
    """

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Count all steps of the run, of which some may have been made before it was resumed."""
        self.train_progress_bar.reset(trainer.max_steps)
        self.train_progress_bar.initial = trainer.global_step
        self.train_progress_bar.n = trainer.global_step
        self.train_progress_bar.set_description("training")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Show the steps made and the last batch's bits per dimension."""
        if self._should_update(trainer.global_step, trainer.max_steps):
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            self.train_progress_bar.update(trainer.global_step - self.train_progress_bar.n)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Leave out the number of the version, which a run has none of."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def init_validation_tqdm(self) -> Tqdm:
        """Keep the bars of evaluation off the screen: they would come and go every few seconds."""
        return Tqdm(disable=True)

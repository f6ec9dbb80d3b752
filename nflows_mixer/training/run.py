"""A whole training run: train, evaluate, and write down what came out."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nflows_mixer._checks import as_python, check_positive, mismatch
from nflows_mixer.data import ImageData
from nflows_mixer.evaluation.batches import check_fit
from nflows_mixer.flows.weights import save_state, save_weights
from nflows_mixer.nn import TakesLabels
from nflows_mixer.training.batches import ImageDataModule, check_data
from nflows_mixer.training.checkpoints import AtomicCheckpointIO
from nflows_mixer.training.history import History
from nflows_mixer.training.hybrid import HybridModule
from nflows_mixer.training.module import PRECISIONS, FlowModule, check_precision
from nflows_mixer.training.progress_bar import ProgressBar
from nflows_mixer.training.recipe import Recipe
from nflows_mixer.training.results import collect, draw, write_results
from nflows_mixer.training.run_folder import CHECKPOINT, prepare
from nflows_mixer.training.signals import StopOnSignals, stopped_by_signals

NAMES = {
    "mixerflow": "MixerFlow",
    "denseflow": "DenseFlow",
    "tarflow": "TarFlow",
    "jet": "Jet",
    None: "flow",
}
"""How a table names the flow, by its family."""


def fit(
    module: FlowModule,
    data: ImageData,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    validate_every: int | None = None,
    checkpoint_every: int = 500,
    record_every: int = 10,
    evaluation_images: int | None = None,
    num_workers: int = 0,
    facts: Mapping[str, Any] | None = None,
    callbacks: tuple[Callback, ...] = (),
    **trainer: Any,
) -> dict[str, Any]:
    """Train a flow on images, evaluate it, and write weights, figures and pictures to a folder.

    Written to ``out``: ``last.ckpt`` (to resume), ``weights.safetensors`` (to use: see
    ``load_weights``; the classifier of a ``HybridModule`` is in ``head.safetensors``),
    ``results.json`` and ``results.md``, ``history.json`` and ``curve.png``, ``samples.png``,
    ``samples/step-*.png`` and TensorBoard's events. Any number of devices and nodes gives the same
    batches and noise.

    Args:
        module: the flow with its recipe.
        data: what to train and evaluate on.
        out: folder.
        resume: whether to go on from the checkpoint in ``out``, if there is one.
        overwrite: whether the files of a run that is in ``out`` are deleted; a folder with other
            files, or without a run, is left as it is and refused.
        validate_every: steps between validations; a tenth of the run where None.
        checkpoint_every: steps between checkpoints.
        record_every: steps between entries of the curve.
        evaluation_images: images of each part that are evaluated, at most; of the training part
            never more than are held out.
        num_workers: processes that load images.
        facts: more for ``results.json``.
        callbacks: more for the trainer.
        **trainer: arguments of Lightning's ``Trainer``: ``devices``, ``num_nodes``, ``precision``,
            ``accelerator``, ``accumulate_grad_batches``, ...

    Returns:
        What is in ``results.json``. Under several processes, only in the first; {} in the others.

    Raises:
        ValueError: if there is another run in ``out``, the checkpoint is of another, or there are
            files in the place of the run's that no run has written.
        FloatingPointError: if the loss or a gradient is not finite.
        SystemExit: with status 143 or 130, at SIGTERM or SIGINT; one line says how to go on.

    Example:
        >>> import tempfile
        >>> from nflows_mixer.data import load_images
        >>> from nflows_mixer.flows import mixerflow
        >>> from nflows_mixer.training import Recipe
        >>> flow = mixerflow(image_shape=(1, 8, 8), patch_size=2, levels=17, num_layers=1)
        >>> module = FlowModule(flow, Recipe(steps=2, batch_size=20))
        >>> quiet = dict(enable_progress_bar=False, accelerator="cpu")
        >>> results = fit(module, load_images("digits"), tempfile.mkdtemp(), **quiet)
        >>> sorted(results["bits_per_dim"])
        ['test', 'train', 'validation']
    """
    out = Path(out)
    validate_every, checkpoint_every, record_every, evaluation_images, num_workers = as_python(
        (validate_every, checkpoint_every, record_every, evaluation_images, num_workers)
    )
    _check(module, data, trainer, validate_every, checkpoint_every)
    if resume and overwrite:
        raise mismatch("fit", "resume or overwrite", "both", "leave one out")
    history = History(out, every=record_every, seed=module.seed)
    images = ImageDataModule(
        data, module.recipe, module.seed, evaluation_images, num_workers=num_workers
    )
    recipe = images.recipe
    run = _describe(module, recipe, data, facts or {})
    parts = trainer.get("accumulate_grad_batches", 1)
    with _quiet(), stopped_by_signals(partial(_how_to_go_on, out)):
        pl_trainer = Trainer(
            **{
                "devices": 1,
                "max_steps": recipe.steps,
                "max_epochs": -1,
                # Lightning counts the parts of batches here.
                "val_check_interval": parts * (validate_every or max(recipe.steps // 10, 1)),
                "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "enable_model_summary": False,
                "log_every_n_steps": record_every,
                "logger": TensorBoardLogger(out, name="", version="tensorboard"),
                "plugins": [AtomicCheckpointIO()],
                "strategy": _strategy(trainer),
                "callbacks": [
                    StopOnSignals(),
                    history,
                    ModelCheckpoint(
                        out,
                        Path(CHECKPOINT).stem,
                        every_n_train_steps=checkpoint_every,
                        save_top_k=-1,  # or it deletes one that a copied folder's file names
                        enable_version_counter=False,
                    ),
                    *([ProgressBar()] if trainer.get("enable_progress_bar", True) else []),
                    *callbacks,
                ],
                **trainer,
            }
        )
        first = next(iter(images.batches(pl_trainer)), None)  # and an error, if it cannot be
        fewest = min(map(len, images.parts.values()))
        if fewest < pl_trainer.world_size:
            expected = f"at least {pl_trainer.world_size} images in each part, one a process"
            raise mismatch("fit", expected, fewest, "use fewer devices, or evaluate more images")
        checkpoint = prepare(out, run, resume, overwrite)
        if first is not None:
            pl_trainer.fit(module, datamodule=images, ckpt_path=checkpoint)
            pl_trainer.save_checkpoint(out / CHECKPOINT)
        else:
            # As the first step would.
            batch = data.train[: recipe.batch_size]
            module.initialize([each.to(next(module.parameters()).device) for each in batch])
        # Before anything that could fail: a run that has trained does not end without weights.
        if pl_trainer.is_global_zero:
            of_file = {"data": data.describe(), "step": pl_trainer.global_step, "seed": module.seed}
            of_file |= {"flip": recipe.flip, "preset": run.get("preset")}
            texts = {name: json.dumps(value) for name, value in of_file.items()}
            save_weights(module.evaluated, out / "weights.safetensors", texts)
            if isinstance(module, HybridModule):
                save_state(module.evaluated_head, out / "head.safetensors")
        pl_trainer.test(module, datamodule=images, verbose=False)
        if not pl_trainer.is_global_zero:
            return {}
        # Lightning has moved it to the CPU by now.
        module.to(pl_trainer.strategy.root_device)
        results = {**run, **collect(module, images, history, pl_trainer)}
        write_results(results, out)
        draw(module, images, results, history, out)
        module.cpu()
        return results


def _how_to_go_on(out: Path) -> str:
    if not (out / CHECKPOINT).exists():
        return "no checkpoint has been written yet; the same command starts again"
    again = "the same command with --resume (in Python, resume=True) goes on from it"
    return f"{out / CHECKPOINT} is whole; {again}"


def _check(
    module: FlowModule,
    data: ImageData,
    trainer: Mapping[str, Any],
    validate_every: int | None,
    checkpoint_every: int,
) -> None:
    """Refuse what cannot be, before anything is written."""
    if not isinstance(module, FlowModule):
        advice = "FlowModule(flow, recipe) makes one of an ImageFlow"
        raise TypeError(f"fit: expected a FlowModule, got {type(module).__name__}; {advice}")
    check_data("fit", data)
    advice = "build the flow with the image_shape and levels of the data"
    check_fit("fit", "images", module.flow, data, advice)
    if module.recipe.flip and data.shuffle is not None:
        expected = "images as they are beside the recipe's flip"
        advice = "mirrored, they are others than those to evaluate; leave out one of the two"
        raise mismatch("fit", expected, "shuffled pixels", advice)
    _check_labels(module, data)
    check_precision(trainer.get("precision", PRECISIONS[0]))
    for name, steps in (
        ("checkpoint_every", checkpoint_every),
        ("accumulate_grad_batches", trainer.get("accumulate_grad_batches", 1)),
        ("validate_every", 1 if validate_every is None else validate_every),
    ):
        check_positive("fit", name, steps)


def _check_labels(module: FlowModule, data: ImageData) -> None:
    """Refuse labels, of any part, that the module cannot be given after its training."""
    hybrid = isinstance(module, HybridModule)
    if not (hybrid or module.conditional):
        return
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    named = {name: part for name, part in parts.items() if part is not None}
    if bare := [name for name, part in named.items() if not part.labelled]:
        advice = "use data whose every part has labels, or train without"
        raise mismatch("fit", "labels of every part", f"none of {', '.join(bare)}", advice)
    classes = {name: set(part.labels().unique().tolist()) for name, part in named.items()}
    if isinstance(module, HybridModule):
        known, expected = set(range(-1, module.head.out_features)), "labels of the classifier"
    else:  # a class that is not trained on has a vector drawn at random
        known, expected = classes["train"], "classes that are trained on, in every part"
        net = module.flow._embedding_net
        if isinstance(net, TakesLabels):
            known = known & set(range(net.num_classes))
        elif isinstance(net, nn.Embedding):
            known = known & set(range(net.num_embeddings))
    for name, found in classes.items():
        if unknown := sorted(found - known):
            got = f"{', '.join(map(str, unknown[:5]))} in {name}"
            advice = "count classes from 0, and have images of each to train on"
            raise mismatch("fit", expected, got, advice)


# Of Lightning's hints, those about things that are meant as they are.
_MEANT_SO = (
    ".*does not have many workers.*",
    ".*GPU available but not used.*",
    ".*LeafSpec.* is deprecated.*",  # its own use of torch
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Grad strides do not match bucket view strides.*",  # of convolutions of 1 x 1
)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Lightning says of itself; its warnings come through, but for those above."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _MEANT_SO:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


def _strategy(trainer: Mapping[str, Any]) -> Any:
    """Return what distributes the run: nothing of ours is left for DDP to search or broadcast."""
    if trainer.get("devices", 1) in (1, "1", [0]) and trainer.get("num_nodes", 1) == 1:
        return "auto"
    # Newer versions of torch have a new name for the same.
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {buffers: False}
    # Lightning leaves out the exchange between the parts of a batch, which no static graph can.
    options["static_graph"] = trainer.get("accumulate_grad_batches", 1) == 1
    return DDPStrategy(gradient_as_bucket_view=True, **options)


def _describe(
    module: FlowModule, recipe: Recipe, data: ImageData, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What makes two runs the same run, as JSON has it."""
    architecture = module.flow.architecture
    family = None if architecture is None else architecture.builder
    described = {
        **data.describe(),
        "name": NAMES[family],
        "family": family,
        **facts,
        "architecture": None if architecture is None else architecture.as_data(),
        "parameters": sum(p.numel() for p in module.flow.parameters()),
        "recipe": dataclasses.asdict(recipe),
        "objective": type(module).__name__,
        "conditional": module.conditional,
        "seed": module.seed,
    }
    return json.loads(json.dumps(as_python(described)))

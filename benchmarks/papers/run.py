"""Train what a row is about, and write down what came out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from benchmarks.papers.budgets import BUDGETS, Budget, recipe_of
from benchmarks.papers.images import NOISE
from benchmarks.papers.models import MODELS
from benchmarks.papers.rows import Run
from nflows_mixer._files import replace_file
from nflows_mixer.data import ImageData
from nflows_mixer.flows import ImageFlow, load_weights
from nflows_mixer.training import FlowModule, fit

WEIGHTS = "weights.safetensors"
KEPT = (
    "parameters",
    "bits_per_dim",
    "worst_image",
    "evaluated_images",
    "reference_models",
    "round_trip_error",
    "steps",
    "skipped_updates",
    "train_seconds",
    "train_cpu_seconds",
    "images_per_second",
    "peak_memory_mb",
    "machine",
    "versions",
)
"""What a result keeps of the figures of a run."""


@dataclass(frozen=True)
class Job:
    """A run of one size, budget and seed.

    Of all runs on a data set, those of one budget and seed have the same batches in the same
    order, the same noise of dequantisation, and the same images with the same noise to evaluate.

    Args:
        run: what is trained.
        size: "paper" or "small".
        budget: name of a budget of this size.
        seed: of the parameters, the order of the images and the noise.
        images: the data set, or what stands in for it.
        out: folder of the results, one JSON file for each run.
        scratch: folder of checkpoints and weights.
        accelerator: "cpu", or "auto" for a GPU where there is one.
        accumulate: parts that a batch is computed in, where a GPU is too small for the whole;
            BatchNorm then sees a part at a time.
    """

    run: Run
    size: str
    budget: str
    seed: int
    images: ImageData
    out: Path
    scratch: Path
    accelerator: str = "auto"
    accumulate: int = 1

    @property
    def allowed(self) -> Budget:
        """What the budget is."""
        return BUDGETS[self.size][self.budget]

    @property
    def path(self) -> Path:
        """The file of the result."""
        return Path(self.out, f"{self.size}-{self.budget}", f"{self.run.name}-{self.seed}.json")

    @property
    def folder(self) -> Path:
        """Where the checkpoints and weights are."""
        return Path(self.scratch, f"{self.size}-{self.budget}", f"{self.run.name}-{self.seed}")

    @property
    def scale(self) -> str:
        """Of the model: published ones are too large for a smoke test."""
        return "smoke" if (self.size, self.budget) == ("paper", "smoke") else self.size

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        return "cuda" if self.accelerator != "cpu" and torch.cuda.is_available() else "cpu"

    def locked(self) -> FileLock:
        """Return what one process at a time can enter: rows may share a run, processes the rows."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder.with_name(f"{self.folder.name}.lock"))

    def describe(self) -> dict[str, Any]:
        """Return what makes two results those of the same run, as JSON has it."""
        arguments = getattr(MODELS[self.run.model], self.scale)
        described = {
            "name": self.run.name,
            "run": asdict(self.run),
            "size": self.size,
            "budget": {"name": self.budget, **asdict(self.allowed)},
            "seed": self.seed,
            "synthetic": self.images.version == NOISE,
            "data": self.images.describe(),
            "arguments": {key: str(value) for key, value in arguments.items()},
            "recipe": asdict(recipe_of(self.run, self.size, self.allowed)),
        }
        if self.accumulate > 1:
            described["accumulate"] = self.accumulate
        return json.loads(json.dumps(described))

    def build(self) -> ImageFlow:
        """Return the model as it starts."""
        torch.manual_seed(self.seed)
        model = MODELS[self.run.model]
        return model.at(self.scale, self.images.image_shape, self.images.levels)

    def trained(self) -> ImageFlow:
        """Return the model as it was trained.

        Raises:
            FileNotFoundError: if it was not trained here.
        """
        path = self.folder / WEIGHTS
        if not path.exists():
            raise FileNotFoundError(
                f"expected the weights of {self.run.name} in {path}, got none; delete its JSON "
                "file, which has them trained anew, or give the --scratch of its training"
            )
        return load_weights(path, self.build()).eval().to(self.device)

    def result(self) -> dict[str, Any]:
        """Train and evaluate, or go on with it, or read the result if there is one.

        Returns:
            What is in the file.

        Raises:
            ValueError: if the file, or the checkpoint, is of another setting.
            FloatingPointError: if the loss is not finite, which is kept, without figures.
        """
        setting = self.describe()
        with self.locked():
            if not self.path.exists():
                return self._train(setting)
            found = json.loads(self.path.read_text())
            names = (*setting, "accumulate")  # which is there only where batches are in parts
            if changed := [key for key in names if found.get(key) != setting.get(key)]:
                raise ValueError(
                    f"expected a result of this setting in {self.path}, got one of another: "
                    f"{', '.join(changed)} differ; delete it, or give another --out"
                )
            if "failed" in found:
                raise FloatingPointError(found["failed"])
            return found

    def _train(self, setting: Mapping[str, Any]) -> dict[str, Any]:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        recipe = recipe_of(self.run, self.size, self.allowed)
        dated = {**setting, "date": time.strftime("%Y-%m-%d")}
        try:
            figures = fit(
                FlowModule(self.build(), recipe, seed=self.seed),
                self.images,
                self.folder,
                resume=True,
                checkpoint_every=min(500, max(1, recipe.steps // 10)),
                evaluation_images=self.allowed.evaluated,
                # A baseline says nothing of itself: these make a checkpoint that of this run.
                facts={name: setting[name] for name in ("arguments", "size", "budget")},
                record_every=10 if recipe.steps < 10_000 else 100,
                accelerator=self.accelerator,
                accumulate_grad_batches=self.accumulate,
                enable_progress_bar=False,
            )
        except FloatingPointError as error:
            write(self.path, {**dated, "failed": str(error)})
            raise
        if self.device == "cpu":
            del figures["peak_memory_mb"]  # of the process, which may have trained others before
        history = json.loads((self.folder / "history.json").read_text())
        kept = {key: figures[key] for key in KEPT if key in figures}
        result = {**dated, **kept, "history": curve(history, recipe.batch_size)}
        write(self.path, result)
        return result


def curve(history: list[dict[str, float]], batch_size: int) -> list[dict[str, float]]:
    """Return the curves of a run: bits per dimension over steps and seconds of training."""
    names = {"train/bits_per_dim": "train", "validation/bits_per_dim": "validation"}
    points, seconds, before = [], 0.0, 0.0
    for entry in history:
        if "images_per_second" in entry:
            seconds += (entry["step"] - before) * batch_size / entry["images_per_second"]
            before = entry["step"]
        point = {short: round(entry[name], 4) for name, short in names.items() if name in entry}
        points.append({"step": entry["step"], "seconds": round(seconds, 1), **point})
    return points


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a JSON file in one step, so that a command that is killed leaves no half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(result, indent=1) + "\n").encode())

"""The command line of a training run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from nflows_mixer._checks import mismatch
from nflows_mixer._distributed import is_first_process
from nflows_mixer._files import replace_file
from nflows_mixer.data import ImageData, load_images
from nflows_mixer.flows import (
    Architecture,
    Pixels,
    denseflow,
    grow,
    load_weights,
    mixerflow,
    read_metadata,
)
from nflows_mixer.flows.image_flow import ImageFlow
from nflows_mixer.flows.weights import FAMILIES, architecture_of, family_in, family_of
from nflows_mixer.training.families import DEFAULTS, check_names, family_named, small_model
from nflows_mixer.training.module import FlowModule
from nflows_mixer.training.recipe import Recipe
from nflows_mixer.training.report import table
from nflows_mixer.training.run import fit
from nflows_mixer.training.words import chosen_before, model_names, spelled, with_values

OF_THE_DATA = {"image_shape", "levels", "num_classes"}
OF_THE_START = ("config", "out", "resume", "overwrite", "progress")


def main(
    argv: Sequence[str] | None = None, prog: str | None = None, family: str = "mixerflow"
) -> dict[str, Any]:
    """Train a flow as a command line says, and print what came out.

    Args:
        argv: the arguments; those of the process where None.
        prog: how the command is called, for the help.
        family: "mixerflow" or "denseflow": what is trained where the arguments name neither a
            family nor a preset.

    Returns:
        What was written to ``results.json``.

    Raises:
        SystemExit: with the message of an error, if an argument, a file or the loss is not right.

    Example:
        >>> import tempfile
        >>> quick = ["--model.num_layers=1", "--recipe.steps=2", "--progress=false"]
        >>> results = main([*quick, "--out", tempfile.mkdtemp()])
        digits: ...
        >>> results["parameters"]
        74731
    """
    given = [spelled(word) for word in (sys.argv[1:] if argv is None else argv)]
    given = with_values(given)
    try:
        preset, data, named = chosen_before(given)
        family = family_named(preset, named, family)
        check_names(model_names(given), family)
        parser = build_parser(prog, preset, data, family)
        arguments = parser.parse_args(given)
        rest = {k: v for k, v in vars(arguments).items() if k not in ("config", "model", "recipe")}
        model = vars(arguments.model)
        results = train(model=model, recipe=Recipe(**vars(arguments.recipe)), **rest)
    except (ValueError, TypeError, OSError, FloatingPointError, MisconfigurationException) as error:
        # These say what to do; where in the code they came from would only hide it.
        raise SystemExit(f"error: {error}") from error
    if results:
        # Not where and how this run was started: with these, another would replace it.
        kept = {k: v for k, v in arguments.as_dict().items() if k not in OF_THE_START}
        content = yaml.safe_dump(kept, sort_keys=False)
        replace_file(Path(arguments.out) / "config.yaml", content.encode())
        print(f"\n{table(results)}\nsee {arguments.out}")
    return results


def train(
    model: Mapping[str, Any],
    recipe: Recipe,
    data: str = "digits",
    test_data: str | None = None,
    root: str = "data",
    size: int | None = None,
    shuffle: Literal["global", "local"] | None = None,
    family: Literal["mixerflow", "denseflow"] = "mixerflow",
    preset: str | None = None,
    conditional: bool = False,
    start_from: str | None = None,
    out: str = "runs/mixerflow",
    seed: int = 0,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    precision: Literal["32-true", "64-true", "bf16-mixed"] = "32-true",
    memory: Literal["full", "checkpoint", "constant"] = "full",
    compile: bool = False,
    accumulate: int = 1,
    validate_every: int | None = None,
    checkpoint_every: int = 500,
    evaluation_images: int | None = None,
    num_workers: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a flow on images, with any number of devices; evaluate it; draw samples.

    Args:
        model: arguments of the function that builds the family.
        recipe: how it is trained.
        data: digits, cifar10, mnist, celeba64, imagenet32, imagenet64, animefaces, galaxy32, a
            file .npz or a folder of images.
        test_data: a second file or folder, held out whole; otherwise a tenth of the first is.
        root: folder of downloads and of the data sets that are named.
        size: resize images to size x size.
        shuffle: shuffle the pixels of all images in the same way; local keeps patches of 4 x 4.
        family: what is trained, where no preset says it.
        preset: architecture and recipe of a paper's table, which the command line takes for the
            defaults of model and recipe (a small flow where there is none); to this function it is
            a label in the results, and has to be one of the family.
        conditional: train on images given their labels.
        start_from: weights (.safetensors) to start from, of this architecture or, of a MixerFlow,
            of one with fewer layers, to which layers are added that start as the identity.
        out: folder for what is written.
        seed: of the parameters, the order of images and the noise.
        accelerator: cpu, cuda, mps, or auto.
        devices: how many on each node.
        num_nodes: how many machines.
        precision: of the numbers; bf16 is in the conditioners only.
        memory: of the backward pass: full keeps activations, checkpoint computes those of a layer
            again, constant rebuilds them through inverses (with bf16-mixed as checkpoint).
        compile: compile the flow layers of a MixerFlow; the first step takes a minute.
        accumulate: parts that a batch is computed in, one after another.
        validate_every: steps between validations; a tenth of the run if left out.
        checkpoint_every: steps between checkpoints.
        evaluation_images: images of each part to evaluate, at most.
        num_workers: processes that load images; 0 is best where they are in memory.
        resume: go on with the run in the folder, if there is one.
        overwrite: delete the run in the folder, if there is one.
        progress: show a bar.

    Returns:
        What was written to ``results.json``; {} in all processes but the first.

    Raises:
        ValueError: if an argument does not fit the data or another argument.

    Example:
        >>> import tempfile
        >>> small = {"patch_size": 2, "num_layers": 1}
        >>> results = train(small, Recipe(steps=0), out=tempfile.mkdtemp(), progress=False)
        digits: ...
        >>> results["steps"]
        0
    """
    family_named(preset, family, family)  # raises where the two do not go together
    torch.manual_seed(seed)
    images = load_images(data, test=test_data, root=root, seed=seed, shuffle=shuffle, size=size)
    arguments = _complete(family, model, images, conditional)
    builder = {"mixerflow": mixerflow, "denseflow": denseflow}[family]
    flow = builder(compile=compile, memory=memory, **arguments)
    if start_from is not None:
        flow = _started_from(start_from, flow)
    if is_first_process():
        print(_announcement(images, arguments))
    return fit(
        FlowModule(flow, recipe, conditional, seed),
        images,
        out,
        resume=resume,
        overwrite=overwrite,
        validate_every=validate_every,
        checkpoint_every=checkpoint_every,
        evaluation_images=evaluation_images,
        num_workers=num_workers,
        facts={
            "model": arguments,
            "preset": preset,
            "precision": precision,
            "from": start_from,
        },
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,
        accumulate_grad_batches=accumulate,
        enable_progress_bar=progress,
    )


def build_parser(
    prog: str | None, preset: str | None, data: str | None, family: str = "mixerflow"
) -> ArgumentParser:
    """Return the parser, whose defaults are those of the preset, or of a small flow.

    Args:
        prog: how the command is called, for the help.
        preset: of the family, or None.
        data: what is trained on, where it is known: digits want a flow for small images.
        family: whose arguments the model takes.

    Example:
        >>> build_parser(None, "galaxy32", None).get_defaults().model.hidden_features
        64
    """
    parser = ArgumentParser(
        prog=prog,
        usage="%(prog)s [--data DATA] [--preset PRESET] [--out OUT] [options]",
        description=(train.__doc__ or "")
        .split("\n")[0]
        .replace("a flow", f"a {DEFAULTS[family].name}"),
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these.")
    parser.add_function_arguments(train, as_group=False, skip={"model", "recipe"})
    architecture, defaults = FAMILIES[family].spec, DEFAULTS[family]
    parser.add_class_arguments(architecture, "model", skip=set(OF_THE_DATA), instantiate=False)
    parser.add_class_arguments(Recipe, "recipe", instantiate=False)
    model, recipe = small_model(family, data), defaults.recipe
    if preset is not None:
        model = defaults.presets[preset].arguments
        recipe = vars(Recipe.from_preset(preset))
    parser.set_defaults(
        {
            "family": family,
            "out": f"runs/{family}",
            **{f"model.{k}": v for k, v in model.items() if k not in OF_THE_DATA},
            **{f"recipe.{k}": v for k, v in recipe.items()},
        }
    )
    return parser


def _complete(
    family: str, model: Mapping[str, Any], images: ImageData, conditional: bool
) -> dict[str, Any]:
    """Add to the arguments of the model what the data say."""
    arguments = {**model, "image_shape": images.image_shape, "levels": images.levels}
    if conditional:
        if images.num_classes is None:
            raise mismatch(
                "--conditional", "images with labels", f"{images.name} without", "leave it out"
            )
        arguments["num_classes"] = images.num_classes
    pixels = arguments.get("pixels") or Pixels()
    if family == "mixerflow" and pixels.logit is None and _dark(images):
        # Against a background of exact zeros ink is an outlier, which only a logit brings near.
        arguments["pixels"] = replace(pixels, logit=1e-3)
    return arguments


def _dark(images: ImageData) -> bool:
    some = images.train.images(slice(10_000))
    return bool((some == 0).sum() > some.numel() / 4)


def _announcement(images: ImageData, arguments: Mapping[str, Any]) -> str:
    facts = images.describe()
    parts = ", ".join(
        f"{facts[f'{part}_images']:,} {name}"
        for part, name in (
            ("train", "to train on"),
            ("validation", "to validate"),
            ("test", "to test"),
        )
        if facts[f"{part}_images"]
    )
    version = f" {images.version}" if images.version else ""
    logit = getattr(arguments.get("pixels"), "logit", None)
    return f"{images.name}{version}: {parts}; split {facts['split_hash']}" + (
        f"; logit of alpha {logit:g}, as a quarter of the pixels or more are 0"
        if logit is not None and _dark(images)
        else ""
    )


def _started_from(path: str, flow: ImageFlow) -> ImageFlow:
    """Return ``flow`` with the weights of a file, whose flow may have had fewer layers."""
    wanted, there = family_of(flow), family_in(read_metadata(path))
    if there is None:  # it was made of what a file does not hold
        return load_weights(path, flow)
    if there != wanted:
        advice = f"give --family {there}, or other weights"
        raise mismatch("--start_from", f"weights of a {wanted}", f"those of a {there}", advice)
    trained = load_weights(path)
    expected = "weights of this architecture"
    if flow.architecture is not None and wanted == "mixerflow":
        trained = _deepened(trained, flow.architecture)
        expected += ", or of one with fewer layers"
    own, before = architecture_of(flow) or {}, architecture_of(trained) or {}
    differing = [name for name in own if own[name] != before.get(name)]
    if differing:
        raise mismatch(
            "--start_from",
            expected,
            f"one that differs in {', '.join(differing)}",
            "give the same --model arguments",
        )
    flow.load_state_dict(trained.state_dict())
    return flow


def _deepened(trained: ImageFlow, wanted: Architecture) -> ImageFlow:
    """Return ``trained`` with as many layers as are wanted, if it has fewer."""
    assert trained.architecture is not None
    own, now = trained.architecture.arguments, wanted.arguments
    if own["num_layers"] >= now["num_layers"]:
        return trained
    lists = {name: now[name] for name in ("patch_size", "shift") if own[name] != now[name]}
    return grow(trained, now["num_layers"], **lists)

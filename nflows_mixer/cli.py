"""The command ``nflows-mixer train|evaluate`` (extra: train)."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from nflows_mixer._checks import mismatch
from nflows_mixer._distributed import is_first_process
from nflows_mixer._files import replace_file
from nflows_mixer.core.factory import UNSET, call_factory
from nflows_mixer.data import ImageData, load_images
from nflows_mixer.data.image_data import check_same_images, with_levels
from nflows_mixer.evaluation import Evaluation, evaluate_weights
from nflows_mixer.evaluation.report import trained_on
from nflows_mixer.flows import JET_PRESETS, MIXERFLOW_PRESETS, TARFLOW_PRESETS, ImageFlow, Pixels
from nflows_mixer.flows.pixels import BACKGROUND
from nflows_mixer.training import FlowModule, Recipe, fit, table
from nflows_mixer.training.presets import preset_file, preset_names
from nflows_mixer.training.signals import stopped_by_signals
from nflows_mixer.training.warm_start import start_from

PROG = "nflows-mixer"
MIXERFLOW = {"class_path": "nflows_mixer.mixerflow"}
OF_THE_DATA = {"image_shape", "num_classes"}
"""Arguments of builders that the images say."""
OF_FIT = ("out", "validate_every", "checkpoint_every", "evaluation_images", "num_workers")
OF_TRAINER = (
    "accelerator",
    "devices",
    "num_nodes",
    "precision",
    "accumulate_grad_batches",
    "enable_progress_bar",
)
OF_THE_START = ("config", "out", "resume", "overwrite")
"""Where and how a run was started: a run from its ``config.yaml`` must not replace it."""


SAID = (ValueError, TypeError, OSError, ImportError, FloatingPointError, MisconfigurationException)
"""Errors of arguments, files and the loss, which say what to do."""


class PresetOrFile(ActionConfigFile):
    """An argument that takes a YAML file, or the name of one that ships with the package."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        """Apply the file. Nothing of the model before is left to its model, nor of its recipe."""
        given = Namespace({self.dest: []})
        super().__call__(parser, given, preset_file(values), option_string)
        if "model" in given:
            cfg.pop("model", None)
            own = vars(Recipe())
            for name, value in _usual()["recipe"].items():
                if cfg.recipe[name] == value:
                    cfg.recipe[name] = own[name]
        cfg.update(given)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command, ``nflows-mixer``; arguments and errors are those of ``run``."""
    run(argv)


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command, and return what it found.

    Args:
        argv: the arguments; those of the process where None.

    Returns:
        What was written to ``results.json`` or ``evaluation.json``; {} in all processes of a
        distributed run but the first.

    Raises:
        SystemExit: with the message of an error, if an argument, a file or the loss is not right;
            with status 143 or 130, and one line on how to go on, at SIGTERM or SIGINT.

    Example:
        >>> import tempfile
        >>> quick = ["--model.num_layers=1", "--recipe.steps=2"]
        >>> out = ["--trainer.enable_progress_bar=false", "--out", tempfile.mkdtemp()]
        >>> results = run(["train", *quick, *out])
        digits: ...
        >>> results["parameters"]
        54157
    """
    try:
        with stopped_by_signals(lambda: "start the same command again"):
            words = list(sys.argv[1:] if argv is None else argv)
            # A model takes nothing of the one that is trained where none is named.
            parser = build_parser(MIXERFLOW if _names_a_model(words) else None)
            arguments = parser.parse_args(words)
            if arguments.subcommand == "train":
                return train(arguments.train)
            return evaluate(arguments.evaluate)
    except SAID as error:
        raise SystemExit(f"error: {error}") from error


def build_parser(model: Mapping[str, Any] | None = None) -> ArgumentParser:
    """Return the parser of the command.

    Args:
        model: what is trained where nothing is said of it, with the defaults of ``Recipe``; that
            of "digits", with its recipe, where None.

    Example:
        >>> config = build_parser().parse_args(["train", "--config", "cifar10"]).train
        >>> config.model.init_args.preset, config.recipe.batch_size
        ('cifar10', 512)
    """
    parser = ArgumentParser(prog=PROG, description="Normalizing flows on images.")
    commands = parser.add_subcommands()
    commands.add_subcommand("train", train_parser(model), help="train a flow, evaluate it, sample")
    commands.add_subcommand("evaluate", evaluate_parser(), help="figures of trained weights")
    return parser


def train_parser(model: Mapping[str, Any] | None = None) -> ArgumentParser:
    """Return the parser of ``nflows-mixer train``: signatures of the library, in groups.

    Args:
        model: as in ``build_parser``.
    """
    parser = ArgumentParser(
        description="Train a flow on images, on any number of devices; evaluate it; draw samples."
    )
    known = f"a YAML file, or the name of one that ships: {', '.join(preset_names())}"
    parser.add_argument("--config", action=PresetOrFile, help=known)
    parser.add_subclass_arguments(
        ImageFlow,
        "model",
        skip=OF_THE_DATA,
        instantiate=False,
        fail_untyped=False,
        help="dotted name of a function that builds a flow on images; --model.NAME is an argument",
    )
    parser.add_function_arguments(load_images, as_group=False, skip={"seed", "shuffle_patch"})
    parser.add_class_arguments(Recipe, "recipe")
    parser.add_class_arguments(FlowModule, as_group=False, skip={"flow", "recipe"})
    start = "weights (.safetensors) to start from, of this flow or of one with fewer layers"
    parser.add_argument("--start_from", type=str | None, help=start)
    skip = _all_but(OF_FIT, fit) | set(OF_TRAINER)
    parser.add_function_arguments(fit, as_group=False, skip=skip)
    for name, meaning in (
        ("resume", "go on with the run in the folder, if there is one"),
        ("overwrite", "delete the files of the run in the folder, if there is nothing else in it"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    skip = _all_but(OF_TRAINER, Trainer)
    parser.add_class_arguments(Trainer, "trainer", skip=skip, instantiate=False)
    usual = _usual()
    parser.set_defaults({"data": usual["data"], "model": model or usual["model"]})
    if model is None:
        parser.set_defaults({f"recipe.{name}": value for name, value in usual["recipe"].items()})
    parser.set_defaults({"out": "runs/train", "trainer.devices": 1})
    return parser


def evaluate_parser() -> ArgumentParser:
    """Return the parser of ``nflows-mixer evaluate``."""
    parser = ArgumentParser(description=(evaluate_weights.__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action="config", help="a YAML file with any of these")
    parser.add_function_arguments(evaluate_weights, as_group=False, skip={"options"})
    parser.add_class_arguments(Evaluation, as_group=False)
    return parser


def train(arguments: Namespace) -> dict[str, Any]:
    """Train as the arguments of ``nflows-mixer train`` say; print and return what came out."""
    recipe, seed = Recipe(**vars(arguments.recipe)), arguments.seed
    torch.manual_seed(seed)
    start = arguments.start_from
    trained = {} if start is None else trained_on(start)
    # What the weights were trained on must not be held out.
    split_seed = trained.get("split_seed", seed)
    images = load_images(**{**_of(load_images, arguments), "seed": split_seed})
    check_same_images(trained, images, "--start_from")
    said = getattr(factory_of(arguments.model), "keywords", {})
    images = with_levels(images, said.get("levels", images.levels))
    chosen = automatic_pixels(arguments.model, images)
    if chosen is not None:  # so that the run's files have it, and a run from them takes it
        arguments.model.init_args.pixels = Namespace(**vars(chosen))
    flow = build_flow(arguments.model, images, arguments.conditional)
    text = _read_back(_dumped(arguments))
    config = yaml.safe_load(text)
    if start is not None:
        start_from(start, flow)
    if is_first_process():
        print(_announcement(images))
        if chosen is not None:
            print(
                "a quarter of the pixels or more are at an end of their range: "
                f"{chosen.dequantization} noise and a logit of them ({chosen.logit:g}) are put "
                "before the flow; --model.pixels null is uniform noise and a linear scale"
            )
    trainer = {name: value for name, value in vars(arguments.trainer).items() if value is not None}
    results = fit(
        FlowModule(flow, recipe, arguments.conditional, seed),
        images,
        **{name: arguments[name] for name in (*OF_FIT, "resume", "overwrite")},
        facts={
            "model": config["model"],
            "preset": config["model"]["init_args"].get("preset"),
            "precision": str(trainer.get("precision", "32-true")),
            "from": start,
        },
        **trainer,
    )
    if results:
        replace_file(Path(arguments.out) / "config.yaml", text.encode())
        print(f"\n{table(results)}\nsee {arguments.out}")
    return results


def evaluate(arguments: Namespace) -> dict[str, Any]:
    """Evaluate as the arguments of ``nflows-mixer evaluate`` say; print and return the figures."""
    options = Evaluation(**_of(Evaluation, arguments))
    report = evaluate_weights(options=options, **_of(evaluate_weights, arguments))
    shown = {name: value for name, value in report.items() if name != "weights"}
    lists = ("indices", "distances")
    copies = shown["memorisation"] or {}
    shown["memorisation"] = {k: v for k, v in copies.items() if k not in lists}
    print(f"{json.dumps(shown, indent=2)}\nsee {arguments.out}")
    return report


def build_flow(model: Namespace, images: ImageData, conditional: bool) -> ImageFlow:
    """Build the flow that a configuration describes, for these images.

    Args:
        model: dotted name of the function that builds it, and its arguments.
        images: say image shape and levels, and the number of classes where they are asked for.
        conditional: whether the flow is given the labels.

    Raises:
        ValueError: if the images have no labels.

    Example:
        >>> config = build_parser().parse_args(["train", "--model.num_layers=1"]).train
        >>> build_flow(config.model, load_images("digits"), conditional=False).image_shape
        (1, 8, 8)
    """
    builder = factory_of(model)
    of_the_data: dict[str, Any] = {"image_shape": images.image_shape, "levels": images.levels}
    if conditional:
        if images.num_classes is None:
            got = f"{images.name} without"
            raise mismatch("--conditional", "images with labels", got, "leave it out")
        of_the_data["num_classes"] = images.num_classes
    return call_factory(builder, **of_the_data)


def automatic_pixels(model: Namespace, images: ImageData) -> Pixels | None:
    """Return a logit and learned noise where they are called for and nothing is said, or None.

    A quarter of the pixels or more may be at the ends of their range, a black or white background
    against which ink is an outlier that a linear scale leaves far off. Noise is learned of images
    of an even height and width.

    Args:
        model: dotted name of the function that builds the flow, and its arguments.
        images: of which the first ones to train on are looked at.

    Example:
        >>> config = build_parser().parse_args(["train"])
        >>> automatic_pixels(config.train.model, load_images("digits")).logit
        1e-06
    """
    given = model.get("init_args") or {}
    presets = {**MIXERFLOW_PRESETS, **TARFLOW_PRESETS, **JET_PRESETS}
    preset = presets.get(given.get("preset") or "")
    if given.get("pixels") is not UNSET or (preset is not None and "pixels" in preset.arguments):
        return None
    some = images.train.images(slice(10_000))
    at_ends = (some == 0) | (some == images.levels - 1)
    if at_ends.sum() <= some.numel() / 4:
        return None
    even = not any(size % 2 for size in images.image_shape[1:])
    return BACKGROUND if even else Pixels(logit=1e-3)


def factory_of(value: Any) -> Any:
    """Return what a parsed value names: a class or function, with the keywords given to it.

    Not jsonargparse's own instances, whose signatures hide what a factory may be given.

    Args:
        value: of the configuration.

    Example:
        >>> from jsonargparse import Namespace
        >>> factory_of(Namespace(class_path="zuko.flows.NSF", init_args=Namespace(bins=4)))
        functools.partial(<class 'zuko.flows.spline.NSF'>, bins=4)
    """
    if isinstance(value, (list, tuple)):
        return tuple(map(factory_of, value))
    if not isinstance(value, Namespace):
        return value
    if "class_path" not in value:  # the one dataclass that a builder takes
        return Pixels(**{name: factory_of(item) for name, item in vars(value).items()})
    named: Any = locate(value.class_path)
    parser = ArgumentParser()
    add = parser.add_class_arguments if inspect.isclass(named) else parser.add_function_arguments
    add(named, "usual", fail_untyped=False)
    usual, given = parser.get_defaults().usual, vars(value.get("init_args") or Namespace())
    made = {name: (factory_of(item), factory_of(usual.get(name))) for name, item in given.items()}
    changed = {name: item for name, (item, default) in made.items() if item != default}
    return partial(named, **changed) if changed else named


def _dumped(arguments: Namespace) -> str:
    """All arguments as YAML, but for where and how the run was started."""
    kept = Namespace({k: v for k, v in vars(arguments).items() if k not in OF_THE_START})
    return train_parser().dump(kept, skip_validation=True, skip_unset=False)


def _read_back(text: str) -> str:
    """The configuration as it is once read: with arguments of factories that are defaults."""
    parser = train_parser(MIXERFLOW)
    parser.exit_on_error = False
    try:
        return _dumped(parser.parse_string(text))
    except ArgumentError:  # a default of somebody's builder may be an object that has no text
        return text


def _names_a_model(words: Sequence[str]) -> bool:
    """Whether the command line names a model, or a preset of one."""
    flags = "--model", "--model.preset", "--model.init_args.preset"
    return any(word.split("=")[0] in flags or '"preset"' in word for word in words)


def _usual() -> dict[str, Any]:
    """What is trained where nothing is said."""
    return yaml.safe_load(Path(preset_file("digits")).read_text())


def _announcement(images: ImageData) -> str:
    parts = {"train": images.train, "validate": images.validation, "test": images.test}
    counts = ", ".join(f"{len(part):,} to {name}" for name, part in parts.items() if part)
    return f"{images.name} {images.version}".strip() + f": {counts}; split {images.split_hash}"


def _of(function: Callable[..., Any], arguments: Namespace) -> dict[str, Any]:
    """Those of the arguments that a function or class takes."""
    names = inspect.signature(function).parameters
    return {name: arguments[name] for name in names if name in arguments}


def _all_but(names: Sequence[str], function: Callable[..., Any]) -> set[Any]:
    return set(inspect.signature(function).parameters) - set(names)

"""A trainer of one's own: copies, stages, figures, optimizers and batches as Lightning's users know
them."""

import copy
import io
import math
import pickle
from multiprocessing.reduction import ForkingPickler

import normflows as nf
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nflows_mixer import data, distributions, flows, training
from nflows_mixer.data import ImageDataset
from nflows_mixer.distributions import (
    DiagonalNormal,
    ModuleBase,
    NormalMixture,
    ProductDistribution,
    StudentT,
    TorchBase,
)
from nflows_mixer.evaluation import Evaluation, evaluate
from nflows_mixer.flows import ImageFlow, Pixels, denseflow
from nflows_mixer.training import (
    AtomicCheckpointIO,
    FlowModule,
    History,
    HybridModule,
    ImageDataModule,
    Recipe,
    ShuffledBatches,
    fit,
    table,
)
from nflows_mixer.training.progress_bar import ProgressBar
from nflows_mixer.transforms import FlowLayer, PatchMixerTransform
from tests import training as shared
from tests.training import (
    QUIET,
    SHAPE,
    assert_same,
    initialized,
    noise_data,
    pixels,
    plain_trainer,
    run,
    tiny,
    train,
)


def plain(test):
    """The same, of trainers that have what they warn of here: no validation, an empty loader."""
    for message in ("You defined a `validation_step` but", "Total length of .* across ranks is z"):
        test = pytest.mark.filterwarnings(f"ignore:{message}")(test)
    return shared.plain(test)


# Copies.

RECIPE = Recipe(1e-2, steps=2, batch_size=10, ema_decay=0.9, layer_rates={"*": 0.5})


def trained(kind=FlowModule, **options):
    """A module that has everything that training leaves on it."""
    classes = options.get("num_classes")
    module = kind(tiny(), RECIPE, **options)
    images = ImageDataModule(noise_data(classes=classes), RECIPE)
    trainer = plain_trainer(2)
    trainer.fit(module, datamodule=images)
    trainer.test(module, datamodule=images, verbose=False)
    return module


OBJECTS = {
    "FlowModule": lambda: FlowModule(tiny(), RECIPE),
    "FlowModule, trained": trained,
    "FlowModule, conditional": lambda: FlowModule(tiny(num_classes=3), RECIPE, conditional=True),
    "HybridModule, trained": lambda: trained(HybridModule, num_classes=3),
    "ImageFlow": lambda: initialized(tiny(pixels=Pixels(logit=1e-3))),
    "ImageFlow, DenseFlow": lambda: denseflow(units=[2], modules=[1], image_shape=(1, 8, 8)),
    "DequantizedFlow": lambda: initialized(tiny()).deterministic,
    "DiagonalNormal": lambda: DiagonalNormal(SHAPE),
    "TorchBase": lambda: TorchBase(torch.distributions.Normal(torch.zeros(SHAPE), 1.0)),
    "ModuleBase": lambda: ModuleBase(nf.distributions.DiagGaussian(SHAPE), SHAPE),
    "StudentT": lambda: StudentT(SHAPE),
    "NormalMixture": lambda: NormalMixture(SHAPE),
    "ProductDistribution": lambda: ProductDistribution({"a": DiagonalNormal(SHAPE)}),
    "ImageDataset": lambda: ImageDataset(pixels(3), torch.arange(3)),
    "ImageData": lambda: noise_data(classes=3),
    "ImageDataModule": lambda: ImageDataModule(noise_data(), RECIPE),
    "ShuffledBatches": lambda: ShuffledBatches(5, 2, 4),
    "Recipe": lambda: RECIPE,
    "Evaluation": Evaluation,
    "Architecture": lambda: tiny().architecture,
    "Pixels": lambda: Pixels(logit=1e-3),
    "Preset": lambda: flows.MIXERFLOW_PRESETS["cifar10"],
    "History": lambda: History("out"),
    "ProgressBar": ProgressBar,
    "AtomicCheckpointIO": AtomicCheckpointIO,
}


def saved_whole(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@plain
@pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS.keys())
def test_public_objects_are_copied_pickled_saved_whole_and_sent_to_processes(make):
    thing = make()
    ways = copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)), saved_whole
    for way in (*ways, lambda it: pickle.loads(ForkingPickler.dumps(it))):
        again = way(thing)
        assert type(again) is type(thing)
        if isinstance(thing, torch.nn.Module):
            state = again.state_dict()
            assert state.keys() == thing.state_dict().keys()
            assert all(
                torch.equal(value, state[name]) for name, value in thing.state_dict().items()
            )


def test_no_public_class_is_forgotten():
    public = [getattr(room, name) for room in (data, flows, training) for name in room.__all__]
    public += [getattr(distributions, name) for name in dir(distributions)]
    kinds = {
        kind for kind in public if isinstance(kind, type) and not kind.__name__.startswith("_")
    }
    ours = {kind.__name__ for kind in kinds if kind.__module__.startswith("nflows_mixer")}
    assert ours - {"BaseDistribution", "Unset"} <= {name.partition(",")[0] for name in OBJECTS}


@plain
def test_copy_of_a_moving_average_follows_as_the_original():
    """To the last digit, buffers of integers included."""
    module = trained()
    again = pickle.loads(pickle.dumps(module))
    with torch.no_grad():
        for each in (module, again):
            for parameter in each.flow.parameters():
                parameter += 1
            each.average.update_parameters(each.flow)
    expected, got = module.average.state_dict(), again.average.state_dict()
    assert all(torch.equal(value, got[name]) for name, value in expected.items())
    assert int(got["n_averaged"]) == 3


# Stages.

FIGURES = ("bits_per_dim", "worst_image", "evaluated_images")


def named(*parts):
    return {f"{part}/{name}" for part in parts for name in FIGURES}


def short(steps=2, **options):
    return Recipe(1e-2, steps=steps, batch_size=10, **options)


def loader(images, size=10):
    return DataLoader(images, batch_size=size)


@plain
def test_figures_of_every_stage_are_returned_and_logged_by_the_same_names(tmp_path):
    module, images, held_out = FlowModule(tiny(), short(4)), pixels(20), pixels(15)
    logger = CSVLogger(tmp_path)
    options = {"logger": logger, "log_every_n_steps": 1, "val_check_interval": None}
    trainer = plain_trainer(4, check_val_every_n_epoch=1, **options)
    trainer.fit(module, loader(images), loader(held_out))
    bits = evaluate(module.flow, held_out)
    stages = {"validation": trainer.validate, "test": trainer.test}
    for stage, run_stage in stages.items():
        (figures,) = run_stage(module, loader(held_out), verbose=False)
        assert figures.keys() == named(stage)
        assert figures[f"{stage}/bits_per_dim"] == pytest.approx(bits.mean().item(), abs=1e-6)
        assert figures[f"{stage}/worst_image"] == pytest.approx(bits.max().item(), abs=1e-6)
        assert figures[f"{stage}/evaluated_images"] == 15
    columns = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().split("\n")[0]
    of_training = {"train/bits_per_dim", "train/worst_image"}
    assert set(columns.split(",")) - {"epoch", "step"} == of_training | named(*stages)


@plain
def test_figures_of_a_data_module_and_of_many_loaders_one_of_them_empty():
    module = FlowModule(initialized(tiny()), short())
    images = ImageDataModule(noise_data(), module.recipe)
    trainer = plain_trainer()
    of_parts = trainer.test(module, datamodule=images, verbose=False)
    assert all(figures.keys() == named("train", "validation", "test") for figures in of_parts)
    (figures,) = trainer.validate(module, datamodule=images, verbose=False)
    assert figures.keys() == named("validation")
    sets = [pixels(3), pixels(0), pixels(4)]
    figures = trainer.test(module, [loader(each) for each in sets], verbose=False)[0]
    assert figures.keys() == named("test/0", "test/2")
    for number in (0, 2):
        expected = evaluate(module.flow, sets[number]).mean().item()
        assert figures[f"test/{number}/bits_per_dim"] == pytest.approx(expected, abs=1e-6)


@plain
def test_training_figures_stop_and_choose_checkpoints(tmp_path):
    chosen = ModelCheckpoint(tmp_path, monitor="validation/bits_per_dim", save_top_k=2)
    callbacks = [chosen, EarlyStopping("train/bits_per_dim", stopping_threshold=100)]
    options = {"val_check_interval": None, "check_val_every_n_epoch": 1}
    trainer = plain_trainer(6, enable_checkpointing=True, callbacks=callbacks, **options)
    trainer.fit(FlowModule(tiny(), short(6)), loader(pixels(20)), loader(pixels(12)))
    assert trainer.global_step == 2  # it is below 100 after the first epoch
    assert chosen.best_model_score == trainer.callback_metrics["validation/bits_per_dim"]


@plain
@pytest.mark.parametrize("start", ["not initialized", "initialized"])
def test_sanity_check_runs_what_it_can_and_leaves_no_trace(tmp_path, start):
    """Before ActNorm has seen a batch it can look at batches alone."""
    flow = tiny() if start == "not initialized" else initialized(tiny())
    modules, parts = [], noise_data()
    for steps in (0, 2):
        module = FlowModule(copy.deepcopy(flow), short(4), seed=1)
        options = {"validate_every": 4, "num_sanity_val_steps": steps}
        run(module, parts, tmp_path / str(steps), **options)
        modules.append(module)
    assert_same(*modules)
    histories = [(tmp_path / each / "history.json").read_text() for each in "02"]
    assert [text.count("validation/bits_per_dim") for text in histories] == [1, 1]
    assert '"step": 0' not in histories[1]
    assert not (tmp_path / "2/samples/step-00000000.png").exists()
    wrong = loader(pixels(4).float()) if start == "initialized" else loader([{"image": 1}])
    trainer = plain_trainer(4, num_sanity_val_steps=2)
    with pytest.raises(ValueError, match="expected (uint8 pixels|batches of images)"):
        trainer.fit(FlowModule(flow, short(4)), loader(pixels(20)), wrong)


@plain
@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize("overfit", [1, 0.5])
def test_overfitting_takes_the_same_batches_in_each_epoch(overfit):
    parts = noise_data((40, 1000, 8))
    module = Recording(tiny(), short(4))
    trainer = plain_trainer(4, overfit_batches=overfit)
    trainer.fit(module, datamodule=ImageDataModule(parts, module.recipe))
    count = 1 if overfit == 1 else 2
    rows = list(ShuffledBatches(40, 10, count))
    expected = [parts.train.images(each) for each in rows] * (4 // count)
    assert len(module.seen) == 4
    assert all(torch.equal(a, b) for a, b in zip(module.seen, expected))


class Recording(FlowModule):
    """Keeps the images that it is trained on."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.seen = []

    def loss(self, images, context, noise, labels):
        self.seen.append(images.clone())
        return super().loss(images, context, noise, labels)


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_limits_of_lightning_in_fit(tmp_path):
    limits = {"limit_test_batches": 0, "overfit_batches": 1, "validate_every": 2}
    results = run(FlowModule(tiny(), short()), noise_data(), tmp_path / "none", **limits)
    assert results["bits_per_dim"] == results["evaluated_images"] == {} and results["steps"] == 2
    assert "no image was evaluated" in table(results)
    assert (tmp_path / "none/weights.safetensors").exists()
    parts = noise_data((600, 510, 505))
    results = run(FlowModule(tiny(), short()), parts, tmp_path / "one", limit_test_batches=1)
    assert set(results["evaluated_images"].values()) == {500}


@plain
def test_epochs_of_a_data_module_go_on_where_the_last_one_ended():
    """Limited ones, too: no image is seen twice before all are; a resumed run goes on as well."""
    parts = noise_data((40, 5, 5))
    rows = list(ShuffledBatches(40, 10, 4))
    for options in (
        {"limit_train_batches": 1, "max_epochs": 9},
        {"max_epochs": 2, "max_steps": -1},
    ):
        module = Recording(tiny(), short(4))
        trainer = plain_trainer(**{"max_steps": 4, **options})
        trainer.fit(module, datamodule=ImageDataModule(parts, module.recipe))
        assert len(module.seen) == trainer.global_step == 4
        assert all(torch.equal(a, parts.train.images(b)) for a, b in zip(module.seen, rows))


@plain
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_run_of_epochs_goes_on_from_its_checkpoint(tmp_path):
    """Where asking how long it is would make the loader before the checkpoint is read."""
    parts, start = noise_data((40, 5, 5)), tiny().double()
    modules = []
    for path in (None, tmp_path / "step=2.ckpt"):
        module = FlowModule(copy.deepcopy(start), short(4))
        images = ImageDataModule(parts, module.recipe)
        folder = tmp_path if path is None else tmp_path / "again"
        kept = ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)
        trainer = plain_trainer(4, max_epochs=1, enable_checkpointing=True, callbacks=[kept])
        trainer.fit(module, datamodule=images, ckpt_path=path, weights_only=True)
        assert trainer.global_step == 4
        modules.append(module)
    assert_same(*modules)


@plain
def test_prediction_says_of_each_image_what_evaluation_does():
    module = FlowModule(initialized(tiny()), short(ema_decay=0.9), seed=4)
    module._follow()
    images, trainer = pixels(13), plain_trainer()
    found = trainer.predict(module, loader(images))
    bits = torch.cat([each["bits_per_dim"] for each in found])
    torch.testing.assert_close(bits, evaluate(module.evaluated, images, seed=4))
    parts = noise_data()
    found = trainer.predict(module, datamodule=ImageDataModule(parts, module.recipe))
    expected = evaluate(module.evaluated, parts.test, seed=4)
    torch.testing.assert_close(found[2][0]["bits_per_dim"], expected)
    hybrid = HybridModule(initialized(tiny()), short(), num_classes=3)
    with torch.no_grad():
        hybrid.head.weight.normal_()
    (found,) = trainer.predict(hybrid, DataLoader(images, batch_size=13))  # without labels
    (figures,) = trainer.test(hybrid, loader(TensorDataset(images, torch.ones(13).long())))
    right = (found["logits"].argmax(1) == 1).double().mean().item()
    assert figures["test/accuracy"] == pytest.approx(right)
    assert found["bits_per_dim"].mean().item() == pytest.approx(
        figures["test/bits_per_dim"], abs=1e-6
    )


# Length, and optimizers of one's own.


class WithoutLength(IterableDataset):
    def __iter__(self):
        return (pixels(10) for _ in range(6))


@plain
@pytest.mark.parametrize("form", ["steps", "epochs", "time", "no length", "data module"])
def test_trainer_longer_than_the_recipe_ends_with_it_and_says_so(form):
    module = FlowModule(tiny(), short(3))
    source = {"train_dataloaders": loader(pixels(20))}
    limits = {"steps": {"max_steps": 9}, "epochs": {"max_epochs": 9}}.get(form, {})
    if form == "time":
        limits = {"max_time": {"minutes": 5}}
    if form == "no length":
        source = {"train_dataloaders": DataLoader(WithoutLength(), batch_size=None)}
        limits = {"max_epochs": 2}
    if form == "data module":
        source, limits = {"datamodule": ImageDataModule(noise_data(), short(3))}, {"max_steps": 9}
    trainer = plain_trainer(**limits)
    if form == "no length":  # so that nothing can be known before
        trainer.fit(module, **source)
    else:
        with pytest.warns(UserWarning, match="at most the recipe's 3 steps.*ends with the recipe"):
            trainer.fit(module, **source)
    assert trainer.global_step == 3
    moved = trainer.optimizers[0].param_groups[0]
    assert moved["initial_lr"] == 1e-2


@plain
def test_rate_that_goes_on_beyond_the_recipe_is_said_and_used():
    module = FlowModule(tiny(), short(2, decay=1.0))
    with pytest.warns(UserWarning, match="got a trainer that makes 5; the learning rate beyond is"):
        plain_trainer(5).fit(module, datamodule=ImageDataModule(noise_data(), module.recipe))
    assert module.trainer.global_step == 5


class Descent(FlowModule):
    """An optimizer of one's own, with a frozen group and without a schedule."""

    def configure_optimizers(self):
        first, *others = self.flow.parameters()
        groups = [{"params": [first], "lr": 0.0}, {"params": others}]
        return torch.optim.SGD(groups, lr=1e-2)


@plain
def test_own_optimizer_is_used_for_as_long_as_the_trainer_says():
    """By hand, with the recipe's bound on the gradient; its steps and schedule are not read."""
    start = initialized(tiny()).double()
    images, recipe = pixels(10), Recipe(steps=1, batch_size=10, gradient_clip=0.5)
    module = Descent(copy.deepcopy(start), recipe, seed=3)
    trainer = plain_trainer(3)
    trainer.fit(module, loader(images))
    assert trainer.global_step == 3
    _, *others = start.parameters()
    for step in range(3):
        noise = start.draw_noise(3, 1 + step, torch.arange(10), torch.float64)
        start.zero_grad()
        module.loss.__func__(FlowModule(start, recipe), images, None, noise, None)[0].backward()
        torch.nn.utils.clip_grad_norm_(others, 0.5)
        with torch.no_grad():
            for parameter in others:
                parameter -= 1e-2 * parameter.grad
    for ours, by_hand in zip(module.flow.parameters(), start.parameters()):
        torch.testing.assert_close(ours, by_hand, rtol=1e-9, atol=1e-12)


@plain
def test_own_optimizer_in_a_data_module_and_in_fit(tmp_path):
    module = Descent(tiny(), short(2))
    train(module, noise_data())
    trainer = plain_trainer(5)
    trainer.fit(module, datamodule=ImageDataModule(noise_data(), module.recipe))
    assert trainer.global_step == 5
    assert run(Descent(tiny(), short(2)), noise_data(), tmp_path)["steps"] == 2


@plain
@pytest.mark.parametrize("decay", [None, 0.5])
def test_checkpoint_of_lightning_is_read_into_a_flow_or_refused(tmp_path, decay):
    recipe = short(ema_decay=decay)
    module = FlowModule(tiny(), recipe)
    trainer = plain_trainer(2)
    trainer.fit(module, datamodule=ImageDataModule(noise_data(), recipe))
    path = tmp_path / "two.ckpt"
    trainer.save_checkpoint(path)
    again = FlowModule.load_from_checkpoint(path, flow=tiny(), recipe=recipe, weights_only=True)
    assert_same(again, module)
    for kind in (FlowModule, HybridModule):
        with pytest.raises(ValueError, match=r"flow=\.\.\. and recipe=.*'flow'.*; .*load_weights"):
            kind.load_from_checkpoint(path, weights_only=True)
    with pytest.raises(ValueError, match="expected the weights of this flow"):
        other = {"flow": tiny(num_layers=2), "recipe": recipe}
        FlowModule.load_from_checkpoint(path, **other, weights_only=True)


# What is passed.


@plain
@pytest.mark.parametrize(
    "batch, got",
    [
        ({"image": torch.zeros(3), "label": torch.zeros(3)}, "a dict of 'image', 'label'"),
        ([torch.zeros(3), torch.zeros(3), torch.zeros(3)], r"a list of \(Tensor, Tensor, Tensor\)"),
        ([torch.zeros(3), ["cat"]], r"a list of \(Tensor, list\)"),
        ([], r"a list of \(\)"),
        ("images", "a str"),
    ],
    ids=["dict", "three", "words", "empty", "text"],
)
def test_batches_of_another_form_are_refused_in_every_stage(batch, got):
    module = FlowModule(initialized(tiny()), short())
    batches = DataLoader([batch], batch_size=None)
    trainer = plain_trainer(2)
    for stage in (trainer.fit, trainer.validate, trainer.test, trainer.predict):
        with pytest.raises(ValueError, match=rf"\(images, labels\), got {got}; .*collate_fn"):
            stage(module, batches)


@pytest.mark.parametrize("kind", [loader, lambda x: x, ImageDataset, lambda x: [x]])
def test_data_of_another_kind_are_refused_where_image_data_are_meant(tmp_path, kind):
    given, module = kind(pixels(20)), FlowModule(tiny(), short())
    expected = f"expected an ImageData, got {type(given).__name__}; load_images .*Trainer"
    with pytest.raises(TypeError, match=f"fit: {expected}"):
        fit(module, given, tmp_path / "run", **QUIET)
    with pytest.raises(TypeError, match=f"ImageDataModule: {expected}"):
        ImageDataModule(given, module.recipe)
    with pytest.raises(TypeError, match="fit: expected a FlowModule, got ImageFlow; FlowModule"):
        fit(module.flow, noise_data(), tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("base", ["ours", "of nflows"])
def test_fit_in_float64_validates_and_samples(tmp_path, base):
    flow = tiny(pixels=Pixels(logit=1e-3))
    if base == "of nflows":  # the other one of the quick start
        layer = PatchMixerTransform(SHAPE, 2, FlowLayer, FlowLayer)
        flow = ImageFlow.from_flow(Flow(layer, StandardNormal(SHAPE)), SHAPE, levels=17)
    module = FlowModule(flow, short())
    options = {"precision": "64-true", "validate_every": 2}
    results = run(module, noise_data(), tmp_path, **options)
    assert results["steps"] == 2 and (tmp_path / "samples/step-00000002.png").exists()
    assert next(module.parameters()).dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32


@plain
def test_real_images_train_with_a_loader_of_ones_own_and_images_of_bytes_are_refused(tmp_path):
    batches = TensorDataset(0.1 * torch.randn(40, *SHAPE))
    module = FlowModule(tiny(levels=None), Recipe(1e-2, steps=4, batch_size=10))
    trainer = plain_trainer(4)
    trainer.fit(module, DataLoader(batches, batch_size=10))
    (figures,) = trainer.test(module, DataLoader(batches, batch_size=10), verbose=False)
    bits = -module.flow.eval().log_prob(batches.tensors[0]) / (math.prod(SHAPE) * math.log(2))
    assert figures["test/bits_per_dim"] == pytest.approx(bits.mean().item(), rel=1e-4)
    module = FlowModule(tiny(levels=None), Recipe(steps=4, batch_size=10))
    with pytest.raises(ValueError, match=r"of real values \(levels=None\), got .* of 17 levels"):
        fit(module, noise_data(), tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="floating point, got torch.uint8"):
        plain_trainer(4).fit(module, DataLoader(TensorDataset(pixels(40)), batch_size=10))

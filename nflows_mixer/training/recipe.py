"""How a flow is trained, as data."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.optim import Optimizer

from nflows_mixer._checks import as_python, check_choice, check_positive, mismatch
from nflows_mixer.training.presets import preset_file, preset_names

OPTIMIZERS: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
}
SWITCHES = ("flip", "whiten")
SHORTER = (
    "a run of fewer steps has a fine_tune_steps and a warmup of its own (give "
    "--recipe.fine_tune_steps and --recipe.warmup too)"
)


@dataclass(frozen=True)
class Recipe:
    r"""Adam, AdamW or Adamax with a linear warm-up, a falling rate and a bound on the gradient.

    .. math:: \eta_t = \eta \min\Big(1, \frac{t + 1}{w}\Big) \cdot
              \begin{cases}
              \tfrac12 \Big(1 + \cos \frac{\pi \max(t - w, 0)}{T - F - w}\Big)
              & \text{without a decay} \\
              \gamma^{\lfloor t / E \rfloor} & \text{with a decay } \gamma
              \end{cases}
              \quad (t < T - F), \qquad \eta_t = \eta_F \quad (t \ge T - F)

    Step t is counted from 0. The last F steps fine-tune at a constant rate; there are none unless
    they are asked for.

    Args:
        learning_rate: the peak, eta.
        betas: of the optimizer.
        gradient_clip: largest norm of the gradient; None for no bound.
        gradient_skip: an update is left out where the gradient's norm before that bound is above
            this, or the loss or gradient is not finite, up to ten times in a row; None for a run
            that makes every update, and stops where something is not finite. One image that a
            young flow throws far out is then no end of a run.
        steps: optimizer steps, T.
        batch_size: images per step, over all processes together.
        warmup: steps in which the rate rises to its peak, w: their number, or below 1 a part of
            all steps; 0 for none.
        ema_decay: of the exponential moving average of the weights (and buffers) that is then
            what is evaluated, sampled and saved; None for none.
        layer_rates: pattern of parameter names -> multiple of the learning rate, such as
            ``{"_transform._transforms.2.*": 0.1}``; 0 freezes. The last pattern that fits counts.
        optimizer: "adam", "adamax" or "adamw".
        weight_decay: of "adamw", which takes this multiple of the rate off all parameters at each
            step.
        decay: gamma, which multiplies the rate every ``decay_every`` steps, in the warm-up too; 1
            for a constant rate; None for a cosine to zero.
        decay_every: E; where None an epoch of the images that are trained on, see ``resolved``.
        fine_tune_steps: F, the last of ``steps``.
        fine_tune_rate: eta_F.
        flip: whether each training image is mirrored, left to right, with probability 1/2.
        whiten: whether linear blocks start where they whiten the first batch, see
            ``nflows_mixer.transforms.initialize``.

    Raises:
        ValueError: if a value is out of range, or nothing would read it.

    References:
        MixerFlow, Table 8 (the defaults are its column CIFAR-10, but for steps and batch size).
        Kingma and Ba, Adam, 2015, Section 7.1 (Adamax). Loshchilov and Hutter, Decoupled weight
        decay regularization, 2019 (AdamW). Child, Very deep VAEs, 2021, Section 4
        (updates left out). DenseFlow, Appendix C (decay, fine-tuning, flips). The "5000 epochs" of
        its warm-up are iterations: its longest run has 650 epochs. In the released code the
        warm-up's scheduler undoes the decay at each iteration, which is not reproduced.

    Example:
        >>> recipe = Recipe(steps=100, warmup=0.1)
        >>> [round(recipe.schedule(step), 3) for step in (0, 9, 10, 55, 100)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
        >>> recipe = Recipe(steps=100, warmup=4, decay=0.5, decay_every=40, fine_tune_steps=10)
        >>> [round(recipe.schedule(step), 3) for step in (0, 3, 39, 40, 80, 90)]
        [0.25, 1.0, 1.0, 0.5, 0.25, 0.02]
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float | None = 5.0
    gradient_skip: float | None = None
    steps: int = 1000
    batch_size: int = 100
    warmup: int | float = 0.0
    ema_decay: float | None = None
    layer_rates: Mapping[str, float] = field(default_factory=dict)
    optimizer: str = "adam"
    weight_decay: float = 0.0
    decay: float | None = None
    decay_every: int | None = None
    fine_tune_steps: int = 0
    fine_tune_rate: float = 2e-5
    flip: bool = False
    whiten: bool = False

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            object.__setattr__(self, name, as_python(value))
        check_positive("Recipe", "batch_size", self.batch_size)
        check_choice("Recipe", "optimizer", self.optimizer, tuple(OPTIMIZERS))
        if self.decay_every is not None:
            check_positive("Recipe", "decay_every", self.decay_every)
        for right, expected, got, advice in chain(self._ranges(), self._combinations()):
            if not right:
                raise mismatch("Recipe", expected, got, advice)

    def _ranges(self) -> Iterator[tuple[bool, str, object, str]]:
        """For each value whether it is in its range, what that is, the value, and advice."""
        for name, of in (("steps", ""), ("fine_tune_steps", " of fine-tuning")):
            value = getattr(self, name)
            counted = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            yield counted, f"0 steps{of} or more", value, "give an integer"
        rate, low = self.learning_rate, self.fine_tune_rate
        clip, warmup, ema, decay = self.gradient_clip, self.warmup, self.ema_decay, self.decay
        skip = self.gradient_skip
        counted = isinstance(warmup, int) and warmup is not True and warmup >= 1
        broken = {name: r for name, r in self.layer_rates.items() if not 0 <= r < math.inf}
        pair = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        clips = "5, or None for no bound, is usual"
        yield 0 < rate < math.inf, "learning_rate above 0", rate, "1e-3 is usual"
        yield pair, "two betas, each 0 or more and below 1", self.betas, "(0.9, 0.999) is usual"
        yield clip is None or 0 < clip < math.inf, "gradient_clip above 0", clip, clips
        skips = "100, or None to make every update, is usual"
        yield skip is None or 0 < skip < math.inf, "gradient_skip above 0", skip, skips
        yield 0 < low < math.inf, "fine_tune_rate above 0", low, "2e-5 is usual"
        part = counted or 0 <= warmup < 1
        yield part, "a number of steps or 0 <= warmup < 1", warmup, "0.05 is usual"
        yield ema is None or 0 < ema < 1, "0 < ema_decay < 1", ema, "0.999 is usual"
        yield decay is None or 0 < decay <= 1, "0 < decay <= 1", decay, "0.95 is usual"
        for name in SWITCHES:
            value = getattr(self, name)
            expected = f"{name} of True or False"
            yield isinstance(value, bool), expected, value, "False is usual"
        switched = [name for name, of in vars(self).items() if of is True and name not in SWITCHES]
        yield (
            not switched,
            "numbers",
            f"True for {', '.join(switched)}",
            "give numbers",
        )
        yield not broken, "layer_rates of 0 or more", broken, "0 freezes"

    def _combinations(self) -> Iterator[tuple[bool, str, object, str]]:
        """The same of values that are right alone, and that nothing would read."""
        every, tuned = self.decay_every, self.fine_tune_steps
        before_tuning = self.steps - tuned
        of_decay = every is None or self.decay is not None
        yield of_decay, f"a decay beside decay_every={every}", "none", "give decay too"
        decays, fades = self.optimizer == "adamw", 0 < self.weight_decay < math.inf
        expected = "a weight_decay above 0 with adamw, and none with another optimizer"
        advice = "1e-4 is usual for adamw, which without any is adam"
        yield decays == fades, expected, f"{self.weight_decay} with {self.optimizer}", advice
        usual = type(self).__dataclass_fields__["fine_tune_rate"].default
        clip, skip = self.gradient_clip, self.gradient_skip
        clips = clip is None or skip is None or clip < skip
        expected = f"gradient_clip below gradient_skip={skip}"
        yield clips, expected, clip, "lower gradient_clip, or raise gradient_skip"
        of_tuning = bool(tuned) or self.fine_tune_rate == usual
        expected = f"fine_tune_steps beside fine_tune_rate={self.fine_tune_rate:g}"
        yield of_tuning, expected, "none", "give fine_tune_steps too"
        expected = f"fewer fine_tune_steps than all {self.steps} steps"
        advice = f"they are the last of steps, and 0 leaves them out; {SHORTER}"
        yield not tuned or tuned < self.steps, expected, tuned, advice
        expected = f"a warm-up of fewer than the {before_tuning} steps before fine-tuning"
        rises = not self.steps or self._rising() < before_tuning
        yield rises, expected, self.warmup, SHORTER
        falls = not self.steps or self.decay == 1 or every is None or every < before_tuning
        expected = f"decay_every below the {before_tuning} steps before fine-tuning"
        advice = "the rate would never fall; decay=1 is a constant rate"
        yield falls, expected, every, advice

    @classmethod
    def from_preset(cls, preset: str) -> Recipe:
        """Return the recipe of a paper, or of a model of ours, at its full length.

        MixerFlow's Table 8 names no warm-up. Without one, Adam's first step of 1e-3 makes a fresh
        flow of 30 layers overflow on CIFAR-10 at the second step; here the first twentieth of the
        steps is one. DenseFlow's epochs are of training points // batch size steps, but those
        of the decay are of the images that are trained on; it names no bound on the gradient, and
        there is none.

        Args:
            preset: name of a configuration that ships with the package.

        Raises:
            ValueError: if there is no preset of that name.

        Example:
            >>> recipe = Recipe.from_preset("animefaces")
            >>> recipe.betas, recipe.warmup
            ((0.9, 0.99), 0.05)
            >>> recipe = Recipe.from_preset("denseflow-74-10")
            >>> recipe.steps, recipe.fine_tune_steps, recipe.decay, recipe.decay_every
            (507650, 54670, 0.9975, None)
        """
        check_choice("Recipe", "preset", preset, tuple(preset_names()))
        values = yaml.safe_load(Path(preset_file(preset)).read_text())["recipe"]
        return cls(**{**values, "betas": tuple(values.get("betas", cls.betas))})

    def resolved(self, train_images: int) -> Recipe:
        r"""Return this recipe with the ``decay_every`` that the data give, where it has none.

        .. math:: E = \max(\lfloor N / B \rfloor, 1)

        Nothing changes where there is no decay. In a run of no more than an epoch none is due.

        Args:
            train_images: how many are trained on, N.

        Example:
            >>> Recipe(batch_size=100, decay=0.9).resolved(1344).decay_every
            13
        """
        if self.decay is None or self.decay_every is not None:
            return self
        whole = copy.copy(self)
        # Not through __init__, which refuses as a mistake what is asked for by nobody here.
        object.__setattr__(whole, "decay_every", max(train_images // self.batch_size, 1))
        return whole

    def schedule(self, step: int) -> float:
        """Return the multiple of the learning rate at ``step``, counted from 0.

        Raises:
            ValueError: if there is a decay, and nothing has said yet how long an epoch is.
        """
        before_tuning = self.steps - self.fine_tune_steps
        if self.fine_tune_steps and step >= before_tuning:
            return self.fine_tune_rate / self.learning_rate
        rising = self._rising()
        factor = (step + 1) / rising if step < rising else 1.0
        if self.decay is not None:
            if self.decay_every is None:
                expected = "decay_every, the steps of an epoch"
                raise mismatch("Recipe", expected, "none", "give it, or take resolved(images)")
            return factor * self.decay ** (step // self.decay_every)
        falling = max(before_tuning - rising, 1)
        fallen = min(max(step - rising, 0), falling) / falling
        return factor * 0.5 * (1 + math.cos(math.pi * fallen))

    def _rising(self) -> int:
        """The steps of the warm-up."""
        return int(self.warmup if self.warmup >= 1 else self.steps * self.warmup)

    def optimizer_of(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Return the optimizer of parameters in groups, as ``parameter_groups`` gives them.

        Adam and AdamW are torch's fused ones where the device has them: one call for all
        parameters, where a flow has hundreds of small ones.
        """
        devices = {parameter.device.type for group in groups for parameter in group["params"]}
        keywords: dict[str, Any] = {}
        if self.optimizer != "adamax" and devices <= {"cpu", "cuda"}:
            keywords["fused"] = True
        if self.optimizer == "adamw":
            keywords["weight_decay"] = self.weight_decay
        return OPTIMIZERS[self.optimizer](groups, betas=self.betas, **keywords)

    def parameter_groups(self, module: nn.Module) -> list[dict]:
        """Return groups of the module's parameters with their learning rates, for an optimizer.

        Args:
            module: a flow.

        Raises:
            ValueError: if a pattern of ``layer_rates`` fits no parameter.

        Example:
            >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
            >>> groups = Recipe(1e-3, layer_rates={"1.*": 0.1}).parameter_groups(net)
            >>> [(len(group["params"]), group["lr"]) for group in groups]
            [(2, 0.001), (2, 0.0001)]
        """
        groups: dict[float, list[nn.Parameter]] = {}
        unread = set(self.layer_rates)
        for name, parameter in module.named_parameters():
            factor = 1.0
            for pattern, given in self.layer_rates.items():
                if fnmatchcase(name, pattern):
                    factor = given
                    unread.discard(pattern)
            groups.setdefault(factor, []).append(parameter)
        if unread:
            example = next(name for name, _ in module.named_parameters())
            expected = f"patterns of parameter names, such as {example!r}"
            raise mismatch("layer_rates", expected, sorted(unread), "print named_parameters()")
        return [
            {"params": parameters, "lr": factor * self.learning_rate}
            for factor, parameters in groups.items()
        ]

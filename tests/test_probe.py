"""What no bijection of rows is refused when a flow is built, by trying it out."""

from functools import partial

import normflows as nf
import pytest
import torch
import zuko
from nflows.transforms import (
    CompositeTransform,
    Logit,
    MaskedAffineAutoregressiveTransform,
    NaiveLinear,
    PiecewiseRationalQuadraticCDF,
    PointwiseAffineTransform,
    ReversePermutation,
    Sigmoid,
    Tanh,
    Transform,
)
from torch import nn
from torch._subclasses import FakeTensorMode

from nflows_mixer.core import as_transform, check_usable
from nflows_mixer.core import probe as module
from nflows_mixer.transforms import ActNorm, AffineCoupling, ChannelMixingTransform


def refused(pattern=""):
    return pytest.raises(
        ValueError, match=f"(?s)expected a (bijection|transform of rows).*got .*{pattern}.*; "
    )


class Scale(Transform):
    """Twice the inputs, by a transform of the user's own that may be wrong in one way."""

    def __init__(self, log_det=0.6931472, back=0.5, width=None):
        super().__init__()
        self.log_det, self.back, self.width = log_det, back, width

    def forward(self, inputs, context=None):
        outputs = 2 * inputs[:, : self.width]
        return outputs, inputs.new_full((len(inputs),), self.log_det * inputs.shape[1])

    def inverse(self, inputs, context=None):
        logabsdet = inputs.new_full((len(inputs),), -self.log_det * inputs.shape[1])
        return self.back * inputs, logabsdet


class OneWay(Scale):
    def inverse(self, inputs, context=None):
        raise NotImplementedError


@pytest.mark.parametrize(
    "make",
    [
        lambda: Scale(log_det=0.0),
        lambda: Scale(back=0.6),
        lambda: Scale(width=3),
        lambda: Scale(back=torch.inf),
        lambda: OneWay(log_det=1.0),
        Sigmoid,
        Logit,
        Tanh,
        lambda: PiecewiseRationalQuadraticCDF([4]),
        lambda: NaiveLinear(4, orthogonal_initialization=False),
        lambda: CompositeTransform([Logit(), PiecewiseRationalQuadraticCDF([4])]),
        lambda: CompositeTransform([Sigmoid(), PointwiseAffineTransform(scale=2.0), Logit()]),
        lambda: CompositeTransform([ReversePermutation(4), Sigmoid()]),
        lambda: zuko.flows.NCSF(4),
        lambda: zuko.flows.NCSF(4).transform.inv,
        lambda: zuko.lazy.UnconditionalTransform(zuko.transforms.SoftclipTransform),
        lambda: zuko.lazy.UnconditionalTransform(zuko.transforms.ExpTransform),
        lambda: zuko.lazy.UnconditionalTransform(zuko.transforms.SoftmaxTransform),
        lambda: nf.flows.Radial((4,)),
        lambda: nf.flows.PeriodicWrap([0]),
        lambda: nf.flows.Split(),
    ],
)
def test_what_is_no_bijection_is_refused(make):
    with refused():
        as_transform(lambda features: make(), 4)


@pytest.mark.parametrize(
    "make",
    [
        Scale,
        OneWay,
        lambda: CompositeTransform(
            [Sigmoid(), ReversePermutation(4), PiecewiseRationalQuadraticCDF([4]), Logit()]
        ),
        lambda: zuko.lazy.LazyComposedTransform(
            zuko.lazy.UnconditionalTransform(zuko.transforms.SigmoidTransform),
            zuko.lazy.UnconditionalTransform(zuko.transforms.SigmoidTransform).inv,
        ),
        lambda: zuko.flows.NSF(4, transforms=1),
    ],
)
def test_a_bijection_is_taken(make):
    as_transform(make(), 4)


def test_a_mixing_layer_tries_out_what_says_its_length():
    with refused("CompositeTransform"):
        ChannelMixingTransform(CompositeTransform([ReversePermutation(4), Sigmoid()]))
    spline = CompositeTransform([Sigmoid(), PiecewiseRationalQuadraticCDF([4]), Logit()])
    ChannelMixingTransform(CompositeTransform([spline, ReversePermutation(4)]))


def test_wrong_arguments_may_be_taken_unseen():
    transform = as_transform(Sigmoid(), 4, validate_args=False)
    check_usable(transform, "once taken, it stays so", 4)


class Counting(Scale):
    """Depends on a state that a call changes, on chance, and on an ActNorm."""

    calls = 0

    def __init__(self, features):
        super().__init__()
        self.norm = ActNorm(features)
        self.register_buffer("state", torch.zeros(()))

    def forward(self, inputs, context=None):
        type(self).calls += 1
        assert not self.training and not self.norm(inputs)[1].any()
        self.state += torch.randn(())
        return super().forward(inputs)


def test_trying_it_out_leaves_no_trace():
    before = torch.get_rng_state()
    transform = as_transform(Counting(4), 4)
    assert Counting.calls > 0 and transform.training
    assert torch.equal(torch.get_rng_state(), before)
    assert transform.state == 0 and not transform.norm.initialized
    assert all(parameter.grad is None for parameter in transform.parameters())


def test_each_make_of_transform_is_tried_once(monkeypatch):
    tried = []
    real = module._problem_of_a_copy
    monkeypatch.setattr(
        module, "_problem_of_a_copy", lambda *given: tried.append(given[0]) or real(*given)
    )

    factory = partial(MaskedAffineAutoregressiveTransform, hidden_features=7)
    for features in (5, 6, 5, 6):
        made = as_transform(factory, features)
        ChannelMixingTransform(made)
    assert [part.features for part in tried] == [5, 6]
    as_transform(AffineCoupling, 4)
    as_transform(zuko.flows.NAF, 4)  # whose inverse iterates
    assert len(tried) == 2


class Stretch(Transform):
    """Multiplies by what may be no bijection, and divides by what may be another number."""

    def __init__(self, factor, divisor=None):
        super().__init__()
        self.register_buffer("factor", torch.tensor(float(factor)))
        self.divide = lambda inputs: inputs / (divisor or self.factor)

    def forward(self, inputs, context=None):
        logabsdet = self.factor.abs().log() * inputs.shape[1]
        return self.factor * inputs, logabsdet.expand(len(inputs))

    def inverse(self, inputs, context=None):
        return self.divide(inputs), -self.forward(inputs)[1]


def test_what_has_passed_says_nothing_of_other_values():
    as_transform(Stretch(2), 4)
    as_transform(lambda features: Stretch(2), 4)
    for factor, divisor in [(0, None), (2, 3)]:
        with refused():
            as_transform(Stretch(factor, divisor), 4)
        with refused():
            as_transform(lambda features, given=(factor, divisor): Stretch(*given), 4)
    factors = iter([2, 0])
    factory = partial(lambda features, factors: Stretch(next(factors)), factors=factors)
    as_transform(factory, 4)
    with refused():
        as_transform(factory, 4)


def test_nothing_is_computed_on_the_meta_or_a_fake_device():
    with torch.device("meta"):
        as_transform(Scale(back=0.7), 4)
    with refused():
        as_transform(Scale(back=0.7), 4)
    as_transform(MaskedAffineAutoregressiveTransform(4, 8).to("meta"), 4)
    with FakeTensorMode():
        as_transform(Counting(4), 4)


def test_a_context_of_known_length_is_given_and_one_of_unknown_is_not_needed():
    class Asks(Scale):
        takes_context = True

        def forward(self, inputs, context=None):
            return super().forward(inputs + 0 * context.sum(1, keepdim=True))

    as_transform(MaskedAffineAutoregressiveTransform(4, 8, context_features=3), 4)
    as_transform(Asks(), 4)
    known = Asks(log_det=0.0)
    known.context_features = 3
    with refused("log-det"):
        as_transform(known, 4)


def test_tensors_that_cannot_be_copied_are_left_alone():
    class Normed(Scale):
        def __init__(self):
            super().__init__()
            weight = nn.Parameter(torch.ones(4))
            self.weight = weight
            self.scaled = 2 * weight

    as_transform(Normed(), 4)

"""From a chain of transforms to its steps, and to the folded weights that they read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from nflows.transforms import Permutation, Transform
from torch import Tensor, nn

from nflows_mixer.core.composite import CompositeTransform, InverseTransform
from nflows_mixer.core.context import takes_context
from nflows_mixer.nn.collapsed import collapse
from nflows_mixer.transforms.affine import AffineMaps, affine_key, affine_maps, is_affine
from nflows_mixer.transforms.coupling import _Coupling
from nflows_mixer.transforms.flow_step import FlowStep, is_flow_step
from nflows_mixer.transforms.mixing import ChannelMixingTransform, PatchMixingTransform
from nflows_mixer.transforms.patches import PatchTransform
from nflows_mixer.transforms.shift import ShiftTransform
from nflows_mixer.transforms.steps import Affine, Cut, Mix, Part, Region, Step


def steps_of(transform: Transform, passes_context: bool | None = None) -> list[Step]:
    """Return the steps that evaluate a transform, with affine neighbours folded.

    What this package does not know, what somebody has subclassed or whose methods were replaced,
    and couplings whose network was changed or hooked, are steps of their own. Weights are not read
    here, see ``fold``.

    Args:
        transform: any transform.
        passes_context: whether it takes the context, where that is known.

    Example:
        >>> from nflows_mixer.transforms import FlowLayer
        >>> [type(step).__name__ for step in steps_of(FlowLayer(6))]  # ActNorm has no data yet
        ['FlowStep', 'Part']
    """
    return _joined(list(_atoms(transform, passes_context)))


def steps_of_chain(chain: CompositeTransform) -> list[Step]:
    """Return the steps of the parts of a composite, whatever its own methods do with them.

    Args:
        chain: a composite.

    Example:
        >>> from nflows_mixer.transforms import LULinear
        >>> len(steps_of_chain(CompositeTransform([LULinear(3), LULinear(3)])))
        1
    """
    return _joined(list(_links(chain)))


def _links(chain: CompositeTransform) -> Iterator[Step]:
    for index, (part, passes) in enumerate(zip(chain._transforms, chain._passes_context)):
        for step in _atoms(part, passes):
            step.name = f"_transforms.{index}.{step.name}".rstrip(".")
            yield step


def _atoms(transform: Transform, passes_context: bool | None) -> Iterator[Step]:
    replaced = {"forward", "inverse"} & transform.__dict__.keys()
    kind = type(transform)
    if not replaced and _is_chain(kind):
        yield from _links(cast(CompositeTransform, transform))
    elif not replaced and kind in (ChannelMixingTransform, PatchMixingTransform):
        yield Mix(transform, steps_of(transform.transform))
    elif not replaced and kind is ShiftTransform and transform._places is not None:
        inner = steps_of(transform.transform)
        # Unless somebody has put another transform into it.
        cut = transform._places_of
        if _is_cut(inner[0], False, cut) and _is_cut(inner[-1], True, cut):
            yield Cut(transform._outer, name="_outer")
            yield Region(transform, inner[1:-1])
            yield Cut(transform._outer, uncut=True, name="_outer")
        else:
            yield Part(transform, transform._passes_context)
    elif not replaced and kind is PatchTransform:
        yield Cut(transform)
    elif not replaced and kind is InverseTransform and type(transform._transform) is PatchTransform:
        yield Cut(transform._transform, uncut=True)
    elif is_affine(transform):
        yield Affine([transform])
    elif is_flow_step(transform):
        yield FlowStep(cast(_Coupling, transform))
    else:
        passes = takes_context(transform) if passes_context is None else passes_context
        yield Part(transform, passes)


def _is_chain(kind: type) -> bool:
    marked = all(getattr(getattr(kind, n), "is_chain", False) for n in ("forward", "inverse"))
    return marked and kind._chain is CompositeTransform._chain  # type: ignore[attr-defined]


def _is_cut(step: Step, uncut: bool, geometry: tuple) -> bool:
    return isinstance(step, Cut) and step.uncut == uncut and step.patches.geometry == geometry


def _joined(steps: list[Step]) -> list[Step]:
    """Join affine neighbours to each other and to the coupling behind; drop cuts undone."""
    joined: list[Step] = []
    for step in steps:
        last = joined[-1] if joined else None
        if isinstance(step, Cut) and step.undoes(last):
            joined.pop()
        elif isinstance(last, Affine) and isinstance(step, Affine):
            joined[-1] = Affine([*last.parts, *step.parts], last.name)
        elif isinstance(last, Affine) and isinstance(step, FlowStep):
            joined[-1] = FlowStep(step.coupling, last.parts, step.name)
        else:
            joined.append(step)
    single: list[Step] = []
    for step in joined:
        # On their own they are an index, not a product.
        if isinstance(step, Affine) and all(isinstance(part, Permutation) for part in step.parts):
            for part in step.parts:
                single.append(Part(part, False))
                single[-1].name = step.name
        else:
            single.append(step)
    return single


def leaves(steps: Sequence[Step]) -> Iterator[Step]:
    """Yield the steps that hold no others, in their order.

    Example:
        >>> from nflows_mixer.transforms import LULinear
        >>> len(list(leaves(steps_of(LULinear(3)))))
        1
    """
    for step in steps:
        if isinstance(step, (Mix, Region)):
            yield from leaves(step.steps)
        else:
            yield step


def fold(
    steps: Sequence[Step],
    inverse: bool = False,
    invert: Callable[[tuple, AffineMaps], AffineMaps] = lambda key, maps: maps.inverse(),
) -> None:
    """Compute the weights that the steps read, once: all affine maps of one size in one batch.

    In ordinary autograd: gradients reach the parameters.

    Args:
        steps: from ``steps_of``; their weights are set.
        inverse: whether for the inverse direction.
        invert: (key, maps) -> inverse maps; the key is equal whenever the parts are.
    """
    runs: dict[tuple, list[Affine | FlowStep]] = defaultdict(list)
    networks: dict[tuple, list[FlowStep]] = defaultdict(list)
    for step in leaves(steps):
        if isinstance(step, (Affine, FlowStep)) and step.parts:
            keys = tuple(affine_key(part) for part in step.parts)
            runs[keys, _dtype(step)].append(step)
        if isinstance(step, FlowStep):
            networks[_network_key(step)].append(step)
    for key, members in runs.items():
        dtype = key[1]
        maps = None
        for parts in zip(*(member.parts for member in members)):
            found = affine_maps(parts, dtype)
            maps = found if maps is None else maps.then(found)
        assert maps is not None
        if inverse:
            maps = invert(key, maps)
        for member, *of_member in zip(members, *map(torch.unbind, maps.tensors)):
            member.maps = tuple(of_member)
    for alike in networks.values():
        for flow_step, weights in zip(alike, collapse([step.network for step in alike])):
            flow_step.weights = weights


def invert_maps(steps: Sequence[Step]) -> None:
    """Set the inverses of folded maps, all of one size in one batch, without gradients.

    Args:
        steps: folded for the forward direction.
    """
    sizes = defaultdict(list)
    for step in leaves(steps):
        if isinstance(step, (Affine, FlowStep)) and step.maps is not None:
            sizes[step.maps[0].shape, step.maps[0].dtype].append(step)
    for members in sizes.values():
        stacked = [torch.stack(of_all).detach() for of_all in zip(*(m.maps for m in members))]
        inverse = AffineMaps(*stacked).inverse()
        for member, *of_member in zip(members, *map(torch.unbind, inverse.tensors)):
            member.inverse_maps = tuple(of_member)


def _dtype(step: Affine | FlowStep) -> torch.dtype:
    if isinstance(step, FlowStep):
        return step.network.initial.weight.dtype
    return next(parameter.dtype for part in step.parts for parameter in part.parameters())


def _network_key(step: FlowStep) -> tuple:
    first: nn.Linear = step.network.initial
    final: nn.Linear = step.network.final
    weight: Tensor = first.weight
    return weight.shape, final.weight.shape, weight.dtype, weight.device

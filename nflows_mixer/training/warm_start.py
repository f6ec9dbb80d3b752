"""Training that starts from weights."""

from __future__ import annotations

from nflows_mixer._checks import mismatch
from nflows_mixer.flows import grow, load_weights, read_metadata
from nflows_mixer.flows.image_flow import ImageFlow

OWNER = "--start_from"


def start_from(path: str, flow: ImageFlow) -> None:
    """Give a flow the weights of a file, whose flow may have had fewer layers.

    Layers that are added to a MixerFlow start at the identity, see ``grow``.

    Args:
        path: file .safetensors.
        flow: takes the weights.

    Raises:
        ValueError: if the file is of another flow.

    Example:
        >>> import tempfile
        >>> from nflows_mixer.flows import mixerflow, save_weights
        >>> small = {"image_shape": (1, 4, 4), "patch_size": 2, "shift": None}
        >>> path = f"{tempfile.mkdtemp()}/weights.safetensors"
        >>> save_weights(mixerflow(num_layers=1, **small), path)
        >>> start_from(path, mixerflow(num_layers=2, **small))
    """
    builder = read_metadata(path).get("builder")
    if builder is None or flow.architecture is None:  # made of what a file does not hold
        load_weights(path, flow)
        return
    family = flow.architecture.builder
    if builder != family:
        got, advice = f"those of a {builder}", "name that builder as --model, or take other weights"
        raise mismatch(OWNER, f"weights of a {family}", got, advice)
    trained = load_weights(path)
    assert trained.architecture is not None
    before, now = trained.architecture.arguments, flow.architecture.arguments
    # Numbers, of a MixerFlow of one scale.
    old, new = before.get("num_layers"), now.get("num_layers")
    if isinstance(old, int) and isinstance(new, int) and old < new:
        lists = {name: now[name] for name in ("patch_size", "shift") if before[name] != now[name]}
        trained = grow(trained, new, **lists)
    assert trained.architecture is not None
    own, there = flow.architecture.as_data() or {}, trained.architecture.as_data() or {}
    if differing := [name for name in own if own[name] != there.get(name)]:
        raise mismatch(
            OWNER,
            "weights of this architecture, or of a mixerflow with fewer layers",
            f"one that differs in {', '.join(differing)}",
            "give the same --model arguments",
        )
    flow.load_state_dict(trained.state_dict())

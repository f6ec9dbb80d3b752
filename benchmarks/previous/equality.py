"""The same function as an earlier commit: both get one state, and what they compute is compared.

    git worktree add ../old a04558a
    python -m benchmarks.previous.equality --old ../old --data FOLDER   # of cifar10_train.npz ...

One process for each side, everything in float64. The old code builds a flow, initializes ActNorm
from data, and moves each parameter and running statistic at random; the new code gets that state
under its own names. Compared are log-likelihoods, latents and each parameter's gradient, in
evaluation and in training mode, running statistics after a training forward, and inverses (of the
latents that the old code inverts to what they were made from), in all three memory modes. The
difference of two tensors is relative to the largest magnitude in the old one (for each image, where
there are images); a gradient below 1e-12 of the flow's largest, in both, is one that is zero but
for rounding (that of a bias before a batch normalization), and is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BOUND = 1e-10
ZERO = 1e-12
"""Of the largest gradient: below it lies rounding error."""
WORKER = Path(__file__).with_name("equality_worker.py")
TREE = Path(__file__).parents[2]
CASES: dict[str, dict[str, Any]] = {
    "cifar10-2": {"data": "cifar10", "batch": 8},
    "cifar10-2-near": {"data": "cifar10", "batch": 8, "std": 0.02},
    "cifar10-30": {"data": "cifar10", "batch": 4, "std": 0.01},
    "mnist": {"data": "mnist", "batch": 8},
    "spline": {"data": "cifar10", "batch": 8},
    "classes": {"data": "cifar10", "batch": 8, "labels": True},
    "kronecker": {"data": "cifar10", "batch": 8},
    "denseflow": {"data": "cifar10", "batch": 4},
}
"""Name -> data set, images in a batch, standard deviation of the noise on the state, labels."""
PARTS = {"0": "linear", "1": "flow"}
"""Place in an old flow layer -> attribute of a new one; the third, the norm, moves to the next."""
RENAMES = [
    (r"\.branch\.0\.", ".norm1."),
    (r"\.branch\.2\.", ".linear1."),
    (r"\.branch\.3\.", ".norm2."),
    (r"\.branch\.5\.", ".linear2."),
    (r"\.drop_(\d+)\.", r".split_\1."),
    (r"\.linear\.weight$", ".linear.matrix"),
]
"""Patterns of what else has another name, and what it is called now."""


def main() -> int:
    """Compare all cases, print a table, and return 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, required=True, help="worktree of commit a04558a")
    parser.add_argument("--new", type=Path, default=TREE, help="the tree to compare with it")
    parser.add_argument("--data", type=Path, help="folder of cifar10_train.npz and mnist_train.npz")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path, help="JSON file of the differences")
    arguments = parser.parse_args()
    results = {}
    for name in arguments.cases:
        results[name] = compare_case(name, arguments.old, arguments.new, arguments.data)
        for kind, found in results[name].items():
            note = "" if found["difference"] <= BOUND else f"  MISSED, at {found['where']}"
            note += f"  ({found['images']} images)" if "images" in found else ""
            print(f"{name:15} {kind:40} {found['difference']:.1e}{note}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    largest = max(found["difference"] for kinds in results.values() for found in kinds.values())
    print(f"largest difference {largest:.1e}, bound {BOUND:.0e}")
    return int(not largest <= BOUND)


def compare_case(name: str, old: Path, new: Path, data: Path | None) -> dict[str, dict[str, Any]]:
    """Return the largest difference of each quantity of one case, and the tensor it is in."""
    case = {"name": name, "std": 0.05, "labels": False, **CASES[name]}
    case["data"] = "" if data is None else str(data / f"{case['data']}_train.npz")
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)

        def run(side: str, step: str) -> None:
            torch.save({**case, "step": step}, there / "case.pt")
            tree = old if side == "old" else new
            environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, str(WORKER), side, folder]
            subprocess.run(command, cwd=folder, env=environment, check=True)

        run("old", "state")
        run("new", "names")
        given = torch.load(there / "old-state.pt")
        shapes = torch.load(there / "new-names.pt")
        names = name_map(given["state"], shapes)
        state = {names[key]: value for key, value in given["state"].items()}
        torch.save({**given, "state": state}, there / "new-state.pt")
        run("old", "evaluate")
        run("new", "evaluate")
        one, other = (torch.load(there / f"{side}.pt") for side in ("old", "new"))
    return {kind: difference(kind, one[kind], other[kind], names) for kind in one}


def name_map(old: dict[str, Tensor], new: dict[str, list[int]]) -> dict[str, str]:
    """Map the old names of a state to the new ones, checked to be a bijection of equal shapes.

    A channel or patch flow was ActNorm and flow layers (linear block, row flow, ActNorm); now each
    flow layer is (ActNorm, linear block, row flow), and the last ActNorm is behind them.
    """
    if not old.keys() ^ new.keys():
        found = {name: name for name in old}
    else:
        found = {name: new_name(name, old) for name in old}
    if len(set(found.values())) != len(found) or set(found.values()) != new.keys():
        missing = sorted(new.keys() - set(found.values()))[:5]
        unknown = sorted(set(found.values()) - new.keys())[:5]
        raise ValueError(f"no bijection of names: the new code has {missing}, not {unknown}")
    for name, renamed in found.items():
        if list(old[name].shape) != new[renamed]:
            raise ValueError(f"{name} has shape {list(old[name].shape)}, not {new[renamed]}")
    return found


def new_name(name: str, names: Any) -> str:
    """Return what a parameter or buffer is called now."""
    for chain in re.finditer(r"\._transforms\.(\d+)\.", name):
        prefix, place, rest = name[: chain.start()], int(chain[1]), name[chain.end() :]
        if not is_mixing_flow(prefix, names):
            continue
        layers = len({n for n in names if is_norm_of_layer(prefix, n)})
        inner = re.match(r"_transforms\.(\d+)\.(.*)", rest)
        if inner is None or place == 0:  # the first ActNorm
            norm, rest = 0, rest
        elif inner[1] == "2":
            norm, rest = place, inner[2]
        else:
            name = f"{prefix}._transforms.{place - 1}.{PARTS[inner[1]]}.{inner[2]}"
            break
        at = f"{norm}" if norm == layers else f"{norm}.actnorm"
        name = f"{prefix}._transforms.{at}.{rest}"
        break
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def is_mixing_flow(prefix: str, names: Any) -> bool:
    """Whether there is an ActNorm and then a flow layer with one."""
    return (
        f"{prefix}._transforms.0.log_scale" in names
        and f"{prefix}._transforms.1._transforms.2.log_scale" in names
    )


def is_norm_of_layer(prefix: str, name: str) -> bool:
    """Whether a name is that of an old flow layer's ActNorm."""
    pattern = re.escape(prefix) + r"\._transforms\.\d+\._transforms\.2\.log_scale"
    return re.fullmatch(pattern, name) is not None


def difference(
    kind: str, old: dict[str, Tensor], new: dict[str, Tensor], names: dict[str, str]
) -> dict[str, Any]:
    """Return the largest relative difference of tensors of one kind, and where it is."""
    found: dict[str, Any] = {"difference": 0.0, "where": "", "zero": 0}
    if kind.startswith("inverse"):
        found["images"] = len(old["values"])
    by_image = kind.startswith(("log_prob", "latents", "inverse"))
    smallest = 0.0
    if kind.startswith("gradients"):
        smallest = ZERO * max(value.abs().max().item() for value in old.values())
    for name, value in old.items():
        other = new[names.get(name, name)]
        if value.numel() == 0:
            continue
        size = value.abs().max().item()
        if max(size, other.abs().max().item()) <= smallest:
            found["zero"] += 1
            continue
        apart = (value - other).abs()
        if by_image:
            sizes = value.abs().flatten(1).amax(1) if value.dim() > 1 else value.abs()
            apart = apart.flatten(1).amax(1) if value.dim() > 1 else apart
            largest = (apart / sizes).max().item()
        else:
            largest = apart.max().item() / (size or 1.0)
        # Not a number is no agreement.
        if not largest <= found["difference"]:
            found["difference"], found["where"] = largest, name
    return found


if __name__ == "__main__":
    sys.exit(main())

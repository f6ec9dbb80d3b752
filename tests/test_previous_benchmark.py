"""Names of an earlier commit's states, mapped to today's."""

import pytest
import torch

from benchmarks.previous.equality import name_map


def test_flow_layers_are_regrouped_one_to_one():
    old = {
        "t._transforms.0.weight": torch.zeros(7),
        "t._transforms.1.transform._transforms.0.log_scale": torch.zeros(4),
    }
    new = {"t._transforms.0.weight": [7]}
    for layer in range(2):
        chain = f"t._transforms.1.transform._transforms.{layer + 1}._transforms"
        now = f"t._transforms.1.transform._transforms.{layer}"
        old |= {
            f"{chain}.0.packed": torch.zeros(4, 4),
            f"{chain}.1.conditioner.weight": torch.zeros(3, layer + 1),
            f"{chain}.2.log_scale": torch.zeros(4),
        }
        new |= {
            f"{now}.actnorm.log_scale": [4],
            f"{now}.linear.packed": [4, 4],
            f"{now}.flow.conditioner.weight": [3, layer + 1],
        }
    new["t._transforms.1.transform._transforms.2.log_scale"] = [4]
    names = name_map(old, new)
    chain = "t._transforms.1.transform._transforms"
    assert names[f"{chain}.0.log_scale"] == f"{chain}.0.actnorm.log_scale"
    assert names[f"{chain}.1._transforms.2.log_scale"] == f"{chain}.1.actnorm.log_scale"
    assert names[f"{chain}.2._transforms.2.log_scale"] == f"{chain}.2.log_scale"
    with pytest.raises(ValueError, match="bijection"):
        name_map(old, {**new, "more": [1]})
    with pytest.raises(ValueError, match="shape"):
        name_map(old, {**new, f"{chain}.0.linear.packed": [4, 5]})

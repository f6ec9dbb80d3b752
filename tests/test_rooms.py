"""The package is a house: each module imports from its own room and from rooms below alone."""

import ast
from pathlib import Path

import nflows_mixer

PACKAGE = Path(nflows_mixer.__file__).parent
ROOMS = [
    {"cli", "__main__"},
    {"training", "evaluation"},
    {"data"},
    {"flows"},
    {"likelihood"},
    {"adapters"},
    {"transforms"},
    {"core"},
    {"distributions"},
    {"numerics"},
    {"nn"},
    {"noise", "_checks", "_modes", "_distributed", "_files"},
]
"""From the top of the house down."""
HEIGHTS = {room: len(ROOMS) - level for level, rooms in enumerate(ROOMS) for room in rooms}
HEIGHTS[""] = len(ROOMS) + 1  # the package's own __init__, which hands on what users need


def modules():
    """Name below the package -> file, such as transforms.shift."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(name, file, known):
    """Return which modules of the package a module imports, also within its functions.

    ``from room import thing`` reaches the module ``room.thing`` where there is one.
    """
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            targets = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            targets = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, thing in targets:
            if module.split(".")[0] != PACKAGE.name:
                continue
            module = module.partition(".")[2]
            full = f"{module}.{thing}".strip(".")
            if full == "__version__":
                continue
            found.add(full if full in known else module)
    return found


def graph():
    known = modules()
    return {name: imports_of(name, file, known) for name, file in known.items()}


def test_every_room_has_its_place():
    rooms = {name.split(".")[0] for name in modules()}
    assert rooms <= HEIGHTS.keys(), f"not in ROOMS: {sorted(rooms - HEIGHTS.keys())}"


def test_no_module_imports_from_a_room_above():
    up = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in targets
        if HEIGHTS[target.split(".")[0]] > HEIGHTS[name.split(".")[0]]
    ]
    assert not up, "\n".join(sorted(up))


def test_no_circle_of_imports():
    left = graph()
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"in circles, or above one: {sorted(left)}"

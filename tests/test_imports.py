"""Arrows point one way: a room may import only rooms below it."""

import ast
from pathlib import Path

import pytest

import bessemer

ORDER = [
    "errors randomness arithmetic allocation processes records",
    "threat data layers",
    "models attacks",
    "adapters",
    "training evaluation",
    "purification sweeps",
    "report",
    "papers",
    "cli",
    "__main__",
]
HEIGHT = {room: level for level, rooms in enumerate(ORDER) for room in rooms.split()}
ROOT = Path(bessemer.__file__).parent


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module
            # `from bessemer import data` names a room only in its second half
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_of(path):
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] == "bessemer" and len(parts) > 1 and parts[1] in HEIGHT:
            yield parts[1]


def arrows():
    found = set()
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room != "__init__":
            found |= {(room, other) for other in rooms_of(path) if other != room}
    return sorted(found)


def test_every_room_has_its_place():
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")} - {"__init__"}
    assert rooms <= set(HEIGHT), f"no place in the order for {sorted(rooms - set(HEIGHT))}"


@pytest.mark.parametrize(("room", "imported"), arrows())
def test_arrows_point_down(room, imported):
    # everybody may refuse with errors, the other rooms on the ground floor too
    allowed = HEIGHT[imported] < HEIGHT[room] or (imported == "errors" and room != "errors")
    assert allowed, f"{room} should not need to know about {imported}"


@pytest.mark.parametrize("room", ["records", "report"])
def test_plain_data_and_pages_need_no_torch(room):
    for path in (ROOT / room).rglob("*.py"):
        assert not [module for module in imported_modules(path) if module.split(".")[0] == "torch"], path


def test_every_name_at_the_front_door_is_there():
    assert all(hasattr(bessemer, name) for name in bessemer.__all__)

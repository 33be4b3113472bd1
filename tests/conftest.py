"""Options and fixtures of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("unit", derandomize=True, database=None)
settings.register_profile("long", max_examples=1000, derandomize=True, database=None)
settings.load_profile("unit")  # --hypothesis-profile=long comes later

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write the golden texts anew instead of comparing")


def pytest_collection_modifyitems(items):
    """Tests that share what is expensive to build run in one process (`--dist loadgroup`)."""
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        shared = [str(values[name]) for name in ("target", "lanes", "bank") if name in values]
        item.add_marker(pytest.mark.xdist_group("-".join([item.path.stem, *shared])))


@pytest.fixture
def golden(request):
    """``golden(name, text)`` compares ``text`` with ``tests/golden/NAME.txt``."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            path.write_text(text)
        assert path.exists(), f"no {path.name}; run pytest --update-golden and read what it wrote"
        assert text == path.read_text()

    return compare

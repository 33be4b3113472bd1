from __future__ import annotations

import shutil
from pathlib import Path

import agent_fakes
import pytest

from compiled_networks import profile_of

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kernels)


@pytest.fixture(scope="session")
def usable():
    """``usable(lanes)``: the profile with that many lanes; skips where this machine cannot run its code."""

    def profile(lanes: int):
        chosen = profile_of(lanes)
        if not chosen.runs_here():
            pytest.skip(f"this processor lacks what profile {chosen.name!r} needs: {', '.join(chosen.codegen.mattr)}")
        if shutil.which(chosen.link.cxx) is None:
            pytest.skip(f"no `{chosen.link.cxx}` to link with; install {chosen.link.package}")
        return chosen

    return profile


@pytest.fixture(scope="session")
def agent(usable, tmp_path_factory) -> Path:
    """A folder with the agent and the library of `agent_fakes`."""
    return agent_fakes.build(usable(8), tmp_path_factory.mktemp("agent"))

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from compiled_networks import profile_of
from hwprune.measure.device import available_cores

HERE = Path(__file__).parent


def pytest_configure(config):
    # TVM's pool takes its size once a process, from whoever is first: a kernel built here or an artifact
    os.environ.setdefault("TVM_NUM_THREADS", str(available_cores()))


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

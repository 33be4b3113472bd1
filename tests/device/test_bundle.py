"""A bundle for a board that is not there: cross-compiled, measured under qemu, and recognized as an emulator's."""

from __future__ import annotations

import pytest
from bundles import unpacked

from hwprune import api
from hwprune.costing import Costing
from hwprune.errors import UsageError
from hwprune.measure.elsewhere import latest_of
from hwprune.measure.importing import read_results
from hwprune.measure.rpc import build_starter
from hwprune.measure.store import Store
from hwprune.target import load_file, shipped_folder


@pytest.fixture(scope="module")
def results(arm_board, tmp_path_factory):
    profile = load_file(shipped_folder() / "rpi4.toml").model_copy(update={"threads": 2})
    bundle = unpacked(profile, tmp_path_factory.mktemp("bundle"))
    return bundle, bundle.measure(profile.link.emulator, arm_board.environment)


def test_every_kernel_is_measured_on_the_emulated_board(results):
    bundle, path = results
    found = read_results(path)
    assert found.job == bundle.job and found.device.machine == "aarch64" and found.failed == ()
    assert [m.workload for m in sorted(found.measured, key=lambda m: m.workload)] == [0, 1, 2]
    assert all(us > 0 for m in found.measured for k in m.kernels for us in k.samples_us)


def test_module_that_starts_the_agent_over_rpc_is_for_the_board(results, tmp_path):
    build_starter(results[0].profile, tmp_path / "starter.so")
    header = (tmp_path / "starter.so").read_bytes()[:20]
    assert header[:5] == b"\x7fELF\x02" and int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64


def test_an_emulators_times_are_refused_and_when_asked_for_kept_apart(results, tmp_path):
    bundle, path = results
    store = tmp_path / "m.sqlite"
    with pytest.raises(UsageError, match="was measured in an emulator .*--emulated"):
        api.import_results(path, store=store)
    assert not store.exists()
    told = api.import_results(path, store=store, emulated=True)
    assert told.device.startswith("emulated (") and told.workloads == 3
    opened = Store(store)
    assert latest_of(opened, 2, bundle.job.header.software) is None
    opened.close()
    with Costing(bundle.profile, store) as cost:
        assert {e.provenance for e in cost.model.predict(bundle.job.workloads)} == {"analytic"}

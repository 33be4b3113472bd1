"""A bundle for this kind of machine, made, measured and imported: its times stand beside those that are measured directly."""

from __future__ import annotations

import os

import pytest
from bundles import LIMITS, asked, unpacked

from hwprune.errors import CompileError, MeasureError
from hwprune.kernels import candidates
from hwprune.kernels.schedule import Config
from hwprune.measure import bundle as bundles
from hwprune.measure.bundle import build_job
from hwprune.measure.importing import read_results, store_results
from hwprune.measure.measurer import Measurer
from hwprune.measure.store import Store

pytestmark = pytest.mark.timed


@pytest.fixture(scope="module")
def bundle(usable, tmp_path_factory):
    return unpacked(usable(8), tmp_path_factory.mktemp("bundle"))


def test_what_the_agent_measures_here_is_found_as_if_it_were_measured_directly(bundle, tmp_path):
    results = read_results(bundle.measure())
    assert results.job == bundle.job and not results.device.emulated and results.failed == ()
    store = Store(tmp_path / "m.sqlite")
    told = store_results(results, store)
    assert told.workloads == len(bundle.job.workloads) == 3 and told.schedules >= 3
    with Measurer(bundle.profile, store) as measurer:
        spread = bundle.job.header.spread_bytes
        assert told.device == measurer.context.device and results.context.software == f"{measurer.context.software}; constants over 0 MiB"
        assert spread == 1 << 16
        for workload in bundle.job.workloads:
            found = store.best(workload, results.context)
            assert 0 < found.latency.latency_us < 1e5 and Config.from_text(found.config) in candidates(workload, bundle.profile)
    store.close()


def test_a_bundle_holds_the_agent_the_job_and_the_libraries_and_nothing_else(bundle):
    names = {str(p.relative_to(bundle.folder)) for p in bundle.folder.rglob("*") if p.is_file()}
    assert {"measure", "job.tsv", *(b.file for b in bundle.job.libraries)} == names - {"journal.jsonl", "results.json"}
    assert os.access(bundle.folder / "measure", os.X_OK)
    assert (bundle.folder / "job.tsv").read_text() == bundle.job.to_text()


def test_what_an_interrupted_call_has_built_is_used_again(bundle, monkeypatch):
    monkeypatch.setattr(bundles, "link_kernels", lambda *arguments: pytest.fail("it is built again"))
    again = build_job(asked(bundle.profile), bundle.profile, bundle.profile.threads, 1 << 16, bundle.parts, limits=LIMITS)
    assert again == bundle.job


def test_with_little_room_fewer_schedules_are_packed(bundle):
    tight = build_job(asked(bundle.profile), bundle.profile, bundle.profile.threads, 1 << 16, bundle.parts, limit_bytes=1)
    assert tight.efforts == (1, 1, 1) and len(tight.kernels) == 4


def test_schedules_that_do_not_link_are_named_and_left_out(bundle, monkeypatch, tmp_path):
    def refusing(whom):
        def link(kernels, functions, profile, threads, out):
            if any(whom(k) for k in kernels):
                raise CompileError("relocation truncated to fit")
            out.write_bytes(b"library")
            return [64] * len(kernels)

        return link

    profile, wanted = bundle.profile, asked(bundle.profile)
    bad = bundle.job.of(2)
    monkeypatch.setattr(bundles, "link_kernels", refusing(lambda k: k == bad))
    job = build_job(wanted, profile, profile.threads, 0, tmp_path / "one")
    number = bundle.job.kernels[2].workload
    assert job.failures == ((number, "relocation truncated to fit", bad.config),)
    assert len(job.kernels) == len(bundle.job.kernels) - 1 and bad not in [job.of(n) for n in range(1, len(job.kernels))]
    monkeypatch.setattr(bundles, "link_kernels", refusing(lambda k: k.workload in bundle.job.workloads))
    with pytest.raises(MeasureError, match="no schedule of workload .* can be built: relocation truncated to fit"):
        build_job(wanted, profile, profile.threads, 0, tmp_path / "none")

"""The flow of a search through the Python interface, for a target that nothing can be measured on here."""

import json
import os
import re

import pytest
import torch
from torch import nn

import hwprune
from hwprune import api
from hwprune.compile.lower import lower
from hwprune.compile.parts import lower_batch
from hwprune.cost import analytic
from hwprune.cost.base import network_estimate
from hwprune.costing import Costing, load_target
from hwprune.errors import BudgetError, HwpruneError, StoreError, TargetError, UsageError
from hwprune.graph import trace
from hwprune.measure.estimate import Latency
from hwprune.plan import PruningPlan
from hwprune.results import AxisRow
from hwprune.spec.data import from_arrays

TARGET = """
schema = 1
name = "elsewhere"
description = "a processor that this machine is not"
architecture = "x86_64"
cores = 2
threads = 2
[codegen]
kind = "llvm"
mattr = ["+no-such-extension"]
[core]
vector_bits = 256
vector_registers = 16
fma_per_cycle = 2
frequency_mhz = 3000
[memory]
l1d_bytes = 32768
l2_bytes = 262144
dram_gb_per_s = 20
l2_gb_per_s = 96
[overhead]
kernel_us = 0.05
network_us = 0.1
"""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.conv2 = nn.Conv2d(24, 32, 3, padding=1)
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


class Residual(nn.Module):
    """Three blocks around the same channels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.down(torch.relu(self.up(x))))


def make_data():
    """Four classes of 8x8 images, each bright in its own quarter."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(128) % 4
    x = 0.3 * torch.randn(128, 1, 8, 8, generator=generator)
    for i, label in enumerate(y.tolist()):
        x[i, 0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 1.0
    return from_arrays("quarters", x[:96], y[:96], x[96:], y[96:])


X = torch.zeros(1, 1, 8, 8)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    path = tmp_path_factory.mktemp("targets") / "elsewhere.toml"
    path.write_text(TARGET)
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory, target):
    out = tmp_path_factory.mktemp("runs") / "first"
    return hwprune.search(make_net(), X, target=target, latency="0.6x", data=make_data(), finetune=1, out=out, seed=3)


def test_result_is_what_ten_lines_of_python_get(run):
    ratio = run.plan.predicted.latency_us.value / run.plan.dense.latency_us.value
    assert 0.3 < ratio <= 0.6
    assert run.model(X).shape == (1, 4)
    assert run.model.conv1.out_channels == run.plan.widths["conv1"] == len(run.plan.kept("conv1")) < 24
    assert run.proof.passed and run.plan.importance == "taylor"
    assert [p for p in run.frontier if p.chosen][0].widths == run.plan.widths
    assert run.dense.conv1.out_channels == 24


def test_table_has_every_quantity_with_its_provenance(run):
    rows = {row.quantity: row for row in run.table()}
    assert list(rows) == [
        "accuracy",
        "parameters",
        "size on disk",
        "peak activation memory",
        "MACs",
        "latency, predicted",
        "latency, measured",
    ]
    parameters = rows["parameters"]
    assert parameters.dense.value == sum(p.numel() for p in run.dense.parameters()) == run.plan.dense.parameters
    assert parameters.pruned.value == sum(p.numel() for p in run.model.parameters()) == run.plan.predicted.parameters
    assert rows["latency, predicted"].pruned.provenance == "analytic"
    assert rows["latency, measured"].pruned is None and "compile" in rows["latency, measured"].note
    assert rows["accuracy"].pruned.provenance == "measured"
    assert rows["size on disk"].pruned.value == (run.out / "model.safetensors").stat().st_size


def test_macs_by_hand(run):
    # 64 pixels x 9 x (1 x 24 + 24 x 32) in the convolutions, 32 x 4 in the classifier
    assert run.plan.dense.macs == 64 * 9 * (24 + 24 * 32) + 128


def test_a_batch_in_parts_is_searched_as_it_runs(target, tmp_path):
    x, profile = torch.randn(16, 1, 16, 16), load_target(target)
    network = lower_batch(make_net(), x, profile)
    assert network.parts > 1
    result = hwprune.search(make_net(), x, target=target, latency="0.6x", out=tmp_path / "run")
    assert result.plan.dense.macs == 16 * (256 * 9 * (24 + 24 * 32) + 128)
    with Costing(profile) as cost:
        expected = network_estimate(cost.model, network.workloads())
        assert result.plan.dense.latency_us.value == pytest.approx(expected.latency_us)
    pruned = lower_batch(result.model, x, profile)
    assert result.plan.predicted.peak_memory_bytes == pruned.memory().peak_bytes and tuple(result.plan.input_shape) == (16, 1, 16, 16)
    assert result.model(x).shape == (16, 4) and hwprune.load_run(tmp_path / "run", model=make_net()).plan == result.plan
    report = hwprune.inspect(make_net(), x, target=target)
    assert report.macs == result.plan.dense.macs and report.latency_us.value == pytest.approx(expected.latency_us)


def test_run_folder_holds_plan_weights_and_record(run):
    names = {p.name for p in run.out.iterdir()}
    assert names == {
        "plan.json",
        "frontier.json",
        "rewrites.json",
        "proof.json",
        "run.json",
        "dense.safetensors",
        "model.safetensors",
        "finetune",
    }
    record = json.loads((run.out / "run.json").read_text())
    assert record["status"] == "finished"
    assert {"torch", "numpy", "scipy", "python", "hwprune", "apache-tvm"} <= set(record["versions"])
    assert record["options"]["seed"] == 3 and record["options"]["latency"] == "0.6x"
    assert record["machine"]["cpu"] and record["machine"]["cores"] >= 1
    assert record["target"]["digest"] and record["data"]["sha256"] and record["files"]["model.safetensors"]
    assert {"trace", "importance", "search", "prune", "finetune"} <= set(record["seconds"])
    assert len(record["results"]) == 7
    assert PruningPlan.load(run.out / "plan.json") == run.plan
    json.dumps(run.to_json())


def test_run_loads_again_and_computes_the_same(run):
    with pytest.raises(UsageError, match="in memory"):
        api.load_run(run.out)
    torch.manual_seed(1)
    again = api.load_run(run.out, model=Net().eval())
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again.model.eval()(x), run.model.eval()(x))
    assert torch.equal(again.dense(x), run.dense(x))
    assert again.frontier == run.frontier and again.proof == run.proof
    assert [r.to_json() for r in again.table()] == [r.to_json() for r in run.table()]


def test_finetune_run_trains_and_saves(run):
    before = (run.out / "plan.json").read_bytes()
    result = api.finetune_run(run.out, 2, data=make_data(), model=make_net())
    record = json.loads((run.out / "run.json").read_text())
    assert record["accuracy"]["pruned"] == result.record["training"]["best_accuracy"]
    assert record["accuracy"]["note"] == "after 2 epochs"
    assert (run.out / "plan.json").read_bytes() == before
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(api.load_run(run.out, model=make_net()).model.eval()(x), result.model.eval()(x))


def test_finished_run_is_kept_unless_force_says_otherwise(run, target):
    record = (run.out / "run.json").read_bytes()
    with pytest.raises(UsageError, match="--force"):
        hwprune.search(make_net(), X, target=target, out=run.out)
    with pytest.raises(BudgetError):  # fails before anything is written
        hwprune.search(make_net(), X, target=target, out=run.out, force=True, latency="0.0001x")
    assert (run.out / "run.json").read_bytes() == record


def test_without_data_no_training_and_accuracy_is_unknown(tmp_path, target):
    result = hwprune.search(
        make_net(), X, target=target, out=tmp_path / "run", strategy="greedy", freeze=["conv2"], latency="0.8x"
    )
    assert result.plan.importance == "l2" and result.plan.strategy == "greedy"
    assert "conv2" not in result.plan.widths
    accuracy = result.table()[0]
    assert accuracy.dense is None and accuracy.pruned is None and "unknown" in accuracy.note
    forced = hwprune.search(make_net(), X, target=target, out=tmp_path / "run", force=True, size="0.5x")
    assert forced.plan.predicted.size_bytes <= 0.5 * forced.plan.dense.size_bytes
    assert PruningPlan.load(tmp_path / "run" / "plan.json") == forced.plan


@pytest.mark.parametrize(
    ("bad", "error", "parts"),
    [
        (dict(latency="3"), UsageError, ["'3'", "3.2ms"]),
        (dict(importance="tailor"), UsageError, ["'tailor'", "taylor"]),
        (dict(importance="taylor"), UsageError, ["needs data", "l2"]),
        (dict(strategy="gready"), UsageError, ["'gready'", "greedy"]),
        (dict(finetune=3), UsageError, ["finetune=3", "data"]),
        (dict(compile=True), UsageError, ["out="]),
        (dict(threads=64), UsageError, ["64 threads", "2 cores"]),
        (dict(target="nativ"), TargetError, ["'nativ'", "native"]),
    ],
)
def test_bad_arguments_fail_before_the_work_begins(bad, error, parts, target, monkeypatch):
    monkeypatch.setattr(api, "trace", lambda *a: pytest.fail("the network was traced"))
    with pytest.raises(error) as err:
        hwprune.search(make_net(), X, **{"target": target, **bad})
    assert all(part in str(err.value) for part in parts)


def test_folders_that_cannot_take_a_run_are_found_before_the_work_begins(tmp_path, target, monkeypatch):
    monkeypatch.setattr(api, "trace", lambda *a: pytest.fail("the network was traced"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty and holds no run"):
        hwprune.search(make_net(), X, target=target, out=tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        hwprune.search(make_net(), X, target=target, out=tmp_path / "notes.txt")
    with pytest.raises(HwpruneError, match="cannot write to"):
        hwprune.search(make_net(), X, target=target, out=tmp_path / "notes.txt" / "below")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.geteuid() != 0:  # root writes anywhere
        with pytest.raises(HwpruneError, match="cannot write to"):
            hwprune.search(make_net(), X, target=target, out=locked / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["locked", "notes.txt"]


@pytest.mark.parametrize("strategy", ["exact", "greedy"])
def test_branches_go_where_the_budget_is_tight(tmp_path, target, strategy):
    torch.manual_seed(0)
    dense = Residual().eval()
    options = dict(target=target, latency="0.1x", strategy=strategy, out=tmp_path / "run")
    result = hwprune.search(dense, X, **options)
    gone = [name for name, width in result.plan.widths.items() if width == 0 and name.startswith("block:")]
    assert gone and all(result.plan.widths[name.replace("block:", "") + ".up"] == 0 for name in gone)
    assert result.proof.passed and isinstance(result.model, Residual)
    predicted = result.plan.predicted
    assert predicted.latency_us.value <= 0.1 * result.plan.dense.latency_us.value * (1 + 1e-6)
    assert predicted.parameters == sum(p.numel() for p in result.model.parameters())
    lowered = lower(trace(result.model, X), load_target(target))
    assert (predicted.macs, predicted.size_bytes) == (lowered.macs(), lowered.weight_bytes())
    assert predicted.peak_memory_bytes == lowered.memory().peak_bytes
    again = api.load_run(tmp_path / "run", model=Residual())
    x = torch.randn(2, *X.shape[1:])
    assert torch.equal(again.model(x), result.model(x))
    whole = hwprune.search(dense, X, **(options | {"out": None, "branches": False, "latency": "0.3x"}))
    assert min(whole.plan.widths.values()) > 0


def test_inspect_lists_branches_with_what_their_kernels_take(target):
    torch.manual_seed(0)
    report = api.inspect(Residual().eval(), X, target=target)
    macs = 64 * 9 * 16 * 32 * 2  # two convolutions of 3x3 over 8x8 pixels
    assert [(b.id, b.groups, b.macs) for b in report.branches] == [
        (f"block:blocks.{i}", (f"blocks.{i}.up",), macs) for i in range(3)
    ]
    assert report.branches[0].macs_share == macs / report.macs
    assert json.loads(json.dumps(report.to_json()))["branches"][0]["latency_us"]["provenance"] == "analytic"


def test_failed_search_leaves_no_folder(tmp_path, target):
    with pytest.raises(BudgetError):
        hwprune.search(make_net(), X, target=target, latency="0.0001x", out=tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_default_out_is_new_each_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = api.default_out("bundled:digits_resnet", "native")
    assert first.parent.name == "runs" and first.name.startswith("digits_resnet-native-20")
    first.mkdir(parents=True)
    assert api.default_out("bundled:digits_resnet", "native").name == first.name + "-2"
    assert api.default_out("some/net.py:build", "boards/mine.toml").name.startswith("build-mine-")
    assert api.default_out("nets/model.pt2", "arm").name.startswith("model-arm-")


def test_inspect_lists_groups_and_counts_parameters(target):
    report = api.inspect(make_net(), X, target=target)
    assert {g.id: g.width for g in report.groups} == {"conv1": 24, "conv2": 32}
    assert report.parameters == sum(p.numel() for p in make_net().parameters())
    [frozen] = [f for f in report.frozen if f.param == "fc.weight"]
    assert (frozen.dim, frozen.count, frozen.total, frozen.reason) == (0, 4, 4, "network output")
    assert re.fullmatch(r"fc \(.*test_api.py:\d+\)", frozen.where)
    assert report.groups[0].consumers == (AxisRow("conv2.weight", 1, 1),)


def test_inspect_shares_by_hand(target, run):
    # 64 pixels x 9 x 1 x 24 in the first convolution, 64 x 9 x 24 x 32 in the second, 32 x 4 in the classifier
    first, second, classifier = 13824, 442368, 128
    report = api.inspect(make_net(), X, target=target)
    conv1, conv2 = report.groups
    whole = first + second + classifier
    assert (report.macs, conv1.macs, conv2.macs) == (whole, first + second, second + classifier)
    assert conv1.macs_share == (first + second) / whole and conv2.macs_share == (second + classifier) / whole
    assert (report.target, report.missing, report.kernels_measured) == ("elsewhere", "", 0)
    assert report.latency_us == run.plan.dense.latency_us and report.latency_us.provenance == "analytic"
    for group in report.groups:
        assert group.latency_us.provenance == group.latency_share.provenance == "analytic"
        assert group.latency_share.value == group.latency_us.value / report.latency_us.value
    assert 1 < conv1.latency_share.value + conv2.latency_share.value < 2
    written = json.loads(json.dumps(report.to_json()))
    assert written["groups"][0]["latency_share"]["provenance"] == "analytic"
    assert written["groups"][0]["producers"][0] == {"param": "conv1.weight", "dim": 0, "multiplicity": 1}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A function that stores latencies of the first ``n`` kernels of ``make_net``: 10 us, 11 us and so on."""
    from hwprune.measure.measurer import Measurer

    monkeypatch.setattr(Measurer, "ensure", lambda *a, **k: pytest.fail("a kernel was measured"))
    monkeypatch.setattr(Measurer, "time_networks", lambda *a, **k: pytest.fail("a network was measured"))

    def fill(n: int, network_us: float | None = None):
        from hwprune.kernels import candidates

        profile = load_target("native")
        network = lower(trace(make_net(), X), profile)
        with Costing(profile, tmp_path / "store.sqlite") as cost:
            for i, workload in enumerate(network.workloads()[:n]):
                config = candidates(workload, profile)[0].to_text()
                latency = Latency(10.0 + i, 9.0 + i, 12.0 + i, rounds=9, noisy=False)
                cost.store.record(workload, config, cost.measurer.context, latency, 1)
        if network_us is not None:
            with Costing(profile, tmp_path / "store.sqlite") as cost:
                monkeypatch.setattr(cost.measurer, "time_networks", lambda given: [Latency(network_us, 0, 0, 9, False)])
                cost.calibrate(network)
        return network, tmp_path / "store.sqlite"

    return fill


def test_inspect_takes_what_the_store_has_and_measures_nothing(stored):
    network, store = stored(5)
    report = api.inspect(make_net(), X, store=store)
    assert [call.name for call in network.calls] == ["relu", "relu_1", "mean", "linear", "linear@plain"]
    whole = load_target("native").overhead.network_us + 10 + 11 + 12 + 13 + 14
    assert report.kernels == report.kernels_measured == 5
    assert report.latency_us.value == pytest.approx(whole) and report.latency_us.provenance == "measured"
    conv1, conv2 = report.groups
    assert conv1.latency_us.value == 10 + 11 and conv2.latency_us.value == 11 + 12 + 13
    assert conv2.latency_share.value == pytest.approx((11 + 12 + 13) / whole)
    assert conv2.latency_share.provenance == "measured"


def test_a_share_is_as_good_as_the_weakest_kernel_of_the_network(stored):
    _, store = stored(2)  # the convolutions
    report = api.inspect(make_net(), X, store=store)
    conv1, conv2 = report.groups
    assert (report.kernels_measured, report.kernels) == (2, 5)
    assert conv1.latency_us.provenance == "measured" and conv2.latency_us.provenance == "analytic"
    assert conv1.latency_share.provenance == conv2.latency_share.provenance == "analytic"


def test_inspect_scales_to_the_network_that_a_search_has_timed(stored):
    _, store = stored(5, network_us=120.0)
    report = api.inspect(make_net(), X, store=store)
    assert report.latency_us.value == pytest.approx(120.0)  # twice the 10 + 11 + 12 + 13 + 14 us of its kernels alone
    assert report.groups[0].latency_us.value == pytest.approx(2 * (10 + 11))


class Accumulated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.c(torch.cumsum(self.b(torch.relu(self.a(x))), 1))


def test_inspect_says_why_a_network_that_cannot_be_lowered_has_no_shares(target):
    report = api.inspect(Accumulated().eval(), torch.zeros(2, 6), target=target)
    [group] = report.groups
    assert group.id == "a" and group.macs is group.macs_share is group.latency_us is group.latency_share is None
    assert report.macs is report.latency_us is report.kernels is None
    assert "aten.cumsum" in report.missing and "test_api.py" in report.missing
    assert json.loads(json.dumps(report.to_json()))["groups"][0]["macs_share"] is None


def test_inspect_says_why_an_operator_without_a_cost_has_no_latency(target, monkeypatch):
    monkeypatch.delitem(analytic.VECTOR_OPS, "relu")
    report = api.inspect(make_net(), X, target=target)
    assert report.groups[0].macs == 13824 + 442368 and report.groups[0].latency_share is None
    assert report.latency_us is None and "'relu'" in report.missing


def test_inspect_works_where_the_default_target_or_store_does_not(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "store.sqlite"
    monkeypatch.setattr("hwprune.measure.store.default_path", lambda: below)
    report = api.inspect(make_net(), X)
    assert report.macs and report.latency_us is None and "cannot make folder" in report.missing
    with pytest.raises(StoreError, match="cannot make folder"):
        api.inspect(make_net(), X, store=below)
    with pytest.raises(TargetError, match="'nativ'"):
        api.inspect(make_net(), X, target="nativ")

    def no_profile():
        raise TargetError("no shipped profile fits this machine")

    monkeypatch.setattr("hwprune.measure.probe.native_profile", no_profile)
    report = api.inspect(make_net(), X)
    assert len(report.groups) == 2 and report.macs is None and "no shipped profile" in report.missing


def test_nothing_can_be_measured_or_timed_for_a_target_elsewhere(target):
    with pytest.raises(UsageError, match="cannot run code"):
        api.measure(make_net(), X, target=target)
    with pytest.raises(UsageError, match="cannot run code"):
        api.bench(make_net(), example_input=X, target=target)
    with pytest.raises(UsageError, match="'tensorrt'"):
        api.bench(make_net(), example_input=X, vs=("tensorrt",))


def test_package_is_callable_after_its_modules_are_imported():
    import hwprune.search.exact  # binds the name `search` of the package to the subpackage

    assert callable(hwprune.search) and hwprune.search.exact is not None
    with pytest.raises(AttributeError):
        getattr(hwprune, "no_such" + "_name")

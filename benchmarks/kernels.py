"""Each kernel of ResNet-50 and MobileNetV2 beside what this machine can do at most: dense, batch 1, float32, measured.

    python -m benchmarks.kernels

Peak and bandwidths are measured by hwprune-probe, before, between and after the networks, the best of them counts. So of a kernel's
times the least counts, in many rounds: every kernel within the network, and by itself over and over (its operands then in the nearest
cache that holds them). What is attainable is a roofline: the longer of the arithmetic that is really done at the peak of all threads, and
the bytes that must move, each once, at the bandwidth of the level that they come from or go to; and the start of the threads. Writes
results/kernels.md, .tsv and .svg, or under ``--name``. Needs torchvision and matplotlib.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np

from benchmarks import plots, report
from benchmarks.networks.catalog import build
from hwprune import runtime
from hwprune.compile.artifact import build_artifact
from hwprune.compile.lower import lower
from hwprune.costing import Costing, load_target
from hwprune.graph import trace
from hwprune.kernels import kernel_inputs, primfunc, transform_operations
from hwprune.kernels.schedule import Config
from hwprune.measure import probe_program
from hwprune.measure.probe_results import Bandwidth, ProbeResults, calmest
from hwprune.target import TargetProfile
from hwprune.workload import TensorSpec, Workload

NETWORKS = ("resnet50", "mobilenet_v2")
HEADER = (
    "network", "call", "kernel", "rule", "in network us", "median us", "alone us", "share", "direct GFLOP/s", "GFLOP/s", "of peak", "weights kB",
    "from", "activations kB", "from", "GB/s", "of bandwidth", "FLOP/byte", "bound", "transforms us", "launches us", "attainable us",
    "of attainable", "lanes in use",
)  # fmt: skip
SUMMARY = ("network", "kernels", "calls", "us", "median us", "share", "attainable us", "of attainable", "of peak")

#: Rounds of a network's calls, at least, however few fit into the time given.
_ROUNDS = 10


@dataclass(frozen=True)
class Machine:
    """What was measured of it: operations a microsecond, and by level what is read and written a microsecond, on all threads; what it
    takes to start them and to wait for them. ``l3_bytes``: as loads see it; other programs may have the rest. ``handed_per_us``: of what
    one thread wrote and another reads, and the other way around, in second caches; None where it was not measured."""

    flops_per_us: float
    launch_us: float
    read_per_us: dict[str, float]
    written_per_us: dict[str, float]
    profile: TargetProfile
    l3_bytes: int
    handed_per_us: float | None = None

    @staticmethod
    def of(results: ProbeResults, profile: TargetProfile) -> "Machine":
        read, copied = (_rates(bandwidth) for bandwidth in (results.read_gb_per_s, results.copy_gb_per_s))
        # a copy reads one half of its bytes and writes the other: what remains of its time is the writing's
        written = {level: 1 / max(2 / rate - 1 / read[level], 1 / read[level]) for level, rate in copied.items() if level in read}
        l3_bytes = results.third_cache_bytes() or profile.memory.l3_bytes
        handed = results.handed_gb_per_s.best * 1e3 if results.handed_gb_per_s else None
        return Machine(results.peak_gflops.all_threads.best * 1e3, results.launch_us, read, read | written, profile, l3_bytes, handed)

    def level_of(self, size_bytes: float) -> str:
        """The nearest level of memory behind L1 that holds so much."""
        if size_bytes <= self.profile.second_cache_bytes:
            return "l2"
        return "l3" if size_bytes <= self.l3_bytes and "l3" in self.read_per_us else "dram"

    def activations_us(self, level: str, read: float, written: float) -> float:
        """To read and write so many bytes of ``level``. What lies in second caches is in another core's, but for one thread's share:
        what is read was written there, and what is written was read there."""
        near = read / self.read_per_us[level] + written / self.written_per_us[level]
        if level != "l2" or self.handed_per_us is None:
            return near
        own = 1 / self.profile.threads
        return own * near + (1 - own) * (read + written) / self.handed_per_us


def _rates(bandwidth: Bandwidth) -> dict[str, float]:
    """Bytes a microsecond by level."""
    reach = {level: getattr(bandwidth, level) for level in ("l1", "l2", "l3", "dram")}
    return {level: r.all_threads.best * 1e3 for level, r in reach.items() if r is not None and r.all_threads is not None}


@dataclass(frozen=True)
class Kernel:
    """One call of a network: what it does, what it took, and what it could have taken. Microseconds, bytes."""

    network: str
    call: str
    workload: Workload
    config: Config
    us: float
    median_us: float
    alone_us: float
    multiplied: float
    weights: int
    activations: int
    weights_from: str
    activations_from: str
    compute_us: float
    transform_us: float
    memory_us: float
    launches_us: float
    lanes_in_use: float

    @property
    def attainable_us(self) -> float:
        return max(self.compute_us + self.transform_us, self.memory_us) + self.launches_us

    @property
    def fraction(self) -> float:
        return self.attainable_us / self.us

    @property
    def bound(self) -> str:
        if self.compute_us + self.transform_us >= self.memory_us:
            return "peak"
        weights_first = self.weights > self.activations or self.weights_from == "dram"
        return self.weights_from if weights_first and self.weights else self.activations_from

    @property
    def kind(self) -> str:
        return " + ".join(_kind(stage) for stage in self.workload.stages)

    def row(self, total_us: float) -> tuple:
        moved = self.weights + self.activations
        rate = moved / self.us / 1e3
        multiplied, direct = (2 * macs / self.us / 1e3 for macs in (self.multiplied, self.workload.macs))
        return (
            self.network, self.call, f"{self.kind} {_shape(self.workload)}", _rule(self.config), f"{self.us:.1f}", f"{self.median_us:.1f}",
            f"{self.alone_us:.1f}", f"{self.us / total_us:.1%}", f"{direct:.0f}", f"{multiplied:.0f}", f"{self.compute_us / self.us:.0%}",
            f"{self.weights / 1e3:.0f}", self.weights_from, f"{self.activations / 1e3:.0f}", self.activations_from, f"{rate:.1f}",
            f"{self.memory_us / self.us:.0%}", f"{2 * self.multiplied / moved:.1f}", self.bound, f"{self.transform_us:.1f}",
            f"{self.launches_us:.1f}", f"{self.attainable_us:.1f}", f"{self.fraction:.0%}", f"{self.lanes_in_use:.0%}",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", action="append", choices=NETWORKS, help="may be repeated; both by default")
    parser.add_argument("--seconds", type=float, default=30.0, help="over which the rounds of a network are spread (default: 30)")
    parser.add_argument("--name", default="kernels", help="of the page, for a machine whose figures stand beside another's")
    parser.add_argument("--store", type=Path, help="measurement store with the tuned schedules")
    options = parser.parse_args()
    profile = load_target("native")
    probed, timings = [probe_program.run_here(profile)], []
    for name in options.network or NETWORKS:
        timings.append(timed_network(name, profile, options.seconds, options.store))
        probed.append(probe_program.run_here(profile))
    results = calmest(probed)
    machine = Machine.of(results, profile)
    print(_write([k for timing in timings for k in kernels_of(timing, machine)], results, options.name))


@dataclass(frozen=True)
class Timing:
    """What was measured of a network: of each call its name, workload and schedule, and microseconds: the least and the median within
    the network, the least alone."""

    network: str
    calls: list[tuple[str, Workload, Config, float, float, float]]


def timed_network(name: str, profile: TargetProfile, seconds: float, store: Path | None) -> Timing:
    """Every call of the network, compiled with tuned kernels."""
    module, x = build(name, "dense", 1)
    network = lower(trace(module, x), profile)
    emitted = network.emitted()
    with tempfile.TemporaryDirectory() as folder, Costing(profile, store, weights_bytes=network.weight_bytes()) as cost:
        cost.measure(network.workloads(), "tune")
        picked = [cost.pick(e.workload) for e in emitted]
        program = runtime.load(build_artifact(network, profile, cost.pick, Path(folder, "artifact")))
        times = timed(program, seconds)
    names, workloads = [call.name for call in network.calls], [e.workload for e in emitted]
    return Timing(name, list(zip(names, workloads, picked, *times)))


def kernels_of(timing: Timing, machine: Machine) -> list[Kernel]:
    """The calls beside what ``machine`` could do."""
    weights_from = machine.level_of(sum(_split(workload, config)[0] for _, workload, config, *_ in timing.calls))
    kernels = []
    for call, workload, config, *us in timing.calls:
        weights, activations = _split(workload, config)
        # What the kernel before wrote is near if it fits there beside what streams through.
        activations_from = machine.level_of(activations + weights)
        multiplied = _multiplied(workload, config)
        read, written = activations - workload.output.size_bytes, workload.output.size_bytes
        memory_us = weights / machine.read_per_us[weights_from] + machine.activations_us(activations_from, read, written)
        compute_us, transform_us = (2 * n / machine.flops_per_us for n in (multiplied, transform_operations(workload, config)))
        launches_us = machine.launch_us * _launches(workload, config, machine.profile)
        kernels.append(
            Kernel(timing.network, call, workload, config, *us, multiplied, weights, activations, weights_from,
                   activations_from, compute_us, transform_us, memory_us, launches_us, _lanes_in_use(workload, config))
        )  # fmt: skip
    return kernels


def _launches(workload: Workload, config: Config, profile: TargetProfile) -> int:
    """How often the kernel sets all threads to work and waits for them."""
    return primfunc(workload, profile, config).script().count(" T.parallel(")


def timed(program: runtime.Program, seconds: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Microseconds of each call in rounds spread over ``seconds``: the least and the median within the network, and the least of each by
    itself over and over; all of shape [calls]."""
    within, alone = [], []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(alone) < _ROUNDS:
        runs = program.profile_us(runs=4)
        within += list(runs)
        alone.append([program.time_call_us(call, runs=6).min() for call in range(runs.shape[1])])
        time.sleep(0.01)
    return np.min(within, axis=0), np.median(within, axis=0), np.min(alone, axis=0)


def _split(workload: Workload, config: Config) -> tuple[int, int]:
    """Bytes of constants as the kernel reads them, and of activations read and written."""
    inputs: Sequence[TensorSpec] = kernel_inputs(workload, config)
    weights = sum(t.size_bytes for t in inputs if t.role == "weight")
    return weights, sum(t.size_bytes for t in inputs if t.role != "weight") + workload.output.size_bytes


def _multiplied(workload: Workload, config: Config) -> float:
    """Multiply-adds that the kernel really does in its products: Winograd's F(m x m, 3x3) does (m + 2)^2 for each m x m
    pixels instead of 9 m^2; transforms are not counted."""
    if config.rule != "winograd":
        return workload.macs
    m = int(config["m"])
    _, height, width = workload.anchor["out"]
    tiles = math.ceil(height / m) * math.ceil(width / m)
    return workload.macs * tiles * (m + 2) ** 2 / (9 * height * width)


def _kind(stage: Workload) -> str:
    anchor = stage.anchor
    if anchor is None:
        return "element-wise"
    if anchor.op == "conv2d":
        _, kh, kw, _, _ = stage.inputs[anchor.args[1]].shape
        return f"conv {kh}x{kw}"
    if anchor.op == "depthwise":
        kh, kw, _ = stage.inputs[anchor.args[1]].shape
        return f"depthwise {kh}x{kw}"
    return anchor.op


def _lanes_in_use(workload: Workload, config: Config) -> float:
    """Of the lanes of result vectors that a convolution or product computes: what is not the padding of channels to vectors."""
    workload = workload.stages[0]
    anchor = workload.anchor
    if anchor is None or anchor.op not in ("conv2d", "dense"):
        return 1.0
    blocks, lanes = workload.inputs[anchor.args[1]].shape[0], workload.inputs[anchor.args[1]].shape[-1]
    left_out = lanes // 2 if config.get("half") else 0
    return _channels(workload) / (blocks * lanes - left_out)


def _channels(workload: Workload) -> int:
    """Results of a convolution or product a pixel, without padding."""
    anchor = workload.anchor
    pixels = math.prod(anchor["out"]) if anchor.op == "conv2d" else workload.output.shape[0]
    return round(workload.macs / (pixels * math.prod(workload.inputs[anchor.args[1]].shape[1:-1])))


def _shape(workload: Workload) -> str:
    return " + ".join(map(_stage_shape, workload.stages))


def _stage_shape(workload: Workload) -> str:
    anchor = workload.anchor
    if anchor is None or anchor.op not in ("conv2d", "depthwise"):
        return "x".join(map(str, workload.output.shape))
    stride = f" /{anchor['stride'][0]}" if anchor["stride"] != (1, 1) else ""
    channels = _channels(workload) if anchor.op == "conv2d" else workload.output.shape[-1]
    place = f"{channels} at {'x'.join(map(str, anchor.get('out', workload.output.shape[:3])[1:]))}{stride}"
    return f"{workload.inputs[anchor.args[1]].shape[3]}>{place}" if anchor.op == "conv2d" else place


def _rule(config: Config) -> str:
    return f"{config.rule} {config['m']}" if config.rule == "winograd" else config.rule


def _summary(kernels: Sequence[Kernel]) -> Iterator[tuple]:
    for name in dict.fromkeys(k.network for k in kernels):
        mine = [k for k in kernels if k.network == name]
        total = sum(k.us for k in mine)
        kinds = sorted({k.kind for k in mine}, key=lambda kind: -sum(k.us for k in mine if k.kind == kind))
        for label, some in [("all", mine), *((kind, [k for k in mine if k.kind == kind]) for kind in kinds)]:
            us, median, attainable = (sum(getattr(k, what) for k in some) for what in ("us", "median_us", "attainable_us"))
            yield (name, label, len(some), f"{us:.0f}", f"{median:.0f}", f"{us / total:.0%}", f"{attainable:.0f}", f"{attainable / us:.0%}",
                   f"{sum(k.compute_us for k in some) / us:.0%}")  # fmt: skip


def _write(kernels: Sequence[Kernel], results: ProbeResults, name: str = "kernels") -> Path:
    totals = {k.network: sum(other.us for other in kernels if other.network == k.network) for k in kernels}
    rows = [k.row(totals[k.network]) for k in kernels]
    lost = sorted(kernels, key=lambda k: k.attainable_us - k.us)[:15]
    peak = results.peak_gflops
    rates = (("read", results.read_gb_per_s), ("copy", results.copy_gb_per_s))
    facts = [
        ("peak GFLOP/s", _figure(peak.one_core), _figure(peak.all_threads)), ("start of all threads, us", "", f"{results.launch_us:.2f}"),
        ("L3 as the system tells, MB", "", f"{results.caches.l3_bytes / 1e6:.1f}"),
        ("L3 as loads see it, MB", "", f"{results.third_cache_bytes() / 1e6:.1f}"),
        ("handed from core to core GB/s", "", _figure(results.handed_gb_per_s)),
    ] + [
        (f"{what} {level} GB/s", *(_figure(rate) for rate in (reach.one_core, reach.all_threads)))
        for what, bandwidth in rates for level in ("l1", "l2", "l3", "dram") if (reach := getattr(bandwidth, level)) is not None
    ]  # fmt: skip
    picture = report.RESULTS / f"{name}.svg"
    plots.layers([(network, [k for k in kernels if k.network == network]) for network in totals], picture)
    notes = [
        "in network: the least of each kernel's times within runs of the whole network, as rates of the machine are the best of the probe's: "
        "what it takes where nothing else disturbs it; median: of the same times; alone: the least of the same kernel run over and over. direct GFLOP/s counts the multiplications of a direct convolution, GFLOP/s those that Winograd kernels really do.",
        "attainable: the longer of arithmetic at the measured peak (multiplications, and with Winograd the operations of its transforms, "
        "transforms us) and bytes at the measured bandwidths, each byte moved once, and the starts of the threads, launches us, as the "
        "probe measures them; of peak counts multiplications only; what writing takes is what a copy takes beyond its reading. lanes in use: of the vectors of results, the rest is padding, "
        "whose products are not counted. from: constants come from the level that holds all of the network's, activations from the one that holds the kernel's "
        "operands: if that is L2, all but a thread's share lies in another core's, and moves as fast as the probe's threads hand each other what "
        "they wrote and read last (half of each copy reads, half writes); of L3 counts what loads see of it, for other programs may have the rest. of bandwidth: memory time over time taken.",
        "All figures are measured on this machine; the roofline is arithmetic on measured figures. Where more than 100 % is attained, the "
        "clock was higher, or neighbours on the machine took less of its memory's bandwidth, than while the probe ran.",
    ]  # fmt: skip
    tables = [
        ("Machine", ("figure", "one core", "all threads"), facts), ("Summary", SUMMARY, list(_summary(kernels))),
        ("Most time lost", HEADER, [k.row(totals[k.network]) for k in lost]), ("Calls", HEADER, rows),
    ]  # fmt: skip
    command = "python -m benchmarks.kernels" + ("" if name == "kernels" else f" --name {name}")
    return report.write(name, "Kernels beside what the machine can do", command, tables, notes, pictures=[picture])


def _figure(rate) -> str:
    return "" if rate is None else f"{rate.best:.1f}"


if __name__ == "__main__":
    main()

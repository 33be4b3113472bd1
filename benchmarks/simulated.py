"""Simulated latencies beside convolutions that others timed on real boards: ranks and ratios, against FLOPs alone.

    python -m benchmarks.simulated tophub_arm_conv2d.csv [--cache simulated.json]

The file has rows of board, kernel, sizes and latency_us: AutoTVM's best kernels of an older TVM. They are not hwprune's
kernels: NCHW in blocks, with copies of the whole input and of the whole result into another layout, tiles that divide the
image, and on the Cortex-A53 32-bit code with 16 vector registers. What is simulated is hwprune's direct convolution held to
the same: tiles that divide the image, and as many registers. Fitted are one factor for the board and two figures of its
memory, the bandwidth at which both copies move and that of one core's L2; on one half of the rows, and the other half is
reported, both ways round.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
from concurrent.futures import as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import spearmanr
from torch import nn

from benchmarks import report
from hwprune.compile.lower import lower
from hwprune.cost.incore import why_not
from hwprune.cost.simulated import Simulation, best
from hwprune.cost.simulator import INTERVAL_FACTOR, MODEL_VERSION
from hwprune.fsio import write_text_atomic
from hwprune.graph import trace
from hwprune.kernels.arm import conv_lane
from hwprune.kernels.common import conv_direct
from hwprune.kernels.schedule import Config
from hwprune.measure.device import available_cores
from hwprune.processes import Processes
from hwprune.target import TargetProfile, load_file, shipped_folder
from hwprune.workload import Workload

#: board in the file -> shipped profile, and the vector registers of the code that was timed there
BOARDS = {"rk3399": ("rk3399", 32), "bcm2837": ("rpi3", 16)}
#: Schedules that are looked at, and those that are compiled.
LOOKED_AT, COMPILED = 8, 2
HEADER = (
    "board", "fitted on", "reported on", "rows", "copies GB/s", "L2 GB/s", "factor", "Spearman: FLOPs", "as it is", "with copies",
    "fitted", "ratio error of nine in ten: FLOPs", "as it is", "with copies", "fitted", "as it is, within its interval", "provenance",
)  # fmt: skip
RESIDUALS = ("board", "convolution", "timed us", "predicted us", "ratio", "computing us", "copies us", "schedule")


class Convolution(nn.Module):
    """The convolution of one row, behind a kernel that made its input."""

    def __init__(self, row: Mapping[str, str]):
        super().__init__()
        g = {key: int(value) for key, value in row.items() if value.isdigit()}
        window, stride = (g["kernel_h"], g["kernel_w"]), (g["stride_h"], g["stride_w"])
        self.conv = nn.Conv2d(g["in_channels"], g["out_channels"], window, stride, (g["pad_top"], g["pad_left"]), bias=False)
        self.example = torch.zeros(1, g["in_channels"], g["height"], g["width"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.relu(x))


@dataclass(frozen=True)
class Row:
    """One convolution: as timed, and as simulated."""

    title: str
    timed_us: float
    macs: int
    copied_bytes: int
    schedule: str
    simulation: Simulation

    def predicted_us(self, profile: TargetProfile, memory: "Fitted") -> float:
        """Microseconds before the board's factor. Orders of loops that fetch again are ours, not theirs: left out."""
        near = self.simulation.near_bytes / (memory.l2_gb_per_s * 1e3)
        return max(self.simulation.cycles / profile.core.frequency_mhz, near) + self.copied_bytes / (memory.copies_gb_per_s * 1e3)


@dataclass(frozen=True)
class Fitted:
    """What is fitted to a board: bandwidths of the copies and of one core's L2, and a factor on every prediction."""

    copies_gb_per_s: float
    l2_gb_per_s: float
    factor: float = 1.0


@lru_cache
def profile_of(board: str) -> TargetProfile:
    name, registers = BOARDS[board]
    profile = load_file(shipped_folder() / f"{name}.toml")
    return profile.model_copy(update={"core": profile.core.model_copy(update={"vector_registers": registers})})


def offered(workload: Workload, profile: TargetProfile) -> list[Config]:
    """Direct schedules whose tiles divide the image and the channels, the most promising first."""
    geometry = conv_direct.Geometry(workload)
    rule = conv_lane if geometry.ci >= geometry.lanes else conv_direct
    tiles = [t for t in rule._tiles(geometry, profile) if geometry.ow % t[1] == 0 and geometry.blocks % t[2] == 0]
    return conv_direct.rank_tiles(rule.name, geometry, profile, tiles, rule._tile_cost)[:LOOKED_AT]


def simulated(row: Mapping[str, str], profile: TargetProfile) -> dict:
    """What is kept of one row, as JSON."""
    module = Convolution(row).eval()
    (workload,) = (w for w in lower(trace(module, module.example), profile).workloads() if w.anchor is not None)
    config, found = best(workload, profile, offered(workload, profile), COMPILED)
    data = sum(t.size_bytes for t in workload.inputs if t.role == "data") + workload.output.size_bytes
    figures = [found.cycles, found.near_bytes, found.new_bytes, found.again_bytes]
    return {"macs": workload.macs, "copied_bytes": data, "schedule": config.to_text(), "simulation": figures}


def read(path: Path, cache: Path | None) -> dict[str, list[Row]]:
    """Direct convolutions of the file by board, simulated on all cores; what ``cache`` has is not simulated again."""
    known = json.loads(cache.read_text()) if cache and cache.exists() else {}
    found: dict[str, list[Row]] = {board: [] for board in BOARDS}
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kernel"] == "direct" and row["board"] in BOARDS]
    with Processes("benchmarks.simulated:simulated", available_cores()) as processes:
        missing = {_key(row): row for row in rows if _key(row) not in known}
        pending = {processes.submit(row, profile_of(row["board"])): key for key, row in missing.items()}
        for done in as_completed(pending):
            known[pending[done]] = done.result()
            if cache:
                write_text_atomic(cache, json.dumps(known))
    for row in rows:
        one = known[_key(row)]
        found[row["board"]].append(
            Row(_title(row), float(row["latency_us"]), one["macs"], one["copied_bytes"], one["schedule"], Simulation(*one["simulation"]))
        )
    return found


def _key(row: Mapping[str, str]) -> str:
    """What the simulation of a row depends on."""
    shape = {key: value for key, value in row.items() if key != "latency_us"}
    return f"{profile_of(row['board']).digest()} model {MODEL_VERSION} {json.dumps(shape)}"


def _title(row: Mapping[str, str]) -> str:
    return "{kernel_h}x{kernel_w}/{stride_h}, {in_channels} to {out_channels}, {height}x{width}".format(**row)


def halves(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Two halves by a hash of the shape, so that series of like shapes are in both and no one chose."""
    ordered = sorted(rows, key=lambda r: hashlib.sha256(r.title.encode()).hexdigest())
    return ordered[::2], ordered[1::2]


def fit(rows: Sequence[Row], profile: TargetProfile) -> Fitted:
    """Least mean absolute logarithm of timed over predicted, from the profile's own bandwidths on."""

    def ratios(logs: np.ndarray) -> np.ndarray:
        memory = Fitted(*np.exp(logs))
        return np.array([math.log(r.timed_us / r.predicted_us(profile, memory)) for r in rows])

    def loss(logs: np.ndarray) -> float:
        found = ratios(logs)
        return float(np.mean(np.abs(found - np.median(found))))

    start = np.log([profile.memory.dram_gb_per_s, profile.memory.l2_gb_per_s])
    chosen = minimize(loss, start, method="Nelder-Mead", bounds=[(np.log(0.2), np.log(100))] * 2).x
    return Fitted(*(float(x) for x in np.exp(chosen)), math.exp(float(np.median(ratios(chosen)))))


def quality(timed: Sequence[float], predicted: Sequence[float]) -> tuple[float, float]:
    """Spearman's rank correlation; what the ratio to its median is off by, either way, for one row in ten."""
    off = np.log(np.array(timed) / np.array(predicted))
    return float(spearmanr(timed, predicted)[0]), float(np.expm1(np.quantile(np.abs(off - np.median(off)), 0.9)))


def compare(board: str, fitted: str, reported: str, rows: Sequence[Row], predicted: Sequence[float], at: Fitted | None) -> list[object]:
    """One row of the table of comparisons."""
    profile, timed = profile_of(board), [r.timed_us for r in rows]
    as_it_is = [r.simulation.latency_us(profile) for r in rows]
    own = Fitted(profile.memory.dram_gb_per_s, profile.memory.l2_gb_per_s)
    with_copies = [r.predicted_us(profile, own) for r in rows]
    by = [quality(timed, guess) for guess in ([r.macs for r in rows], as_it_is, with_copies, predicted)]
    within = np.mean([1 / INTERVAL_FACTOR <= t / guess <= INTERVAL_FACTOR for t, guess in zip(timed, as_it_is)])
    figures = [f"{x:.2f}" for x in (at.copies_gb_per_s, at.l2_gb_per_s, at.factor)] if at else [""] * 3
    ranks, errors = ([f"{s:.4f}" for s, _ in by], [f"{e:.3f}" for _, e in by])
    return [board, fitted, reported, len(rows), *figures, *ranks, *errors, f"{within:.2f}", "simulated"]


def results(board: str, rows: Sequence[Row]) -> tuple[list[list[object]], list[list[object]]]:
    """Comparisons of a board, and its rows that are described worst; each row by the half that it is not in."""
    profile = profile_of(board)
    first, second = halves(rows)
    comparisons, every, guessed = [], [], []
    for fitted, own, reported, others in (("first half", first, "second half", second), ("second half", second, "first half", first)):
        found = fit(own, profile)
        predicted = [found.factor * r.predicted_us(profile, found) for r in others]
        comparisons.append(compare(board, fitted, reported, others, predicted, found))
        every += others
        guessed += [(r, p, found.copies_gb_per_s) for r, p in zip(others, predicted)]
    comparisons.append(compare(board, "the other half", "every row", every, [p for _, p, _ in guessed], None))
    guessed.sort(key=lambda item: -abs(math.log(item[0].timed_us / item[1])))
    worst = [
        [board, r.title, f"{r.timed_us:.0f}", f"{p:.0f}", f"{r.timed_us / p:.2f}", f"{r.simulation.cycles / profile.core.frequency_mhz:.0f}",
         f"{r.copied_bytes / bandwidth / 1e3:.0f}", r.schedule]
        for r, p, bandwidth in guessed[:10]
    ]  # fmt: skip
    return comparisons, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--cache", type=Path, help="keep what was simulated in this file")
    options = parser.parse_args()
    for board in BOARDS:
        missing = why_not(profile_of(board))
        if missing:
            raise SystemExit(f"error: {missing}")
    comparisons, worst = [], []
    for board, rows in read(options.file, options.cache).items():
        one, other = results(board, rows)
        comparisons, worst = comparisons + one, worst + other
    for line in comparisons:
        print(*line, sep="\t")
    report.write(
        "simulated", "Simulated convolutions beside timed ones", "python -m benchmarks.simulated tophub_arm_conv2d.csv",
        [("Comparison", HEADER, comparisons), ("Largest residuals", RESIDUALS, worst)],
        [
            "Timed by others (tlc-pack/tophub, arm_cpu_v0.08) with an older TVM's kernels: for ranks and ratios, not hwprune's measurements.",
            "Ratio error: timed over predicted, over the median of that; nine rows in ten are off by less, either way.",
            "As it is: what hwprune predicts for its own kernel, which copies nothing, with the profile's figures and nothing fitted. With "
            "copies: nothing fitted either, but input and result are copied once each, as in what was timed, at the profile's bandwidth of "
            "main memory. Fitted: the copies at the fitted bandwidth, the L2 at its fitted one, times the board's factor.",
            "The Cortex-A53 ran 32-bit code; simulated is 64-bit code with 16 vector registers, as LLVM has no model of it in 32 bits.",
            "Halves: rows sorted by the SHA-256 of their shape, every other one.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()

"""Make the latencies that ship with hwprune anew: ``cost_models/TARGET/NETWORK.tsv``, exports of a measurement store.

    python -m benchmarks.cost_models rpi4 rpi3
    python -m benchmarks.cost_models x86-avx512 --networks resnet18 --store measured.sqlite

On a target whose code this machine runs, a network's cost surface is measured as `hwprune measure` does it. For others, the
kernels of the dense network and of the one with about half of every group are simulated. To be run after every change of the
kernels, the profiles or the model: what was made before is then no longer used, if it was made under another version of them; where a
kernel changed without one, remove its file first, for simulations begin with what ships. Results are kept in the store as they come, so
that a run that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Sequence

from benchmarks.networks import catalog
from hwprune.compile.lower import lower
from hwprune.costing import Costing, load_target
from hwprune.fsio import write_text_atomic
from hwprune.graph import analyze, trace
from hwprune.measure.store import Row
from hwprune.measure.store_text import to_text
from hwprune.measuring import cost_surface, measure_surface, widths_of
from hwprune.progress import Progress
from hwprune.search.tables import NetworkView
from hwprune.terminal import reporting
from hwprune.workload import Workload

FOLDER = Path(__file__).parent.parent / "cost_models"
#: Of ``benchmarks.networks``.
NETWORKS = ("resnet18", "resnet56_cifar", "mobilenet_v2")
SHARES = (0.5,)
#: As `hwprune measure` has it by default.
WITHIN, TIME_LIMIT_S = 0.15, 180.0


def rows(target: str, network: str, store: Path | None, progress: Progress) -> list[Row]:
    profile = load_target(target)
    traced = trace(*catalog.build(network, "dense", 1))
    view = NetworkView(lower(traced, profile), analyze(traced))
    with Costing(profile, store, progress, weights_bytes=view.network.weight_bytes()) as cost:
        return measured(view, cost, progress) if cost.measurable else simulated(view, cost)


def measured(view: NetworkView, cost: Costing, progress: Progress) -> list[Row]:
    """The fastest schedule of each kernel of the network's cost surface that was measured."""
    report = measure_surface(view, cost, within=WITHIN, time_limit_s=TIME_LIMIT_S, progress=progress)
    progress.say(f"{report.measured} of {report.kernels} kernels measured, known to {report.half_width:.1%}, in {report.seconds:.0f} s")
    own = {w.key for w in cost_surface(view, widths_of(view, cost)).workloads}
    best = {(m.workload.key, m.config) for m in cost.measurer.measured() if m.workload.key in own}
    return [r for r in cost.store.rows() if r.context == cost.measurer.context and r.latency and (r.workload.key, r.config) in best]


def simulated(view: NetworkView, cost: Costing) -> list[Row]:
    full, widths = {g.id: g.width for g in view.graph.groups}, widths_of(view, cost)
    wanted: dict[str, Workload] = {w.key: w for w in view.workloads({})}
    for share in SHARES:
        narrowed = {g: int(min(widths[g], key=lambda w: abs(w - share * full[g]))) for g in full}
        wanted |= {w.key: w for w in view.workloads(narrowed)}
    cost.measure(list(wanted.values()), "tune")
    return cost.simulator.rows(wanted)


def write(target: str, network: str, found: Sequence[Row]) -> Path:
    path = FOLDER / target / f"{network}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, to_text(found))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--store", type=Path, help="keep results in this file instead of in the user's cache folder")
    options = parser.parse_args()
    with reporting(as_json=False, debug=True) as progress:
        for target in options.targets:
            for network in options.networks:
                found = rows(target, network, options.store, progress)
                progress.say(f"{write(target, network, found)}: {len(found)} kernels")


if __name__ == "__main__":
    main()

"""Make the shipped simulated data of a target anew: ``cost_models/TARGET/NETWORK.tsv``.

    python -m benchmarks.cost_models rpi4 rpi3
    python -m benchmarks.cost_models rpi4 --networks resnet18 --store simulated.sqlite

For each network, the kernels of the dense one and of the one with about half of every group, in sorted text. To be run after
every change of the kernels, the profiles or the model: what was simulated before is then no longer used. Results are kept in
the store as they come, so that a run that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import report
from benchmarks.networks import catalog
from hwprune.compile.lower import lower
from hwprune.cost.simulator import COLUMNS, MODEL_VERSION
from hwprune.costing import Costing, load_target
from hwprune.fsio import write_text_atomic
from hwprune.graph import analyze, trace
from hwprune.record import now
from hwprune.search.space import candidate_widths
from hwprune.search.tables import NetworkView
from hwprune.workload import Workload

FOLDER = Path(__file__).parent.parent / "cost_models"
SHARES = (0.5,)


#: Of ``benchmarks.networks``.
NETWORKS = ("resnet18", "resnet56_cifar", "mobilenet_v2")


def rows(target: str, network: str, store: Path | None) -> list[tuple[str, ...]]:
    """Simulate the kernels of ``network`` on ``target``: one row each, as ``COLUMNS`` has them, sorted."""
    profile = load_target(target)
    traced = trace(*catalog.build(network, "dense", 1))
    graph = analyze(traced)
    view = NetworkView(lower(traced, profile), graph)
    full = {g.id: g.width for g in graph.groups}
    with Costing(profile, store, weights_bytes=view.network.weight_bytes()) as cost:
        widths = candidate_widths(view, full, cost.prior)
        wanted: dict[str, Workload] = {w.key: w for w in view.workloads({})}
        for share in SHARES:
            narrowed = {g: int(min(widths[g], key=lambda w: abs(w - share * full[g]))) for g in full}
            wanted |= {w.key: w for w in view.workloads(narrowed)}
        cost.measure(list(wanted.values()), "tune")
        return cost.simulator.rows(wanted)


def write(target: str, network: str, found: list[tuple[str, ...]]) -> Path:
    path = FOLDER / target / f"{network}.tsv"
    head = [
        f"# {network} on {target}: simulated by hwprune (model {MODEL_VERSION}), nothing here was measured",
        f"# python -m benchmarks.cost_models {target} --networks {network}; {now()}, commit {report.commit()}",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, "\n".join([*head, *("\t".join(row) for row in [COLUMNS, *found])]) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--store", type=Path, help="keep results in this file instead of in the user's cache folder")
    options = parser.parse_args()
    for target in options.targets:
        for network in options.networks:
            found = rows(target, network, options.store)
            print(f"{write(target, network, found)}: {len(found)} kernels", flush=True)


if __name__ == "__main__":
    main()

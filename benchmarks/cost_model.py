"""Predicted beside measured latency of random pruned networks, none of which any model was fitted to.

    python -m benchmarks.cost_model --store cost.sqlite --journal cost.jsonl --seconds 600     as often as it takes
    python -m benchmarks.cost_model --store cost.sqlite --journal cost.jsonl --report

Works through kernels first, then times the networks, some of them twice. All that it does is kept in the store and the journal as it
is done: a call that ends, after ``--seconds`` or by a kill, is continued by the next. ``--report`` writes results/cost_model.md
from them. The networks' kernels are linked with the schedules that were measured, over random constants.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np
import torch

from benchmarks import report
from benchmarks.networks.catalog import NETWORKS
from hwprune.checking import accuracy, random_widths
from hwprune.compile.lower import lower
from hwprune.cost.base import network_estimate
from hwprune.cost.table import TableModel
from hwprune.costing import DISTURBED, Costing, load_target
from hwprune.fsio import write_text_atomic
from hwprune.graph import analyze, trace
from hwprune.measuring import RANDOM_CALIBRATORS, distinct, of_all_sizes, time_group, uniform_networks
from hwprune.results import Accuracy
from hwprune.search.space import candidate_widths
from hwprune.search.tables import NetworkView
from hwprune.terminal import reporting
from hwprune.workload import Workload

MODELS = ("resnet56_cifar", "resnet18", "mobilenet_v2")
#: Networks that are timed in one run. Every fourth of these groups is timed twice, at least so many seconds apart.
BATCH, RETESTED, APART_S = 8, 4, 20.0
#: Share of the table that the surrogate is told, and how often it is drawn.
SHARE, DRAWS = 0.1, 5
#: What is held: median error (or so many times that of the measurement), 95th percentile, rank correlation, surrogate's median.
MEDIAN, OF_RETEST, PERCENTILE_95, SPEARMAN, SURROGATE = 0.03, 1.5, 0.08, 0.99, 0.05

ACCURACY = ("network", "model", "networks", "median error", "95th percentile", "bias", "Spearman", "test-retest", "provenance")
KERNELS = ("network", "kernels", "told", "median error", "95th percentile", "in the 95 % interval")
CHECKS = ("network", "check", "value", "bound", "holds")


@dataclass
class Subject:
    """One model and its networks; ``calibrating`` are the numbers of those that calibrate and are not predicted."""

    name: str
    view: NetworkView
    cost: Costing
    networks: list[dict[str, int]]
    calibrating: set[int]

    def kernels(self, number: int) -> list[Workload]:
        return self.view.workloads(self.networks[number])


@contextmanager
def subject(name: str, options: argparse.Namespace, progress) -> Iterator[Subject]:
    torch.manual_seed(0)
    factory, shape = NETWORKS[name]
    profile = load_target(options.target)
    traced = trace(factory().eval(), torch.zeros(1, *shape))
    view = NetworkView(lower(traced, profile), analyze(traced))
    with Costing(profile, options.store, progress, weights_bytes=view.network.weight_bytes()) as cost:
        widths = candidate_widths(view, {g.id: g.width for g in view.graph.groups}, cost.prior)
        uniform = uniform_networks(widths)
        drawn = random_widths(widths, options.networks + RANDOM_CALIBRATORS, options.seed)
        some = of_all_sizes(view, cost, drawn[: 2 * RANDOM_CALIBRATORS])
        calibrating = {*range(len(uniform)), *(len(uniform) + i for i in some)}
        yield Subject(name, view, cost, [*uniform, *drawn], calibrating)


class Journal:
    """One line a network and pass: what it took."""

    def __init__(self, path: Path):
        self.path = path
        whole, _, cut_off = (path.read_text() if path.exists() else "").rpartition("\n")
        self.rows = [json.loads(line) for line in whole.splitlines()]
        if cut_off:
            write_text_atomic(path, "".join(f"{line}\n" for line in whole.splitlines()))

    def add(self, **row) -> None:
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, model: str, number: int) -> list[dict]:
        """The passes over a network, in order, but for those during which something else had the machine."""
        least = min((r["control_us"] for r in self.rows if r["model"] == model and "control_us" in r), default=0.0)
        rows = [r for r in self.rows if (r["model"], r["network"]) == (model, number) and r["control_us"] <= DISTURBED * least]
        return sorted(rows, key=lambda r: r["pass"])


def work(s: Subject, journal: Journal, ends: float) -> None:
    """Measure kernels, then time networks, until all is done or it is time."""
    for number in range(len(s.networks)):
        for workload in distinct(s.kernels(number)):
            if not s.cost.model.is_measured(workload):
                if time.monotonic() > ends:
                    return
                s.cost.measurer.ensure([workload])
    s.cost.model.refresh()
    judge(s, journal, ends)
    for number in range(2):
        for start in range(0, len(s.networks), BATCH * (RETESTED if number else 1)):
            waiting = [n for n in range(start, min(start + BATCH, len(s.networks))) if due(journal.of(s.name, n), number)]
            if not waiting:
                continue
            if time.monotonic() > ends:
                return
            started = time.time()
            taken, control_us = time_group(s.view, s.cost, [s.networks[n] for n in waiting])
            seconds = (time.time() - started) / len(waiting)
            for n, us in zip(waiting, taken):
                journal.add(model=s.name, network=n, **{"pass": number}, latency_us=us, control_us=control_us, seconds=seconds, at=started)


def judge(s: Subject, journal: Journal, ends: float) -> None:
    """Measure once more what the other kernels do not believe."""
    own = {w.key for number in range(len(s.networks)) for w in s.kernels(number)}
    judged = {r["kernel"] for r in journal.rows if r["model"] == s.name and "kernel" in r}
    for workload in s.cost.model.doubtful():
        if workload.key in own - judged and time.monotonic() < ends:
            before = s.cost.measurer.best(workload).latency_us
            s.cost.measurer.repeat([workload])
            journal.add(model=s.name, network=None, kernel=workload.key, before_us=before, after_us=s.cost.measurer.best(workload).latency_us)
    s.cost.model.refresh()


def due(passes: Sequence[dict], number: int) -> bool:
    return len(passes) == number and (number == 0 or time.time() - passes[-1]["at"] > APART_S)


def errors(s: Subject, journal: Journal, model: TableModel) -> Accuracy | None:
    """Accuracy of ``model`` over the random networks that were timed, calibrated on the others."""
    timed = {n: passes for n in range(len(s.networks)) if (passes := journal.of(s.name, n))}
    calibrating, checked = [n for n in timed if n in s.calibrating], [n for n in timed if n not in s.calibrating]
    if not calibrating or len(checked) < 3:
        return None
    model.fit([(s.kernels(n), float(np.mean([r["latency_us"] for r in timed[n]]))) for n in calibrating])
    predicted = [network_estimate(model, s.kernels(n)).latency_us for n in checked]
    first = [timed[n][0]["latency_us"] for n in checked]
    again = [timed[n][1]["latency_us"] if len(timed[n]) > 1 else np.nan for n in checked]
    return accuracy(predicted, first, again)


class SurrogateAlone(TableModel):
    """Answers by the surrogate even where something was measured."""

    def predict(self, workloads):
        return self.estimate(workloads)


def told(s: Subject, seed: int, kind: type[TableModel] = TableModel) -> tuple[TableModel, list, list]:
    """A model that knows a share of the table, what it knows, and the rest."""
    own = {w.key for number in range(len(s.networks)) for w in s.kernels(number)}
    table = [m for m in s.cost.measurer.measured() if m.workload.key in own]
    order = np.random.default_rng(seed).permutation(len(table))
    count = round(SHARE * len(table))
    known, rest = [table[i] for i in order[:count]], [table[i] for i in order[count:]]
    return kind(lambda: known, s.cost.prior, s.cost.measurer.near_bytes), known, rest


def kernel_errors(s: Subject) -> tuple:
    """Of the surrogate on the kernels that it was not told."""
    found, inside = [], []
    for seed in range(DRAWS):
        model, known, rest = told(s, seed)
        estimates = model.predict([m.workload for m in rest])
        found += [abs(e.latency_us / m.latency.latency_us - 1) for e, m in zip(estimates, rest)]
        inside += [e.low_us <= m.latency.latency_us <= e.high_us for e, m in zip(estimates, rest)]
    return s.name, len(known) + len(rest), len(known), f"{np.median(found):.1%}", f"{np.quantile(found, 0.95):.1%}", f"{np.mean(inside):.0%}"


def thousand(s: Subject) -> float:
    """Milliseconds that a model with all measurements takes for a thousand kernels it was not told of and never asked."""
    model, _, rest = told(s, 0)
    asked = [m.workload for m in rest]
    asked = [asked[i % len(asked)] for i in range(1000)]
    taken = []
    for _ in range(5):
        model.refresh()
        model.estimate(asked[:1])  # fits
        started = time.perf_counter()
        model.estimate(asked)
        taken.append(time.perf_counter() - started)
    return 1e3 * min(taken)


def write(options: argparse.Namespace, journal: Journal, progress) -> Path:
    rows, kernels, checks, notes = [], [], [], []
    groups = disturbed = 0
    for name in options.models:
        with subject(name, options, progress) as s:
            table = errors(s, journal, s.cost.model)
            if table is None:
                notes.append(f"{name}: too few networks were timed so far.")
                continue
            surrogates = [errors(s, journal, told(s, seed, SurrogateAlone)[0]) for seed in range(DRAWS)]
            sparse = Accuracy(
                table.networks, *(float(np.mean([getattr(a, f) for a in surrogates])) for f in ("median", "percentile_95", "bias", "spearman")), table.retest
            )  # fmt: skip
            rows += [row(name, "table", table, "measured"), row(name, f"surrogate, {SHARE:.0%} of the table", sparse, "analytic")]
            kernels.append(kernel_errors(s))
            checks += [(name, *check) for check in held(table, sparse, thousand(s))]
            timed = {r["at"]: r for r in journal.rows if r["model"] == name and "control_us" in r}
            least = min(r["control_us"] for r in timed.values())
            groups += len(timed)
            disturbed += sum(r["control_us"] > DISTURBED * least for r in timed.values())
            seconds = [r["seconds"] for r in journal.rows if r["model"] == name and "seconds" in r]
            notes.append(f"{name}: a network took {np.mean(seconds):.1f} s to link and time once its kernels were measured.")
    return report.write(
        "cost_model", f"Predicted latency of random pruned networks, target {options.target}",
        f"python -m benchmarks.cost_model --networks {options.networks} --target {options.target}",
        [("Networks", ACCURACY, rows), ("Kernels", KERNELS, kernels), ("Checks", CHECKS, checks)],
        [*notes,
         f"Networks: {', '.join(options.models)}; groups keep candidate widths at random, around a share that is drawn anew for each network; "
         f"the dense network, three uniform and {RANDOM_CALIBRATORS} random ones calibrate, all others are only predicted.",
         f"Networks are timed in groups of {BATCH}, beside the dense one: a group in which that one took more than {DISTURBED - 1:.0%} longer than in "
         f"its fastest does not count and is timed another time ({disturbed} of {groups} groups).",
         f"Test-retest: median absolute difference of two timings of the same network in different runs, for every {RETESTED}th group, apart by the time "
         "that the runs between them take.",
         f"The surrogate is told {SHARE:.0%} of the measured kernels of these networks, and answers for all of them; mean of {DRAWS} draws.",
         "A thousand predictions: of the surrogate, all of them computed; traits and analytic latency of a kernel that was asked of before are kept."],
    )  # fmt: skip


def row(name: str, model: str, a: Accuracy, provenance: str) -> tuple:
    return (name, model, a.networks, f"{a.median:.1%}", f"{a.percentile_95:.1%}", f"{a.bias:+.1%}", f"{a.spearman:.4f}", f"{a.retest:.1%}", provenance)


def held(table: Accuracy, sparse: Accuracy, milliseconds: float) -> Iterator[tuple]:
    median = max(MEDIAN, OF_RETEST * table.retest)
    for name, value, bound, holds, show in (
        ("table, median error", table.median, median, table.median <= median, "{:.1%}"),
        ("table, 95th percentile", table.percentile_95, PERCENTILE_95, table.percentile_95 <= PERCENTILE_95, "{:.1%}"),
        ("table, Spearman", table.spearman, SPEARMAN, table.spearman >= SPEARMAN, "{:.4f}"),
        ("surrogate alone, median error", sparse.median, SURROGATE, sparse.median <= SURROGATE, "{:.1%}"),
        ("a thousand predictions, ms", milliseconds, 20.0, milliseconds <= 20.0, "{:.1f}"),
    ):
        yield name, show.format(value), show.format(bound), "yes" if holds else "NO"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True, help="measurement store")
    parser.add_argument("--journal", required=True, type=Path, help="file of the networks' latencies")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(NETWORKS))
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", default="native")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after about that")
    parser.add_argument("--report", action="store_true", help="write the page from what there is")
    options = parser.parse_args()
    journal, ends = Journal(options.journal), time.monotonic() + options.seconds
    with reporting(as_json=False, debug=True) as bars:
        if options.report:
            print(write(options, journal, bars).read_text())
            return
        for name in options.models:
            with subject(name, options, bars) as s:
                work(s, journal, ends)
                left = [n for n in range(len(s.networks)) if not journal.of(name, n)]
                unknown = {w.key for n in left for w in s.kernels(n) if not s.cost.model.is_measured(w)}
                print(f"{name}: {len(left)} of {len(s.networks)} networks and {len(unknown)} kernels are left")
            if time.monotonic() > ends:
                return


if __name__ == "__main__":
    main()

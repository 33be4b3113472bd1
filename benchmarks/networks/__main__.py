"""Compiled networks beside other engines, two threads, float32, in turn in one run.

    python -m benchmarks.networks --network 'resnet*' --variant dense --batch 1

Every network is timed in a process of its own. Results are appended to a file of JSON lines, so a run can be killed and
started again; the page is written from all that the file holds: results/networks.md, or what ``--name`` says, for a machine whose
results stand beside another's. Needs torchvision and timm beside hwprune and its benchmark extras.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Mapping

from benchmarks import plots, report
from benchmarks.networks.catalog import NETWORKS, VARIANTS
from benchmarks.networks.witness import ENOUGH, Witness

PEERS = ("onnxruntime", "openvino", "torch-compile")
HEADER = (
    "network", "variant", "batch", "hwprune us", "spread", *(f"{p} us" for p in PEERS), "best peer / hwprune",
    "rounds", "left out", "output error", "tuning s", "commit", "note",
)  # fmt: skip
Record = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="*", help="names that match this pattern")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="may be repeated; all by default")
    parser.add_argument("--batch", type=int, action="append", help="may be repeated; 1 and 16 by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--results", type=Path, default=Path("runs/networks.jsonl"), help="file of JSON lines")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--name", default="networks", help="of the page")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, variant, batch = options.one
        print(json.dumps(measured(name, variant, int(batch), options.rounds)))
        return
    if not options.page:
        _run(options)
    print(_page(options.results, options.name))


def _run(options: argparse.Namespace) -> None:
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for batch in options.batch or (1, 16):
        for name in (n for n in NETWORKS if fnmatchcase(n, options.network)):
            for variant in options.variant or VARIANTS:
                command = [sys.executable, "-m", "benchmarks.networks", "--rounds", str(options.rounds), "--one", name, variant, str(batch)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                lines = done.stdout.strip().splitlines()
                record = json.loads(lines[-1]) if done.returncode == 0 and lines else {"note": f"ended with {done.returncode}"}
                record |= {"network": name, "variant": variant, "batch": batch, "commit": report.commit()}
                with options.results.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(name, variant, batch, _ratio(record) or record.get("note"), flush=True)


def measured(name: str, variant: str, batch: int, rounds: int) -> dict[str, Any]:
    """One record: microseconds by engine, the spread of ours, the output's error, and what could not be done."""
    import tempfile

    from benchmarks.networks.catalog import build
    from benchmarks.outputs import difference
    from hwprune import runtime
    from hwprune.costing import load_target
    from hwprune.engines import engine_timer
    from hwprune.errors import HwpruneError
    from hwprune.programs import compile_to
    from hwprune.timing import rows, timed_in_turn

    module, x = build(name, variant, batch)
    profile = load_target("native")
    record: dict[str, Any] = {"note": ""}
    contenders = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            started = time.perf_counter()
            program = runtime.load(compile_to(module, x, profile, Path(folder, "artifact"), None, {}))
            record["tuning_s"] = time.perf_counter() - started
            record["error"] = difference(program(x.numpy()), module, x)
            contenders.append(("hwprune", program.time_us))
        except HwpruneError as err:
            record["note"] = f"hwprune: {err}"
        for peer in PEERS:
            try:
                contenders.append((peer, engine_timer(peer, module, x, profile.threads)))
            except HwpruneError as err:
                record["note"] += f" {peer}: {err}"
        figures, record["left_out"] = timed_in_turn(contenders, rounds=rounds, calm=Witness(profile).calm)
        record["rounds"] = len(figures)
        for row in rows([name for name, _ in contenders], figures):
            record[row.name] = row.median_us
            if row.name == "hwprune":
                record["spread"] = (row.high_us - row.low_us) / row.median_us
    return record


def _ratio(record: Record) -> float | None:
    peers = [record[p] for p in PEERS if record.get(p)]
    return min(peers) / record["hwprune"] if peers and record.get("hwprune") else None


def _page(path: Path, name: str) -> Path:
    latest: dict[tuple, Record] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        latest[record["batch"], record["network"], record["variant"]] = record
    order = {name: i for i, name in enumerate([*NETWORKS, *VARIANTS])}
    rows, notes = [], []
    for key in sorted(latest, key=lambda k: (k[0], order[k[1]], order[k[2]])):
        r = latest[key]
        rows.append((
            r["network"], r["variant"], r["batch"], _text(r.get("hwprune"), ".0f"), _text(r.get("spread"), ".1%"),
            *(_text(r.get(p), ".0f") for p in PEERS), _text(_ratio(r), ".2f"), _text(r.get("rounds"), "d"), _text(r.get("left_out"), "d"),
            _text(r.get("error"), ".1e"),
            _text(r.get("tuning_s"), ".0f"), r["commit"], " ".join(r.get("note", "").split()).replace("|", "/")[:200],
        ))  # fmt: skip
    for batch in sorted({k[0] for k in latest}):
        ratios = [x for k, r in latest.items() if k[0] == batch and (x := _ratio(r))]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            notes.append(
                f"Batch {batch}: geometric mean of best peer over hwprune {mean:.2f} over {len(ratios)} networks, "
                f"least {min(ratios):.2f}; {sum(1 for k in latest if k[0] == batch) - len(ratios)} not compiled."
            )
    if len({r["commit"] for r in latest.values()}) > 1:
        notes.append("Rows are of several commits, each named: a row of an older one says nothing of kernels made since.")
    pictures = []
    if any(_ratio(r) for r in latest.values()):
        pictures.append(report.RESULTS / f"{name}.svg")
        plots.ratios(_panels(latest, order), pictures[0])
    notes.append(
        "Medians of interleaved rounds, measured; spread: 10th to 90th percentile over the median. Left out: rounds before or after "
        f"which all threads were less than {ENOUGH:.0%} of their number times as fast as one thread at a kernel that is none of the "
        "contenders; then another machine's work has a part of the cores. Where three in four were such rounds, all of them count. Rows "
        "without that count are from before rounds were watched."
    )
    command = "python -m benchmarks.networks" + ("" if name == "networks" else f" --name {name}")
    return report.write(name, "Networks beside other engines", command, [("Latency", HEADER, rows)], notes, pictures)


def _panels(latest: Mapping[tuple, Record], order: Mapping[str, int]) -> list[tuple[str, list[tuple[str, str, float]]]]:
    """For each batch size: network, variant and the fastest peer over hwprune, of those that were timed."""
    panels: dict[int, list] = {}
    for batch, network, variant in sorted(latest, key=lambda k: (k[0], order[k[1]], order[k[2]])):
        ratio = _ratio(latest[batch, network, variant])
        if ratio is not None:
            panels.setdefault(batch, []).append((network, variant, ratio))
    return [(f"batch {batch}", rows) for batch, rows in panels.items()]


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    main()

"""Which networks hwprune prunes and proves, beside Torch-Pruning on the same ones.

    python -m benchmarks.coverage --only torchvision --match 'resnet*' --seconds 120

Every network and tool runs in a process of its own with a time limit. Results are appended to a file of JSON lines, so
a run can be killed and started again; results of another revision of the analyzer are taken anew. The page is written
from all that the file holds: results/coverage.md.

Needs torchvision, timm, transformers and torch-pruning==1.6.1 beside hwprune.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import time
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.coverage import catalog, page, worker

ROOT = Path(__file__).resolve().parents[2]
#: What hwprune's results depend on.
ANALYZER = ("hwprune/graph", "hwprune/prune.py", "hwprune/prove.py", "hwprune/importance")
TOOLS = ("hwprune", "torch-pruning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=catalog.SOURCES, help="networks of this source; may be repeated")
    parser.add_argument("--match", default="*", help="networks whose name or family matches")
    parser.add_argument("--limit", type=int, help="at most so many networks")
    parser.add_argument("--first", action="store_true", help="only the first network of each family")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="may be repeated; both by default")
    parser.add_argument("--seconds", type=float, default=120, help="time limit of each network and tool")
    parser.add_argument("--results", type=Path, default=Path("runs/coverage.jsonl"), help="file of JSON lines")
    parser.add_argument("--keep-passed", action="store_true", help="let results of older revisions stand if they passed")
    parser.add_argument("--page", action="store_true", help="only write the page")
    options = parser.parse_args()
    if not options.page:
        _run(options)
    print(page.write(_latest(options.results), catalog.entries()))


def _run(options: argparse.Namespace) -> None:
    chosen = _chosen(options)
    latest = _latest(options.results)
    worker.preload({entry.source for entry in chosen})
    revisions = {tool: revision(tool) for tool in options.tool or TOOLS}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for number, entry in enumerate(chosen, 1):
        for tool, own in revisions.items():
            before = latest.get((entry.source, entry.name, tool))
            if before and (before["revision"] == own or options.keep_passed and before["passed"]):
                continue
            record = measured(entry, tool, options.seconds)
            record = {"source": entry.source, "name": entry.name, "family": entry.family, "tool": tool, "revision": own, **record}
            with options.results.open("a") as file:
                file.write(json.dumps(record) + "\n")
            state = "passed" if record["passed"] else f"FAILED in {record['stage']}: {record['error']}"
            print(f"[{number}/{len(chosen)}] {entry.source} {entry.name} {tool}: {state}", flush=True)


def _chosen(options: argparse.Namespace) -> list[catalog.Entry]:
    found = [
        e
        for e in catalog.entries(tuple(options.only or catalog.SOURCES))
        if fnmatchcase(e.name, options.match) or fnmatchcase(e.family, options.match)
    ]
    if options.first:
        found = list({(e.source, e.family): e for e in reversed(found)}.values())[::-1]
    return found[: options.limit]


def _latest(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The last record of each network and tool; a line cut short by a kill is left out."""
    latest = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        latest[record["source"], record["name"], record["tool"]] = record
    return latest


def revision(tool: str) -> str:
    """The commit of the code that makes a tool's results, marked where the working tree differs from it."""
    if tool != "hwprune":
        return metadata.version(tool)
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "log", "-1", "--format=%h", "--", *ANALYZER], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain", "--", *ANALYZER], capture_output=True, text=True)
    return (commit.stdout.strip() or "unknown") + ("+changes" if changed.stdout.strip() else "")


def measured(entry: catalog.Entry, tool: str, seconds: float) -> dict[str, Any]:
    """What the worker says about one network; where it was stopped, the stage in which it was.

    The worker is a fork of this process, which has loaded all packages and runs nothing itself.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=worker.main, args=(tool, entry.source, entry.name, sender.send))
    process.start()
    sender.close()
    stage, record, error = "start", None, None
    until = time.monotonic() + seconds
    try:
        while record is None and receiver.poll(max(until - time.monotonic(), 0)):
            message = receiver.recv()
            stage, record = message.get("stage", stage), message.get("record")
        if record is None:
            error = f"stopped after {seconds:g} s"
    except EOFError:
        process.join()
        error = f"the process ended with {process.exitcode}"
    process.kill()
    process.join()
    return record or {"passed": False, "stage": stage, "error": error, "seconds": {}}


if __name__ == "__main__":
    main()

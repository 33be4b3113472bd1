"""The results as tables: one summary, and one row a network with both tools side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Sequence

from benchmarks import report
from benchmarks.coverage.catalog import Entry

Records = Mapping[tuple[str, str, str], Mapping[str, Any]]
OURS, PEER = "hwprune", "torch-pruning"
HEADER = (
    "network", "family", "parameters", "hwprune", "proof error", "prunable %", "removed %", "seconds",
    "Torch-Pruning", "proof error (TP)", "prunable % (TP)", "removed % (TP)", "seconds (TP)", "frozen (parameter axes)",
    "why not",
)  # fmt: skip
SUMMARY = (
    "source", "networks", "run", "hwprune passes", "Torch-Pruning passes", "largest proof error",
    "Torch-Pruning beyond 1e-5", "removed % (both pass)", "removed % (TP, both pass)", "seconds, median",
    "seconds (TP), median",
)  # fmt: skip


MORE_HEADER = (
    "network", "source", "prunable %", "prunable % (TP)", "removed %", "removed % (TP)", "what hwprune freezes",
)  # fmt: skip
#: Reasons that concern the network's own inputs and outputs, which no tool may change.
_OUTSIDE = ("network output", "network input")


def write(records: Records, entries: Sequence[Entry]) -> Path:
    sources = list(dict.fromkeys(e.source for e in entries))
    tables = [("Summary", SUMMARY, [_summary(s, records, entries) for s in sources])]
    for source in sources:
        rows = [_row(e, records) for e in entries if e.source == source and _found(e, records)]
        if rows:
            tables.append((source, HEADER, rows))
    more = _more(records, entries)
    tables += [("Where Torch-Pruning removes or reaches more", MORE_HEADER, more)] if more else []
    return report.write(
        "coverage",
        "Networks that hwprune prunes and proves, beside Torch-Pruning",
        "python -m benchmarks.coverage",
        tables,
        _notes(records, entries, sources),
    )


def _found(entry: Entry, records: Records) -> list[Mapping[str, Any] | None]:
    both = [records.get((entry.source, entry.name, tool)) for tool in (OURS, PEER)]
    return both if any(both) else []


def _summary(source: str, records: Records, entries: Sequence[Entry]) -> tuple:
    names = [e.name for e in entries if e.source == source]
    ours, peer = (
        {n: records[source, n, tool] for n in names if (source, n, tool) in records} for tool in (OURS, PEER)
    )
    both = [n for n in ours if ours[n]["passed"] and n in peer and peer[n]["passed"]]
    errors = [r["proof_error"] for r in ours.values() if r.get("proof_error") is not None]
    return (
        source,
        len(names),
        len(ours),
        _passes(ours),
        _passes(peer),
        f"{max(errors):.1e}" if errors else "",
        sum(1 for r in peer.values() if (r.get("proof_error") or 0) > 1e-5),
        _mean([ours[n]["removed"] for n in both]),
        _mean([peer[n]["removed"] for n in both]),
        _median([_seconds(r) for r in ours.values() if r["passed"]]),
        _median([_seconds(r) for r in peer.values() if r["passed"]]),
    )


def _more(records: Records, entries: Sequence[Entry]) -> list[tuple]:
    """Networks of which the peer can prune, or has removed, more than a tenth of a percent more, and what we freeze."""
    rows = []
    for e in entries:
        ours, peer = (records.get((e.source, e.name, tool)) for tool in (OURS, PEER))
        if not (ours and peer and peer["passed"]):
            continue
        more = [(peer.get(k) or 0) - (ours.get(k) or 0) for k in ("prunable", "removed")]
        if max(more) > 0.001:
            frozen = {r: n for r, n in (ours.get("frozen") or {}).items() if not r.startswith(_OUTSIDE)}
            why = "; ".join(f"{reason} ×{count}" for reason, count in frozen.items()) or "network inputs and outputs only"
            shares = [f"{100 * r[k]:.1f}" for k in ("prunable", "removed") for r in (ours, peer)]
            rows.append((e.name, e.source, *shares, _plain(why)))
    return rows


def _passes(records: Mapping[str, Mapping[str, Any]]) -> str:
    return f"{sum(r['passed'] for r in records.values())} of {len(records)}"


def _mean(shares: list[float]) -> str:
    return f"{100 * sum(shares) / len(shares):.1f}" if shares else ""


def _median(values: list[float]) -> str:
    return f"{sorted(values)[len(values) // 2]:.1f}" if values else ""


def _seconds(record: Mapping[str, Any]) -> float:
    """All stages beyond torch.export."""
    return sum(s for stage, s in record["seconds"].items() if stage != "trace")


def _row(entry: Entry, records: Records) -> tuple:
    ours, peer = _found(entry, records)
    cells: list[Any] = [entry.name, entry.family, _parameters(ours, peer)]
    for record in (ours, peer):
        cells += _cells(record)
    frozen = (ours or {}).get("frozen") or {}
    shown = "; ".join(f"{reason} ×{count}" for reason, count in list(frozen.items())[:4])
    if len(frozen) > 4:
        shown += f"; {len(frozen) - 4} more"
    why = [f"{tool}, {r['stage']}: {r['error']}" for tool, r in ((OURS, ours), (PEER, peer)) if r and not r["passed"]]
    if ours and ours.get("as_graph"):
        why.append("pruned as its exported graph")
    return (*cells, _plain(shown), _plain("; ".join(why)))


def _parameters(*records: Mapping[str, Any] | None) -> str:
    found = [r["parameters"] for r in records if r and r.get("parameters")]
    return f"{found[0] / 1e6:.3g} M" if found else ""


def _cells(record: Mapping[str, Any] | None) -> list[str]:
    if record is None:
        return ["not run", "", "", "", ""]
    error = record.get("proof_error")
    shares = [f"{100 * record[k]:.1f}" if record.get(k) is not None else "" for k in ("prunable", "removed")]
    passed = "yes" if record["passed"] else f"no ({record['stage']})"
    return [passed, "" if error is None else f"{error:.1e}", *shares, f"{_seconds(record):.1f}"]


def _plain(text: str) -> str:
    """One line without bars, backquotes and the folders of an installation."""
    words = [w.rpartition("site-packages/")[2] if "site-packages/" in w else w for w in text.split()]
    return " ".join(words).replace("|", "/").replace("`", "'")[:500]


def _notes(records: Records, entries: Sequence[Entry], sources: Sequence[str]) -> list[str]:
    revisions = sorted({r["revision"] for (_, _, tool), r in records.items() if tool == OURS})
    versions = sorted({r["revision"] for (_, _, tool), r in records.items() if tool == PEER})
    notes = [
        "Random weights, batch 2. hwprune: half of every group goes, by l2 magnitude. Torch-Pruning: uniform 50 %, "
        "GroupMagnitudeImportance, the layers that make the output ignored, no settings for single networks.",
        "Passes: analyzed, pruned, ran with outputs of the dense shape, proved (hwprune) and took a training step.",
        "Prunable: share of the parameters that lie on a slice that may go. Seconds: all stages beyond torch.export.",
        "Proof error: float64, relative to the largest output, against the dense network with the removed inputs at "
        "zero. Torch-Pruning's is left out where statistics run over a pruned axis or a free parameter was pruned.",
        "Proof errors around 1e-7 are of networks whose forward pass computes in float32 whatever the parameters are.",
        "GoogLeNet and Inception are built without the heads that exist in training only: those are never traced.",
        "Time limit of each network and tool: 120 s; where one was stopped, the row says after how many seconds.",
        f"hwprune at revision {', '.join(revisions)}; Torch-Pruning {', '.join(versions)}.",
    ]
    if not _more(records, entries):
        notes.append("On no network does Torch-Pruning reach, or remove, a tenth of a percent of the parameters more.")
    for source in sources:
        for tool in (OURS, PEER):
            missing = [e.name for e in entries if e.source == source and (e.source, e.name, tool) not in records]
            if missing:
                notes.append(f"Not run yet with {tool}, from {source} ({len(missing)}): {', '.join(missing)}.")
    return notes

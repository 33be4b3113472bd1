"""The measuring process: builds kernels and times them, one JSON request a line in, one JSON answer a line out.

It lives as long as the search, so that TVM is started once; if a candidate crashes or hangs, this process is lost and
the search is not. Started by ``process.Worker`` as ``python -m hwprune.measure.worker``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from hwprune.compile.emit_c import OUTPUT, Argument, Facts, KernelCall, tables
from hwprune.compile.link import last_line, link_objects
from hwprune.errors import CompileError
from hwprune.kernels import kernel_inputs
from hwprune.kernels.schedule import Config, handicap
from hwprune.library import Library, Memory, aligned
from hwprune.measure.objects import Objects, kernel_name
from hwprune.measure.timed import float32_elements, operands_of, reference
from hwprune.target import TargetProfile
from hwprune.workload import Workload

#: runs -> median microseconds of one run
Timer = Callable[[int], float]

#: A round times this long a burst of each contender, at least.
BURST_S = 0.0015
#: For whole networks, of which few are timed and on which much hangs: longer, and spread over more time.
ARTIFACT_BURST_S, ARTIFACT_PAUSE_S = 0.01, 0.05
#: Cores wake up for this long after a pause, before anything is timed.
WAKE_S = 0.008
#: Constants of a network about this large neither let activations grow without bound nor vanish.
_CONSTANT = 0.05

_NOISE = np.random.default_rng(0).standard_normal(1 << 18, np.float32)


class Kernels:
    """Builds kernels the way artifacts are built, and times them.

    folder : where object files are kept; a temporary one by default.
    """

    def __init__(self, profile_json: str, threads: int, folder: str | None = None):
        self.profile, self.threads = TargetProfile.model_validate_json(profile_json), threads
        self._own = None if folder else tempfile.TemporaryDirectory(prefix="hwprune.")
        self.objects = Objects(self.profile, Path(folder or self._own.name))
        workload, config = reference(self.profile)
        timers, failures = self.timers(workload, [config])
        if failures:
            raise CompileError(f"the reference kernel cannot be built: {failures}")
        self.reference = timers[config]

    def timers(self, workload: Workload, configs: list[str], spread_bytes: int = 0) -> tuple[dict[str, Timer], dict[str, str]]:
        """For each schedule a function that runs it ``n`` times and returns microseconds; or why it cannot be built.

        spread_bytes : copies of the constants take up this much memory and take turns, as in a network of so many bytes.
        """
        symbols = {text: kernel_name(workload, Config.from_text(text)) for text in configs}
        built, failed = self.objects.build([(workload, text) for text in configs])
        failures = {text: failed[symbol] for text, symbol in symbols.items() if symbol in failed}
        linkable = {text: symbol for text, symbol in symbols.items() if symbol in built}
        timers, unlinked = self._link(workload, linkable, built, spread_bytes)
        return timers, {**failures, **unlinked}

    def _link(
        self, workload: Workload, symbols: Mapping[str, str], built: Mapping[str, Path], spread_bytes: int
    ) -> tuple[dict[str, Timer], dict[str, str]]:
        """All schedules (text -> symbol) in one library: one link for all of them; one by one if that fails."""
        if not symbols:
            return {}, {}
        try:
            return self._library(workload, symbols, built, spread_bytes), {}
        except CompileError as err:
            if len(symbols) == 1:
                return {}, dict.fromkeys(symbols, last_line(err))
        timers, failures = {}, {}
        for text, symbol in symbols.items():
            found, failed = self._link(workload, {text: symbol}, built, spread_bytes)
            timers.update(found)
            failures.update(failed)
        return timers, failures

    def _library(
        self, workload: Workload, symbols: Mapping[str, str], built: Mapping[str, Path], spread_bytes: int
    ) -> dict[str, Timer]:
        activations = [t for t in workload.inputs if t.role != "weight"]
        result = Argument(OUTPUT, 0, workload.output.shape, workload.output.dtype)
        operands = [operands_of(kernel_inputs(workload, Config.from_text(text))) for text in symbols]
        calls = [KernelCall(symbol, (*arguments, result)) for symbol, (arguments, _) in zip(symbols.values(), operands)]
        most = max(size for _, size in operands)
        outputs = (float32_elements(workload.output),)
        facts = Facts(tuple(map(float32_elements, activations)), outputs, most, 0, self.threads, alone=True)
        library = self._load([built[symbol] for symbol in symbols.values()], tables(calls, facts))
        inputs, output = [_noise(t.size_bytes, t.dtype) for t in activations], _noise(workload.output.size_bytes)
        # two copies at least, so that none is read twice in a row
        weights, scratch = _noise(max(spread_bytes, 2 * most) if spread_bytes else most, workload.dtype), aligned(0)
        timers = {}
        for step, (text, (_, size)) in enumerate(zip(symbols, operands)):
            copies = weights.size // size if size else 1
            timers[text] = self._timer(library, Memory(inputs, [output], weights[: copies * size], scratch, copies), step, 1)
        return timers

    def network_timer(self, kernels: Mapping[str, tuple[Workload, str]], program: str) -> Timer:
        """Of a whole network over random constants.

        kernels : symbol -> workload and schedule. program : its tables, as C.
        """
        built, failed = self.objects.build(list(kernels.values()))
        if failed:
            raise CompileError(f"a kernel of the network cannot be built: {next(iter(failed.values()))}")
        library = self._load([built[symbol] for symbol in kernels], program)
        inputs, outputs = ([_noise(4 * n) for n in sizes] for sizes in (library.inputs, library.outputs))
        weights = _noise(library.weights_bytes, self.profile.dtype, _CONSTANT)
        return self._timer(library, Memory(inputs, outputs, weights, aligned(library.workspace_bytes)), 0, None)

    def _load(self, objects: Sequence[Path], program: str) -> Library:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "kernels.so")
            link_objects(objects, program, self.profile, path)
            return Library(path)

    def _timer(self, library: Library, memory: Memory, first: int, count: int | None) -> Timer:
        return lambda runs: float(np.median(library.time_ns(memory, self.threads, runs, first, count))) / 1e3


def _noise(size: int, dtype: str = "float32", scale: float = 1.0) -> np.ndarray:
    """Random numbers of a type, ``size`` bytes of them; after a megabyte of float32 the same ones again."""
    buffer = aligned(size)
    values = buffer.view(dtype)
    values[:] = np.resize((_NOISE * np.float32(scale)).astype(dtype), values.size)
    return buffer


def rounds_of(
    timers: dict[str, Timer], rounds: int, reference: Timer, burst_s: float = BURST_S, pause_s: float = 0.0
) -> dict[str, Any]:
    """Time all contenders in turn, round after round, the reference in each, with a pause before each round.

    Cores that slept are slow for some milliseconds, and the reference comes first: it runs untimed for that long.
    """
    counts = {name: _count(timer, burst_s) for name, timer in timers.items()}
    reference_count, wake_count = _count(reference, burst_s), _count(reference, WAKE_S)
    samples: dict[str, list[float]] = {name: [] for name in timers}
    drift = []
    for _ in range(rounds):
        if pause_s:
            time.sleep(pause_s)
            reference(wake_count)
        drift.append(reference(reference_count))
        for name, timer in timers.items():
            samples[name].append(timer(counts[name]))
    return {"samples": samples, "reference": drift}


def _count(timer: Timer, burst_s: float) -> int:
    timer(2)  # first touch of code and data
    return max(1, int(burst_s * 1e6 / max(timer(3), 0.1)))


def _measure(state: dict, request: dict) -> dict:
    """Build each schedule of a workload, screen them briefly, time the best few properly."""
    kernels: Kernels = state["kernels"]
    workload = Workload.from_json(request["workload"])
    timers, failures = kernels.timers(workload, request["configs"], request["spread_bytes"])
    if len(timers) > request["finalists"]:
        screen = rounds_of(timers, 3, kernels.reference, BURST_S / 2)["samples"]
        counted = {text: min(screen[text]) * handicap(Config.from_text(text), kernels.profile) for text in timers}
        best = sorted(timers, key=counted.get)[: request["finalists"]]
        screened = {text: min(screen[text]) for text in timers if text not in best}
        timers = {text: timers[text] for text in best}
    else:
        screened = {}
    losers = [kernel_name(workload, Config.from_text(text)) for text in screened]
    # kept until it is known that this workload is not to be timed again
    kernels.objects.forget([symbol for symbol in state.pop("losers", ()) if symbol not in losers])
    state["losers"] = losers
    result = rounds_of(timers, request["rounds"], kernels.reference) if timers else {"samples": {}, "reference": []}
    return {**result, "screened": screened, "failures": failures}


def _baseline(state: dict, request: dict) -> dict:
    """The reference kernel's own latency, over a longer while."""
    return {"reference": rounds_of({}, request["rounds"], state["kernels"].reference, pause_s=0.01)["reference"]}


def _artifacts(state: dict, request: dict) -> dict:
    """Time whole artifacts in turn, with the reference kernel in each round."""
    from hwprune import runtime

    programs = {path: runtime.load(path, request["threads"]) for path in request["paths"]}
    timers = {path: (lambda n, p=p: float(np.median(p.time_us(n)))) for path, p in programs.items()}
    return rounds_of(timers, request["rounds"], state["kernels"].reference, ARTIFACT_BURST_S, ARTIFACT_PAUSE_S)


def _networks(state: dict, request: dict) -> dict:
    """Time whole networks in turn, as artifacts are; what they are linked from is built where it is not there yet."""
    kernels: Kernels = state["kernels"]
    timers = {
        name: kernels.network_timer({s: (Workload.from_json(w), text) for s, (w, text) in p["kernels"].items()}, p["tables"])
        for name, p in request["programs"].items()
    }
    return rounds_of(timers, request["rounds"], kernels.reference, ARTIFACT_BURST_S, ARTIFACT_PAUSE_S)


def _verify(state: dict, request: dict) -> dict:
    """How far a kernel's result is from what it should be; None where that is not known."""
    from hwprune.measure.verify import kernel_error

    workload, config = Workload.from_json(request["workload"]), Config.from_text(request["config"])
    return {"error": kernel_error(workload, config, state["kernels"].profile)}


def _start(state: dict, request: dict) -> dict:
    state["kernels"] = Kernels(request["profile"], request["threads"], request.get("objects"))
    return {}


_REQUESTS = {"start": _start, "measure": _measure, "baseline": _baseline, "artifacts": _artifacts, "networks": _networks, "verify": _verify}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not end up between the answers
    state: dict = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": True, **_REQUESTS[request["do"]](state, request)}
        except Exception as err:  # the request failed; the worker goes on
            answer = {"ok": False, "error": f"{type(err).__name__}: {err}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

"""The measuring process: builds kernels and times them, one JSON request a line in, one JSON answer a line out.

It lives as long as the search, so that TVM is started once; if a candidate crashes or hangs, this process is lost and
the search is not. Started by ``process.Worker`` as ``python -m hwprune.measure.worker``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Callable

import numpy as np

#: A round times this long a burst of each contender, at least.
BURST_S = 0.0015
#: The reference kernel: a convolution that neither misses caches nor is too short to time.
REFERENCE = dict(height=16, width=16, channels=32)


class Kernels:
    """Built kernels with their buffers, ready to be timed."""

    def __init__(self, profile_json: str):
        import tvm

        from hwprune.target import TargetProfile

        self.tvm, self.profile = tvm, TargetProfile.model_validate_json(profile_json)
        self.reference = self.timer(*_reference(self.profile))

    def timer(self, workload, config) -> Callable[[int], float]:
        """A function that runs the kernel ``n`` times and returns the mean in microseconds."""
        from hwprune.kernels import build, primfunc

        function = build({"kernel": primfunc(workload, self.profile, config)}, self.profile)
        generator = np.random.default_rng(0)
        specs = [*workload.inputs, workload.output]
        buffers = [self.tvm.runtime.tensor(generator.standard_normal(s.shape).astype(s.dtype)) for s in specs]
        device = self.tvm.cpu()

        def run(number: int) -> float:
            evaluator = function.time_evaluator("kernel", device, number=number, repeat=1)
            return float(evaluator(*buffers).results[0]) * 1e6

        return run


def _reference(profile):
    from hwprune.kernels import candidates
    from hwprune.workload import OpCall, TensorSpec, Workload

    v = profile.lanes
    h, w, c = REFERENCE["height"], REFERENCE["width"], -(-REFERENCE["channels"] // v) * v
    conv = OpCall.make("conv2d", 0, 1, padding=(1, 1, 1, 1), stride=(1, 1), dilation=(1, 1), groups=1, channels=0,
                       layout="nhwc", out=(1, h, w))
    workload = Workload((TensorSpec((1, h, w, c)), TensorSpec((c // v, 3, 3, c, v), "weight")), (conv,), TensorSpec((1, h, w, c)))
    return workload, candidates(workload, profile)[0]


def rounds_of(timers: dict[str, Callable[[int], float]], rounds: int, reference: Callable[[int], float],
              burst_s: float = BURST_S) -> dict[str, Any]:
    """Time all contenders in turn, round after round, the reference in each."""
    counts = {name: _count(timer, burst_s) for name, timer in timers.items()}
    reference_count = _count(reference, burst_s)
    samples: dict[str, list[float]] = {name: [] for name in timers}
    drift = []
    for _ in range(rounds):
        drift.append(reference(reference_count))
        for name, timer in timers.items():
            samples[name].append(timer(counts[name]))
    return {"samples": samples, "reference": drift}


def _count(timer: Callable[[int], float], burst_s: float) -> int:
    timer(2)  # first touch of code and data
    return max(1, int(burst_s * 1e6 / max(timer(3), 0.1)))


def _measure(state: dict, request: dict) -> dict:
    """Build each schedule of a workload, screen them briefly, time the best few properly."""
    from hwprune.errors import CompileError, Infeasible
    from hwprune.kernels.schedule import Config
    from hwprune.workload import Workload

    kernels: Kernels = state["kernels"]
    workload = Workload.from_json(request["workload"])
    timers, failures = {}, {}
    for text in request["configs"]:
        try:
            timers[text] = kernels.timer(workload, Config.from_text(text))
        except (Infeasible, CompileError, RuntimeError, ValueError) as err:
            failures[text] = str(err).strip().splitlines()[-1] if str(err).strip() else type(err).__name__
    if len(timers) > request["finalists"]:
        screen = rounds_of(timers, 3, kernels.reference, BURST_S / 2)["samples"]
        best = sorted(timers, key=lambda text: min(screen[text]))[: request["finalists"]]
        screened = {text: min(screen[text]) for text in timers if text not in best}
        timers = {text: timers[text] for text in best}
    else:
        screened = {}
    result = rounds_of(timers, request["rounds"], kernels.reference) if timers else {"samples": {}, "reference": []}
    return {**result, "screened": screened, "failures": failures}


def _baseline(state: dict, request: dict) -> dict:
    """The reference kernel's own latency, over a longer while."""
    reference = state["kernels"].reference
    count = _count(reference, BURST_S)
    values = []
    for _ in range(request["rounds"]):
        values.append(reference(count))
        time.sleep(0.005)
    return {"reference": values}


def _artifacts(state: dict, request: dict) -> dict:
    """Time whole artifacts in turn, with the reference kernel in each round."""
    from hwprune import runtime

    programs = {path: runtime.load(path, request["threads"]) for path in request["paths"]}
    timers = {path: (lambda n, p=p: float(p.time_us(n).mean())) for path, p in programs.items()}
    return rounds_of(timers, request["rounds"], state["kernels"].reference, request.get("burst_s", 0.01))


def _profile_artifact(state: dict, request: dict) -> dict:
    """Median microseconds of each call of an artifact."""
    from hwprune import runtime

    program = runtime.load(request["path"], request["threads"])
    program.time_us(20)
    return {"calls_us": np.median(program.profile_us(request["runs"]), axis=0).tolist()}


def _start(state: dict, request: dict) -> dict:
    state["kernels"] = Kernels(request["profile"])
    return {}


_REQUESTS = {"start": _start, "measure": _measure, "baseline": _baseline, "artifacts": _artifacts, "profile": _profile_artifact}


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

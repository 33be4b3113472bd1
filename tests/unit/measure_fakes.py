"""A measuring process that builds nothing: `python measure_fakes.py` speaks the worker's protocol.

Schedules of a "measure" request are texts with a parameter ``does``: "crash" and "hang" do so, "refuse" cannot be
built, "together" crashes unless it is alone, "disturbed" takes twice as long, as does the reference, the first
``FAKE_DISTURBED`` times, anything else takes ``us`` microseconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": True, **globals()[f"do_{request['do']}"](request)}
        except Exception as err:
            answer = {"ok": False, "error": str(err)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


STARTED: dict = {}


def _log(text: str) -> None:
    if os.environ.get("FAKE_LOG"):
        with open(os.environ["FAKE_LOG"], "a") as file:
            file.write(f"{text}\n")


def do_start(request):
    if os.environ.get("FAKE_START") == "refuse":
        raise RuntimeError("no such processor")
    STARTED.update(request)
    _log("start")
    return {}


def do_echo(request):
    return {"said": request["say"], "pid": os.getpid(), "threads": STARTED["threads"]}


def do_crash(request):
    os._exit(7)


def do_hang(request):
    time.sleep(60)


def do_fail(request):
    raise ValueError("three is not a number")


def do_baseline(request):
    return {"reference": [10.0] * request["rounds"]}


def do_measure(request):
    samples, failures, reference = {}, {}, 10.0
    for text in request["configs"]:
        config = json.loads(text)
        does = config.get("does")
        if does == "crash" or (does == "together" and len(request["configs"]) > 1):
            os._exit(11)
        if does == "hang":
            time.sleep(60)
        if does == "refuse":
            failures[text] = "does not divide"
        elif does == "disturbed":
            left = STARTED.setdefault("disturbed", int(os.environ.get("FAKE_DISTURBED", "0")))
            STARTED["disturbed"] = max(left - 1, 0)
            reference = 20.0 if left else 10.0
            samples[text] = [200.0 if left else 100.0] * request["rounds"]
        else:
            samples[text] = [float(config.get("us", 100))] * request["rounds"]
    _log(f"measure {len(request['configs'])}")
    return {"samples": samples, "reference": [reference] * request["rounds"], "screened": {}, "failures": failures}


COMMAND = [sys.executable, str(Path(__file__))]

if __name__ == "__main__":
    main()

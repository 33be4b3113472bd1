"""One network, one tool, one process: tells each stage that it enters, and the record.

    python -m benchmarks.coverage.worker TOOL SOURCE NAME       runs one by hand
"""

from __future__ import annotations

import importlib
import sys
import traceback
import warnings
from typing import Any, Callable, Iterable

import torch
from torch import nn

from benchmarks.coverage import measure, peer
from benchmarks.coverage.catalog import build, torchvision
from hwprune.graph import rules

TOOLS = {"hwprune": measure.hwprune, "torch-pruning": peer.torch_pruning}


def preload(sources: Iterable[str]) -> None:
    """Load what workers of these sources need, before they are forked; nothing is computed."""
    torch.set_num_threads(1)
    torchvision()
    for name in (
        "torch_pruning", "torch.export", "hwprune.graph.gather", "hwprune.graph.propagate", "hwprune.graph.rules.conv",
        "hwprune.importance", "hwprune.prove", "hwprune.prune",
    ):  # fmt: skip
        importlib.import_module(name)
    rules.find(torch.ops.aten.relu.default)  # loads all of them
    for source in {"timm", "transformers"} & set(sources):
        importlib.import_module(source)


def main(tool: str, source: str, name: str, tell: Callable[[dict[str, Any]], None]) -> None:
    """``tell`` gets {"stage": name} as stages begin and {"record": result} in the end."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    record = {"passed": False, "error": None}
    stage = "build"

    def announce(new: str) -> None:
        nonlocal stage
        stage = new
        tell({"stage": stage})

    try:
        announce(stage)
        network = build(source, name)
        randomize(network.module)
        record["parameters"] = measure.parameters(network.module)
        TOOLS[tool](network, record, announce)
        record["passed"] = True
    except Exception as err:  # whatever it is, it is this network's result
        record["error"] = _sentence(err)
    tell({"record": {**record, "stage": stage}})


def randomize(module: nn.Module) -> None:
    """Parameters of one value, and statistics of zero, would hide that the wrong ones were taken; a last layer of zeros
    would hide everything."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_var is not None:
                m.running_mean.uniform_(-0.1, 0.1, generator=generator)
                m.running_var.uniform_(0.8, 1.2, generator=generator)
        for p in module.parameters():
            if p.numel() > 1 and bool((p == p.flatten()[0]).all()):
                p.add_(torch.empty_like(p).uniform_(-0.2, 0.2, generator=generator))


def _sentence(err: Exception) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    frames = traceback.extract_tb(err.__traceback__)
    last = frames[-1] if frames else None
    place = f" ({'/'.join(last.filename.split('/')[-2:])}:{last.lineno})" if last else ""
    return f"{type(err).__name__}: {' '.join(lines)[:400] if lines else 'no message'}{place}"


if __name__ == "__main__":
    main(*sys.argv[1:], tell=print)

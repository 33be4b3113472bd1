"""One network, one tool, one process: prints a JSON line for each stage entered and one for the record.

    python -m benchmarks.coverage.worker TOOL SOURCE NAME
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings

import torch
from torch import nn

from benchmarks.coverage import measure, peer
from benchmarks.coverage.catalog import build

TOOLS = {"hwprune": measure.hwprune, "torch-pruning": peer.torch_pruning}


def main(tool: str, source: str, name: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    record = {"passed": False, "error": None}
    stage = "build"

    def announce(new: str) -> None:
        nonlocal stage
        stage = new
        print(json.dumps({"stage": stage}), flush=True)

    try:
        announce(stage)
        network = build(source, name)
        randomize_norms(network.module)
        record["parameters"] = measure.parameters(network.module)
        TOOLS[tool](network, record, announce)
        record["passed"] = True
    except Exception as err:  # whatever it is, it is this network's result
        record["error"] = _sentence(err)
    print(json.dumps({"record": {**record, "stage": stage}}), flush=True)


def randomize_norms(module: nn.Module) -> None:
    """Scales of one and statistics of zero would hide that the wrong ones were taken."""
    generator = torch.Generator().manual_seed(1)
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_var is not None:
            m.running_mean.uniform_(-0.1, 0.1, generator=generator)
            m.running_var.uniform_(0.8, 1.2, generator=generator)
        if isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)) and m.weight is not None:
            with torch.no_grad():
                m.weight.add_(torch.empty_like(m.weight).uniform_(-0.2, 0.2, generator=generator))
                if m.bias is not None:
                    m.bias.add_(torch.empty_like(m.bias).uniform_(-0.2, 0.2, generator=generator))


def _sentence(err: Exception) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    frames = traceback.extract_tb(err.__traceback__)
    last = frames[-1] if frames else None
    place = f" ({'/'.join(last.filename.split('/')[-2:])}:{last.lineno})" if last else ""
    return f"{type(err).__name__}: {' '.join(lines)[:400] if lines else 'no message'}{place}"


if __name__ == "__main__":
    main(*sys.argv[1:])

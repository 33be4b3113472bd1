"""Networks with GPU schedules, run on the CPU: every kernel's threads are loops (``kernels.cuda.emulate``)."""

from __future__ import annotations

from typing import Callable

import numpy as np
import torch
import tvm
from torch import nn

from hwprune.compile.artifact import parameter_values
from hwprune.compile.lower import Network, lower
from hwprune.graph import trace
from hwprune.kernels import repacked
from hwprune.kernels.cuda.emulate import build, function
from hwprune.kernels.schedule import Config
from hwprune.target import TargetProfile
from hwprune.workload import Workload

Pick = Callable[[Workload], Config]


def lowered(module: nn.Module, inputs: tuple[torch.Tensor, ...], profile: TargetProfile) -> Network:
    return lower(trace(module.eval(), inputs), profile)


def emulate(network: Network, inputs: tuple[torch.Tensor, ...], pick: Pick, gpu: TargetProfile) -> list[np.ndarray]:
    """Outputs of ``network``, its kernels scheduled for ``gpu`` and run on this machine's CPU."""
    emitted = network.emitted()
    distinct = {e.workload.key: e.workload for e in emitted}
    symbols = {key: f"kernel{i}" for i, key in enumerate(distinct)}
    configs = {key: pick(w) for key, w in distinct.items()}
    library = build({symbols[key]: function(w, gpu, configs[key]) for key, w in distinct.items()})
    params = parameter_values(network)
    values = {name: x.numpy() for name, x in zip(network.inputs, inputs)}
    for call, e in zip(network.calls, emitted):
        packed = repacked(e.workload, configs[e.workload.key])
        # a kernel may see the memory of an activation in another shape
        arguments = [
            values[b].reshape(spec.shape) if isinstance(b, str) else b.pack(params, network.lanes)
            for spec, b in zip(e.workload.inputs, e.bindings)
        ]
        arguments = [packed[i].transform(a) if i in packed else a for i, a in enumerate(arguments)]
        # lanes of padding may hold anything, so they hold what would show
        result = tvm.runtime.tensor(np.full(e.workload.output.shape, np.nan, np.float32))
        library[symbols[e.workload.key]](*(tvm.runtime.tensor(np.ascontiguousarray(a, np.float32)) for a in arguments), result)
        values[call.name] = result.numpy()
    return [values[name] for name in network.outputs]

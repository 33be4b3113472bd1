"""ResNet-56 on CIFAR-10: prune to half the dense latency on this machine, fine-tune, compile, compare with other engines.

    python -m benchmarks.cifar10_resnet56 --data cifar10.npz --weights resnet56_cifar10.pt --epochs 3

Writes results/cifar10_resnet56.md. The data and the trained weights are not part of this repository.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import hwprune
from benchmarks import report
from benchmarks.cifar10_resnet56.data import cifar10
from benchmarks.cifar10_resnet56.model import INPUT_SHAPE, resnet56
from benchmarks.outputs import difference
from hwprune import api, runtime
from hwprune.spec.weights import load_weights
from hwprune.terminal import reporting
from hwprune.train.evaluate import accuracy

#: Test accuracy of the trained network, per cent.
DENSE_ACCURACY = 93.39

ENGINES = ("onnxruntime", "openvino", "torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="cifar10.npz")
    parser.add_argument("--weights", required=True, help="state_dict of the trained network")
    parser.add_argument("--latency", default="0.5x")
    parser.add_argument("--importance", default="taylor")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--target", default="native")
    parser.add_argument("--out", default="runs/cifar10_resnet56")
    parser.add_argument("--store", default=None)
    options = parser.parse_args()
    model = resnet56()
    load_weights(model, options.weights)
    with reporting(as_json=False, debug=True) as bars:
        data = cifar10(options.data)
        dense = 100 * accuracy(model, data, progress=bars)
        if abs(dense - DENSE_ACCURACY) > 0.005:
            raise SystemExit(f"the dense network reaches {dense:.2f} %, not {DENSE_ACCURACY} %: wrong weights or data")
        result = hwprune.search(
            model, torch.zeros(INPUT_SHAPE), target=options.target, latency=options.latency, data=data,
            importance=options.importance, finetune=options.epochs, compile=True, out=options.out, force=True,
            store=options.store, model_spec="benchmarks.cifar10_resnet56.model:resnet56", data_spec=options.data, progress=bars,
        )
        timed = api.bench(options.out, vs=ENGINES, store=options.store, progress=bars)
    write(options, result, timed)


def write(options: argparse.Namespace, result, timed) -> None:
    rows = [(r.quantity, r.unit, _figure(r.dense), _figure(r.pruned), "" if r.ratio is None else f"{r.ratio:.3f}") for r in result.table()]
    latency = [(r.name, f"{r.median_us:.0f}", f"{r.low_us:.0f}", f"{r.high_us:.0f}", f"{r.ratio:.2f}", r.provenance) for r in timed]
    checks = [(name, f"{value:.3g}", bound, "yes" if passed else "NO") for name, value, bound, passed in _checks(result, timed)]
    path = report.write(
        "cifar10_resnet56", f"ResNet-56 on CIFAR-10, latency {options.latency} on this machine",
        f"python -m benchmarks.cifar10_resnet56 --data cifar10.npz --weights resnet56_cifar10.pt --latency {options.latency} --epochs {options.epochs}",
        [("Networks", ("quantity", "unit", "dense", "pruned", "ratio"), rows),
         ("Latency", ("program", "median us", "low us", "high us", "ratio to the first", "provenance"), latency),
         ("Checks", ("check", "value", "bound", "holds"), checks)],
        ["Latencies of the second table are medians of interleaved rounds with their 10th and 90th percentile; those of the "
         "first are low quantiles corrected for drift, as kernels are measured."],
    )
    print(path.read_text())


def _figure(figure) -> str:
    return "unknown" if figure is None else f"{figure.value:.6g} ({figure.provenance})"


def _checks(result, timed):
    """The figures that this benchmark is held to: name, value, bound, whether it holds."""
    measured, by_name = result.record["measured"], {r.name: r for r in timed}
    dense, pruned = (measured[side]["value"] for side in ("dense", "pruned"))
    error = abs(pruned / result.plan.predicted.latency_us.value - 1)
    yield "measured over predicted latency, deviation", error, "<= 0.08", error <= 0.08
    yield "pruned over dense latency, measured", pruned / dense, "<= 0.53", pruned / dense <= 0.53
    difference = output_difference(result)
    yield "output of the artifact against torch", difference, "<= 1e-4", difference <= 1e-4
    yield "proof, relative error", result.proof.relative_error, f"<= {result.proof.tolerance:g}", result.proof.passed
    engine, ours = by_name["onnxruntime, dense"], by_name["hwprune, dense"]
    yield "dense, ONNX Runtime over hwprune", engine.median_us / ours.median_us, ">= 1", engine.median_us >= ours.median_us


def output_difference(result) -> float:
    """Largest difference between the pruned artifact and the pruned torch model, relative to the largest output."""
    program = runtime.load(Path(result.out) / "artifact")
    x = np.random.default_rng(0).standard_normal(INPUT_SHAPE).astype(np.float32)
    return difference(program(x), result.model, torch.from_numpy(x))


if __name__ == "__main__":
    main()

"""Plots of benchmark results, as SVG files that are the same for the same figures. Needs matplotlib."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from hwprune.fsio import write_text_atomic

if TYPE_CHECKING:
    from benchmarks.kernels import Kernel

#: Okabe and Ito's colours, which people with any colour vision tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
_GREY = "#555555"


def layers(networks: Sequence[tuple[str, Sequence["Kernel"]]], path: Path) -> None:
    """One panel a network: a bar for each kernel, as wide as the time it takes and as high as its share of the attainable."""
    plt = _pyplot()
    figure, panels = plt.subplots(len(networks), 1, figsize=(9, 3.1 * len(networks)), squeeze=False, layout="constrained")
    kinds = list(dict.fromkeys(k.kind for _, kernels in networks for k in kernels))
    common = sorted(kinds, key=lambda kind: -sum(k.us for _, kernels in networks for k in kernels if k.kind == kind))[:6]
    colours = {kind: COLOURS[common.index(kind)] if kind in common else COLOURS[6] for kind in kinds}
    for axes, (name, kernels) in zip(panels[:, 0], networks):
        start, total = 0.0, sum(k.us for k in kernels)
        for kernel in kernels:
            axes.bar(start, kernel.fraction, kernel.us, align="edge", color=colours[kernel.kind], edgecolor="white", linewidth=0.4)
            start += kernel.us
        attained = sum(k.attainable_us for k in kernels) / total
        axes.axhline(attained, color=_GREY, linewidth=0.9, linestyle="--")
        axes.text(total, attained, f" {attained:.0%}", va="center", color=_GREY)
        axes.axhline(1, color=_GREY, linewidth=0.6)
        axes.set(xlim=(0, total), ylim=(0, max(1.05, max(k.fraction for k in kernels) * 1.03)), xlabel="time in the network, us")
        axes.set_ylabel("share of the attainable")
        axes.set_title(f"{name}: {total / 1e3:.2f} ms", loc="left", fontsize=10)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[kind]) for kind in common]
    labels = list(common)
    if len(kinds) > len(common):
        handles, labels = [*handles, plt.Rectangle((0, 0), 1, 1, color=COLOURS[6])], [*labels, "other"]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    _save(figure, path)


def ratios(panels: Sequence[tuple[str, Sequence[tuple[str, str, float]]]], path: Path) -> None:
    """One panel for each title: how many times as long the fastest other engine takes, a row a network, a dot a variant.

    panels : title, and (network, variant, ratio) in the order in which they are shown.
    """
    plt = _pyplot()
    networks = list(dict.fromkeys(network for _, rows in panels for network, _, _ in rows))
    variants = list(dict.fromkeys(variant for _, rows in panels for _, variant, _ in rows))
    size = (4.6 * len(panels), 0.8 + 0.32 * len(networks))
    figure, all_axes = plt.subplots(1, len(panels), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")
    for axes, (title, rows) in zip(all_axes[0], panels):
        axes.axvline(1, color=_GREY, linewidth=0.9)
        for i, variant in enumerate(variants):
            places = [(ratio, networks.index(network)) for network, v, ratio in rows if v == variant]
            if places:
                axes.scatter(*zip(*places), s=34, color=COLOURS[i], label=variant, zorder=3, edgecolor="white", linewidth=0.5)
        axes.set_yticks(range(len(networks)), networks)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("fastest other engine / hwprune")
    all_axes[0][0].invert_yaxis()
    all_axes[0][0].set_xlim(left=min(0.9, 0.97 * min(ratio for _, rows in panels for _, _, ratio in rows)))
    shown = {label: handle for axes in all_axes[0] for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(variants), frameon=False, fontsize=9)
    _save(figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({
        "svg.hashsalt": "hwprune", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False,
    })  # fmt: skip
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    write_text_atomic(path, text.getvalue())

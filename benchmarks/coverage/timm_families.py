"""Write timm_families.tsv: the smallest of up to ten candidates of each of timm's model files.

    python -m benchmarks.coverage.timm_families

Networks are built on the meta device, so that no weight is allocated. Sizes are those of their configurations.
"""

from __future__ import annotations

import csv
import io
import warnings

import torch

from benchmarks.coverage.catalog import TIMM_FAMILIES, torchvision
from hwprune.fsio import write_text_atomic


#: What timm calls its smaller networks.
SMALL = ("nano", "tiny", "small", "atto", "femto", "pico", "xxs", "_xs", "_s", "_t0", "_b0", "_m0", "_n", "mini", "micro")
AT_MOST = 10


def main() -> None:
    torchvision()
    import timm

    warnings.simplefilter("ignore")
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(("family", "model", "parameters", "models_in_family"))
    for family in timm.list_modules():
        names = timm.list_models(module=family)
        sizes = {name: size for name in _candidates(names) if (size := _parameters(timm, name))}
        if not names:
            continue
        smallest = min(sizes, key=sizes.__getitem__) if sizes else _candidates(names)[0]
        writer.writerow((family, smallest, sizes.get(smallest, ""), len(names)))
        write_text_atomic(TIMM_FAMILIES, text.getvalue())
        print(family, smallest, sizes.get(smallest, ""), len(names), sep="\t", flush=True)


def _candidates(names: list[str]) -> list[str]:
    """Building all of timm takes long: the names that say they are small go first."""
    return sorted(names, key=lambda name: (not any(s in name for s in SMALL), len(name), name))[:AT_MOST]


def _parameters(timm, name: str) -> int | None:
    try:
        with torch.device("meta"):
            module = timm.create_model(name, pretrained=False)
    except Exception:  # some constructors compute with their weights; their family has others
        return None
    return sum(p.numel() for p in module.parameters())


if __name__ == "__main__":
    main()

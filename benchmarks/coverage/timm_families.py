"""Write timm_families.tsv: the network with the fewest parameters of each of timm's model files.

    python -m benchmarks.coverage.timm_families

Networks are built on the meta device, so that no weight is allocated. Sizes are those of their configurations.
"""

from __future__ import annotations

import csv
import io
import warnings

import torch

from benchmarks.coverage.catalog import TIMM_FAMILIES, _torchvision
from hwprune.fsio import write_text_atomic


def main() -> None:
    _torchvision()
    import timm

    warnings.simplefilter("ignore")
    rows = []
    for family in timm.list_modules():
        sizes = {}
        for name in timm.list_models(module=family, exclude_filters=_large(timm, family)):
            try:
                with torch.device("meta"):
                    module = timm.create_model(name, pretrained=False)
            except Exception:  # some constructors compute with their weights; their family has others
                continue
            sizes[name] = sum(p.numel() for p in module.parameters())
        names = timm.list_models(module=family)
        if names:
            smallest = min(sizes, key=sizes.__getitem__) if sizes else names[0]
            rows.append((family, smallest, sizes.get(smallest, ""), len(names)))
            print(*rows[-1], sep="\t", flush=True)
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(("family", "model", "parameters", "models_in_family"))
    writer.writerows(rows)
    write_text_atomic(TIMM_FAMILIES, text.getvalue())


def _large(timm, family: str) -> list[str]:
    """Names that say they are large, where the family has others: building all of timm takes long."""
    large = ["*_large*", "*_huge*", "*_giant*", "*_gigantic*", "*_xl*", "*_base*", "*_so400m*", "*_xxl*"]
    return large if timm.list_models(module=family, exclude_filters=large) else []


if __name__ == "__main__":
    main()

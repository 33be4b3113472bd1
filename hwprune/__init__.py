"""hwprune: hardware-aware structured pruning, measured on the target it is for."""

__version__ = "0.1.0"

_API = frozenset({"load_run", "finetune_run", "compile_run", "compile_model", "bench", "inspect", "SearchResult"})


def __getattr__(name: str):
    # The API imports torch; `import hwprune` and `hwprune --help` do not.
    if name == "search":
        import importlib

        return importlib.import_module("hwprune.search")
    if name not in _API:
        raise AttributeError(f"module 'hwprune' has no attribute {name!r}")
    from hwprune import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_API, "search"})

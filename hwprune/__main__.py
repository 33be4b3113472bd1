"""``python -m hwprune``: the same as the ``hwprune`` command."""

import os
import sys

from hwprune.cli import main
from hwprune.terminal import INTERRUPTED

if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            # Where Ctrl-C falls into an `exec`, as imports run many, CPython remembers it as unhandled though it was handled,
            # and `python -m` ends by a signal instead of with its exit code. Everything is said and closed by now.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise

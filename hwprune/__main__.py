"""``python -m hwprune``: the same as the ``hwprune`` command."""

from hwprune.cli import main

if __name__ == "__main__":
    main()

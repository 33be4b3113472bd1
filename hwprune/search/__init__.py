"""Which channels to keep: candidate widths, the problem as arrays, its solvers, the frontier.

``hwprune.search`` is also the name of the function that does the main job (``hwprune.api.search``), and a package of
one name hides a function of the same name as soon as any of its modules is imported. So the package itself is callable.
"""

import sys
import types


class _CallablePackage(types.ModuleType):
    def __call__(self, *args, **kwargs):
        """See ``hwprune.api.search``, to which this hands over."""
        from hwprune.api import search

        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage

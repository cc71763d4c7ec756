"""A `sitecustomize` for a machine that has few packages: written to a folder on PYTHONPATH by the tests.

Packages that the allowed ones do not need themselves cannot be found, and rayface may import only the allowed ones.
"""

import builtins
import re
import sys
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

ALLOWED = {"torch", "numba", "numpy", "pyarrow", "rich", "typer"}
OURS = {"rayface", "tests", "llvmlite"}  # llvmlite is numba's other half


def _needed(name, found):
    """Add the distributions that one needs, extras left out."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return found
    try:
        wanted = requires(name) or []
    except PackageNotFoundError:
        return found
    found.add(key)
    for line in wanted:
        if "extra ==" not in line:
            _needed(re.match(r"[\w.-]+", line)[0], found)
    return found


def _hidden():
    there = set()
    for name in ALLOWED:
        _needed(name, there)
    names = {
        top: {re.sub(r"[-_.]+", "-", each).lower() for each in distributions}
        for top, distributions in packages_distributions().items()
    }
    return {top for top, distributions in names.items() if not distributions & there} - OURS


HIDDEN = _hidden()


class _LeanFinder(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in HIDDEN else PathFinder.find_spec(fullname, path, target)


sys.meta_path = [_LeanFinder if finder is PathFinder else finder for finder in sys.meta_path]
_import = builtins.__import__


def _checked(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    top = name.partition(".")[0]
    if level == 0 and importer.startswith("rayface") and top not in ALLOWED | OURS | sys.stdlib_module_names:
        raise ModuleNotFoundError(f"{importer} imports {name}, which the machine may lack", name=name)
    return _import(name, globals, locals, fromlist, level)


builtins.__import__ = _checked

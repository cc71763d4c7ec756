"""What Triton needs, beside a GPU, to launch kernels."""

import os
import shutil
import sysconfig
from pathlib import Path


def check_triton_compiler(setting: str, remedy: str) -> None:
    """Refuse a setting whose kernels Triton could not launch: it compiles their launchers in C.

    Raises:
        ValueError: no compiler, or no headers of Python; one line.
    """
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]  # as Triton looks for it
    if not any(map(shutil.which, compilers)):
        raise ValueError(
            f"{setting}: Triton needs a C compiler on a GPU's machine, no {' or '.join(compilers)} was found: install "
            f"one, name it in CC, or {remedy}"
        )
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # Debian's, which Triton maps, too
    header = Path(sysconfig.get_paths(scheme)["include"], "Python.h")
    if not header.exists():
        raise ValueError(
            f"{setting}: Triton needs the headers of Python on a GPU's machine, no {header} was found: install them "
            f"(python3-dev), or {remedy}"
        )

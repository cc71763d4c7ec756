"""What `import rayface` opens, and that it costs nothing."""

import subprocess
import sys

import rayface


def test_every_public_name_resolves_and_is_listed() -> None:
    assert {name for name in rayface.__all__ if getattr(rayface, name, None) is None} == set()
    assert set(rayface.__all__) <= set(dir(rayface))


def test_import_loads_neither_torch_nor_ray_nor_the_config() -> None:
    script = (
        "import sys, rayface; print([name for name in ('torch', 'ray', 'pydantic', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

"""Figures and pages."""

import subprocess
import sys


def test_pyplot_is_not_touched():
    code = "import sys, rayface.curves; sys.exit('matplotlib.pyplot' in sys.modules or 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

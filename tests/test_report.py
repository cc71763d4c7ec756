"""Pages of reports: what their modules import."""

import subprocess
import sys


def test_import_of_report_and_curves_leaves_pyplot_out():
    code = "import sys, rayface.curves; sys.exit('matplotlib.pyplot' in sys.modules or 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Lets the tests of this folder import their oracle, which worker processes import too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

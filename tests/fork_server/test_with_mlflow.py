"""MLflow imported into a process that will be forked."""

import subprocess
import sys

import pytest

CODE = """
import os, sys, threading
before = dict(os.environ)
import rayface.fork_server.with_mlflow
assert dict(os.environ) == before
assert not any(name.startswith("rayface.tracking") for name in sys.modules)  # of a job that may bring another rayface
assert threading.active_count() == 1  # else it could not be forked
imported = set(sys.modules)
import mlflow
mlflow.MlflowClient(sys.argv[1]).search_experiments()
print(len({name for name in set(sys.modules) - imported if name.startswith(("mlflow", "sqlalchemy"))}))
"""


@pytest.mark.long
def test_with_mlflow_leaves_little_to_import_for_a_driver(tmp_path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    done = subprocess.run([sys.executable, "-c", CODE, uri], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 10

"""The command line with gates in its workers: fault_driver.py GATES FOLDER ARGUMENTS..., GATES a list in JSON."""

import json
import sys
from pathlib import Path

import fault_gate
import ray
from fault_gate import Gate, gated

from rayface.cli import main
from rayface.training import fit

if __name__ == "__main__":
    gates = [Gate(**gate) for gate in json.loads(sys.argv[1])]
    ray.cloudpickle.register_pickle_by_value(fault_gate)
    fit.train_worker = gated(fit.train_worker, gates, Path(sys.argv[2]), None)
    sys.argv = ["rayface", *sys.argv[3:]]
    main()

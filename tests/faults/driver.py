"""The command line with breakpoints in its workers: driver BREAKPOINTS FOLDER ARGUMENTS..., BREAKPOINTS in JSON."""

import json
import sys
from pathlib import Path

import ray

from rayface.cli import main
from rayface.training import fit
from tests.faults import breakpoints as breakpoints_module
from tests.faults.breakpoints import Breakpoint, with_breakpoints

if __name__ == "__main__":
    breakpoints = [Breakpoint(**point) for point in json.loads(sys.argv[1])]
    ray.cloudpickle.register_pickle_by_value(breakpoints_module)
    fit.train_worker = with_breakpoints(fit.train_worker, breakpoints, Path(sys.argv[2]), None)
    sys.argv = ["rayface", *sys.argv[3:]]
    main()

"""Injects the faults and prints the table of docs/reliability.md: `make faults`.

python -m tests.faults.table [WORDS...]: only the faults whose names hold one of these.
"""

import contextlib
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.faults.fixture import Outcome, RunFixture, TestCluster
from tests.faults.scenarios import RUNS, Scenario, check_end, run_scenarios

_HEAD = ("fault", "how injected", "the run", "recovery, s", "repeated / lost", "loss curve equal", "model equal")


def main(words: list[str]) -> int:
    """Inject the faults, then print the table; return the number of runs that did not end as they should."""
    failed, rows = 0, [_HEAD, ("---",) * len(_HEAD)]
    # Ray tells of dead workers and nodes on stdout, where only the table shall be.
    with tempfile.TemporaryDirectory(prefix="rayface-faults-") as folder, contextlib.redirect_stdout(sys.stderr):
        cluster = TestCluster(Path(folder))
        try:
            start = time.monotonic()
            steps = len(cluster.reference.losses)
            print(f"the undisturbed run: {steps} steps, {time.monotonic() - start:.0f} s", file=sys.stderr)
            for name, scenarios in RUNS.items():
                chosen = [(i, s) for i, s in enumerate(scenarios) if not words or any(w in s.name for w in words)]
                if chosen:
                    new = _run(RunFixture(cluster, name), chosen)
                    rows += new
                    failed += not new
        finally:
            cluster.close()
    print(*(f"| {' | '.join(row)} |" for row in rows), sep="\n")
    return failed


def _run(fixture: RunFixture, scenarios: list[tuple[int, Scenario]]) -> list[tuple[str, ...]]:
    start = time.monotonic()
    try:
        run_scenarios(fixture, scenarios)
        found = check_end(fixture, [scenario for _, scenario in scenarios])
    except Exception:
        traceback.print_exc()
        print(f"{fixture.name}: FAILED", file=sys.stderr, flush=True)
        return []
    lines = [f"{name}: {line}" for name, (_, line) in fixture.stopped.items()]
    done = f"{fixture.name}: {time.monotonic() - start:.0f} s, {found.steps_again} steps done again"
    print(done, *lines, sep="\n  ", file=sys.stderr, flush=True)
    return [_row(scenario, found) for _, scenario in scenarios]


def _row(scenario: Scenario, found: Outcome) -> tuple[str, ...]:
    seconds = found.recovery_seconds.get(scenario.name)
    recovery = "-" if seconds is None or seconds == float("inf") else f"{seconds:.1f}"  # inf: no step came after it
    same = {True: "yes", False: f"no: {scenario.different}"}
    samples = f"{found.repeated} / {found.lost}"
    return (
        scenario.name,
        scenario.how,
        scenario.does,
        recovery,
        samples,
        same[found.same_losses],
        same[found.same_model],
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

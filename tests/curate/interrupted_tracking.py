"""A job that was killed between its result and the end of its tracking."""

import json
from collections.abc import Callable
from pathlib import Path


def check_tracked_once_when_run_again(journal: Path, run: Callable[[], object], name: str, value: float) -> None:
    """Cut a finished job's journal off before its metrics; running the job again completes it, once.

    Args:
        run: runs the finished job again.
        name, value: one of its metrics.
    """
    lines = journal.read_text().splitlines()
    done = next(n for n, line in enumerate(lines) if json.loads(line)["kind"] == "metrics")
    journal.write_text("\n".join([*lines[:done], ""]))
    run()
    records = [json.loads(line) for line in journal.read_text().splitlines()[done:]]
    (values,) = (record["values"] for record in records if record["kind"] == "metrics")
    assert values[name] == value
    assert [record["kind"] for record in records[-3:]] == ["artifact", "artifact", "finish"]
    run()
    assert len(journal.read_text().splitlines()) == done + len(records)

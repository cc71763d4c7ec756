"""The verb submit: what it hands over, and what it refuses before it asks the cluster."""

import json
from types import SimpleNamespace

import pytest

from rayface import submit as jobs
from tests.cli.conftest import Call


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Packages sent to a cluster that writes a line of JSON among others."""
    sent: list[object] = []
    monkeypatch.setattr(jobs, "connect", lambda address, debug: SimpleNamespace(address=address))
    monkeypatch.setattr(jobs, "submit", lambda client, package, verb: sent.append((client.address, package)) or "job-1")

    def follow(client: object, job: str, write: object) -> int:
        for text in ("loading\n{not json\n", '{"steps": ', "3}\ndone\n"):
            write(text)
        return 3

    monkeypatch.setattr(jobs, "follow", follow)
    return sent


def test_submit_of_a_verb_hands_its_arguments_over_and_returns_its_exit_code(call: Call, cluster) -> None:
    code, out, err = call("submit", "--address", "http://head:8265", "train", "--preset", "debug", "--json")
    assert (code, json.loads(out)) == (3, {"steps": 3})
    assert "loading" in err
    assert "submitted job-1" in err
    ((address, package),) = cluster
    assert address == "http://head:8265"
    assert package.entrypoint == "python -m rayface.cli train --preset debug --json"


def test_submit_without_waiting_returns_the_id_of_the_job(call: Call, cluster) -> None:
    code, out, _ = call("submit", "--no-wait", "embed", "--json")
    assert (code, json.loads(out)) == (0, {"job": "job-1"})


def test_submit_with_json_before_the_verb_asks_the_job_for_json(call: Call, cluster) -> None:
    code, out, _ = call("submit", "--json", "train", "--preset", "debug")
    assert (code, json.loads(out)) == (3, {"steps": 3})
    assert cluster[0][1].entrypoint == "python -m rayface.cli train --preset debug --json"


@pytest.mark.parametrize("place", [1, 3])
def test_submit_on_a_job_with_json_prints_its_id_and_state(call: Call, cluster, monkeypatch, place) -> None:
    monkeypatch.setattr(jobs, "status", lambda client, job: {"job": job, "status": "running"})
    monkeypatch.setattr(jobs, "stop", lambda client, job: True)
    for verb, expected in (
        ("status", {"job": "job-1", "status": "running"}),
        ("stop", {"job": "job-1", "stopped": True}),
    ):
        arguments = ["submit", verb, "job-1"]
        arguments.insert(place, "--json")
        code, out, _ = call(*arguments)
        assert (code, json.loads(out)) == (0, expected)


def test_submit_writes_a_last_line_that_does_not_end(call: Call, cluster, monkeypatch) -> None:
    for end in (0, KeyboardInterrupt()):

        def follow(client: object, job: str, write: object, end: object = end) -> int:
            write("loading\nTraceback: killed")
            if isinstance(end, BaseException):
                raise end
            return int(end)

        monkeypatch.setattr(jobs, "follow", follow)
        assert call("submit", "train")[1] == "loading\nTraceback: killed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["trian"], "submit: trian: must be a verb"), (["status"], "followed by the id"), (["submit", "train"], "other")],
)
def test_submit_of_no_verb_is_refused_in_one_line(call: Call, cluster, arguments, message) -> None:
    code, out, err = call("submit", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert cluster == []

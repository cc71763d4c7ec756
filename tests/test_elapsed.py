"""Seconds of a run over all its sessions."""

import json
import time

import pytest

from rayface.elapsed import seconds_of, session
from rayface.tracking.journal import Journal


def test_session_that_failed_counts_in_the_sum(tmp_path):
    assert seconds_of(tmp_path) == 0
    with session(tmp_path) as seconds:
        time.sleep(0.05)
        first = seconds()
    assert 0.05 <= first <= seconds_of(tmp_path)

    def fail() -> None:
        with session(tmp_path) as seconds:
            time.sleep(0.05)
            assert seconds() >= first + 0.05
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seconds_of(tmp_path) >= first + 0.05


def test_session_that_was_killed_lasted_until_its_last_record(tmp_path):
    journals = [tmp_path / "journal" / "driver.jsonl", tmp_path / "trials" / "0000" / "journal" / "rank0.jsonl"]
    for path in journals:
        journal = Journal(path)
        journal.tags({"a": "b"})
        journal.close()
    words = [json.loads(path.read_text())["time"] for path in journals]
    killed = {"sessions": [[words[0] - 50, 7.5], [words[0] - 20, None]]}
    (tmp_path / "sessions.json").write_text(json.dumps(killed))
    expected = 7.5 + (words[1] - words[0]) + 20
    assert seconds_of(tmp_path) == pytest.approx(expected, abs=1e-6)
    with session(tmp_path) as seconds:
        assert seconds() == pytest.approx(expected, abs=1.0)
        journal = Journal(journals[0])  # written in this session: the one before does not become longer
        journal.tags({"c": "d"})
        journal.close()
    assert seconds_of(tmp_path) == pytest.approx(expected, abs=1.0)


def test_session_that_was_killed_without_a_record_counts_nothing(tmp_path):
    (tmp_path / "sessions.json").write_text(json.dumps({"sessions": [[time.time(), None]]}))
    assert seconds_of(tmp_path) == 0

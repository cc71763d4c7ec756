"""What a destination has received of a spool."""

import pytest

from rayface.tracking.delivered import Delivered, delivered_run_id


@pytest.mark.parametrize("run_id", [None, "abc"])
def test_delivered_run_id_is_none_until_mlflow_has_answered(tmp_path, run_id):
    assert delivered_run_id(tmp_path) is None
    Delivered(target="http://m", run_id=run_id).save(tmp_path / "delivered.json")
    assert delivered_run_id(tmp_path) == run_id

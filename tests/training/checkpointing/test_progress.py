"""progress.json: written and read back, also as older versions wrote it."""

import json

from rayface import config as configs
from rayface.training.checkpointing.progress import DatasetFacts, MlflowPosition, Progress, saved_config
from rayface.training.recovery.rollback import Recovery


def test_progress_written_and_read_back_is_equal(tmp_path):
    config = configs.load("debug", None, ["data.train=s3://key:secret@bucket/faces", "train.output=run"])
    progress = Progress(
        step=7,
        accuracy=0.5,
        dataset=DatasetFacts(name="drawn", digest="d", licence="none"),
        recovery=Recovery(skipped=[3], rate_factor=0.5, rollbacks=1),
        mlflow=MlflowPosition(run_id="a", last_step=6),
        config=saved_config(config),
        faults=[["a.tar", "x.jpg", 512, 1]],
    )
    text = json.dumps(progress.as_dict())
    (tmp_path / "progress.json").write_text(text)
    assert Progress.read(tmp_path) == progress
    assert "secret" not in text
    assert progress.config["train"]["output"] is None


def test_progress_of_an_older_version_lacks_what_it_did_not_write():
    old = {"step": 4, "accuracy": None, "schedule": {"step": 4}, "head": {"step": 4}, "left_out": 1}
    assert Progress.from_dict(old) == Progress(step=4, schedule={"step": 4}, head={"step": 4})

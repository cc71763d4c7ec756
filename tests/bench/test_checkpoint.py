"""The measurement of a checkpoint: that it measures what it says, not how fast."""

from rayface.bench.checkpoint import bench_checkpoint


def test_waits_are_held_against_writes(tmp_path):
    found = bench_checkpoint(300, 2, embedding_size=8, sample_rate=0.5, checkpoints=1, directory=tmp_path)
    assert found["ratio"] == found["wait_seconds"] / found["write_seconds"]
    assert 0 < found["copy_seconds"] < found["write_seconds"]
    assert found["state_bytes"] > 2 * 300 * 8 * 4  # centers and momentum, and the net
    assert list(tmp_path.iterdir()) == []

"""The measurement of a checkpoint: that it measures what it says, not how fast."""

import pytest

from rayface.bench.checkpoint import CheckpointBench, bench_checkpoint


@pytest.mark.long
def test_bench_checkpoint_of_a_small_state_compares_waits_with_writes(tmp_path):
    sizes = {"num_classes": 300, "batch_size": 2, "embedding_size": 8}
    found = bench_checkpoint(CheckpointBench(**sizes, sample_rate=0.5, checkpoints=1, directory=tmp_path))
    assert found.ratio == found.wait_seconds / found.write_seconds
    assert 0 < found.copy_seconds < found.write_seconds
    assert found.state_bytes > 2 * 300 * 8 * 4  # centers and momentum, and the net
    assert list(tmp_path.iterdir()) == []

"""The measurement of Face-NMS runs and says what it measured."""

import pytest
import torch

from rayface.bench.nms import NmsBench, bench_nms, draw_embeddings


def test_bench_nms_of_drawn_embeddings_measures_ours_and_the_double_loop() -> None:
    """Tiny sizes, all fields; the same choice, and the caller's threads as they were."""
    threads = torch.get_num_threads()
    found = bench_nms(NmsBench(faces=1500, identities=100, embedding_size=32, loop_identities=20)).as_dict()
    assert torch.get_num_threads() == threads
    assert found["same_choice"]
    assert found["kept"] == pytest.approx(0.6, abs=0.005)
    assert found["times_faster"] == pytest.approx(found["loop_scaled_seconds"] / found["seconds"])
    assert found["faces_per_second"] == pytest.approx(1500 / found["seconds"])
    assert found["projected_hours_42m_64_cores"] > 0
    assert found["linearity"] > 0
    assert found["embedding_bytes"] == 1500 * 32 * 2


def test_draw_embeddings_of_any_number_gives_every_identity_an_image() -> None:
    embeddings, offsets = draw_embeddings(1000, 400, 8, "fp32")
    assert embeddings.shape == (1000, 8)
    assert offsets[0] == 0
    assert offsets[-1] == 1000
    assert (offsets[1:] > offsets[:-1]).all()
    assert (abs(embeddings).sum(axis=1) > 0).all()


def test_bench_nms_with_a_bad_setting_raises_one_line() -> None:
    """Before anything is drawn."""
    with pytest.raises(ValueError, match=r"faces 5 and identities 10: must be"):
        bench_nms(NmsBench(faces=5, identities=10))
    with pytest.raises(ValueError, match=r"dtype 'int8': must be"):
        bench_nms(NmsBench(faces=100, identities=10, dtype="int8"))
    with pytest.raises(ValueError, match=r"threads 0 and"):
        bench_nms(NmsBench(faces=100, identities=10, threads=0))
    with pytest.raises(ValueError, match=r"keep 2: must be"):
        bench_nms(NmsBench(faces=100, identities=10, keep=2))

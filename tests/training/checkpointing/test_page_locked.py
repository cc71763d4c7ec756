"""Page-locked memory, with a stand-in for CUDA's runtime."""

from types import SimpleNamespace

import pytest
import torch

from rayface.training.checkpointing.page_locked import page_lock


@pytest.mark.parametrize("error", [0, 1])
def test_page_lock_lasts_as_long_as_the_memory_and_leaves_no_error(monkeypatch, error):
    calls, zeros = [], []
    runtime = SimpleNamespace(
        cudaHostRegister=lambda *arguments: calls.append(arguments) or error,
        cudaHostUnregister=lambda place: calls.append(place),
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    memory = torch.ones(5, dtype=torch.int32)
    place = memory.data_ptr()

    def reported(size: int, device: torch.device) -> None:
        zeros.append(device.type)
        raise RuntimeError("CUDA error: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", reported)
        assert page_lock(memory, torch.device("cuda")) == (not error)
    assert zeros == ["cuda"] * error
    assert calls == [(place, 20, 0)]
    del memory
    assert calls[1:] == ([] if error else [place])

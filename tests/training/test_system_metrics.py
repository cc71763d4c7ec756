"""Use of the machine: MLflow's names, and nothing that could end a run."""

from pathlib import Path
from types import SimpleNamespace

from rayface.training import system_metrics
from rayface.training.system_metrics import SystemMetrics

HOST = {
    "cpu_utilization_percentage",
    "system_memory_usage_megabytes",
    "system_memory_usage_percentage",
    "disk_usage_percentage",
    "disk_usage_megabytes",
    "disk_available_megabytes",
    "network_receive_megabytes",
    "network_transmit_megabytes",
}


class NVMLError(Exception):
    pass


def failing(*_args):
    raise NVMLError


def fake_nvml(**changed):
    calls = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=20e9, total=80e9),
        "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=90 + gpu),
        "nvmlDeviceGetPowerUsage": lambda _: 350_000,
        "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
    }
    return SimpleNamespace(NVMLError=NVMLError, **{**calls, **changed})


def names(values):
    return {name.removeprefix("system/") for name in values}


def test_read_without_gpu_has_the_names_of_mlflow(tmp_path, monkeypatch):
    monkeypatch.setattr(system_metrics, "pynvml", fake_nvml(nvmlInit=failing))
    values = SystemMetrics(tmp_path).read()
    assert names(values) == HOST
    assert all(name.startswith("system/") for name in values)
    for name in HOST:
        if name.endswith("percentage"):
            assert 0 <= values[f"system/{name}"] <= 100


def test_read_with_gpus_has_figures_of_each(tmp_path, monkeypatch):
    monkeypatch.setattr(system_metrics, "pynvml", fake_nvml())
    values = SystemMetrics(tmp_path).read()
    assert values["system/gpu_1_utilization_percentage"] == 91
    assert values["system/gpu_0_memory_usage_percentage"] == 25
    assert values["system/gpu_0_memory_usage_megabytes"] == 20_000
    assert values["system/gpu_0_power_usage_watts"] == 350
    assert values["system/gpu_0_power_usage_percentage"] == 50
    assert len(values) == len(HOST) + 2 * 5


def test_read_skips_what_a_gpu_does_not_have(tmp_path, monkeypatch):
    monkeypatch.setattr(system_metrics, "pynvml", fake_nvml(nvmlDeviceGetUtilizationRates=failing))
    values = SystemMetrics(tmp_path).read()
    assert "system/gpu_0_utilization_percentage" not in values
    assert "system/gpu_0_power_usage_watts" in values


def test_read_again_within_the_period_is_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(system_metrics.time, "monotonic", iter([100.0, 104.9, 105.0]).__next__)
    system = SystemMetrics(tmp_path)
    assert [bool(system.read()) for _ in range(3)] == [True, False, True]


def test_read_of_a_missing_disk_is_no_error(monkeypatch):
    monkeypatch.setattr(system_metrics, "pynvml", fake_nvml())
    values = SystemMetrics(Path("/no/such/folder")).read()
    assert names(values) == {name for name in names(values) if name.startswith("gpu_")} != set()


def test_real_library_has_the_calls_that_are_used():
    for name in vars(fake_nvml()):
        assert hasattr(system_metrics.pynvml, name), name

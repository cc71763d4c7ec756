"""Use of the machine of rank 0, under the names that MLflow's page "System metrics" shows."""

import contextlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rayface.ray_internals.train import psutil, pynvml

_PERIOD = 5.0  # seconds between two readings


class SystemMetrics:
    """CPU, memory, disk, network and NVIDIA GPUs of this machine, with all its processes.

    Args:
        disk: a folder on the disk to measure.
    """

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._next = 0.0
        self._network = _network()
        psutil.cpu_percent()  # the next call returns the mean since this one
        self._gpus: list[Any] = []
        with contextlib.suppress(pynvml.NVMLError):  # no driver
            pynvml.nvmlInit()
            self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]

    def read(self) -> dict[str, float]:
        """Return percentages, megabytes (1e6 bytes) and watts by MLflow's names; nothing within 5 s of the last call.

        Network counts what was sent and received since this object was made.
        """
        now = time.monotonic()
        if now < self._next:
            return {}
        self._next = now + _PERIOD
        values: dict[str, float] = {}
        with contextlib.suppress(OSError):  # these figures must not end a run
            values |= self._host()
        for number, gpu in enumerate(self._gpus):
            values |= {f"gpu_{number}_{name}": value for name, value in _gpu(gpu).items()}
        return {f"system/{name}": round(value, 1) for name, value in values.items()}

    def _host(self) -> dict[str, float]:
        memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(str(self._disk)), _network()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / 1e6,
            "disk_available_megabytes": disk.free / 1e6,
            "network_receive_megabytes": (network.bytes_recv - self._network.bytes_recv) / 1e6,
            "network_transmit_megabytes": (network.bytes_sent - self._network.bytes_sent) / 1e6,
        }


def _network() -> Any:
    return psutil.net_io_counters() or SimpleNamespace(bytes_recv=0, bytes_sent=0)  # None: no interface


def _gpu(gpu: object) -> dict[str, float]:
    """Return the figures that this GPU has; a slice of one, for example, has no power."""
    values: dict[str, float] = {}
    with contextlib.suppress(pynvml.NVMLError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        values["memory_usage_percentage"] = memory.used / memory.total * 100
        values["memory_usage_megabytes"] = memory.used / 1e6
    with contextlib.suppress(pynvml.NVMLError):
        values["utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
    with contextlib.suppress(pynvml.NVMLError):
        power, limit = pynvml.nvmlDeviceGetPowerUsage(gpu), pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu)
        values["power_usage_watts"] = power / 1000
        values["power_usage_percentage"] = power / limit * 100
    return values

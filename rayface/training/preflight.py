"""Pre-flight check before the first step: versions, shared disk, clocks and bandwidth of all ranks."""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import ray
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

import rayface
from rayface.files import remove_folder, write_text
from rayface.plan.memory import Job
from rayface.plan.timing import Rates, network_bytes, step_seconds
from rayface.storage import AnyPath, Source, StorageError
from rayface.tracking.journal import PREFLIGHT, PREFLIGHT_WARNINGS
from rayface.training.distributed import World
from rayface.training.measured_rates import all_reduce_bandwidth, product_tflops
from rayface.training.recovery.rollback import TrainingStoppedError
from rayface.training.run_directory import RunDirectory
from rayface.version import VERSION

T = TypeVar("T")  # a JSON value
CLOCK_SECONDS = 2.0  # with a larger skew, times in the journals and logs of several nodes cannot be compared
_MARGIN_SECONDS = 10.0  # ranks wait this much longer for rank 0 than it does for them
_FILES_SECONDS = 10.0  # a network disk may show another node's file with this delay
_ONE_DISK = "must be one disk that all nodes share: mount it on all, or name another"


class PreflightError(TrainingStoppedError):
    """The workers cannot train together; one line, the same on every rank."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A rank's node, device and versions."""

    rank: int
    node: str
    device: str
    versions: dict[str, str]

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.node}"


def preflight(
    world: World, run: RunDirectory, shards: Sequence[str], shape: Job, *, node: str, timeout: float = 120.0
) -> dict[str, str]:
    """Check that the ranks can train together; every rank of the process group must call it.

    Runs a barrier, a gather of a number, and six all-reduces, five of them of 4 MB (CPU) or 64 MB (GPU); the rest goes
    through the store of the group.

    Args:
        run: the run directory; a scratch folder is created in it and removed.
        shards: tars of the dataset, of which each rank opens the first.
        shape: shapes of the run, from which the bytes of a step are predicted.
        node: this rank's address.
        timeout: seconds that ranks wait for each other.

    Returns:
        Tags for the journal.

    Raises:
        PreflightError: on all ranks.
    """
    facts = roll_call(world, node, timeout)
    check_versions(facts)
    _check_disk(world, facts, run, shards, timeout)
    bandwidth = _bandwidth(world, facts, timeout)  # first: the only collective that gives up early
    skew, ahead, behind = _clock_skew(world, facts)
    tflops = product_tflops(world, bf16=shape.bf16)
    shape = replace(shape, num_workers=world.size)
    network, computing = _step_parts(shape, bandwidth, tflops)
    moved = sum(network_bytes(shape).values())
    nodes = len({fact.node for fact in facts})
    warnings = _slow_link(bandwidth, network, computing) if nodes > 1 else []
    if skew > CLOCK_SECONDS:
        rule = f"should be under {CLOCK_SECONDS:g} s: set the clocks (NTP)"
        warnings.append(f"pre-flight: the clock of {ahead} is {skew:.1f} s ahead of that of {behind}: {rule}")
    return {
        PREFLIGHT: (
            f"{world.size} ranks on {nodes} node{'s' * (nodes > 1)} ({', '.join(sorted({f.device for f in facts}))}), "
            f"clocks {skew:.2f} s apart, all-reduce {bandwidth:.2f} GB/s: {1e3 * network:.1f} ms for the "
            f"{moved / 1e6:.1f} MB that a rank sends in a step"
        ),
        "preflight.all_reduce_gb_per_second": f"{bandwidth:.3f}",
        "preflight.clock_skew_seconds": f"{skew:.3f}",
        "preflight.network_seconds_per_step": f"{network:.5f}",
        "preflight.ranks": json.dumps([asdict(fact) for fact in facts]),
        **({PREFLIGHT_WARNINGS: "; ".join(warnings)} if warnings else {}),
    }


def require_driver_disk(run: RunDirectory, node: str) -> None:
    """Refuse a directory in which rank 0, which calls it, does not see the driver's files; see `preflight` for others.

    A node without the driver's disk would make the directory on its own, and the result of the run would stay there.

    Raises:
        PreflightError: one line.
    """
    if not _within_delay(run.has_started):
        raise PreflightError(
            f"pre-flight: train.output: {run}: rank 0 on {node} does not see what the driver writes there: {_ONE_DISK}"
        )


def roll_call(world: World, node: str, timeout: float) -> list[Facts]:
    """Return the facts of every rank, in order of rank.

    Raises:
        PreflightError: some ranks, which are named, did not answer in time.
    """
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
    own = Facts(rank=world.rank, node=node, device=device, versions=_versions())
    return [Facts(**answer) for answer in _exchange(world, "facts", asdict(own), timeout)]


def check_versions(facts: Sequence[Facts]) -> None:
    """Refuse ranks that run other versions than rank 0.

    Raises:
        PreflightError: one line that names the first of them.
    """
    first = facts[0]
    for fact in facts:
        for name, version in fact.versions.items():
            if version != first.versions[name]:
                raise PreflightError(
                    f"pre-flight: {fact} has {name} {version}, {first} has {first.versions[name]}: must be the same "
                    "everywhere: install the same on all nodes"
                )


def _exchange(world: World, name: str, own: T, timeout: float, facts: Sequence[Facts] = ()) -> list[T]:
    """Return every rank's value, through the store of the process group; unlike a collective it can name missing ranks.

    Rank 0 gathers and publishes, so each rank makes only a few requests to the store.
    """
    store = _get_default_store()
    keys = [f"rayface.preflight.{name}.{rank}" for rank in range(world.size)]
    together = f"rayface.preflight.{name}"
    store.set(keys[world.rank], json.dumps(own))
    if world.rank == 0:
        missing = _missing(store, keys, timeout)
        values = None if missing else [json.loads(value) for value in store.multi_get(keys)]
        store.set(together, json.dumps({"missing": missing, "values": values}))
    silent = _missing(store, [together], timeout + _MARGIN_SECONDS)
    answer = {"missing": [0]} if silent else json.loads(store.get(together))
    if answer["missing"]:
        who = " and ".join(str(facts[rank]) if facts else f"rank {rank}" for rank in answer["missing"])
        raise PreflightError(
            f"pre-flight: {who} of {world.size} ranks did not answer within {timeout:g} s ({name}): must answer: look "
            "at the logs of that worker and at the firewall between the nodes"
        )
    return list(answer["values"])


def _missing(store: dist.Store, keys: Sequence[str], timeout: float) -> list[int]:
    """Return the indices of the keys that were not set in time."""
    try:
        store.wait(list(keys), timedelta(seconds=timeout))
    except RuntimeError:  # some stores have no specific class for a time-out
        return [place for place, key in enumerate(keys) if not store.check([key])]
    return []


def _check_disk(world: World, facts: Sequence[Facts], run: RunDirectory, shards: Sequence[str], timeout: float) -> None:
    """Let every rank write a file that rank 0 must see, and read a shard.

    Raises:
        PreflightError: one line that names the first rank that fails.
    """
    folder = run.preflight
    errors = _exchange(world, "disk", _touch_disk(folder, world.rank, shards), timeout, facts)
    seen = _see(folder, world.size) if world.rank == 0 and not any(errors) else []
    seen = _exchange(world, "seen", seen, timeout, facts)[0]
    if world.rank == 0:
        remove_folder(folder)
    for fact, error in zip(facts, errors, strict=True):
        if error:
            raise PreflightError(f"pre-flight: {fact}: {error}: must be accessible from every node: mount it there")
    for fact in facts:
        if fact.rank not in seen:
            raise PreflightError(
                f"pre-flight: train.output: {run}: {facts[0]} does not see what {fact} writes there: {_ONE_DISK}"
            )


def _touch_disk(folder: AnyPath, rank: int, shards: Sequence[str]) -> str:
    """Write a file and read a shard; return the error, "" if there is none."""
    try:
        folder.mkdir(exist_ok=True)
        write_text(folder / f"rank_{rank}", str(rank))
        with Source(shards[0]) as source:
            source.read(0, min(source.size, 512))
    except (OSError, ValueError, StorageError) as error:
        return " ".join(str(error).split())
    return ""


def _see(folder: AnyPath, size: int) -> list[int]:
    """Return the ranks whose file is visible."""
    files = [folder / f"rank_{rank}" for rank in range(size)]
    _within_delay(lambda: all(file.is_file() for file in files))
    return [rank for rank, file in enumerate(files) if file.is_file()]


def _within_delay(is_visible: Callable[[], bool]) -> bool:
    """Return whether a network disk shows what another node has written, as soon as it does."""
    deadline = time.monotonic() + _FILES_SECONDS
    while not (visible := is_visible()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return visible


def _clock_skew(world: World, facts: Sequence[Facts]) -> tuple[float, Facts, Facts]:
    """Return the largest clock skew in seconds, and its two ranks, the one ahead first.

    All ranks read their clock after a barrier, so the skew is exact to some milliseconds.
    """
    dist.barrier()
    now = torch.tensor([time.time()], dtype=torch.float64, device=world.device)
    clocks = [torch.empty_like(now) for _ in range(world.size)]
    dist.all_gather(clocks, now)
    times = torch.cat(clocks).cpu()
    return float(times.max() - times.min()), facts[int(times.argmax())], facts[int(times.argmin())]


def _bandwidth(world: World, facts: Sequence[Facts], timeout: float) -> float:
    """Return the GB/s that a rank sends in a ring all-reduce.

    Raises:
        PreflightError: it does not finish in time.
    """
    try:
        return all_reduce_bandwidth(world, timeout)
    except TimeoutError as error:
        nodes = ", ".join(sorted({fact.node for fact in facts}))
        raise PreflightError(
            f"pre-flight: all-reduce between {world.size} ranks on {nodes}, seen by {facts[world.rank]}: {error}: "
            f"must end within {timeout:g} s: look at the firewall, or set NCCL_SOCKET_IFNAME or "
            "GLOO_SOCKET_IFNAME to the interface between the nodes"
        ) from error


def _step_parts(shape: Job, bandwidth: float, tflops: float) -> tuple[float, float]:
    """Return the predicted seconds of a step at the measured rates: of the network, and of the products."""
    rates = Rates(gemm_tflops=tflops, fp32_tflops=tflops, link_bandwidth=bandwidth)
    seconds = step_seconds(shape, rates)
    network = sum(seconds[name] for name in network_bytes(shape))
    return network, seconds["backbone"] + seconds["head_products"]


def _slow_link(bandwidth: float, network: float, computing: float) -> list[str]:
    if network <= computing:
        return []
    return [
        f"pre-flight: all-reduce reaches {bandwidth:.3g} GB/s: the predicted network time is {network:.3g} s per step, "
        f"that of the products {computing:.3g} s: should be smaller: use a larger train.batch_size, fewer "
        "train.num_workers, or a faster interface (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)"
    ]


def _versions() -> dict[str, str]:
    """Return the versions that must be the same on all ranks; of rayface also a digest of its code."""
    code = hashlib.sha256()
    root = Path(rayface.__file__).parent
    for path in sorted(root.rglob("*.py")):
        code.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
        "rayface": f"{VERSION} ({code.hexdigest()[:8]})",
    }

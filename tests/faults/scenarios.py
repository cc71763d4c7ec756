"""Every fault that is injected: how, and what must follow. The tests and `make faults` run these scenarios."""

import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util import list_named_actors

from rayface.data.dataset import open_dataset
from rayface.data.shards.random_access import locate_member
from rayface.data.streaming.sample_order import SampleOrder
from rayface.session import environment
from rayface.tracking import deliver, read_metrics
from rayface.training.checkpointing.mirror_store import Delivered, newest_whole
from rayface.training.run_directory import RunDirectory
from tests.faults.breakpoints import Breakpoint
from tests.faults.fixture import EVERY, Outcome, RunFixture, outcome

# Given the fixture and the worker at the breakpoint ("pid", "driver", "step"); may return what the worker is told.
Inject = Callable[[RunFixture, dict[str, Any]], str | None]
DAY = 86400


@dataclass(frozen=True, kw_only=True)
class Injection:
    """A fault, or the repair of one, at a place of the run.

    Attributes:
        after: steps after the middle between two checkpoints.
        at: see Breakpoint; "begin" and "write" are of the checkpoint that comes next.
        repairs: it repairs an earlier fault.
    """

    inject: Inject
    after: int = 0
    at: str = "step"
    ranks: tuple[int, ...] = (1,)
    repairs: bool = False


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A fault.

    Attributes:
        how: it is done, for the table.
        stops: what the one line says with which the run stops, to be resumed; None: it goes on by itself.
        code: the driver is a process of its own, and ends with this code.
        before: called before the run, unless another fault comes before this one.
        repair: what a person does before the resume.
        different: why the run does not end as an undisturbed one; empty: it does.
        lost: samples that it leaves out, as it is asked to.
        later: steps from the one that it hits to the first one of other workers, with which the recovery ends.
        settings: config keys.
        restarts: the workers are started again.
        again: the most steps that are done again.
        notice: a node is drained.
    """

    name: str
    how: str
    injections: tuple[Injection, ...] = ()
    stops: str | None = None
    code: int | None = None
    before: Callable[[RunFixture], None] | None = None
    repair: Callable[[RunFixture], None] | None = None
    at_end: Callable[[RunFixture], None] | None = None
    different: str = ""
    lost: int = 0
    later: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    restarts: bool = False
    again: int = EVERY
    notice: bool = False

    @property
    def does(self) -> str:
        """What the run does, for the table."""
        if self.parts:
            return "stops with one line; `--resume`" if self.stops else "ends; `--resume`"
        return "restarts its workers" if self.restarts else "continues"

    @property
    def parts(self) -> bool:
        """Whether it parts a run in two."""
        return self.stops is not None or self.code is not None


def run_scenarios(fixture: RunFixture, scenarios: Sequence[tuple[int, Scenario]]) -> None:
    """Inject faults into one run, each at its place (0 is before the first checkpoint); resume it whenever it stops."""
    fixture.cluster.have_all_nodes()
    for _, scenario in scenarios:
        fixture.settings.update(scenario.settings)
        fixture.notices_drains |= scenario.notice
    first = scenarios[0][1]
    if first.before:
        first.before(fixture)
    resume = False
    for group in _up_to_stops(scenarios):
        faults = [fault for place, scenario in group for fault in _faults(fixture, place, scenario)]
        last = group[-1][1] if group and group[-1][1].parts else None
        if last is None or last.code is None:
            line = fixture.train(*faults, resume=resume)
        else:
            line = fixture.command(*faults, code=last.code, resume=resume)
        _check_stop(fixture, last, line)
        resume = True
    for _, scenario in scenarios:
        if scenario.at_end:
            scenario.at_end(fixture)


def check_end(fixture: RunFixture, scenarios: Sequence[Scenario]) -> Outcome:
    """What the faults did to the run; asserts that it is no more than they may do."""
    found = outcome(fixture)
    if not scenarios[0].different:
        assert found.losses == [value for _, value in fixture.cluster.reference.losses]
        assert found.same_model, f"{fixture.name}: another model"
    assert (found.repeated, found.lost) == (0, sum(scenario.lost for scenario in scenarios))
    # A fault costs what was done since the last checkpoint or mirrored state, never more.
    assert found.steps_again <= sum(scenario.again for scenario in scenarios)
    again = sum(scenario.restarts for scenario in scenarios)
    restarts = RunDirectory(fixture.run).restarts()
    assert len(restarts) == read_metrics(fixture.run / "journal")["train/restarts"][-1][1] == again
    assert (fixture.run / "faults.log").read_text().count("workers were restarted") == again
    return found


def _check_stop(fixture: RunFixture, scenario: Scenario | None, line: str | None) -> None:
    """A run that stops says why in one line; then what was wrong is put right."""
    if scenario is None:
        assert line is None, f"{fixture.name}: should have gone on, said {line!r}"
        return
    assert line is not None, f"{scenario.name}: should have stopped"
    wanted = scenario.stops or ""
    assert wanted in line, f"{scenario.name}: should have said {wanted!r}, said {line!r}"
    assert "\n" not in line, line
    fixture.stopped[scenario.name] = (time.monotonic(), line)
    if scenario.repair:
        scenario.repair(fixture)


def _up_to_stops(scenarios: Sequence[tuple[int, Scenario]]) -> Iterator[list[tuple[int, Scenario]]]:
    """Yield the faults of each attempt: up to the one that stops it; the last attempt finishes."""
    group: list[tuple[int, Scenario]] = []
    for entry in scenarios:
        group.append(entry)
        if entry[1].parts:
            yield group
            group = []
    yield group


def _faults(
    fixture: RunFixture, place: int, scenario: Scenario
) -> list[tuple[Breakpoint, Callable[[dict[str, Any]], str | None]]]:
    def act(injection: Injection, here: dict[str, Any]) -> str | None:
        if not injection.repairs:
            fixture.injected.setdefault(scenario.name, (time.monotonic(), here["step"] + scenario.later))
        return injection.inject(fixture, here)

    faults = []
    for injection in scenario.injections:
        step = EVERY * place + (EVERY // 2 + injection.after if injection.at == "step" else EVERY)
        for rank in injection.ranks:
            faults.append((Breakpoint(step=step, rank=rank, place=injection.at), partial(act, injection)))  # type: ignore[arg-type]
    return faults


def _send(sent: signal.Signals, to: str = "pid") -> Inject:
    def send(fixture: RunFixture, here: dict[str, Any]) -> None:
        os.kill(here[to], sent)
        if to == "driver" and sent == signal.SIGTERM:
            fixture.wait_for(lambda: RunDirectory(fixture.run).stop_requested())

    return send


def _when_mirrored(inject: Inject) -> Inject:
    """Inject when every rank's part of the state before this step is delivered: how long that takes is not tested."""

    def wait_and_inject(fixture: RunFixture, here: dict[str, Any]) -> str | None:
        fixture.wait_for(lambda: _mirrored_step() == here["step"])
        return inject(fixture, here)

    return wait_and_inject


def _mirrored_step() -> int:
    """The step of the state that is left whole when any one of the stores is lost."""
    stores = [ray.get_actor(name) for name in list_named_actors() if name.startswith("rayface-mirror-")]
    delivered = ray.get([store.delivered.remote() for store in stores])
    return min((_whole_step(delivered[:lost] + delivered[lost + 1 :]) for lost in range(len(stores))), default=-1)


def _whole_step(stores: Sequence[Sequence[Delivered]]) -> int:
    copies = newest_whole([part for store in stores for part in store])
    return copies[0][0].part.step if copies else -1


def _replace_node(fixture: RunFixture, here: dict[str, Any]) -> None:
    fixture.cluster.remove_node()
    fixture.cluster.add_node()


def _remove_node(fixture: RunFixture, here: dict[str, Any]) -> None:
    fixture.cluster.remove_node()


def _add_node(fixture: RunFixture, here: dict[str, Any]) -> None:
    """The worker at the breakpoint goes on when it has been asked to make room for more."""
    fixture.cluster.add_node()
    fixture.wait_for(lambda: RunDirectory(fixture.run).stop_requested())


def _drain_node(fixture: RunFixture, here: dict[str, Any]) -> None:
    fixture.cluster.drain_node()
    fixture.wait_for(lambda: RunDirectory(fixture.run).drain_requested())


def workers_of(fixture: RunFixture) -> list[int]:
    """How many workers a run had, one number for each change."""
    steps = read_metrics(fixture.run / "journal")["train/workers"]
    return [int(count) for count, _ in itertools.groupby(value for _, value, _ in steps)]


def _followed_the_cluster(fixture: RunFixture) -> None:
    assert workers_of(fixture) == [2, 1, 2, 1]


def _fill_object_store(fixture: RunFixture, here: dict[str, Any]) -> None:
    """Twice what it holds."""
    fixture.cluster.kept += [ray.put(np.random.default_rng(i).bytes(40 * 2**20)) for i in range(5)]


def _free_object_store(fixture: RunFixture) -> None:
    fixture.cluster.kept.clear()


def _fill_disk(fixture: RunFixture, here: dict[str, Any]) -> None:
    """The files that the ranks are about to write are /dev/full, which has no space left."""
    (folder,) = (fixture.run / "checkpoints").glob(".step_*.tmp")
    for rank in (0, 1):
        (folder / f"__{rank}_0.distcp").symlink_to("/dev/full")


def _step_clock(seconds: float) -> Inject:
    """Of every worker, by what it is told, and of the driver, which is this process."""

    def step(fixture: RunFixture, here: dict[str, Any]) -> str:
        if not isinstance(time.time, _SteppedClock):
            time.time = _SteppedClock(time.time)
        time.time.seconds = seconds
        return f"clock {seconds}"

    return step


def _set_clock(fixture: RunFixture) -> None:
    if isinstance(time.time, _SteppedClock):
        time.time = time.time.real


class _SteppedClock:
    def __init__(self, real: Callable[[], float]) -> None:
        self.real, self.seconds = real, 0.0

    def __call__(self) -> float:
        return self.real() + self.seconds


def _tell(answer: str) -> Inject:
    return lambda fixture, here: answer


def _next_sample(fixture: RunFixture, step: int) -> tuple[Path, int, int]:
    """Shard, offset and bytes of a sample with a label of two digits that no window up to that of `step` has."""
    dataset = open_dataset([str(fixture.data)])
    sample_order = SampleOrder(num_samples=len(dataset.index), batch_size=24, window_images=48)
    ids = sample_order.window(sample_order.window_of(step)[0] + 1).ravel()
    chosen = next(int(i) for i in ids if dataset.index.label[i] >= 10)
    shard = Path(dataset.shards[dataset.index.shard[chosen]].path)
    return shard, int(dataset.index.offset[chosen]), int(dataset.index.num_bytes[chosen])


def _overwrite(suffix: str, data: bytes) -> Inject:
    def overwrite(fixture: RunFixture, here: dict[str, Any]) -> None:
        shard, offset, size = _next_sample(fixture, here["step"])
        _, member = locate_member(str(shard), offset, size, [suffix])
        with shard.open("r+b") as file:
            file.seek(member + 512)  # behind the tar header
            file.write(data)

    return overwrite


def _truncate(fixture: RunFixture, here: dict[str, Any]) -> None:
    shard, offset, _ = _next_sample(fixture, here["step"])
    os.truncate(shard, offset + 700)


def _remove(fixture: RunFixture, here: dict[str, Any]) -> None:
    _next_sample(fixture, here["step"])[0].unlink()


def _replace_shard(fixture: RunFixture, here: dict[str, Any]) -> None:
    shard = _next_sample(fixture, here["step"])[0]
    other = next(path for path in sorted(fixture.data.glob("*.tar")) if path != shard)
    shutil.copyfile(other, shard)


def _own_data(fixture: RunFixture) -> None:
    fixture.own_data()
    fixture.windows_per_execution = EVERY // 2  # reads ahead up to the checkpoint after the fault


def _repair_data(fixture: RunFixture) -> None:
    shutil.copytree(fixture.cluster.data, fixture.data, dirs_exist_ok=True)


def _server_down(fixture: RunFixture, here: dict[str, Any] | None = None) -> None:
    fixture.cluster.server.kill()
    fixture.uri = fixture.cluster.server.uri


def _server_up(fixture: RunFixture, here: dict[str, Any] | None = None) -> None:
    fixture.uri = fixture.cluster.server.uri
    if fixture.cluster.server.process is None:
        fixture.cluster.server.start()
        fixture.cluster.server.wait()


def _deliver_late(fixture: RunFixture) -> None:
    assert fixture.result["tracking_delivered"] is False
    _server_up(fixture)
    with environment({"MLFLOW_TRACKING_URI": fixture.uri}):
        assert deliver(fixture.run / "journal", 60)


_MIDDLE = "between forward and backward, "
_DATA = {"before": _own_data, "repair": _repair_data}
_ONE_SAMPLE = "1 of 240 images are corrupt"
_OWN_PARTS = "batch-norm, dropout and sampled classes are local to a worker"

# Faults are injected into one run in turn: if one of them left a trace, the run would end otherwise.
RUNS: dict[str, list[Scenario]] = {
    "workers": [
        Scenario(
            name="object store full",
            how="200 MB put into a node's 100 MB",
            injections=(Injection(inject=_fill_object_store),),
            at_end=_free_object_store,
        ),
        Scenario(
            name="clock jumps",
            how="time.time of driver and workers set a day forward, then a day back",
            injections=(
                Injection(inject=_step_clock(DAY), ranks=(0, 1)),
                Injection(inject=_step_clock(-DAY), ranks=(0, 1), after=2, repairs=True),
            ),
            at_end=_set_clock,
        ),
        Scenario(
            name="worker killed",
            how=f"{_MIDDLE}SIGKILL to rank 1",
            restarts=True,
            injections=(Injection(inject=_send(signal.SIGKILL)),),
        ),
        Scenario(
            name="killed while a checkpoint is written",
            how="SIGKILL to rank 1 after its file is written, before the checkpoint is renamed",
            restarts=True,
            injections=(Injection(inject=_send(signal.SIGKILL), at="write"),),
        ),
        Scenario(
            name="worker hangs",
            how=f"{_MIDDLE}SIGSTOP to rank 1",
            restarts=True,
            injections=(Injection(inject=_send(signal.SIGSTOP)),),
            settings={"train.hang_timeout": 15, "train.max_failures": 9},
        ),
        Scenario(
            name="node lost",
            how="raylet and its workers killed; another node joins",
            restarts=True,
            injections=(Injection(inject=_replace_node),),
        ),
    ],
    "mirror": [
        Scenario(
            name="worker killed, train.mirror_every=1",
            how=f"{_MIDDLE}SIGKILL to rank 1",
            restarts=True,
            injections=(Injection(inject=_when_mirrored(_send(signal.SIGKILL))),),
            settings={"train.mirror_every": 1},
            again=0,
        ),
        Scenario(
            name="node lost, train.mirror_every=1",
            how="raylet and its workers killed; another node joins",
            restarts=True,
            injections=(Injection(inject=_when_mirrored(_replace_node), after=1),),
            again=0,
        ),
    ],
    "driver": [
        Scenario(
            name="disk full while a checkpoint is written",
            how="its files are /dev/full",
            injections=(Injection(inject=_fill_disk, at="begin", ranks=(0,)),),
            stops="could not be written: rank 0: OSError: [Errno 28] No space left on device; remove the cause, then",
        ),
        Scenario(
            name="driver killed",
            how=f"{_MIDDLE}SIGKILL to `rayface train`",
            injections=(Injection(inject=_send(signal.SIGKILL, "driver")),),
            code=-signal.SIGKILL,
        ),
        Scenario(
            name="driver terminated",
            how=f"{_MIDDLE}SIGTERM to `rayface train`",
            injections=(Injection(inject=_send(signal.SIGTERM, "driver")),),
            code=143,
            stops="interrupted; the last checkpoint is",
        ),
        Scenario(
            name="NaN, train.on_nan=stop",
            how="rank 1's embeddings of a step are NaN",
            injections=(Injection(inject=_tell("nan")),),
            stops="the last good checkpoint is",
            settings={"train.on_nan": "stop"},
        ),
    ],
    "data": [
        Scenario(
            name="corrupt JPEG",
            how="its first 64 bytes are overwritten",
            injections=(Injection(inject=_overwrite("jpg", b"\0" * 64)),),
            stops=_ONE_SAMPLE,
            **_DATA,
        ),
        Scenario(
            name="label out of range",
            how="a .cls of 20 classes says 99",
            injections=(Injection(inject=_overwrite("cls", b"99")),),
            stops=_ONE_SAMPLE,
            **_DATA,
        ),
        Scenario(
            name="shard truncated",
            how="truncated in the middle",
            injections=(Injection(inject=_truncate),),
            stops="images are corrupt",
            **_DATA,
        ),
        Scenario(
            name="shard missing",
            how="file removed",
            injections=(Injection(inject=_remove),),
            stops="cannot be read",
            **_DATA,
        ),
        Scenario(
            name="shard replaced",
            how="another shard under its name",
            injections=(Injection(inject=_replace_shard),),
            stops="images are corrupt",
            **_DATA,
        ),
    ],
    "tracking": [
        Scenario(
            name="MLflow server down at the start",
            how="`mlflow server` started at step 4",
            before=_server_down,
            injections=(Injection(inject=_server_up, after=2, repairs=True),),
        ),
        Scenario(
            name="MLflow server down in the middle",
            how="killed, and started 4 steps later",
            before=_server_up,
            injections=(Injection(inject=_server_down), Injection(inject=_server_up, after=4, repairs=True)),
        ),
        Scenario(
            name="MLflow server down at the end",
            how="killed; started, then `rayface sync`",
            before=_server_up,
            injections=(Injection(inject=_server_down, after=4),),
            at_end=_deliver_late,
            settings={"tracking.timeout": 2},
        ),
    ],
    # The ones from here on change the run, as they are asked to.
    "elastic": [
        Scenario(
            name="NaN, train.on_nan=skip",
            how="rank 1's embeddings of a step are NaN",
            injections=(Injection(inject=_tell("nan")),),
            different="that batch is skipped",
            lost=24,
            settings={"train.on_nan": "skip"},
        ),
        Scenario(
            name="node leaves, train.num_workers=[1,2]",
            how="raylet and its workers killed",
            restarts=True,
            injections=(Injection(inject=_remove_node),),
            settings={"train.num_workers": [1, 2]},
            different=_OWN_PARTS,
        ),
        Scenario(
            name="node joins, train.num_workers=[1,2]",
            how="another node joins",
            restarts=True,
            injections=(Injection(inject=_add_node, ranks=(0,)),),
            later=1,
            different=_OWN_PARTS,
        ),
        Scenario(
            name="node leaves with notice, train.num_workers=[1,2]",
            how="`ray drain-node`, for preemption in 60 s",
            restarts=True,
            injections=(Injection(inject=_drain_node),),
            later=1,
            notice=True,
            at_end=_followed_the_cluster,
            different=_OWN_PARTS,
        ),
    ],
    "lower_lr": [
        Scenario(
            name="infinite loss, train.on_nan=lower_lr",
            how="the loss of a step is infinite on all ranks",
            injections=(Injection(inject=_tell("inf"), ranks=(0, 1)),),
            different="the rate is lower from then on",
            settings={"train.on_nan": "lower_lr"},
        ),
    ],
}

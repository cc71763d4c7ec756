"""TensorBoard: the journals of a job as one event file, which holds every record once, also after a crash."""

import io
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rayface.credentials import mask
from rayface.files import open_to_append
from rayface.storage import sync_folder
from rayface.tracking.delivered import Delivered
from rayface.tracking.journal import Record
from rayface.tracking.reader import Destination, JournalReader

FOLDER = "tensorboard"
_FILE = "events.out.tfevents.0.rayface"  # one name for all sessions: TensorBoard reads on where it was
_FORMAT = "brain.Event:2"


class TensorBoard(JournalReader):
    """Reader that writes the event file of TensorBoard, in the folder `tensorboard` beside the spool.

    The stored state holds the size of the file after the last batch. A crash can leave more; the next session cuts it
    off and writes it again, byte for byte, because times are those of the journals.
    """

    suffix = "-tensorboard"

    def __init__(self, folder: Path) -> None:
        self.file = Path(folder).absolute().parent / FOLDER / _FILE
        super().__init__(folder, place=f"TensorBoard's {self.file}", target="")

    @property
    def hint(self) -> str:
        """The command that shows the file."""
        return f"tensorboard --logdir {shlex.quote(mask(os.path.relpath(self.file.parent)))}"

    def _prepare(self) -> Delivered:
        state = self._load_progress()
        if (self.file.stat().st_size if self.file.exists() else 0) < state.size:  # deleted, or of another machine
            state = Delivered(target=state.target)
        return state

    def _start_over(self, journals: Sequence[str]) -> None:
        self._progress, self._destination = Delivered(target=self._target), None

    def _interrupted(self) -> None:
        self._destination = None  # the next one cuts off what the batch has written

    def _connect(self) -> Destination:
        return _EventFile(self.file, self._progress)


class _EventFile(Destination):
    def __init__(self, path: Path, state: Delivered) -> None:
        # Imported in the delivery's thread: it takes seconds.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self._event, self._record_writer, self._summary, self._state = Event, RecordWriter, summary, state
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.fdopen(open_to_append(path), "ab", buffering=0)  # nothing is left to write after an error
        self._file.truncate(state.size)
        self._file.seek(0, os.SEEK_END)
        if state.size == 0:
            self._append([Event(wall_time=0.0, file_version=_FORMAT)])
            sync_folder(str(path.parent))

    def log(self, records: Sequence[Record]) -> None:
        """Append metrics as scalars, and all else as text."""
        self._append(event for record in records for event in self._events(record))

    def _events(self, record: Record) -> Iterator[Any]:
        for name, value in record["values"].items():
            made = (
                self._summary.scalar(name, float(value))
                if record["kind"] == "metrics"
                else self._summary.text(f"{record['kind']}/{name}", str(value))
            )
            yield self._event(wall_time=record["time"], step=record.get("step", 0), summary=made)

    def _append(self, events: Iterable[Any]) -> None:
        batch = io.BytesIO()
        writer = self._record_writer(batch)
        for event in events:
            writer.write(event.SerializeToString())
        data = batch.getvalue()
        while data:  # a disk that is almost full takes a part, and refuses the rest
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())
        self._state.size = self._file.tell()

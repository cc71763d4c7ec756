"""TensorBoard: the journals of a job as one event file, which holds every record once, also after a crash."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

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

        self._event, self._summary, self._state = Event, summary, state
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.fdopen(open_to_append(path), "ab", buffering=0)  # nothing is left to write after an error
        self._file.truncate(state.size)
        self._file.seek(0, os.SEEK_END)
        self._writer = RecordWriter(self._file)
        if state.size == 0:
            self._writer.write(Event(wall_time=0.0, file_version=_FORMAT).SerializeToString())
            sync_folder(str(path.parent))

    def log(self, records: Sequence[Record]) -> None:
        """Append metrics as scalars, and all else as text."""
        for record in records:
            for name, value in record["values"].items():
                text = record["kind"] != "metrics"
                made = (
                    self._summary.text(f"{record['kind']}/{name}", str(value))
                    if text
                    else self._summary.scalar(name, float(value))
                )
                self._write(record, made)
        os.fsync(self._file.fileno())
        self._state.size = self._file.tell()

    def _write(self, record: Record, made: object) -> None:
        event = self._event(wall_time=record["time"], step=record.get("step", 0), summary=made)
        self._writer.write(event.SerializeToString())

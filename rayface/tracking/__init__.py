"""Tracking: journals on disk, which never block, and a thread that delivers them to MLflow.

The journals are the source of truth. Training only appends to them; `Delivery` reads them concurrently and sends
them to MLflow whenever MLflow answers. A server that is down does not slow the run, and `deliver` (the verb `sync`)
sends the rest once it is up again.

Delivery is idempotent: the MLflow run is found by the tag `rayface.spool_id`; the position in every journal is saved
after every accepted batch; a batch whose response was lost is sent again with the same timestamps, and MLflow drops
metrics that are equal in key, step, timestamp and value. Params, tags and artifacts are idempotent by key and path.

Each destination has a reader of its own, a thread with its own position: MLflow (`Delivery`), TensorBoard and Weights &
Biases. Only this package imports their libraries, and only inside the threads, because the imports take seconds; the
fork server of a node imports MLflow for all drivers.
"""

from rayface.tracking.delivery import Delivery, deliver, require_packages, start
from rayface.tracking.journal import Journal, read_metrics
from rayface.tracking.server import PARENT, RUN_NAME
from rayface.tracking.uris import shared_tracking, tracking_uri

__all__ = [
    "PARENT",
    "RUN_NAME",
    "Delivery",
    "Journal",
    "deliver",
    "read_metrics",
    "require_packages",
    "shared_tracking",
    "start",
    "tracking_uri",
]

"""What a run logs: journals on disk that never wait, and a thread that hands them to MLflow.

The journals are the truth. Training appends to them and goes on; `Delivery` reads them behind its back and
sends them to MLflow whenever MLflow answers. A server that is down for a day costs the run nothing, and
`deliver` (the verb `sync`) sends what is still missing once it is up again.

Why nothing arrives twice: the run is found again by the tag `rayface.spool_id`; the position in every journal
is saved after every accepted batch; and if a batch arrived but its answer did not, it is sent again with the
same timestamps, and MLflow drops metrics that are equal in key, step, timestamp and value. Params, tags and
artifacts are idempotent by key and path.

This package is the only importer of MLflow, and it imports it inside the thread, because that takes seconds.
"""

from rayface.tracking.delivery import Delivery, deliver, start
from rayface.tracking.journal import Journal, read_metrics
from rayface.tracking.server import PARENT
from rayface.tracking.uris import shared_tracking, tracking_uri

__all__ = ["PARENT", "Delivery", "Journal", "deliver", "read_metrics", "shared_tracking", "start", "tracking_uri"]

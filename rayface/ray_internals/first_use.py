"""What Ray imports in a process when a part of it is first used, for processes that are forked with it.

Otherwise every worker of a training imports Ray Tune, .2 s of CPU time, to ask for its local rank, and every dealer the
planner of Ray Data.
"""

from rayface.ray_internals import tried_versions_named

with tried_versions_named():
    import ray._private.arrow_serialization
    import ray.data._internal.execution.callbacks.execution_idx_update_callback
    import ray.data._internal.execution.callbacks.insert_issue_detectors
    import ray.data._internal.issue_detection
    import ray.data._internal.logical.optimizers
    import ray.data._internal.planner.planner
    import ray.data._internal.tensor_extensions.pandas
    import ray.data._internal.utils.torch_inference
    import ray.data.extensions
    import ray.tune  # noqa: F401

"""Pools of processes and threads that an interrupt ends at once, and that never outlive the process that made them."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process


@contextmanager
def process_pool(workers: int) -> Iterator[Executor]:
    """Fresh processes; what has not begun when the block ends by an error is never begun."""
    # Not fork: it would copy the locks of Arrow's and torch's threads in whatever state they are.
    with _ending_early(ProcessPoolExecutor(workers, get_context("spawn"), initializer=_follow_parent)) as pool:
        yield pool


@contextmanager
def thread_pool(workers: int) -> Iterator[Executor]:
    """Threads; what has not begun when the block ends by an error is never begun."""
    with _ending_early(ThreadPoolExecutor(workers)) as pool:
        yield pool


@contextmanager
def _ending_early(pool: Executor) -> Iterator[Executor]:
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _follow_parent() -> None:
    """Leave Ctrl-C, which a terminal sends to all of them, to the parent, and end when it has ended, however it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

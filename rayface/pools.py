"""Pools of processes and threads that end at once on an interrupt and with their parent, and background threads."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process


@contextmanager
def process_pool(workers: int) -> Iterator[Executor]:
    """Provide a pool of new processes; if the context ends by an error, queued work is cancelled."""
    # Not fork: it would copy locks of Arrow's and torch's threads in an undefined state.
    with _ending_early(ProcessPoolExecutor(workers, get_context("spawn"), initializer=_follow_parent)) as pool:
        yield pool


@contextmanager
def thread_pool(workers: int) -> Iterator[Executor]:
    """Provide a pool of threads; if the context ends by an error, queued work is cancelled."""
    with _ending_early(ThreadPoolExecutor(workers)) as pool:
        yield pool


@contextmanager
def background_thread(
    function: Callable[[threading.Event], object], name: str, *, wait: float | None
) -> Iterator[None]:
    """Run a function in a thread during the context, at whose end the event that it gets is set.

    Args:
        wait: maximum seconds to wait for the function then; None: until it returns.
    """
    ended = threading.Event()
    thread = threading.Thread(target=function, args=(ended,), daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(wait)


@contextmanager
def _ending_early(pool: Executor) -> Iterator[Executor]:
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _follow_parent() -> None:
    """Ignore Ctrl-C, which a terminal sends to all processes and the parent handles, and exit when the parent exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

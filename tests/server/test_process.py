"""What a supervisor sees of a worker process."""

import multiprocessing
import os
import sys

import psutil
import pytest
from embellama_server.workers.process import resident_and_shared


def test_a_process_has_memory_of_its_own_and_pages_of_files() -> None:
    resident, shared = resident_and_shared(os.getpid())
    assert resident == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
    assert 0 < shared < resident if sys.platform == "linux" else shared == 0


def test_a_process_that_is_gone_has_no_memory() -> None:
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    process.start()
    process.join()
    assert process.pid is not None
    assert resident_and_shared(process.pid) == (0, 0)

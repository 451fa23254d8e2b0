"""The local runners keep the contract of runners."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from contextvars import copy_context

import pytest

from resumable_tasks.runners.eventloop import AsyncRunner, EventLoop
from resumable_tasks.runners.processes import ProcessRunner
from resumable_tasks.runners.threads import ThreadRunner
from resumable_tasks.testing.runner_suite import Bench, ProcessRunnerSuite, RunnerSuite, ahandle


class TestThreads(RunnerSuite):
    def make_runner(self, concurrency):
        return ThreadRunner(concurrency)


class TestCoroutinesOnALoopOfTheirOwn(RunnerSuite):
    handler = staticmethod(ahandle)

    def make_runner(self, concurrency):
        return AsyncRunner(concurrency)


def test_an_abandoned_run_leaves_nothing_on_the_loop_of_the_process(tmp_path):
    class Suite(TestCoroutinesOnALoopOfTheirOwn):
        pass

    bench = Bench(Suite(), tmp_path, 1)
    loop = bench.runner._loop
    bench.submit("wait")
    bench.wait_for_started(1)
    bench.stopping.set()
    bench.close(abandon=True)
    bench.go()
    for _ in range(1_000):
        if not loop._tasks:
            break
        time.sleep(0.01)
    assert not loop._tasks


def test_a_loop_that_a_coroutine_blocks_is_left_to_it():
    blocked = EventLoop()
    begun, free = threading.Event(), threading.Event()

    async def block():
        begun.set()
        free.wait(60)

    blocked.spawn(block, copy_context())
    assert begun.wait(60)
    blocked.close(abandon=True)
    another = EventLoop()
    assert another.spawn(functools.partial(asyncio.sleep, 0, "runs"), copy_context()).result(10)
    another.close(abandon=False)
    free.set()


async def finish_all() -> None:
    """What ``asyncio.run`` does at its end."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class TestCoroutinesOnTheCallersLoop(RunnerSuite):
    handler = staticmethod(ahandle)

    @pytest.fixture(autouse=True)
    def _loop(self):
        self.loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self.loop.run_forever)
        thread.start()
        yield
        asyncio.run_coroutine_threadsafe(finish_all(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        thread.join()
        self.loop.close()

    def make_runner(self, concurrency):
        return AsyncRunner(concurrency, self.loop)


class TestProcesses(ProcessRunnerSuite):
    def make_runner(self, concurrency):
        return ProcessRunner(concurrency)


@pytest.mark.long
@pytest.mark.usefixtures("fresh_workers")
class TestFreshProcesses(TestProcesses):
    """`TestProcesses` has its workers from a warm parent."""

"""The local runners keep the contract of runners."""

from __future__ import annotations

import asyncio
import threading

import pytest

from resumable_tasks.runners.eventloop import AsyncRunner
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


def test_an_abandoned_loop_is_closed_when_its_handlers_have_ended(tmp_path):
    class Suite(TestCoroutinesOnALoopOfTheirOwn):
        pass

    before = set(threading.enumerate())
    bench = Bench(Suite(), tmp_path, 1)
    bench.submit("wait")
    bench.wait_for_started(1)
    bench.stopping.set()
    bench.close(abandon=True)
    bench.go()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert bench.runner._loop.closed


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

"""The journal keeps its contract on a disk."""

from __future__ import annotations

from resumable_tasks.testing.journal_suite import JournalSuite
from tests.proof.contracts.disk_stores import OnDisk


class TestJournalOnDisk(OnDisk, JournalSuite):
    pass

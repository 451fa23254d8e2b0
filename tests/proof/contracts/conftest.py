from __future__ import annotations

import pytest

for name in ("store", "journal", "runner"):
    pytest.register_assert_rewrite(f"resumable_tasks.testing.{name}_suite")

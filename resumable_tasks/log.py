"""The library's one logger, ``resumable_tasks``."""

from __future__ import annotations

import logging

logger = logging.getLogger("resumable_tasks")
info = logger.info
warning = logger.warning
error = logger.error

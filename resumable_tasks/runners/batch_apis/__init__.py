"""Batch APIs of language models as submitted work: half the price, answers within a day."""

"""Suites that attack the engine's promises with real processes; see ``docs/design``."""

"""Hypothesis profiles: fast on every commit, long with ``--hypothesis-profile=long``."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fast", deadline=None, max_examples=60, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=2000)
settings.load_profile("fast")

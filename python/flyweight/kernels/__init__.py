"""Typed entry points to the kernels; the only place that knows which backend runs."""

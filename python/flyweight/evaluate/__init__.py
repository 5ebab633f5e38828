"""Bits per byte: accounting, sliding windows, score-first test-time training, the ledger."""

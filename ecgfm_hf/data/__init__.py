"""Recordings to datasets that training reads: builders, store, splits, labels."""

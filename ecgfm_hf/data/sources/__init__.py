"""Datasets as they lie on disk: one module a layout."""

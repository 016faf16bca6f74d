"""Readers of datasets on disk: one module for each layout."""

"""ECG-FM for Transformers."""

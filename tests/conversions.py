"""Conversion of checkpoints that do not contain what input their model takes: it is fairseq-signals' usual one."""

from ecgfm_hf.fairseq import convert_checkpoint as convert_with

INPUT = {"sampling_rate": 500, "segment_seconds": 5.0, "standardize": "recording"}
INPUT_OPTIONS = ["--sampling-rate", "500", "--segment-seconds", "5", "--standardize", "recording"]


def convert_checkpoint(checkpoint, output_dir, **settings):
    return convert_with(checkpoint, output_dir, **INPUT | settings)

"""
Recordings to datasets that training reads: sources, store, splits, labels, and what a model takes.

Nothing is imported until it is asked for.
"""

from ..utils.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        ".builders": ("Code15Builder", "MimicIVECGBuilder", "PhysioNet2021Builder", "RecordingTableBuilder"),
        ".filters": ("filter_recordings",),
        ".split_settings": ("SplitSettings",),
        ".labels": (
            "LabelTable",
            "LabelTableError",
            "define_labels",
            "label_table",
            "merge_label_tables",
            "pos_weight",
            "read_label_csv",
            "read_label_def",
            "snomed_labels",
            "write_label_def",
        ),
        ".loading": ("load_arrays", "load_code_15", "load_mimic_iv_ecg", "load_physionet2021", "load_table"),
        ".model_inputs": ("ModelInputs", "as_model_inputs", "collate_items"),
        ".preparation": ("PrepareError", "PrepareSettings", "prepare"),
        ".sources.arrays": ("Arrays",),
        ".sources.base": ("LeftOut", "Source", "SourceError", "SourceIndex"),
        ".sources.code_15": ("Code15",),
        ".sources.mimic_iv_ecg": ("MimicIVECG",),
        ".sources.physionet2021": ("PhysioNet2021",),
        ".sources.table": ("RecordingTable",),
        ".published_splits": ("import_split", "read_split_csv", "write_split_csv"),
        ".splits": ("SplitError", "SplitResult", "split_recordings"),
        ".store": ("StoreError", "label_columns", "load_prepared", "read_report", "record_from_row"),
    },
)

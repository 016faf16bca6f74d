"""
Processed folders of fairseq-signals: read as data sets of model inputs, and written from a store.

`load_fairseq_folder(path, split)` reads one, `export_fairseq_folder(dataset, out)` writes one.
"""

from .folder_reading import FairseqFolder, FairseqSegments, LeftOut, load_fairseq_folder
from .folder_writing import ExportedFolder, export_fairseq_folder
from .manifests import FairseqFolderError

__all__ = [
    "ExportedFolder",
    "FairseqFolder",
    "FairseqFolderError",
    "FairseqSegments",
    "LeftOut",
    "export_fairseq_folder",
    "load_fairseq_folder",
]

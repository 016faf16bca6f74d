"""
ECG-FM, the open foundation model for the 12-lead electrocardiogram, for Hugging Face Transformers.

Importing this package registers its classes with the Auto classes and the `ecg-classification` pipeline, before or
after transformers is imported. Everything else is imported when it is first used:

    >>> import ecgfm_hf
    >>> from transformers import AutoModel
    >>> model = AutoModel.from_pretrained("path/to/folder")
"""

import lazy_loader

from .auto_classes import register_with_transformers, silence_torchao

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

silence_torchao()
register_with_transformers()

"""
To the Hub: what of a model goes, what must not, the push itself, and model cards.

Nothing is imported until it is asked for.
"""

from ..utils.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        ".contents": ("GoingFile", "PushContents", "folder_contents"),
        ".errors": ("PushError", "PushRefusedError"),
        ".pushing": ("push_contents", "push_folder"),
        ".traces": ("Machine", "Trace", "find_traces", "this_machine"),
    },
)

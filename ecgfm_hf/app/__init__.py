"""
A web page that scores one recording at a time: `ecgfm app`.

Nothing is imported until it is asked for; the page needs the extra `[app]` (gradio, captum, matplotlib).
"""

from ..utils.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        ".server": ("AppSettings", "build_app", "private_folder", "serve"),
    },
)

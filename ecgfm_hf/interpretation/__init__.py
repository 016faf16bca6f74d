"""
What a score rests on, and how it looks on paper: saliency and clinical plots.

Nothing is imported until it is asked for; saliency needs the extra `[saliency]` (captum), plots `[plots]` (matplotlib).
"""

from ..utils.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        ".attention": ("attention_saliency",),
        ".attribution": ("Attribution", "attribute"),
        ".deletion": ("delete_times", "most_salient_times", "shifted_times"),
        ".ecg_page": ("plot_ecg",),
        ".paper": ("save_page",),
        ".prediction_page": ("plot_prediction",),
    },
)

"""Model cards: made from what is known of a model, and asking for what only a person knows."""

from .building import CardError, build_model_card
from .details import CardDetails, CardDetailsError, read_details
from .problems import card_problems
from .published import PublishedCardError, converted_card, published_card, published_names

__all__ = [
    "CardDetails",
    "CardDetailsError",
    "CardError",
    "PublishedCardError",
    "build_model_card",
    "card_problems",
    "converted_card",
    "published_card",
    "published_names",
    "read_details",
]

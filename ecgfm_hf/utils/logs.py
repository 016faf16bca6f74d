"""What is kept out of logs for a while."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def only_errors(name: str) -> Iterator[None]:
    """Keeps back what a logger says below errors; then its level is as it was."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


__all__ = ["only_errors"]

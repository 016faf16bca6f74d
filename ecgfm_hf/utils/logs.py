"""What is kept out of logs for a while."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def only_errors(name: str) -> Iterator[None]:
    """Suppress a logger's messages below errors, and restore its level afterwards."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


__all__ = ["only_errors"]

"""
Keeps two notices of torchao away, which transformers imports where it is installed: that libraries for GPUs cannot be
loaded on other machines, and that it uses a call of torch's that will go. Neither is about anything the user does.
"""

import logging


def _is_of_interest(record: logging.LogRecord) -> bool:
    notice = record.getMessage()
    return not (notice.startswith("Failed to load") or "register_constant()" in notice)


# The first is torchao's, the second torch's about it.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).addFilter(_is_of_interest)

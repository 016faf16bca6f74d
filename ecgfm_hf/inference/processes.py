"""The processes of `torchrun` or `accelerate launch` that share a run."""

import os
from datetime import timedelta


class Processes:
    """
    This process among those that share a run; the only one unless torchrun or `accelerate launch` started several.

    They only wait for each other, on a CPU, so that one that is through may wait for days.

    Attributes:
        rank, count (`int`): Its number, from 0, and how many there are.

    Raises:
        `OSError`: the others cannot be found.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self._ours = False
        if self.count > 1:
            from torch import distributed

            if not distributed.is_initialized():
                try:
                    distributed.init_process_group("gloo", timeout=timedelta(days=30))
                except (ValueError, RuntimeError) as error:
                    told = "WORLD_SIZE says that several processes share this run, but they do not meet"
                    raise OSError(f"{told}: {error}") from error
                self._ours = True

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Returns when all are here. `OSError` where one of them has ended."""
        if self.count > 1:
            from torch import distributed

            try:
                distributed.barrier()
            except RuntimeError as error:
                raise OSError(f"another process of this run has ended ({error})") from error

    def end(self) -> None:
        """Takes leave of the others."""
        if self._ours:
            from torch import distributed

            distributed.destroy_process_group()
            self._ours = False


__all__ = ["Processes"]

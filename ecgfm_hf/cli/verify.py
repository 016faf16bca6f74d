"""`ecgfm verify`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import CommandFailed
from .outputs import Reads


def verify(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Model folder, store or run; folders below it are verified, too."),
        Reads(),
    ],
    update: Annotated[bool, typer.Option("--update", help="Write new digests of models: accept the files.")] = False,
) -> int:
    """
    Compare a folder's files with the digests in its checksums.json.

    Stores and models have a checksums.json. In the folder of a run, its subfolders are compared.

    Exit status: 0 unchanged, 1 files have changed or are missing (printed), 2 usage, or nothing to compare.
    """
    from ..utils.integrity import CHECKSUMS_FILE, changed_files, find_checksums, update_checksums

    if not folder.is_dir():
        raise CommandFailed(f"{folder}: no such folder")
    folders = find_checksums(folder)
    if not folders:
        raise CommandFailed(f"{folder} and the folders below it have no {CHECKSUMS_FILE}: there is nothing to compare")
    problems = 0
    for found in folders:
        try:
            changed = changed_files(found)
            if update and changed:
                update_checksums(found)
                changed = changed_files(found)
        except (OSError, ValueError) as error:
            changed = [f"{CHECKSUMS_FILE} cannot be used ({error})"]
        for text in changed:
            print(f"{found}: {text}")
        if not changed:
            print(f"{found}: unchanged")
        problems += len(changed)
    return 1 if problems else 0

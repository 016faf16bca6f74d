"""`ecgfm push`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import failing_with, parse_names, quiet_libraries, show_progress
from .outputs import Reads

if TYPE_CHECKING:
    from ..hub import PushContents


def push(
    model_dir: Annotated[Path, typer.Argument(metavar="DIR", help="Model folder, or the folder of a run."), Reads()],
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="Repository, NAMESPACE/NAME; made if there is none.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make it private; an error where it is public already.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="BRANCH", help="Branch, made if there is none (default: main)."),
    ] = None,
    message: Annotated[str | None, typer.Option("--message", metavar="TEXT", help="Commit message.")] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--evaluation",
            metavar="EVAL_DIR",
            help="Folder of `ecgfm evaluate`, for the card that is built where DIR has no README.md.",
        ),
        Reads(),
    ] = None,
    details: Annotated[
        Path | None,
        typer.Option(
            "--details",
            metavar="FILE.yaml",
            help="Details for the card that is built where DIR has no README.md; see `ecgfm card`.",
        ),
        Reads(),
    ] = None,
    allow: Annotated[
        str | None,
        typer.Option(
            "--allow",
            metavar="A,B",
            help="Findings of the search for paths and names, exactly as printed, that you have checked to be "
            "harmless.",
        ),
    ] = None,
    allow_code: Annotated[
        bool,
        typer.Option("--allow-code", help="Send model code (*_ecgfm.py) that differs from this package's."),
    ] = False,
    smallest_cell: Annotated[
        int,
        typer.Option(
            "--smallest-cell",
            min=1,
            metavar="N",
            help="Fewest patients that a count in the card may be of; an evaluation with fewer is refused unless its "
            "--smallest-cell is repeated.",
        ),
    ] = 10,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List what would be sent and what would not; needs no network and no token."),
    ] = False,
) -> int:
    """
    Publish a model folder on the Hugging Face Hub.

    Sends weights, config, feature extractor, pipeline, code, licence and card in one commit, and never data,
    checkpoints or logs. Paths and names of this machine in them are an error.

    Exit status: 0 pushed (or, with --dry-run, it could be), 1 not pushed, 2 usage.
    """
    allowed = parse_names(allow, "--allow") or []
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from ..hub import PushError, PushRefusedError
    from ..hub.contents import folder_contents
    from ..hub.pushing import check_push, push_contents

    if not show_progress():
        disable_progress_bars()
    with quiet_libraries(), failing_with(1, PushError, PushRefusedError):
        contents = folder_contents(
            model_dir,
            repo_id,
            evaluation=evaluation,
            details=details,
            allow=allowed,
            allow_code=allow_code,
            smallest_cell=smallest_cell,
        )
        _print(contents)
        problems = check_push(contents, repo_id, message, allowed, revision)
        if problems:
            raise PushRefusedError(problems)
        if dry_run:
            kind = "private" if private else "public, unless it is private there already"
            print(f"would go to {repo_id} ({kind}), branch {revision or 'main'}; nothing was sent")
            return 0
        done = push_contents(
            contents,
            repo_id,
            private=private or None,
            revision=revision,
            commit_message=message,
            allow=allowed,
        )
    print(f"pushed      {done.repo_url}")
    print(f"commit      {done.commit_url}")
    return 0


def _print(contents: "PushContents") -> None:
    width = max([len(file.name) for file in contents.uploads] + [len(name) for name, _ in contents.kept], default=0)
    for file in contents.uploads:
        print(f"upload      {file.name:<{width}}  {_size(file.size):>9}{f'  {file.source}' if file.source else ''}")
    print(f"            {len(contents.uploads)} files, {_size(contents.size)}")
    for name, why in contents.kept:
        print(f"not sent    {name:<{width}}  {why}")
    for note in contents.notes:
        print(f"note        {note}")


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"

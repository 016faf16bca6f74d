"""`ecgfm push`: its arguments, and what it prints."""

import argparse
import sys
from pathlib import Path

from ..utils.name_lists import names

EXIT_STATUS = "Exit status: 0 pushed (or, with --dry-run, nothing is in the way), 1 not pushed, 2 usage."


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm push`."""
    parser.add_argument("model_dir", metavar="DIR", type=Path, help="model folder, or the folder of a run")
    parser.add_argument("repo_id", metavar="REPO", help="repository, NAMESPACE/NAME; made if there is none")
    parser.add_argument("--private", action="store_true", help="make it private; an error where it is public already")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made if there is none (default: main)")
    parser.add_argument("--message", metavar="TEXT", help="commit message")
    parser.add_argument(
        "--evaluation",
        metavar="EVAL_DIR",
        type=Path,
        help="folder of `ecgfm evaluate`, for the card that is built where DIR has no README.md",
    )
    parser.add_argument(
        "--details",
        metavar="FILE.yaml",
        type=Path,
        help="what only a person knows, as for `ecgfm card`, for the card that is built where DIR has no README.md",
    )
    parser.add_argument(
        "--allow",
        metavar="A,B",
        type=names,
        default=[],
        help="what the search for paths and names finds, exactly as it prints it, and you know to be harmless",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would go and what stays; needs no network and no token"
    )


def run_push(args: argparse.Namespace) -> int:
    """Runs `ecgfm push`; returns the exit status."""
    from huggingface_hub.utils import disable_progress_bars

    from ..hub.contents import folder_contents
    from ..hub.pushing import PushError, PushRefusedError, check_push, push_contents

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        contents = folder_contents(
            args.model_dir, args.repo_id, evaluation=args.evaluation, details=args.details, allow=args.allow
        )
        _print(contents)
        problems = check_push(contents, args.repo_id, args.message, args.allow)
        if args.dry_run and not problems:
            kind = "private" if args.private else "public, unless it is private there already"
            print(f"would go to {args.repo_id} ({kind}), branch {args.revision or 'main'}; nothing was sent")
            return 0
        if problems:
            raise PushRefusedError(problems)
        done = push_contents(
            contents,
            args.repo_id,
            private=args.private or None,
            revision=args.revision,
            commit_message=args.message,
            allow=args.allow,
        )
    except (PushError, PushRefusedError) as error:
        print(f"ecgfm push: {error}", file=sys.stderr)
        return 1
    print(f"pushed      {done.repo_url}")
    print(f"commit      {done.commit_url}")
    return 0


def _print(contents) -> None:
    width = max([len(file.name) for file in contents.uploads] + [len(name) for name, _ in contents.kept], default=0)
    for file in contents.uploads:
        print(f"goes        {file.name:<{width}}  {_size(file.size):>9}{f'  {file.source}' if file.source else ''}")
    print(f"            {len(contents.uploads)} files, {_size(contents.size)}")
    for name, why in contents.kept:
        print(f"left here   {name:<{width}}  {why}")
    for note in contents.notes:
        print(f"note        {note}")


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


__all__ = ["EXIT_STATUS", "add_push_arguments", "run_push"]

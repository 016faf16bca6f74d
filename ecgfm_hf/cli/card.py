"""`ecgfm card`: its arguments, and what it prints."""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXIT_STATUS = (
    "Exit status: 0 written and complete, 1 written, but something is to be filled in or taken out (named on standard "
    "error), 2 usage."
)
# Details with an option of their own; a file of --details may hold these and the others.
_OPTIONS = {
    "license": "licence of the weights as the Hub abbreviates it, such as mit",
    "developers": "who made the model and answers for it",
    "intended_use": "what the model is for",
    "training_data": "where the recordings come from, how they were labelled, what permits their use",
    "limitations": "where it must be expected to fail",
    "dataset_name": "name of the data that the evaluation is of",
    "base_model": "repository on the Hub of the weights that training began from",
}


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `ecgfm card`."""
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL_DIR",
        type=Path,
        nargs="?",
        help="folder of `ecgfm convert`, pretrain, finetune or probe",
    )
    add(
        "--evaluation",
        metavar="DIR",
        type=Path,
        help="folder that `ecgfm evaluate` wrote: its figures go into the card",
    )
    add(
        "--details",
        metavar="FILE.yaml",
        type=Path,
        help="what only a person knows, by name: license, intended_use, ...",
    )
    for name, help in _OPTIONS.items():
        add(f"--{name.replace('_', '-')}", metavar="TEXT", help=f"{help} (as in --details)")
    add("--repo", metavar="OWNER/NAME", help="repository on the Hub that the card is for; names the model in code")
    add(
        "--output",
        metavar="FILE",
        type=Path,
        help="where to write it, - for standard output (default: MODEL_DIR/README.md)",
    )
    add("--overwrite", action="store_true", help="replace the file where it exists")
    add("--published", metavar="NAME", help="print or write the card of a published checkpoint instead")
    add("--list", action="store_true", help="name the published checkpoints that there is a card of, and exit")


def run_card(args: argparse.Namespace) -> int:
    """
    Runs `ecgfm card`.

    Returns:
        `int`: 0 written and complete, 1 something is to be filled in or taken out, 2 usage.
    """
    from ..hub.cards import card_problems, published_names
    from ..hub.private_details import find_private_details, this_machine

    if args.list:
        print("\n".join(published_names()))
        return 0
    try:
        output = _output(args)
        text = _text(args)
        if output is None:
            print(text, end="")
        else:
            _write(output, text)
    except (OSError, ValueError) as error:
        print(f"ecgfm card: {error}", file=sys.stderr)
        return 2
    if output is not None:
        print(f"card  {output}")
    problems, traces = card_problems(text), find_private_details(text, this_machine().pushing_to(args.repo))
    for problem in problems:
        print(f"incomplete: {problem}", file=sys.stderr)
    for trace in traces:
        print(f"not to be published: {trace}", file=sys.stderr)
    if problems and output is not None:
        print("ecgfm card: say it with --details FILE.yaml, and --overwrite to replace this card", file=sys.stderr)
    return 1 if problems or traces else 0


def card_of_converted(name: str, facts: Mapping[str, Any], model: Any) -> str:
    """For `ecgfm convert --card NAME`: the published checkpoint's card, with what conversion found."""
    from ..hub.cards import converted_card

    return converted_card(name, facts, model)


def _text(args: argparse.Namespace) -> str:
    from ..hub.cards import build_model_card, published_card, read_details

    given = {name: getattr(args, name) for name in _OPTIONS if getattr(args, name) is not None}
    if args.published is not None:
        unused = [name for name in ("model", "evaluation", "details") if getattr(args, name) is not None]
        if unused or given:
            raise ValueError(f"--published is a card by itself: give no {', '.join([*unused, *given])} with it")
        return published_card(args.published, args.repo)
    if args.model is None:
        raise ValueError("give MODEL_DIR, or --published NAME (--list names them)")
    details = {} if args.details is None else read_details(args.details)
    return build_model_card(args.model, evaluation=args.evaluation, repo_id=args.repo, **{**details, **given})


def _output(args: argparse.Namespace) -> Path | None:
    """Where the card goes; None for standard output."""
    output = args.output
    if output is None:
        output = None if args.model is None else args.model / "README.md"
    elif str(output) == "-":
        output = None
    if output is not None and output.exists() and not args.overwrite:
        raise FileExistsError(f"{output} exists and may have been edited: choose another --output, or --overwrite")
    return output


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


__all__ = ["EXIT_STATUS", "add_card_arguments", "card_of_converted", "run_card"]

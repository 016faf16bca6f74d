"""`ecgfm card`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..utils.errors import SettingsError
from ..utils.files import begins_with, write_text
from .options import quiet_libraries
from .outputs import Reads, Writes


def _detail(name: str, text: str) -> object:
    return typer.Option(f"--{name}", metavar="TEXT", help=f"{text} (as in --details).")


def card(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL_DIR", help="Folder of `ecgfm convert`, pretrain, finetune or probe."),
        Reads(),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--evaluation", metavar="DIR", help="Folder that `ecgfm evaluate` wrote: its figures go into the card."
        ),
        Reads(),
    ] = None,
    details: Annotated[
        Path | None,
        typer.Option(
            "--details", metavar="FILE.yaml", help="What only a person can state, by name: license, intended_use, ..."
        ),
        Reads(),
    ] = None,
    license: Annotated[
        str | None, _detail("license", "Licence of the weights as the Hub abbreviates it, such as mit")
    ] = None,
    developers: Annotated[str | None, _detail("developers", "Who made the model and is responsible for it")] = None,
    intended_use: Annotated[str | None, _detail("intended-use", "What the model is for")] = None,
    training_data: Annotated[
        str | None,
        _detail("training-data", "Where the recordings come from, how they were labelled, what permits their use"),
    ] = None,
    limitations: Annotated[str | None, _detail("limitations", "Where the model is expected to fail")] = None,
    dataset_name: Annotated[str | None, _detail("dataset-name", "Name of the data that the evaluation is of")] = None,
    base_model: Annotated[
        str | None, _detail("base-model", "Repository on the Hub of the weights that training started from")
    ] = None,
    repo: Annotated[
        str | None,
        typer.Option(
            "--repo", metavar="OWNER/NAME", help="Repository on the Hub that the card is for; the card's code names it."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="File to write, - for standard output (default: MODEL_DIR/README.md).",
        ),
        Writes(begins_with("---\n")),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file where it exists.")] = False,
    published: Annotated[
        str | None,
        typer.Option("--published", metavar="NAME", help="Print or write the card of a published checkpoint instead."),
    ] = None,
    list_published: Annotated[
        bool, typer.Option("--list", help="List the published checkpoints that have a card, and exit.")
    ] = False,
) -> int:
    """
    Write a model's card.

    Exit status: 0 written and complete, 1 written, but something is missing or must be removed (named on standard
    error), 2 usage.
    """
    given = {
        "license": license,
        "developers": developers,
        "intended_use": intended_use,
        "training_data": training_data,
        "limitations": limitations,
        "dataset_name": dataset_name,
        "base_model": base_model,
    }
    with quiet_libraries():
        from ..hub.cards import build_model_card, card_problems, published_card, published_names, read_details
        from ..hub.private_details import find_private_details, this_machine

        if list_published:
            print("\n".join(published_names()))
            return 0
        path = _output(model, output, overwrite)
        stated = {name: value for name, value in given.items() if value is not None}
        if published is not None:
            others = {"model": model, "evaluation": evaluation, "details": details}
            unused = [name for name, value in others.items() if value is not None]
            if unused or stated:
                raise SettingsError(
                    f"--published is a complete card: remove {', '.join([*unused, *stated])} from the command"
                )
            text = published_card(published, repo)
        elif model is None:
            raise SettingsError("give MODEL_DIR, or --published NAME (--list names them)")
        else:
            from_file = {} if details is None else read_details(details)
            text = build_model_card(model, evaluation=evaluation, repo_id=repo, **{**from_file, **stated})
        if path is None:
            print(text, end="")
        else:
            write_text(path, text)
            print(f"card  {path}")
        problems, traces = card_problems(text), find_private_details(text, this_machine().pushing_to(repo))
    for problem in problems:
        print(f"incomplete: {problem}", file=sys.stderr)
    for trace in traces:
        print(f"not to be published: {trace}", file=sys.stderr)
    if problems and path is not None:
        print("ecgfm: complete it with --details FILE.yaml, and --overwrite to replace this card", file=sys.stderr)
    return 1 if problems or traces else 0


def _output(model: Path | None, output: Path | None, overwrite: bool) -> Path | None:
    """Return the file to write; None for standard output."""
    if output is None:
        output = None if model is None else model / "README.md"
    elif str(output) == "-":
        output = None
    if output is not None and output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists and may have been edited: choose another --output, or --overwrite")
    return output

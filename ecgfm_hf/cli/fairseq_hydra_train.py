"""`ecgfm fairseq-hydra-train`: training commands of fairseq-signals as typed."""

import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from .outputs import Reads

_LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")


def fairseq_hydra_train(
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="GROUP.KEY=VALUE", help="Options of fairseq-signals, such as task.data=MANIFESTS."),
    ] = None,
    config_dir: Annotated[
        Path, typer.Option("--config-dir", "-cd", metavar="DIR", help="Folder of its configurations."), Reads()
    ] = Path("."),
    config_name: Annotated[
        str, typer.Option("--config-name", "-cn", metavar="NAME", help="Such as w2v_cmsc_rlm or diagnosis.")
    ] = "",
    show: Annotated[bool, typer.Option("--show", help="Print the equivalent command, and stop.")] = False,
) -> int:
    """
    Run a training command of fairseq-signals: print the equivalent `ecgfm pretrain` or `ecgfm finetune`, and run it.

    Options without a counterpart are listed; those that would change the training are errors.

    Exit status: 0 trained, or printed with --show, 2 usage, else the training command's.
    """
    from ..fairseq.training_options import read_configuration, translate
    from ..utils.errors import SettingsError

    if not config_name:
        raise SettingsError("--config-name is required, such as --config-name w2v_cmsc_rlm")
    found = translate(read_configuration(config_dir, config_name, changes or ()))
    settings, processes = found.settings, int(found.settings.get("processes") or 1)
    if found.checkpoint is not None:
        converted = f"{str(settings['output_dir']).rstrip('/')}-model_path"
        settings["init_from"] = converted
        _print(["convert", str(found.checkpoint), converted])
    if not _has_gpu():
        settings["use_cpu"] = True
    launcher = [] if processes == 1 else ["torchrun", *_LAUNCHER[2:], str(processes), "-m", "ecgfm_hf.cli"]
    _print(found.arguments, launcher or ["ecgfm"])
    for note in found.notes:
        print(f"note: {note}", flush=True)
    if show:
        return 0
    if found.checkpoint is not None:
        _convert(found.checkpoint, settings)
    if processes > 1:
        sys.stdout.flush()
        # In place of this process, so that signals reach the launcher.
        os.execv(sys.executable, [sys.executable, *_LAUNCHER, str(processes), "-m", "ecgfm_hf.cli", *found.arguments])
    from .main import main

    return main(found.arguments)


def _print(arguments: list[str], command: list[str] | None = None) -> None:
    print(shlex.join([*(command or ["ecgfm"]), *arguments]), flush=True)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _convert(checkpoint: Path, settings: dict[str, Any]) -> None:
    """
    Convert a checkpoint to the folder `init_from`; one that it was converted to before is used again.

    Where the file does not contain its model's input, the segments that the run trains on have it.
    """
    from ..fairseq import UnknownInputError, convert_checkpoint
    from ..provenance import file_digest, read_steps
    from ..utils.errors import OutputExistsError

    output = settings["init_from"]
    if Path(output).is_dir():
        if [step.get("source_sha256") for step in read_steps(output)] == [file_digest(checkpoint)]:
            return
        raise OutputExistsError(f"{output} was not converted from {checkpoint}: remove it")
    try:
        convert_checkpoint(checkpoint, output)
    except UnknownInputError as error:
        found = _input_of_segments(settings, error.missing)
        print(f"note: {checkpoint} does not contain its input; the segments have {found}", flush=True)
        convert_checkpoint(checkpoint, output, **found)


def _input_of_segments(settings: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return rate and length of a processed folder's first segment. Its segments were standardised by recording."""
    from ..fairseq import FairseqFolder

    folder = FairseqFolder(settings["data"], root=settings.get("root"))
    table = next(folder.recordings(folder.splits[0], check=False))
    rate, samples = table["sampling_rate"][0].as_py(), table["num_samples"][0].as_py()
    seconds = samples / len(table["segment_files"][0]) / rate
    known = {"sampling_rate": rate, "segment_seconds": seconds, "standardize": "recording"}
    return {name: known[name] for name in names}

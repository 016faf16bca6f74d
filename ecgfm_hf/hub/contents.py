"""
Decide which files of a model folder are uploaded, which stay, and what forbids the push.

A fixed list of names decides what is uploaded. Everything else in the folder (checkpoints, optimizer state, logs,
data, ids of training patients) stays because it is not on the list. The listed files are then searched for private
details.
"""

import importlib.metadata
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..configuration_ecgfm import ECGFMConfig
from ..data.leakage import GUARD_FILE
from ..provenance import PROVENANCE_FILE
from ..utils.integrity import CHECKSUMS_FILE
from ..utils.redaction import SMALLEST_CELL
from .cards.checks import split_front_matter
from .model_files import (
    CONFIG_FILE,
    EXTRACTOR_FILE,
    INDEX_FILE,
    SAVE_AGAIN,
    SINGLE_FILE,
    WeightsError,
    header_texts,
    is_weights_file,
    pos_weight_problems,
    settings_problems,
    weight_files,
    weight_problems,
)
from .private_details import Machine, find_private_details, find_training_ids, this_machine

CARD_FILE, LICENSE_FILE = "README.md", "LICENSE"
CODE_FILES = ("configuration_ecgfm.py", "feature_extraction_ecgfm.py", "modeling_ecgfm.py", "pipeline_ecgfm.py")
_TEXT_FILES = (CONFIG_FILE, EXTRACTOR_FILE, *CODE_FILES, LICENSE_FILE, CARD_FILE)
_OUR_LICENCE = "mit"
HAS_ID = "has the id of a training recording or patient"
_CELL_IN_CARD = re.compile(r"<!-- smallest cell: (\d+) -->")
_CELL_IN_PROVENANCE = re.compile(r'"smallest_cell": (\d+)')
# Bytes of a text file, which is read and searched as a whole.
_LARGEST_TEXT = 10_000_000

# Why a file stays, by its name.
_REASONS = (
    (r".*do-not-share.*", "identifies people"),
    (r"(checkpoints|checkpoint-\d+|step-\d+|engine)/", "checkpoints, with optimizer state"),
    (r".*\.(bin|pt|pth|pkl|pickle|ckpt|joblib)", "a pickle: it may contain optimizer state or code"),
    (r"(store|data)/|.*\.(parquet|arrow|feather|csv|tsv|xlsx?|jsonl?\.gz|npy|npz|h5|hdf5)", "data"),
    (r".*\.(hea|dat|mat|dcm|edf|xml|scp|ecg|atr)", "recordings"),
    (
        r"settings\.yaml|metrics\.jsonl|finetuning\.json|trainer_state\.json|nonfinite/",
        "part of the training run",
    ),
    (r"adapters/", "merged into the weights"),
    (r"\..*", "hidden"),
)


@dataclass(frozen=True)
class UploadFile:
    """
    A file to upload.

    Args:
        name (`str`): Its name in the repository.
        size (`int`): Bytes.
        content (`bytes`, *optional*): For all files but weights: exactly the bytes that were searched.
        path (`Path`, *optional*): For weights.
        stamp (tuple): For weights: changes if the file changes.
        source (`str`): Where the file comes from, if not from the folder.
    """

    name: str
    size: int
    content: bytes | None = None
    path: Path | None = None
    stamp: tuple[int, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class PushContents:
    """
    The result of [`folder_contents`].

    Args:
        model_dir (`Path`)
        uploads (tuple of [`UploadFile`])
        kept (tuple of (`str`, `str`)): What stays in the folder (folders end in a slash), and why.
        notes (tuple of `str`): For the user to read before the push.
        problems (tuple of `str`): What forbids the push; each names a file and the finding.
    """

    model_dir: Path
    uploads: tuple[UploadFile, ...] = ()
    kept: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Return the number of bytes to upload."""
        return sum(file.size for file in self.uploads)


@dataclass
class _Collected:
    folder: Path
    files: dict[str, UploadFile] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        content = self.files[name].content
        assert content is not None, name  # only weights are streamed
        return content.decode("utf-8")


def folder_contents(
    model_dir: str | Path,
    repo_id: str | None = None,
    *,
    evaluation: str | Path | None = None,
    details: Mapping[str, Any] | str | Path | None = None,
    allow: Iterable[str] = (),
    allow_code: bool = False,
    smallest_cell: int = SMALLEST_CELL,
    guards: Sequence[str | Path] = (),
) -> PushContents:
    """
    Decide what of a model folder is uploaded, what stays, and what forbids the push. Changes nothing and uses no
    network.

    Args:
        model_dir (`str` or `Path`): A folder that was converted, fine-tuned, probed, pretrained or saved.
        repo_id (`str`, *optional*): The repository, for the card. A user name that is also its namespace is allowed.
        evaluation (`str` or `Path`, *optional*): A folder that `ecgfm evaluate` wrote, for the card.
        details (mapping, `str` or `Path`, *optional*): Details for the card, as a mapping or a YAML file; see
            [`~ecgfm_hf.hub.cards.CardDetails`].
        allow (iterable of `str`): Findings with exactly this text are accepted.
        allow_code (`bool`): Accept model code that differs from this package's.
        smallest_cell (`int`): Fewest patients that a count in the card may be of.
        guards (sequence of `str` or `Path`): Other folders whose lists of training ids are searched for too.

    Raises:
        `FileNotFoundError`: the folder is missing, or is not a model folder; the message names what it is.
    """
    found, machine, allow = _open(model_dir), this_machine().pushing_to(repo_id), frozenset(allow)
    try:
        weights = weight_files(found.folder)
    except WeightsError as error:
        weights = []
        found.problems.append(str(error))
    for name in (*_TEXT_FILES[:-2], *weights):
        if not _take(found, name):
            found.problems.append(f"{name}: missing: {SAVE_AGAIN}")
    # Provenance, for the cards of models that start from this one. It is searched like the other files.
    _take(found, PROVENANCE_FILE)
    config = _check_settings(found)
    if config is not None and weights:
        whole = [name for name in weights if name in found.files]
        found.problems += weight_problems(found.folder, whole, *config) if whole == weights else []
    _add_card(found, repo_id, evaluation, details)
    _add_licence(found)
    _check_texts(found, machine, allow, [found.folder, *guards])
    _check_training_ids(found, allow)
    _check_smallest_cell(found, smallest_cell)
    _check_code(found, allow_code)
    return PushContents(
        found.folder,
        tuple(found.files.values()),
        _kept(found),
        tuple(found.notes),
        tuple(dict.fromkeys(found.problems)),
    )


def _open(model_dir: str | Path) -> _Collected:
    folder = Path(model_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    if not (folder / CONFIG_FILE).is_file():
        for mark, kind in (
            ("report.json", "a prepared store; training data is never pushed"),
            ("predictions.parquet", "an evaluation: pass it as --evaluation, together with the model folder"),
        ):
            if (folder / mark).is_file():
                raise FileNotFoundError(f"{folder} is {kind}")
        raise FileNotFoundError(f"{folder} is not a model folder: it has no {CONFIG_FILE}")
    return _Collected(folder)


def _take(found: _Collected, name: str) -> bool:
    """Add a file of the folder, if it exists; return whether it does."""
    path, inside = found.folder / name, found.folder.resolve()
    if not path.exists() and not path.is_symlink():
        return False
    if path.exists() and not path.resolve().is_relative_to(inside):
        found.problems.append(
            f"{name}: is a link to {path.resolve()}, outside the folder: copy the file into the folder"
        )
    elif not path.is_file():
        found.problems.append(f"{name}: is not a file")
    elif is_weights_file(name) and name != INDEX_FILE:
        status = path.stat()
        found.files[name] = UploadFile(name, status.st_size, path=path.resolve(), stamp=stamp(path))
    elif path.stat().st_size > _LARGEST_TEXT:
        found.problems.append(f"{name}: has {path.stat().st_size:,} bytes, at most {_LARGEST_TEXT:,} are allowed")
    else:
        _add(found, name, path.read_bytes())
    return True


def _add(found: _Collected, name: str, content: bytes, source: str = "") -> None:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        found.problems.append(f"{name}: is not UTF-8 text: {error}")
        return
    found.files[name] = UploadFile(name, len(content), content=content, source=source)


def stamp(path: Path) -> tuple[int, ...]:
    """Return numbers that change when the file changes."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _check_settings(found: _Collected) -> tuple[ECGFMConfig, str] | None:
    """Return config and architecture, if config.json and preprocessor_config.json are valid."""
    if not {CONFIG_FILE, EXTRACTOR_FILE} <= found.files.keys():
        return None
    problems, notes, config = settings_problems(found.text(CONFIG_FILE), found.text(EXTRACTOR_FILE))
    found.problems += problems
    found.notes += notes
    if config is not None:
        found.problems += pos_weight_problems(found.folder, config[0])
    return config


def _add_card(
    found: _Collected,
    repo_id: str | None,
    evaluation: str | Path | None,
    details: Mapping[str, Any] | str | Path | None,
) -> None:
    from .cards import build_model_card, card_problems

    if _take(found, CARD_FILE):
        if unused := [what for what, given in (("evaluation", evaluation), ("details", details)) if given is not None]:
            found.problems.append(
                f"{CARD_FILE}: exists, so {' and '.join(unused)} would not be used: remove them from the command, or "
                "write the card again with `ecgfm card --overwrite`"
            )
    elif not found.problems:
        try:
            known = _read_details(details)
            card = build_model_card(found.folder, evaluation=evaluation, repo_id=repo_id, **known).encode("utf-8")
        except (ValueError, OSError) as error:
            found.problems.append(f"{CARD_FILE}: missing, and cannot be built: {error}")
        else:
            _add(found, CARD_FILE, card, source="built from the folder")
    else:
        found.problems.append(f"{CARD_FILE}: missing, and cannot be built before the other problems are fixed")
    if CARD_FILE not in found.files:
        return
    incomplete = [f"{CARD_FILE}: {problem}" for problem in card_problems(found.text(CARD_FILE))]
    if incomplete and found.files[CARD_FILE].source:
        incomplete.append(
            f"{CARD_FILE}: missing, and the card that was built is incomplete: give --details, or write it with "
            "`ecgfm card` and complete it by hand"
        )
    found.problems += incomplete
    targets = dict.fromkeys(re.findall(r"\]\(([\w./-]+)\)", found.text(CARD_FILE)))
    there = {*found.files, LICENSE_FILE}
    found.notes += [f"{CARD_FILE}: refers to {name}, which is not uploaded" for name in targets if name not in there]


def _add_licence(found: _Collected) -> None:
    if _take(found, LICENSE_FILE) or CARD_FILE not in found.files:
        return
    metadata = _card_metadata(found.text(CARD_FILE))
    licence = metadata.get("license")
    if licence != _OUR_LICENCE:
        found.problems.append(
            f"{LICENSE_FILE}: missing, and the card has license: {licence}, not {_OUR_LICENCE}: put the text of that "
            "licence into the folder"
        )
        return
    try:
        files = importlib.metadata.files("ecgfm-hf") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    paths = [Path(file.locate()) for file in files if file.name == LICENSE_FILE]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        found.problems.append(f"{LICENSE_FILE}: missing, and the installed package has none to copy")
    else:
        _add(found, LICENSE_FILE, path.read_bytes(), source="licence of the code")
        if metadata.get("base_model"):
            found.notes.append(
                f"{LICENSE_FILE}: is the licence of the code. If the base model has another copyright holder, put that "
                "licence into the folder"
            )


def _read_details(details: Mapping[str, Any] | str | Path | None) -> Mapping[str, Any]:
    if details is None or isinstance(details, Mapping):
        return details or {}
    from .cards import read_details

    return read_details(details)


def _card_metadata(text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(split_front_matter(text)[0] or "")
    except yaml.YAMLError:
        content = None
    return content if isinstance(content, dict) else {}


def _check_texts(found: _Collected, machine: Machine, allow: Iterable[str], guards: Sequence[str | Path]) -> None:
    texts = [(name, file.content.decode("utf-8")) for name, file in found.files.items() if file.content is not None]
    texts += header_texts(found.folder, [name for name in found.files if name not in dict(texts)])
    for name, text in texts:
        found.problems += dict.fromkeys(f"{name}: {trace}" for trace in find_private_details(text, machine, allow))
    own = {name for name in CODE_FILES if name in found.files and _is_own(found, name)}
    for guard in guards:
        try:
            for name, text in texts:
                if name not in own:
                    found.problems += [f"{name}: {place}: {HAS_ID}" for place in find_training_ids(text, guard)]
        except ValueError as error:
            found.problems.append(f"{GUARD_FILE}: {error}")


def _check_training_ids(found: _Collected, allow: Collection[str]) -> None:
    """Refuse a model that was trained here but whose list of training ids is gone: nothing could be searched for."""
    ignored = found.folder / ".gitignore"  # written together with the list, and never uploaded
    if GUARD_FILE in allow or (found.folder / GUARD_FILE).is_file() or not ignored.is_file():
        return
    if GUARD_FILE in ignored.read_text(encoding="utf-8", errors="replace").splitlines():
        found.problems.append(
            f"{GUARD_FILE}: missing, although the model was trained here, so the texts cannot be searched for ids of "
            f"its patients: restore the file, or accept this with allow=[{GUARD_FILE!r}] (--allow {GUARD_FILE})"
        )


def _check_smallest_cell(found: _Collected, smallest_cell: int) -> None:
    """Refuse a card or provenance that shows counts of fewer patients than `smallest_cell`."""
    shown = [
        (name, int(number))
        for name, pattern in ((CARD_FILE, _CELL_IN_CARD), (PROVENANCE_FILE, _CELL_IN_PROVENANCE))
        if name in found.files
        for number in pattern.findall(found.text(name))
    ]
    for name, number in dict.fromkeys(shown):
        if number < smallest_cell:
            found.problems.append(
                f"{name}: made with a smallest cell of {number}: everyone would see counts of {number} to "
                f"{smallest_cell - 1} patients, and figures that reveal such counts. Make it again with a smallest "
                f"cell of {smallest_cell}, or accept this with smallest_cell={number} (--smallest-cell {number})"
            )


def _is_own(found: _Collected, name: str) -> bool:
    return found.files[name].content == (Path(__file__).parents[1] / name).read_bytes()


def _check_code(found: _Collected, allow_code: bool) -> None:
    for name in CODE_FILES:
        if name in found.files and not _is_own(found, name):
            differs = f"{name}: differs from the installed package, and others will run it as it is"
            if allow_code:
                found.notes.append(differs)
            else:
                found.problems.append(
                    f"{differs}: {SAVE_AGAIN}, or accept your own code with allow_code=True (--allow-code)"
                )


def _kept(found: _Collected) -> tuple[tuple[str, str], ...]:
    there = [path for path in found.folder.iterdir() if path.name not in found.files]
    # Digests are for the copy on this machine; the Hub has its own.
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in there if path.name != CHECKSUMS_FILE)
    refused = {problem.partition(":")[0] for problem in found.problems}
    return tuple((name, _reason(name, SINGLE_FILE in found.files)) for name in names if name not in refused)


def _reason(name: str, single: bool) -> str:
    if single and is_weights_file(name):
        return f"{SINGLE_FILE} is loaded instead"
    return next((why for pattern, why in _REASONS if re.fullmatch(pattern, name)), "not part of a model folder")


__all__ = ["CARD_FILE", "PushContents", "UploadFile", "folder_contents", "stamp"]

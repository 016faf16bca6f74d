"""
What of a folder goes to the Hub, what stays, and what forbids the push.

A list of names decides what goes; whatever else lies in the folder (checkpoints, optimiser state, logs, data, notes of
whom the model has seen) stays because it is not on the list. What goes is then looked through.
"""

import importlib.metadata
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..configuration_ecgfm import ECGFMConfig
from ..data.leakage import GUARD_FILE, seen
from ..provenance import PROVENANCE_FILE
from .front_matter import split_front_matter
from .settings import AGAIN, CONFIG_FILE, EXTRACTOR_FILE, pos_weight_problems, settings_problems
from .traces import Machine, find_traces, this_machine
from .weights import (
    INDEX_FILE,
    SINGLE_FILE,
    WeightsError,
    header_texts,
    is_weights_file,
    weight_files,
    weight_problems,
)

CARD_FILE, LICENSE_FILE = "README.md", "LICENSE"
CODE_FILES = ("configuration_ecgfm.py", "feature_extraction_ecgfm.py", "modeling_ecgfm.py", "pipeline_ecgfm.py")
_TEXT_FILES = (CONFIG_FILE, EXTRACTOR_FILE, *CODE_FILES, LICENSE_FILE, CARD_FILE)
_OUR_LICENCE = "mit"
# Bytes of a text, which is read and looked through whole.
_LARGEST_TEXT = 10_000_000

# Why what stays does, by what its name looks like.
_REASONS = (
    (r".*do-not-share.*", "identifies people"),
    (r"(checkpoints|checkpoint-\d+|step-\d+|engine)/", "checkpoints, with optimiser state"),
    (r".*\.(bin|pt|pth|pkl|pickle|ckpt|joblib)", "a pickle: it may hold optimiser state, or code"),
    (r"(store|data)/|.*\.(parquet|arrow|feather|csv|tsv|xlsx?|jsonl?\.gz|npy|npz|h5|hdf5)", "data"),
    (r".*\.(hea|dat|mat|dcm|edf|xml|scp|ecg|atr)", "recordings"),
    (
        r"settings\.yaml|metrics\.jsonl|finetuning\.json|trainer_state\.json|nonfinite/",
        "of the training run",
    ),
    (r"adapters/", "merged into the weights"),
    (r"\..*", "hidden"),
)


@dataclass(frozen=True)
class GoingFile:
    """
    A file that goes.

    Args:
        name (`str`): In the repository.
        size (`int`): Bytes.
        content (`bytes`, *optional*): Of all but weights: what was looked through is what is sent.
        path (`Path`, *optional*): Of weights.
        stamp (tuple): Of weights: tells whether the file has been changed since.
        source (`str`): Where it comes from, unless from the folder.
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
    Args:
        model_dir (`Path`)
        going (tuple of [`GoingFile`])
        left (tuple of (`str`, `str`)): What stays in the folder (folders end in a slash), and why.
        notes (tuple of `str`): What to know before it goes.
        problems (tuple of `str`): What forbids it; each names a file and what was found.
    """

    model_dir: Path
    going: tuple[GoingFile, ...] = ()
    left: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that go."""
        return sum(file.size for file in self.going)


@dataclass
class _Collected:
    folder: Path
    files: dict[str, GoingFile] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        return self.files[name].content.decode("utf-8")


def folder_contents(
    model_dir: str | Path,
    repo_id: str | None = None,
    *,
    evaluation: str | Path | None = None,
    details: Mapping[str, Any] | str | Path | None = None,
    allow: Iterable[str] = (),
    guards: Sequence[str | Path] = (),
) -> PushContents:
    """
    What of a model folder goes, what stays, and what forbids the push. Reads; changes nothing, and asks no network.

    Args:
        model_dir (`str` or `Path`): Folder that was converted, fine-tuned, probed, pretrained or saved.
        repo_id (`str`, *optional*): Where to, for the card. A user who has the same name there is no secret.
        evaluation (`str` or `Path`, *optional*): Folder that `ecgfm evaluate` wrote, for the card.
        details (mapping, `str` or `Path`, *optional*): What only a person knows, for the card: by name, or a YAML file;
            see [`~ecgfm_hf.hub.cards.CardDetails`].
        allow (iterable of `str`): Findings of exactly this text are harmless.
        guards (sequence of `str` or `Path`): Other folders whose notes of what a model has seen are heeded.

    Raises:
        `FileNotFoundError`: there is no such folder, or it is no model folder; the message says what it is.
    """
    found, machine = _open(model_dir), this_machine().pushing_to(repo_id)
    try:
        weights = weight_files(found.folder)
    except WeightsError as error:
        weights = []
        found.problems.append(str(error))
    for name in (*_TEXT_FILES[:-2], *weights):
        if not _take(found, name):
            found.problems.append(f"{name}: there is no such file: {AGAIN}")
    # What was done to the weights, for the cards of models that begin from it. Looked through all the same.
    _take(found, PROVENANCE_FILE)
    config = _check_settings(found)
    if config is not None and weights:
        whole = [name for name in weights if name in found.files]
        found.problems += weight_problems(found.folder, whole, *config) if whole == weights else []
    _add_card(found, repo_id, evaluation, details)
    _add_licence(found)
    _check_texts(found, machine, allow, [found.folder, *guards])
    _compare_code(found)
    return PushContents(
        found.folder, tuple(found.files.values()), _left(found), tuple(found.notes), tuple(found.problems)
    )


def _open(model_dir: str | Path) -> _Collected:
    folder = Path(model_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not (folder / CONFIG_FILE).is_file():
        for mark, kind in (
            ("report.json", "a prepared store, and training data is never pushed"),
            ("predictions.parquet", "an evaluation: give it as --evaluation, with the model's folder"),
        ):
            if (folder / mark).is_file():
                raise FileNotFoundError(f"{folder} is {kind}")
        raise FileNotFoundError(f"{folder} is no model folder: it has no {CONFIG_FILE}")
    return _Collected(folder)


def _take(found: _Collected, name: str) -> bool:
    """Takes a file of the folder, if it is there."""
    path, inside = found.folder / name, found.folder.resolve()
    if not path.exists() and not path.is_symlink():
        return False
    if path.exists() and not path.resolve().is_relative_to(inside):
        found.problems.append(f"{name}: is a link out of the folder, to {path.resolve()}: put the file itself there")
    elif not path.is_file():
        found.problems.append(f"{name}: is no file")
    elif is_weights_file(name) and name != INDEX_FILE:
        status = path.stat()
        found.files[name] = GoingFile(name, status.st_size, path=path.resolve(), stamp=stamp(path))
    elif path.stat().st_size > _LARGEST_TEXT:
        found.problems.append(
            f"{name}: has {path.stat().st_size:,} bytes, more than {_LARGEST_TEXT:,} that are looked through"
        )
    else:
        _add(found, name, path.read_bytes())
    return True


def _add(found: _Collected, name: str, content: bytes, source: str = "") -> None:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        found.problems.append(f"{name}: is no text in UTF-8: {error}")
        return
    found.files[name] = GoingFile(name, len(content), content=content, source=source)


def stamp(path: Path) -> tuple[int, ...]:
    """Changes when the file does."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _check_settings(found: _Collected) -> tuple[ECGFMConfig, str] | None:
    """Config and architecture, if both files of settings are there and in order."""
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
                f"{CARD_FILE}: is there already, so that {' and '.join(unused)} would not be told: give either, or "
                "have `ecgfm card --overwrite` write it anew"
            )
    elif not found.problems:
        try:
            known = _read_details(details)
            card = build_model_card(found.folder, evaluation=evaluation, repo_id=repo_id, **known).encode("utf-8")
        except (ValueError, OSError) as error:
            found.problems.append(f"{CARD_FILE}: there is none, and none can be built: {error}")
        else:
            _add(found, CARD_FILE, card, source="built from what is known of the model")
    else:
        found.problems.append(f"{CARD_FILE}: there is none, and none can be built before the rest is mended")
    if CARD_FILE not in found.files:
        return
    incomplete = [f"{CARD_FILE}: {problem}" for problem in card_problems(found.text(CARD_FILE))]
    if incomplete and found.files[CARD_FILE].source:
        incomplete.append(
            f"{CARD_FILE}: there is none, and what could be built is not whole: give details, or have `ecgfm card` "
            "write one, to be completed by hand"
        )
    found.problems += incomplete
    targets = dict.fromkeys(re.findall(r"\]\(([\w./-]+)\)", found.text(CARD_FILE)))
    known = {*found.files, LICENSE_FILE}
    found.notes += [f"{CARD_FILE}: refers to {name}, which does not go" for name in targets if name not in known]


def _add_licence(found: _Collected) -> None:
    if _take(found, LICENSE_FILE) or CARD_FILE not in found.files:
        return
    metadata = _card_metadata(found.text(CARD_FILE))
    licence = metadata.get("license")
    if licence != _OUR_LICENCE:
        found.problems.append(
            f"{LICENSE_FILE}: there is no such file, and the card says license: {licence}, not {_OUR_LICENCE}: put the "
            "text of that licence there"
        )
        return
    try:
        files = importlib.metadata.files("ecgfm-hf") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    places = [Path(file.locate()) for file in files if file.name == LICENSE_FILE]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        found.problems.append(f"{LICENSE_FILE}: there is no such file, and the package has come without its own")
    else:
        _add(found, LICENSE_FILE, path.read_bytes(), source="of the code")
        if metadata.get("base_model"):
            found.notes.append(
                f"{LICENSE_FILE}: is that of the code; if the weights that these began from are under a licence with "
                "another copyright holder, put its text into the folder"
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
        found.problems += dict.fromkeys(f"{name}: {trace}" for trace in find_traces(text, machine, allow))
    for guard in guards:
        try:
            for name, text in texts:
                if name not in CODE_FILES and name != LICENSE_FILE:
                    # The id itself is not repeated: what is printed may be logged.
                    found.problems += [
                        f"{name}: line {line}: the id of a recording or patient that the model was trained on"
                        for line in _lines_with_ids(text, Path(guard))
                    ]
        except ValueError as error:
            found.problems.append(f"{GUARD_FILE}: {error}")


def _lines_with_ids(text: str, guard: Path) -> list[int]:
    """Lines that hold an id of the training or validation data, as the note in a model's folder knows them."""
    if not (guard / GUARD_FILE).is_file():
        return []
    lines = [_possible_ids(line) for line in text.splitlines()]
    every = sorted(set().union(*lines)) if lines else []
    if not every or not seen(guard, every, every):
        return []
    return [number for number, words in enumerate(lines, 1) if words and seen(guard, sorted(words), sorted(words))]


def _possible_ids(line: str) -> set[str]:
    """Words that may be ids. Short ones and short numbers are left out: they would be found in any text."""
    words = set()
    for word in re.split(r"[\s\"'`,;()\[\]{}<>|=:]+", line):
        word = word.rstrip(".")
        for part in (word, word.rpartition("/")[2], word.rpartition("/")[2].partition(".")[0]):
            if re.fullmatch(r"\d{7,}", part) or (len(part) >= 4 and re.search(r"\d", part) and re.search(r"\D", part)):
                words.add(part)
    # A decimal number is no id.
    return {word for word in words if not re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?%?", word) or word.isdigit()}


def _compare_code(found: _Collected) -> None:
    for name in CODE_FILES:
        own = Path(__file__).parents[1] / name
        if name in found.files and found.files[name].content != own.read_bytes():
            found.notes.append(f"{name}: is not that of the installed package; others will run it as it is")


def _left(found: _Collected) -> tuple[tuple[str, str], ...]:
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in found.folder.iterdir() if p.name not in found.files)
    refused = {problem.partition(":")[0] for problem in found.problems}
    return tuple((name, _reason(name, SINGLE_FILE in found.files)) for name in names if name not in refused)


def _reason(name: str, single: bool) -> str:
    if single and is_weights_file(name):
        return f"{SINGLE_FILE} is what is loaded"
    return next((why for pattern, why in _REASONS if re.fullmatch(pattern, name)), "not part of a model folder")


__all__ = ["CARD_FILE", "GoingFile", "PushContents", "folder_contents", "stamp"]

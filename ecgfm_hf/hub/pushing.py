"""
Push a model folder to the Hub: check it, then make one commit.

huggingface_hub retries uploads of weights (five times, with growing waits), but sends a commit only once: a lost
answer may hide a commit that was made. Here the commit is retried. It names its parent commit, so the Hub accepts it
once, and a second try has nothing to change.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from ..utils.errors import ECGFMError
from ..utils.redaction import SMALLEST_CELL
from .contents import HAS_ID, PushContents, folder_contents, stamp
from .model_files import is_weights_file
from .private_details import find_private_details, find_training_ids, this_machine

try:
    from httpx2 import TransportError
except ImportError:  # huggingface_hub before 2
    from httpx import TransportError  # type: ignore[assignment] # the same class, of the older package

_Result = TypeVar("_Result")
# Seconds before each retry.
_WAITS = (1.0, 4.0)


class PushRefusedError(ECGFMError, ValueError):
    """
    The push is refused. Nothing was sent.

    Args:
        problems (sequence of `str`): Each names a file and the finding.
    """

    def __init__(self, problems: Sequence[str]):
        super().__init__("not pushed:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = list(problems)


class PushError(ECGFMError, RuntimeError):
    """The Hub did not accept the push. The message has the reason and a remedy."""


def push_folder(
    model_dir: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    evaluation: str | Path | None = None,
    details: Mapping[str, Any] | str | Path | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    allow: Iterable[str] = (),
    allow_code: bool = False,
    smallest_cell: int = SMALLEST_CELL,
) -> CommitInfo:
    """
    Push a model folder in one commit: weights, config, feature extractor, pipeline, code, licence and card. The folder
    is not changed.

    Args:
        model_dir (`str` or `Path`): A folder that was converted, fine-tuned, probed, pretrained or saved. Only the
            files that [`~ecgfm_hf.hub.folder_contents`] lists are uploaded. Its `README.md` is the card; without one,
            a card is built.
        repo_id (`str`): `"NAMESPACE/NAME"`; created if it does not exist.
        private (`bool`, *optional*): Make a new repository private; an error if it exists and is public. The default
            is the namespace's.
        revision (`str`, *optional*): The branch, created from `main` if it does not exist. Default: `main`.
        evaluation (`str` or `Path`, *optional*): A folder that `ecgfm evaluate` wrote, for a card that is built.
        details (mapping, `str` or `Path`, *optional*): Details for a card that is built, as a mapping or a YAML file;
            see [`~ecgfm_hf.hub.cards.CardDetails`].
        commit_message (`str`, *optional*)
        token (`str`, *optional*): Default: `HF_TOKEN`, or the token of `hf auth login`.
        allow (iterable of `str`): Findings that you know to be harmless, exactly as they are printed.
        allow_code (`bool`): Accept model code (`*_ecgfm.py`) that differs from this package's. Others will run it.
        smallest_cell (`int`): Fewest patients that a count in the card may be of. An evaluation with a smaller one is
            refused unless its smallest cell is repeated here.

    Returns:
        `huggingface_hub.CommitInfo`: `repo_url`, `commit_url`, `oid`; the last commit if nothing has changed.

    Raises:
        [`PushRefusedError`]: something must not be uploaded, or is missing. Nothing was sent.
        [`PushError`]: the Hub did not accept the push. No file of the repository has changed.
        `FileNotFoundError`: the folder is missing, or is not a model folder.
    """
    allow = tuple(allow)
    contents = folder_contents(
        model_dir,
        repo_id,
        evaluation=evaluation,
        details=details,
        allow=allow,
        allow_code=allow_code,
        smallest_cell=smallest_cell,
    )
    return push_contents(
        contents,
        repo_id,
        private=private,
        revision=revision,
        commit_message=commit_message,
        token=token,
        allow=allow,
    )


def push_contents(
    contents: PushContents,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    allow: Iterable[str] = (),
) -> CommitInfo:
    """Push contents that [`folder_contents`] has returned; otherwise as [`push_folder`]."""
    from .. import __version__

    if problems := check_push(contents, repo_id, commit_message, allow, revision):
        raise PushRefusedError(problems)
    message = commit_message or f"Upload an ECG-FM model with ecgfm-hf {__version__}"
    token = token or get_token()
    if token is None:
        raise PushError("no access token: run `hf auth login`, or set HF_TOKEN, with a token that has write access")
    return _Push(contents, repo_id, revision, message, HfApi(token=token), token).run(private)


def check_push(
    contents: PushContents,
    repo_id: str,
    commit_message: str | None = None,
    allow: Iterable[str] = (),
    revision: str | None = None,
) -> list[str]:
    """Return what forbids a push: problems of contents, message, branch and the repository's name. Uses no network."""
    problems, machine = list(contents.problems), this_machine().pushing_to(repo_id)
    problems += [f"commit message: {trace}" for trace in find_private_details(commit_message or "", machine, allow)]
    with contextlib.suppress(ValueError):  # a damaged list of ids is among the problems of the contents
        for what, text in (("commit message", commit_message), ("branch", revision), ("repository", repo_id)):
            if find_training_ids(text or "", contents.model_dir):
                problems.append(f"{what}: {HAS_ID}")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        problems.append(f"repository: {error}")
    else:
        if "/" not in repo_id:
            problems.append(f"repository: expected NAMESPACE/NAME, found: {repo_id}")
    return problems


class _Push:
    def __init__(
        self, contents: PushContents, repo_id: str, revision: str | None, message: str, api: HfApi, token: str
    ):
        self._contents, self._repo_id, self._revision = contents, repo_id, revision
        self._message, self._api, self._token = message, api, token
        self._head: str | None = None

    def run(self, private: bool | None) -> CommitInfo:
        self._repo_id = self._try(lambda: self._api.create_repo(self._repo_id, private=private, exist_ok=True)).repo_id
        if private and not self._try(lambda: self._api.model_info(self._repo_id)).private:
            raise PushError(
                f"{self._repo_id} exists and is public, but a private push was requested: choose another name, or "
                "make it "
                "private in its settings on the Hub first. Nothing was sent"
            )
        branch = self._revision
        if branch is not None and not branch.startswith("refs/"):
            self._try(lambda: self._api.create_branch(self._repo_id, branch=branch, exist_ok=True))
        self._head = self._try(lambda: self._info().sha)
        done = self._try(self._commit)
        self._check_arrived()
        return done

    def _info(self) -> ModelInfo:
        return self._api.model_info(self._repo_id, revision=self._revision)

    def _commit(self) -> CommitInfo:
        additions = [
            CommitOperationAdd(file.name, file.content if file.content is not None else str(file.path))
            for file in self._contents.uploads
        ]
        self._api.preupload_lfs_files(self._repo_id, additions, revision=self._revision, free_memory=False)
        self._check_unchanged()
        return self._api.create_commit(
            self._repo_id,
            [*additions, *self._stale()],
            commit_message=self._message,
            revision=self._revision,
            parent_commit=self._head,
        )

    def _stale(self) -> list[CommitOperationDelete]:
        """Return weight files of an earlier push, which transformers would load instead of the new ones."""
        going = {file.name for file in self._contents.uploads}
        if not any(is_weights_file(name) for name in going):
            return []
        there = [sibling.rfilename for sibling in self._info().siblings or ()]
        return [CommitOperationDelete(name) for name in there if is_weights_file(name) and name not in going]

    def _check_unchanged(self) -> None:
        for file in self._contents.uploads:
            if file.path is not None and (not file.path.is_file() or stamp(file.path) != file.stamp):
                raise PushError(f"{file.path} has changed since it was checked (is a run writing there?): push again")

    def _check_arrived(self) -> None:
        """Check that all files arrived: a `.gitignore` on the Hub drops files silently."""
        there = {sibling.rfilename for sibling in self._try(self._info).siblings or ()}
        if missing := [file.name for file in self._contents.uploads if file.name not in there]:
            raise PushError(
                f"{self._repo_id} accepted the commit without {', '.join(missing)}: check whether its .gitignore "
                "names them"
            )

    def _try(self, call: Callable[[], _Result]) -> _Result:
        waits = iter(_WAITS)
        while True:
            try:
                return call()
            except PushError:
                raise
            except Exception as error:
                wait = next(waits, None) if _is_transient(error) else None
                if wait is None:
                    raise self._explained(error) from error
                time.sleep(wait)

    def _explained(self, error: Exception) -> Exception:
        """Return the error to raise, with a remedy, and without a token or a signed address."""
        repo, status = self._repo_id, _status(error)
        reason = self._reason(error)
        where = repo + (f" (branch {self._revision})" if self._revision else "")
        if isinstance(error, OfflineModeIsEnabled):
            return PushError("HF_HUB_OFFLINE is set: unset it to push")
        if status == 401:
            return PushError(
                "the Hub rejects the access token (401): run `hf auth login` with a token that has write "
                "access, or set HF_TOKEN"
            )
        if status == 403:
            return PushError(
                f"the access token cannot write to {where} (403): it needs write access to this namespace. {reason}"
            )
        if status == 404:
            return PushError(
                f"{where} does not exist (404), or the access token cannot read it: check the namespace, and whether "
                "the "
                f"repository was removed or renamed. {reason}"
            )
        if status in (409, 412):
            return PushError(
                f"{where} was changed by another push ({status}), whose change was kept. Look at it, "
                f"then push again. {reason}"
            )
        if status is not None:
            return PushError(f"the Hub refused {where} ({status}): {reason}")
        if _transport_error(error) is not None:
            return PushError(
                f"{self._api.endpoint} cannot be reached: {reason}. No file there has changed; run the same command "
                "again to "
                "resume the upload"
            )
        if isinstance(error, (ValueError, OSError)):
            return PushError(f"{where}: {reason}")
        return error

    def _reason(self, error: Exception) -> str:
        cause = _http_error(error) or _transport_error(error) or error
        text = getattr(cause, "server_message", None) or str(cause) or type(cause).__name__
        text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", " ".join(text.split()))
        return text.replace(self._token, "hf_...")


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    # A failed upload is wrapped in other errors.
    while error is not None:
        yield error
        error = error.__cause__


def _http_error(error: BaseException) -> HfHubHTTPError | None:
    return next((found for found in _chain(error) if isinstance(found, HfHubHTTPError)), None)


def _transport_error(error: BaseException) -> TransportError | None:
    return next((found for found in _chain(error) if isinstance(found, TransportError)), None)


def _status(error: BaseException) -> int | None:
    found = _http_error(error)
    return None if found is None or found.response is None else found.response.status_code


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, OfflineModeIsEnabled):
        return False
    status = _status(error)
    return _transport_error(error) is not None if status is None else status in (408, 429) or status >= 500


__all__ = ["PushError", "PushRefusedError", "check_push", "push_contents", "push_folder"]

"""
The one way to the Hub: check, then one commit.

huggingface_hub repeats by itself what is safe to repeat (uploads of weights and the questions around them, five times
with growing waits). The commit it sends once, since an answer that got lost may hide a commit that was made. Here it
is repeated: it names the commit that it builds on, so the Hub takes it once, and a second try finds nothing to change.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from .contents import PushContents, folder_contents, stamp
from .errors import PushError, PushRefusedError
from .traces import find_traces, this_machine
from .weights import is_weights_file

try:
    from httpx2 import TransportError
except ImportError:  # huggingface_hub before 2
    from httpx import TransportError

_Result = TypeVar("_Result")
# Seconds before each new try of what huggingface_hub tries once.
_WAITS = (1.0, 4.0)


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
) -> CommitInfo:
    """
    Pushes a model folder in one commit: weights, config, feature extractor, pipeline, code, licence and card. The
    folder stays as it is.

    Args:
        model_dir (`str` or `Path`): Folder that was converted, fine-tuned, probed, pretrained or saved. Only what
            [`~ecgfm_hf.hub.folder_contents`] lists goes. Its `README.md` is the card; without one a card is built.
        repo_id (`str`): `"NAMESPACE/NAME"`; made if there is none.
        private (`bool`, *optional*): Make it private; an error where it exists and is public. By default it is public
            (or as the organisation says).
        revision (`str`, *optional*): Branch, made from `main` if there is none. `main` by default.
        evaluation (`str` or `Path`, *optional*): Folder that `ecgfm evaluate` wrote, for the card that is built.
        details (mapping, `str` or `Path`, *optional*): What only a person knows, for the card that is built: by name,
            or a YAML file; see [`~ecgfm_hf.hub.cards.CardDetails`].
        commit_message (`str`, *optional*)
        token (`str`, *optional*): By default `HF_TOKEN`, or that of `hf auth login`.
        allow (iterable of `str`): What the search for paths and names finds, and you know to be harmless.

    Returns:
        `huggingface_hub.CommitInfo`: `repo_url`, `commit_url`, `oid`. That of the last commit if nothing had changed.

    Raises:
        [`PushRefusedError`]: something must not go, or is missing. Nothing was sent.
        [`PushError`]: the Hub did not take it. No file of the repository has changed.
        `FileNotFoundError`: there is no such folder, or it is no model folder.
    """
    allow = tuple(allow)
    contents = folder_contents(model_dir, repo_id, evaluation=evaluation, details=details, allow=allow)
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
    """As [`push_folder`], of what was looked through already."""
    from .. import __version__

    if problems := check_push(contents, repo_id, commit_message, allow):
        raise PushRefusedError(problems)
    message = commit_message or f"Upload an ECG-FM model with ecgfm-hf {__version__}"
    token = token or get_token()
    if token is None:
        raise PushError("no access token: run `hf auth login`, or set HF_TOKEN. A token with write access is needed")
    return _Push(contents, repo_id, revision, message, HfApi(token=token), token).run(private)


def check_push(
    contents: PushContents, repo_id: str, commit_message: str | None = None, allow: Iterable[str] = ()
) -> list[str]:
    """What forbids a push, without network: problems of the contents, of the message and of the repository's name."""
    problems, machine = list(contents.problems), this_machine().pushing_to(repo_id)
    problems += [f"commit message: {trace}" for trace in find_traces(commit_message or "", machine, allow)]
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        problems.append(f"repository: {error}")
    else:
        if "/" not in repo_id:
            problems.append(f"repository: must be NAMESPACE/NAME, as the card names it, found: {repo_id}")
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
        if private and not self._try(lambda: self._api.repo_info(self._repo_id)).private:
            raise PushError(
                f"{self._repo_id} exists and is public, and a private push was asked for: make it private in its "
                "settings on the Hub first, or choose another name. Nothing was sent"
            )
        if self._revision is not None and not self._revision.startswith("refs/"):
            self._try(lambda: self._api.create_branch(self._repo_id, branch=self._revision, exist_ok=True))
        self._head = self._try(lambda: self._info().sha)
        done = self._try(self._commit)
        self._check_arrived()
        return done

    def _info(self):
        return self._api.repo_info(self._repo_id, revision=self._revision)

    def _commit(self) -> CommitInfo:
        additions = [
            CommitOperationAdd(file.name, file.content if file.content is not None else str(file.path))
            for file in self._contents.going
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
        """Weights of an earlier push that has other files: transformers would load them in place of these."""
        going = {file.name for file in self._contents.going}
        if not any(is_weights_file(name) for name in going):
            return []
        there = [sibling.rfilename for sibling in self._info().siblings or ()]
        return [CommitOperationDelete(name) for name in there if is_weights_file(name) and name not in going]

    def _check_unchanged(self) -> None:
        for file in self._contents.going:
            if file.path is not None and (not file.path.is_file() or stamp(file.path) != file.stamp):
                raise PushError(f"{file.path} has changed since it was checked (is a run at work there?): push again")

    def _check_arrived(self) -> None:
        """A `.gitignore` on the Hub makes it leave files out without a word."""
        there = {sibling.rfilename for sibling in self._try(self._info).siblings or ()}
        if missing := [file.name for file in self._contents.going if file.name not in there]:
            raise PushError(
                f"{self._repo_id} has taken the commit without {', '.join(missing)}: does a .gitignore there name them?"
            )

    def _try(self, call: Callable[[], _Result]) -> _Result:
        waits = iter(_WAITS)
        while True:
            try:
                return call()
            except PushError:
                raise
            except Exception as error:
                wait = next(waits, None) if _may_pass(error) else None
                if wait is None:
                    raise self._explained(error) from error
                time.sleep(wait)

    def _explained(self, error: Exception) -> Exception:
        """The error to raise: with what to do about it, and without token or signed address."""
        repo, status = self._repo_id, _status(error)
        said = self._said(error)
        where = repo + (f" (branch {self._revision})" if self._revision else "")
        if isinstance(error, OfflineModeIsEnabled):
            return PushError("HF_HUB_OFFLINE is set, so nothing can be pushed: unset it")
        if status == 401:
            return PushError(
                "the Hub does not accept the access token (401): run `hf auth login` with a token that has write "
                "access, or set HF_TOKEN"
            )
        if status == 403:
            return PushError(
                f"the access token may not write to {where} (403): it needs write access to this namespace. {said}"
            )
        if status == 404:
            return PushError(
                f"there is no {where} (404), or the access token may not see it: was it removed or renamed meanwhile, "
                f"is the namespace right? {said}"
            )
        if status in (409, 412):
            return PushError(
                f"{where} was changed by somebody else during the push ({status}), and was left as they made it: look "
                f"at it, then push again. {said}"
            )
        if status is not None:
            return PushError(f"the Hub refused {where} ({status}): {said}")
        if _transport_error(error) is not None:
            return PushError(
                f"{self._api.endpoint} cannot be reached: {said}. No file there has changed; the same command goes on "
                "with what is not uploaded yet"
            )
        if isinstance(error, (ValueError, OSError)):
            return PushError(f"{where}: {said}")
        return error

    def _said(self, error: Exception) -> str:
        cause = _http_error(error) or _transport_error(error) or error
        text = getattr(cause, "server_message", None) or str(cause) or type(cause).__name__
        text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", " ".join(text.split()))
        return text.replace(self._token, "hf_...")


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    # A failed upload comes wrapped in others.
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


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, OfflineModeIsEnabled):
        return False
    status = _status(error)
    return _transport_error(error) is not None if status is None else status in (408, 429) or status >= 500


__all__ = ["check_push", "push_contents", "push_folder"]

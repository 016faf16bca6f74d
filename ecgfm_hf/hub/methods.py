"""
`push_to_hub` of models, config, feature extractor and pipeline.

They are given to the classes when the package is imported, not written into them: the classes' files are also run where
the package is not installed, and transformers' own `push_to_hub` serves there.
"""

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from ..feature_extraction_ecgfm import ECGFMFeatureExtractor


def give_push_to_hub(models: Iterable[type], pipelines: Iterable[type], parts: Iterable[type]) -> None:
    """Gives model, pipeline and other (config, feature extractor) classes their `push_to_hub`."""
    for classes, push in ((models, push_model), (pipelines, push_pipeline), (parts, push_part)):
        for each in classes:
            each.push_to_hub = push
            if classes is not pipelines:  # a pipeline saves through its model
                each.save_pretrained = _saves_only(each.save_pretrained)
                each._upload_modified_files = _upload_modified_files


def push_model(
    self: Any,
    repo_id: str,
    *,
    feature_extractor: "ECGFMFeatureExtractor | None" = None,
    card: str | Path | None = None,
    evaluation: str | Path | None = None,
    details: Mapping[str, Any] | str | Path | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    max_shard_size: int | str = "5GB",
    allow: Iterable[str] = (),
) -> "CommitInfo":
    """
    Pushes the model with all that it needs, as `ecgfm push` does: see [`~ecgfm_hf.hub.push_folder`].

    Args:
        repo_id (`str`): `"NAMESPACE/NAME"`.
        feature_extractor ([`ECGFMFeatureExtractor`], *optional*): What the model's inputs are made with. By default
            that of the folder or repository that the model was loaded from (of a repository its main branch); an error
            where it was not loaded.
        card (`str` or `Path`, *optional*): The card: its text, or a `Path` to read. By default that of the folder that
            the model was loaded from, if config and weights are still those of the folder; else one is built.
        evaluation, details, private, revision, commit_message, token, allow: As in [`~ecgfm_hf.hub.push_folder`].
        max_shard_size (`int` or `str`, defaults to `"5GB"`): Larger weights are sharded.

    Raises:
        As [`~ecgfm_hf.hub.push_folder`]; `ValueError` where no feature extractor is known.
    """
    from ..feature_extraction_ecgfm import ECGFMFeatureExtractor
    from ..model_folder import save_model_folder
    from .contents import CARD_FILE, folder_contents
    from .pushing import push_contents

    origin = self.config._name_or_path
    if feature_extractor is None:
        if not origin:
            raise ValueError(
                "this model was not loaded from anywhere, so nothing tells how its inputs are made: pass "
                "feature_extractor=ECGFMFeatureExtractor(...)"
            )
        feature_extractor = ECGFMFeatureExtractor.from_pretrained(origin, token=token)
    allow = tuple(allow)
    with tempfile.TemporaryDirectory(prefix="ecgfm-push-") as folder:
        save_model_folder(self, feature_extractor, folder, max_shard_size=max_shard_size)
        home = Path(origin) if origin and Path(origin).is_dir() else None
        if home is not None:
            _take_along(home, Path(folder), with_card=card is None and evaluation is None and details is None)
        if card is not None:
            text = card.read_text(encoding="utf-8") if isinstance(card, Path) else card
            (Path(folder) / CARD_FILE).write_text(text, encoding="utf-8")
        contents = folder_contents(
            folder,
            repo_id,
            evaluation=evaluation,
            details=details,
            allow=allow,
            guards=[] if home is None else [home],
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


def _take_along(home: Path, folder: Path, with_card: bool) -> None:
    """What lies beside the model in its folder: the licence, and what is said of the model if it is still that one."""
    from ..provenance import FACTS_FILE, weights_digest
    from .contents import CARD_FILE, LICENSE_FILE
    from .settings import CONFIG_FILE, EXTRACTOR_FILE

    def is_there(name: str) -> bool:
        # A link out of the folder is refused where the folder is pushed.
        return (home / name).is_file() and (home / name).resolve().is_relative_to(home.resolve())

    def is_same(name: str) -> bool:
        return is_there(name) and (home / name).read_bytes() == (folder / name).read_bytes()

    along = [LICENSE_FILE]
    if is_same(CONFIG_FILE) and is_same(EXTRACTOR_FILE) and weights_digest(home) == weights_digest(folder):
        along += [FACTS_FILE, CARD_FILE] if with_card else [FACTS_FILE]
    for name in along:
        if is_there(name):
            shutil.copyfile(home / name, folder / name)


def push_pipeline(self: Any, repo_id: str, **settings: Any) -> "CommitInfo":
    """Pushes the pipeline's model and feature extractor: see the model's `push_to_hub`."""
    return push_model(self.model, repo_id, feature_extractor=self.feature_extractor, **settings)


def push_part(
    self: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    allow: Iterable[str] = (),
) -> "CommitInfo":
    """
    Pushes these settings and their code alone, into a model's repository. What they hold is looked through as a whole
    model's; see [`~ecgfm_hf.hub.push_folder`].
    """
    from .contents import part_contents
    from .pushing import push_contents

    allow = tuple(allow)
    with tempfile.TemporaryDirectory(prefix="ecgfm-push-") as folder:
        self.save_pretrained(folder)
        return push_contents(
            part_contents(folder, repo_id, allow),
            repo_id,
            private=private,
            revision=revision,
            commit_message=commit_message,
            token=token,
            allow=allow,
        )


def _saves_only(save: Callable[..., Any]) -> Callable[..., Any]:
    """
    `save_pretrained` without its `push_to_hub=True`, which would send what it wrote unchecked, without a feature
    extractor, and with a card of its own in place of the folder's.
    """

    @functools.wraps(save)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("push_to_hub") or any(arg is True for arg in args[:1]):
            _upload_modified_files(self)
        return save(self, save_directory, *args, **kwargs)

    return save_pretrained


def _upload_modified_files(self: Any, *_: Any, **__: Any) -> None:
    raise ValueError("save_pretrained does not push: it takes no push_to_hub=True; call push_to_hub(repo_id)")


__all__ = ["give_push_to_hub", "push_model", "push_part", "push_pipeline"]

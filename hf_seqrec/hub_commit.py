"""One commit to the Hub: which files of a folder go up, into which repository, and what a failure means.

A repository is never half new. The Hub refuses the commit if the repository changed meanwhile.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError


# What a recommender consists of; checkpoints, optimizer states and arguments (with local paths) of a training run stay at home.
_UPLOADED = (".jinja", ".json", ".jsonl", ".md", ".model", ".png", ".py", ".safetensors", ".svg", ".txt")
_LEFT_OUT = re.compile(
    r"(^|/)(\.(?!eval_results/)|checkpoint-\d|runs/|__pycache__/)|\.ranks\.parquet$|trainer_state\.json$"
)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")


@dataclass(frozen=True)
class Destination:
    """Where a push goes, and how.

    Args:
        repo_id: `owner/name`, or `name` in your own account; made when missing.
        repo_type: `model` or `dataset`.
        private: Visibility of a new repository; None for the owner's default.
        revision: Branch to push to, made when missing; `main` when not given.
        parent_commit: Commit that the push must follow; the branch's newest when the push begins, when not given.
        message: First line of the commit's message; None for `what` of `commit` and the repository's name.
        token: Hub token, by default the one stored by `hf auth login`.

    Example:
        >>> target = Destination("user/films", private=True).create()  # doctest: +SKIP
        >>> target.commit({"README.md": b"# Films"}, re.compile("never"), "Recommender").oid  # doctest: +SKIP
    """

    repo_id: str
    repo_type: str = "model"
    private: bool | None = None
    revision: str | None = None
    parent_commit: str | None = None
    message: str | None = None
    token: str | None = None

    def create(self) -> "Destination":
        """Make the repository where it is missing.

        Returns:
            The destination with its owner in `repo_id`.

        Raises:
            PermissionError: No token. Otherwise as `commit`.
        """
        api = hub_api(self.token)
        with clear_errors(self.repo_id):
            made = api.create_repo(self.repo_id, repo_type=self.repo_type, private=self.private, exist_ok=True)
        return replace(self, repo_id=made.repo_id)

    def commit(self, content: Mapping[str, Path | bytes], replaced: re.Pattern[str], what: str) -> CommitInfo:
        """Push files in one commit, unlike `upload_folder`, which may cut a large folder into several.

        Args:
            content: Files, or what they hold, by their path in the repository, which must be there (`create`).
            replaced: Paths of older pushes that go when `content` does not hold them; what else people keep there stays.
            what: What is pushed, for the commit's message.

        Returns:
            The commit.

        Raises:
            PermissionError: No token. ConnectionError: the network failed; pushing again completes.
                huggingface_hub.errors.HfHubHTTPError: the Hub refused; the repository is then what it was before.
        """
        api, branch = hub_api(self.token), self.revision or "main"
        where: dict[str, Any] = {"repo_id": self.repo_id, "repo_type": self.repo_type}
        with clear_errors(self.repo_id):
            if branch != "main":
                api.create_branch(**where, branch=branch, exist_ok=True)
            head = api.repo_info(**where, revision=branch).sha
            stale = [
                path
                for path in api.list_repo_files(**where, revision=head)
                if path not in content and replaced.fullmatch(path)
            ]
            operations: list[Any] = [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in stale]
            operations += [
                CommitOperationAdd(path, source if isinstance(source, bytes) else str(source))
                for path, source in content.items()
            ]
            return api.create_commit(
                **where,
                operations=operations,
                commit_message=self.message or f"{what} {self.repo_id.split('/')[-1]}",
                revision=branch,
                parent_commit=self.parent_commit or head,
            )


def hub_api(token: str | None) -> HfApi:
    """The client of the Hub.

    Raises:
        PermissionError: There is no token.
    """
    if token is None and get_token() is None:
        raise PermissionError("pushing needs a Hub token: run `hf auth login`, set HF_TOKEN, or pass `token=`.")
    return HfApi(token=token)


@contextmanager
def clear_errors(repo_id: str) -> Iterator[None]:
    """Say of a refused or broken push what happened to the repository, and what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 412:
            error.add_note(
                f"{repo_id} changed since the commit this push builds on: look at the change, then push again."
            )
        elif status in (401, 403):
            error.add_note(
                f"The Hub token may not write to {repo_id}: check its name, or log in with `hf auth login`."
            )
        raise
    except Exception as error:
        # The client's HTTP library goes by another name in each of its major releases.
        if any(type(cause).__module__.startswith("httpx") for cause in (error, error.__cause__)):
            raise ConnectionError(
                f"the push to {repo_id} was interrupted ({error}). The repository holds the old version or the new one, never "
                "a mixture: push again, what has arrived is not sent twice."
            ) from error
        raise


def matching_files(
    folder: Path, patterns: Sequence[str], advice: str, token: str | None = None
) -> dict[str, Path | bytes]:
    """The files of a folder that match patterns, by their path there.

    Args:
        folder: The folder.
        patterns: Of `Path.glob`; each must match something.
        advice: What to do when one does not, for the error.
        token: Hub token in use, which no file may hold.

    Raises:
        FileNotFoundError: A pattern matches nothing. ValueError: a file holds an access token.
    """
    parts = {pattern: sorted(folder.glob(pattern)) for pattern in patterns}
    missing = [pattern for pattern, paths in parts.items() if not paths]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: {advice}.")
    refuse_tokens(folder, token)
    return {path.relative_to(folder).as_posix(): path for paths in parts.values() for path in paths}


def recommender_files(folder: Path) -> list[str]:
    """Paths in a folder, sorted, of what a recommender consists of."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(
        path
        for path in paths
        if path.startswith(".eval_results/") or (path.endswith(_UPLOADED) and not _LEFT_OUT.search(path))
    )


def refuse_tokens(folder: Path, token: str | None = None) -> None:
    """Refuse a folder whose texts hold an access token.

    Raises:
        ValueError: One does.
    """
    own = {secret for secret in (token, get_token()) if secret and len(secret) >= 20}  # shorter ones are placeholders
    for path in recommender_files(folder):
        if path.endswith((".safetensors", ".png")):
            continue
        text = (folder / path).read_text(encoding="utf-8")
        # Item ids are the owner's strings and may look like anything; only the token in use is looked for there.
        looks_like_one = None if path.endswith(".jsonl") else _TOKEN.search(text)
        if looks_like_one or any(secret in text for secret in own):
            raise ValueError(
                f"{path} holds an access token: remove it, and revoke the token if the file was ever shared."
            )

"""The Hub of the tests answers the real client as the Hub does; when a client is upgraded, this file fails first."""

import json
import urllib.error
import urllib.request

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


LARGE = b"\x00\x01" * 5000


@pytest.fixture
def api():
    return HfApi()


@pytest.fixture
def repo(api, repo_id):
    api.create_repo(repo_id)
    files = {"a.txt": b"small", "sub/deep/b.txt": b"deep", "w.safetensors": LARGE}
    api.create_commit(
        repo_id, [CommitOperationAdd(path, content) for path, content in files.items()], commit_message="one"
    )
    return repo_id


def test_client_talks_to_the_loopback_server_only(hub, api):
    assert api.endpoint == huggingface_hub.constants.ENDPOINT == hub.url
    assert api.whoami()["name"] == hub.user


def test_creating_twice_conflicts_and_exist_ok_accepts(api, repo):
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(repo)
    assert error.value.response.status_code == 409
    assert api.create_repo(repo, exist_ok=True).repo_id == repo


def test_small_and_large_files_come_back_byte_for_byte(hub, api, repo):
    stored = hub.repository(repo).files()
    assert stored["w.safetensors"].large
    assert not stored["a.txt"].large
    for path in ("a.txt", "sub/deep/b.txt", "w.safetensors"):
        with open(api.hf_hub_download(repo, path), "rb") as file:
            assert file.read() == stored[path].content


def test_unchanged_files_make_no_commit(hub, api, repo):
    before = len(hub.repository(repo).commits)
    operations = [CommitOperationAdd("a.txt", b"small"), CommitOperationAdd("w.safetensors", LARGE)]
    api.create_commit(repo, operations, commit_message="nothing new")
    assert len(hub.repository(repo).commits) == before


def test_listings_name_files_folders_and_sizes(api, repo):
    assert set(api.list_repo_files(repo)) == {".gitattributes", "a.txt", "sub/deep/b.txt", "w.safetensors"}
    top = {entry.path: type(entry).__name__ for entry in api.list_repo_tree(repo)}
    assert top == {".gitattributes": "RepoFile", "a.txt": "RepoFile", "sub": "RepoFolder", "w.safetensors": "RepoFile"}
    everything = {entry.path for entry in api.list_repo_tree(repo, recursive=True)}
    assert {"sub", "sub/deep", "sub/deep/b.txt"} < everything
    (weights,) = api.get_paths_info(repo, "w.safetensors")
    assert weights.size == len(LARGE) == weights.lfs.size
    sizes = {file.rfilename: file.size for file in api.model_info(repo, files_metadata=True).siblings}
    assert sizes["a.txt"] == 5


def test_branches_tags_and_commits_pin_versions(api, repo):
    first = api.repo_info(repo).sha
    api.create_tag(repo, tag="v1")
    api.create_branch(repo, branch="next/step")
    api.upload_file(path_or_fileobj=b"changed", path_in_repo="a.txt", repo_id=repo, revision="next/step")
    api.upload_file(path_or_fileobj=b"newest", path_in_repo="a.txt", repo_id=repo)

    def read(revision):
        with open(api.hf_hub_download(repo, "a.txt", revision=revision)) as file:
            return file.read()

    assert [read(revision) for revision in ("v1", first, "next/step", "main")] == [
        "small",
        "small",
        "changed",
        "newest",
    ]
    refs = api.list_repo_refs(repo)
    assert {branch.name for branch in refs.branches} == {"main", "next/step"}
    assert [tag.name for tag in refs.tags] == ["v1"]
    assert api.list_repo_commits(repo)[0].commit_id == api.repo_info(repo).sha


def test_stale_parent_is_refused_with_412(api, repo):
    old = api.repo_info(repo).sha
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo)
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(path_or_fileobj=b"y", path_in_repo="y.txt", repo_id=repo, parent_commit=old)
    assert error.value.response.status_code == 412


def test_files_and_folders_are_deleted(api, repo):
    api.delete_file("a.txt", repo)
    api.delete_folder("sub", repo)
    assert set(api.list_repo_files(repo)) == {".gitattributes", "w.safetensors"}


def test_what_is_missing_gets_the_error_of_the_hub(api, repo):
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("tester/no-such-repository")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(repo, "a.txt", revision="no-such-branch")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(repo, "no-such-file")


def test_private_repository_is_hidden_from_strangers(api, repo_id):
    api.create_repo(repo_id, private=True)
    assert api.model_info(repo_id).private
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(repo_id, token=False)
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(token="hf_wrongTokenOfTheTests").create_repo(repo_id + "-other")
    assert error.value.response.status_code == 401


def test_part_of_a_file_can_be_asked_for(hub, api, repo):
    request = urllib.request.Request(f"{hub.url}/{repo}/resolve/main/w.safetensors", headers={"Range": "bytes=1-4"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 206
        assert answer.read() == LARGE[1:5]
        assert answer.headers["Content-Range"] == f"bytes 1-4/{len(LARGE)}"
        assert answer.headers["X-Repo-Commit"] == api.repo_info(repo).sha


def test_unknown_route_says_so(hub):
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{hub.url}/api/no/such/route")
    assert "no route" in json.loads(error.value.read())["error"]


def test_upload_that_is_not_what_it_says_is_refused(hub):
    request = urllib.request.Request(f"{hub.url}/_large/{'0' * 64}", data=b"x", method="PUT")
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(request)


def test_broken_step_drops_the_connection_and_mends(hub, api, repo, impatient):
    before = api.repo_info(repo).sha
    with hub.broken("commit"), pytest.raises(Exception, match=r"(?i)disconnect|peer|connection"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo)
    assert api.repo_info(repo).sha == before
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo)
    assert api.file_exists(repo, "x.txt")

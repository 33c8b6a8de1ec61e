"""A Hub for the tests: enough of its REST interface, on the loopback device, for the unmodified clients to push and pull.

Repositories live in memory. Faults are switched on by a test: `hub.broken("lfs")` drops connections at that step.
The shapes answered here are what the clients of huggingface_hub 1.33 to 2.4 ask for; `tests/hub/test_server.py` pins them.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit


LARGE_FILES = (".safetensors", ".parquet", ".arrow", ".bin", ".pt", ".gz", ".zip")
WEB_PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}
DATE = "2026-01-02T03:04:05.000Z"


@dataclass(frozen=True)
class File:
    content: bytes
    large: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        """Name that git gives to the content."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.blob_id


@dataclass
class Repository:
    kind: str
    name: str
    private: bool
    commits: dict[str, tuple[str, dict[str, File]]] = field(default_factory=dict)  # oid -> (title, files)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.commit(
            "main", "initial commit", {".gitattributes": File(b"*.safetensors filter=lfs diff=lfs merge=lfs\n")}
        )

    def resolve(self, revision: str) -> str | None:
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        return {**{oid: oid for oid in self.commits}, **self.tags, **self.branches}.get(revision)

    def files(self, revision: str = "main") -> dict[str, File]:
        return self.commits[self.resolve(revision)][1]

    def commit(self, branch: str, title: str, files: dict[str, File]) -> str:
        content = [(path, file.etag) for path, file in sorted(files.items())]
        oid = hashlib.sha1(json.dumps([self.kind, self.name, len(self.commits), title, content]).encode()).hexdigest()
        self.commits[oid] = (title, files)
        self.branches[branch] = oid
        return oid


class HttpError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message, **(headers or {})}
        if code:
            self.headers["X-Error-Code"] = code


class HubServer:
    """The server and its state.

    Attributes: `url`; `token` (the only valid one); `user` (its owner); `repositories` by (kind, "owner/name");
    `requests` counts "METHOD /path".
    """

    def __init__(self):
        self.user, self.token = "tester", "hf_loopbackTokenOfTheTests"
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.collections: dict[str, dict] = {}
        self.requests: Counter[str] = Counter()
        self.lock = threading.RLock()
        self._broken: set[str] = set()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    @contextmanager
    def broken(self, step: str):
        """Drop every connection at one step: `"lfs"` (upload of large files), `"commit"`, or `"after_commit"`."""
        self._broken.add(step)
        try:
            yield
        finally:
            self._broken.discard(step)

    def breaks(self, step: str) -> bool:
        return step in self._broken

    def stop(self):
        self._http.shutdown()
        self._http.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    @property
    def authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    # --- HTTP

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, content=None, status: int = 200, headers: dict | None = None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def drop(self):
        """End the connection without an answer, as a dead network does."""
        self.close_connection = True
        self.connection.close()

    def serve(self):
        parts = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        self.body = self.read_body()
        path = parts.path.strip("/")  # matched as sent: a revision may hold an escaped slash
        with self.hub.lock:
            self.hub.requests[f"{self.command} /{path}"] += 1
            try:
                for pattern, route in ROUTES:
                    if match := re.fullmatch(pattern, path):
                        found = match.groupdict()
                        return route(self, **{name: text and unquote(text) for name, text in found.items()})
                raise HttpError(404, f"the test Hub has no route for {self.command} /{path}")
            except HttpError as error:
                return self.answer({"error": str(error)}, error.status, error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def require_token(self):
        if not self.authorised:
            raise HttpError(401, "Invalid credentials in Authorization header")

    def find(self, kind: str, name: str) -> Repository:
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and not self.authorised):
            # The Hub does not tell strangers whether a private repository exists.
            raise HttpError(404 if self.authorised else 401, "Repository not found", "RepoNotFound")
        return repository

    # --- account and repositories

    def whoami(self):
        self.require_token()
        access = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
        self.answer(
            {"type": "user", "id": "1", "name": self.hub.user, "fullname": "Tester", "orgs": [], "auth": access}
        )

    def validate_yaml(self):
        self.answer({"errors": [], "warnings": []})

    def manage_repository(self, action: str):
        self.require_token()
        request = json.loads(self.body)
        kind = request.get("type") or "model"
        name = f"{request.get('organization') or self.hub.user}/{request['name']}"
        url = f"{self.hub.url}/{WEB_PREFIX[kind]}{name}"
        if action == "delete":
            if self.hub.repositories.pop((kind, name), None) is None:
                raise HttpError(404, "Repository not found", "RepoNotFound")
            return self.answer({})
        if (kind, name) in self.hub.repositories:
            return self.answer({"error": "You already created this repo", "url": url}, 409)
        private = bool(request.get("private")) or request.get("visibility") == "private"
        self.hub.repositories[kind, name] = Repository(kind, name, private)
        return self.answer({"url": url, "name": name, "id": name})

    # --- collections

    def make_collection(self):
        self.require_token()
        request = json.loads(self.body)
        slug = f"{request['namespace']}/{re.sub('[^a-z0-9]+', '-', request['title'].lower())}-{'0' * 24}"
        if slug in self.hub.collections:
            return self.answer({"error": "already exists", "slug": slug}, 409)
        self.hub.collections[slug] = {
            "slug": slug, "title": request["title"], "owner": {"name": request["namespace"]}, "items": [], "lastUpdated": DATE,
            "position": 0, "private": request["private"], "theme": "blue", "upvotes": 0,
            "description": request.get("description"),
        }  # fmt: skip
        return self.answer(self.hub.collections[slug])

    def collection(self, name: str):
        if name not in self.hub.collections:
            raise HttpError(404, "Collection not found")
        self.answer(self.hub.collections[name])

    def add_to_collection(self, name: str):
        self.require_token()
        found, request = self.hub.collections[name], json.loads(self.body)
        item = request["item"]
        if (item["type"], item["id"]) not in self.hub.repositories:
            raise HttpError(404, "Repository not found", "RepoNotFound")
        if any((one["type"], one["id"]) == (item["type"], item["id"]) for one in found["items"]):
            return self.answer({"error": "already in the collection"}, 409)
        position = len(found["items"])
        found["items"].append(
            {**item, "_id": str(position), "position": position, "note": {"text": request.get("note", "")}}
        )
        return self.answer(found)

    # --- reading

    def api(self, kind: str, name: str, verb: str | None, revision: str | None, folder: str | None):
        repository = self.find(kind, name)
        if self.command in ("POST", "PUT", "DELETE") and verb != "paths-info":
            self.require_token()
        if verb == "refs":
            return self.references(repository)
        if verb in ("branch", "tag"):
            return self.change_reference(repository, verb, revision)
        commit = repository.resolve(revision or "main")
        if commit is None:
            raise HttpError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = repository.commits[commit][1]
        if verb in (None, "revision"):
            return self.information(repository, commit)
        if verb == "tree":
            return self.tree(files, folder or "")
        if verb == "paths-info":
            return self.paths_information(files)
        if verb == "commits":
            described = [
                {"id": oid, "title": title, "message": "", "authors": [{"user": self.hub.user}], "date": DATE}
                for oid, (title, _) in reversed(repository.commits.items())
            ]
            return self.answer(described)
        if verb == "preupload":
            return self.preupload(files)
        if verb == "commit":
            return self.commit(repository, revision, commit)
        raise HttpError(404, f"the test Hub has no route for {verb}")

    def information(self, repository: Repository, commit: str):
        siblings = [
            {
                "rfilename": path,
                **(
                    {k: v for k, v in describe(path, file).items() if k in ("size", "lfs")}
                    if "blobs" in self.query
                    else {}
                ),
            }
            for path, file in sorted(repository.commits[commit][1].items())
        ]
        self.answer(
            {
                "_id": "1", "id": repository.name, "modelId": repository.name, "author": self.hub.user, "sha": commit,
                "private": repository.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [],
                "createdAt": DATE, "lastModified": DATE, "siblings": siblings,
            }
        )  # fmt: skip

    def references(self, repository: Repository):
        def listed(names: dict[str, str], kind: str):
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in names.items()]

        self.answer(
            {"branches": listed(repository.branches, "heads"), "tags": listed(repository.tags, "tags"), "converts": []}
        )

    def change_reference(self, repository: Repository, kind: str, argument: str):
        names = repository.branches if kind == "branch" else repository.tags
        if self.command == "DELETE":
            names.pop(argument)
            return self.answer({})
        request = json.loads(self.body or b"{}")
        # A branch is named in the address and starts somewhere; a tag is named in the body and the address says where.
        name, start = (
            (argument, request.get("startingPoint") or "main") if kind == "branch" else (request["tag"], argument)
        )
        if name in names:
            raise HttpError(409, f"Reference already exists: {name}")
        oid = repository.resolve(start)
        if oid is None:
            raise HttpError(404, f"Invalid rev id: {start}", "RevisionNotFound")
        names[name] = oid
        return self.answer({})

    def tree(self, files: dict[str, File], folder: str):
        prefix = f"{folder}/" if folder else ""
        inside = {path: file for path, file in sorted(files.items()) if path.startswith(prefix)}
        if prefix and not inside:
            raise HttpError(404, f"{folder} does not exist", "EntryNotFound")
        recursive = self.query.get("recursive", "").lower() in ("1", "true")
        entries, folders = [], set()
        for path, file in inside.items():
            parents = path[len(prefix) :].split("/")[:-1]
            for depth in range(1, (len(parents) if recursive else min(1, len(parents))) + 1):
                folders.add(prefix + "/".join(parents[:depth]))
            if recursive or not parents:
                entries.append(describe(path, file))
        self.answer([describe_folder(path) for path in sorted(folders)] + entries)

    def paths_information(self, files: dict[str, File]):
        if self.body.startswith(b"{"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = [value for name, value in parse_qsl(self.body.decode()) if name == "paths"]
        described = []
        for path in [paths] if isinstance(paths, str) else paths:
            path = path.strip("/")
            if path in files:
                described.append(describe(path, files[path]))
            elif any(other.startswith(f"{path}/") for other in files):
                described.append(describe_folder(path))
        self.answer(described)

    def download(self, prefix: str | None, name: str, revision: str, path: str):
        kind = {f"{prefix}": kind for kind, prefix in WEB_PREFIX.items()}[prefix or ""]
        repository = self.find(kind, name)
        commit = repository.resolve(revision)
        if commit is None:
            raise HttpError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        file = repository.commits[commit][1].get(path)
        if file is None:
            raise HttpError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit})
        size = len(file.content)
        headers = {
            "ETag": f'"{file.etag}"', "X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": size,
            "X-Repo-Commit": commit, "Accept-Ranges": "bytes",
        }  # fmt: skip
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self.answer(file.content, headers=headers)
        first, last = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return self.answer(file.content[first : last + 1], 206, headers)

    # --- writing

    def preupload(self, files: dict[str, File]):
        modes = []
        for wanted in json.loads(self.body)["files"]:
            path, old = wanted["path"], files.get(wanted["path"])
            large = path.endswith(LARGE_FILES) or wanted["size"] > 10_000_000
            modes.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": old and old.etag,
                }
            )
        self.answer({"files": modes})

    def large_file_batch(self):
        self.require_token()
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            described = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.uploads:
                described["actions"] = {
                    "upload": {"href": f"{self.hub.url}/_large/{wanted['oid']}"},
                    "verify": {"href": f"{self.hub.url}/_verify"},
                }
            objects.append(described)
        self.answer({"transfer": "basic", "objects": objects})

    def upload_large(self, oid: str):
        if self.hub.breaks("lfs"):
            return self.drop()
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HttpError(400, "the content does not have the announced sha256")
        self.hub.uploads[oid] = self.body
        return self.answer({})

    def verify_large(self):
        if json.loads(self.body)["oid"] not in self.hub.uploads:
            raise HttpError(404, "never uploaded")
        self.answer({})

    def commit(self, repository: Repository, branch: str, head: str):
        if self.hub.breaks("commit"):
            return self.drop()
        if branch not in repository.branches:
            raise HttpError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        files, header = dict(repository.commits[head][1]), {}
        for line in filter(None, self.body.splitlines()):
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.hub.uploads:
                    raise HttpError(400, f"{value['path']} was never uploaded")
                files[value["path"]] = File(self.hub.uploads[value["oid"]], large=True)
            elif key == "deletedFile":
                files.pop(value["path"])
            elif key == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                files = {path: file for path, file in files.items() if not path.startswith(folder)}
            else:
                raise HttpError(400, f"the test Hub does not know the operation {key}")
        if header.get("parentCommit", head) != head:
            raise HttpError(412, "A commit has happened since. Please refresh and try again.")
        oid = repository.commit(branch, header["summary"], files)
        if self.hub.breaks("after_commit"):
            return self.drop()
        url = f"{self.hub.url}/{WEB_PREFIX[repository.kind]}{repository.name}/commit/{oid}"
        return self.answer({"success": True, "commitOid": oid, "commitUrl": url})


def describe(path: str, file: File) -> dict:
    entry = {"type": "file", "path": path, "oid": file.blob_id, "size": len(file.content)}
    if file.large:
        entry["lfs"] = {"oid": file.sha256, "sha256": file.sha256, "size": len(file.content), "pointerSize": 134}
    return entry


def describe_folder(path: str) -> dict:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}


NAME = r"(?P<name>[^/]+/[^/]+)"
ROUTES = [
    (r"api/whoami-v2", Handler.whoami),
    (r"api/validate-yaml", Handler.validate_yaml),
    (r"api/repos/(?P<action>create|delete)", Handler.manage_repository),
    (r"api/collections", Handler.make_collection),
    (rf"api/collections/{NAME}/items?", Handler.add_to_collection),
    (rf"api/collections/{NAME}", Handler.collection),
    (
        rf"api/(?P<kind>model|dataset|space)s/{NAME}(/(?P<verb>[^/]+)(/(?P<revision>[^/]+)(/(?P<folder>.+))?)?)?",
        Handler.api,
    ),
    (r"(?:datasets/|spaces/)?[^/]+/[^/]+\.git/info/lfs/objects/batch", Handler.large_file_batch),
    (r"_large/(?P<oid>[0-9a-f]{64})", Handler.upload_large),
    (r"_verify", Handler.verify_large),
    (rf"(?P<prefix>datasets/|spaces/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.download),
]

"""
A mock of the Hugging Face Hub on the loopback address: enough of its HTTP for huggingface_hub to push and pull.

It keeps what it is given in memory, records what was requested, and fails as configured. It is a mock: it shows that
our side speaks with the real client over real HTTP, not what the real Hub accepts.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "mockmockmockmockmockmockmockmockmo"
DROP, LOSE = "drop", "lose"  # the connection: in the middle of the request; after it, before the answer


@dataclass
class Repository:
    """Branches are lists of commits (sha, title, files); a file is its bytes."""

    private: bool
    branches: dict = field(default_factory=lambda: {"main": [("0" * 40, "initial commit", {".gitattributes": b""})]})

    def commit(self, branch, title, files):
        parents = self.branches[branch]
        # Of the content too: clients keep files of a commit in a cache that outlives this process.
        contents = {name: hashlib.sha1(content).hexdigest() for name, content in sorted(files.items())}
        sha = hashlib.sha1(f"{parents[-1][0]}{title}{contents}{len(parents)}".encode()).hexdigest()
        parents.append((sha, title, files))
        return sha

    def at(self, revision):
        for branch, commits in self.branches.items():
            if revision == branch:
                return commits[-1]
            for commit in commits:
                if commit[0] == revision:
                    return commit
        return None


class MockHub:
    """The server: `url`, `repositories` by id, `blobs` by sha-256, `requests` as (method, path)."""

    def __init__(self, chunk_size=None, namespaces=("me",)):
        self.chunk_size, self.namespaces = chunk_size, namespaces
        self.repositories, self.blobs, self.parts, self.requests, self.faults = {}, {}, {}, [], []
        self.lock = threading.RLock()

        class Handler(_Handler):
            hub = self

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self):
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    def fail(self, method, pattern, how, times=1, before=None):
        """The next requests of this kind: a status to answer with, DROP or LOSE; or a call to make first (None)."""
        self.faults.append([method, re.compile(pattern), how, times, before])

    def fault(self, method, path):
        with self.lock:
            for fault in self.faults:
                if fault[0] == method and fault[1].search(path) and fault[3] > 0:
                    fault[3] -= 1
                    return fault
        return None

    def count(self, method, pattern):
        return sum(m == method and re.search(pattern, path) is not None for m, path in self.requests)

    def files(self, repo_id, revision="main"):
        return self.repositories[repo_id].at(revision)[2]

    @property
    def sent(self):
        """All that has come, of whatever repository."""
        files = (f for repo in self.repositories.values() for commits in repo.branches.values() for _, _, f in commits)
        return [*self.blobs.values(), *(content for each in files for content in each.values())]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: MockHub

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self):
        path, length = unquote(urlsplit(self.path).path), int(self.headers.get("Content-Length") or 0)
        self.hub.requests.append((self.command, path))
        fault = self.hub.fault(self.command, path)
        if fault is not None and fault[4] is not None:
            fault[4]()
        how = None if fault is None else fault[2]
        if how == DROP:
            self.rfile.read(length // 2)
            return self._hang_up()
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(length)
        if isinstance(how, int):
            return self._answer(how, {"error": f"told to answer {how}"})
        with self.hub.lock:
            answer = self._route(path, body)
        if how == LOSE:
            return self._hang_up()
        return self._answer(*answer)

    def _chunk(self):
        chunk = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return chunk

    def _hang_up(self):
        self.close_connection = True
        self.connection.close()

    def _answer(self, status, content=b"", headers=()):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        if status == 200 and (part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")):
            first, size = int(part[1]), len(body)
            body = body[first : int(part[2]) + 1 if part[2] else size]
            status, headers = 206, {**dict(headers), "Content-Range": f"bytes {first}-{first + len(body) - 1}/{size}"}
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/json", **dict(headers)}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):  # whoever asked has been killed
            self.wfile.write(b"" if self.command == "HEAD" else body)

    # What there is to ask.

    def _route(self, path, body):
        for method, pattern, answer, needs_token in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                if needs_token and not known:
                    return 401, {"error": "Invalid username or password."}
                repo_id = match.groupdict().get("repo")
                repo = self.hub.repositories.get(repo_id)
                if repo_id is not None and (repo is None or (repo.private and not known)):
                    return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
                return answer(self, body, **{**match.groupdict(), **({"repo": repo} if repo_id else {})})
        return 404, {"error": f"the mock has no {self.command} {path}"}

    def create(self, body):
        asked = json.loads(body)
        namespace = asked.get("organization") or self.hub.namespaces[0]
        prefix = "datasets/" if asked.get("type") == "dataset" else ""
        repo_id = f"{prefix}{namespace}/{asked['name']}"
        if namespace not in self.hub.namespaces:
            return 403, {"error": f"You don't have the rights to create a model under the namespace {namespace}"}
        if repo_id in self.hub.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo_id}"}
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[repo_id] = Repository(private)
        return 200, {"url": f"{self.hub.url}/{repo_id}"}

    def info(self, body, repo, revision):
        commit = repo.at(revision or "main")
        if commit is None:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        names = [{"rfilename": name} for name in sorted(commit[2])]
        return 200, {"id": "any/thing", "sha": commit[0], "private": repo.private, "siblings": names}

    def tree(self, body, repo, revision, folder=None):
        commit, prefix = repo.at(revision), "" if folder is None else f"{folder}/"
        found = {} if commit is None else {n: f for n, f in sorted(commit[2].items()) if n.startswith(prefix)}
        if folder is not None and not found:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        if "recursive=true" in urlsplit(self.path).query.lower():
            return 200, [_file_info(name, content) for name, content in found.items()]
        here = {name.removeprefix(prefix).split("/")[0]: name for name in found}
        return 200, [
            _file_info(name, found[name]) if name == prefix + first else _folder_info(prefix + first)
            for first, name in here.items()
        ]

    def paths_info(self, body, repo, revision):
        commit = repo.at(revision)
        if commit is None:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        found = []
        for path in json.loads(body)["paths"]:
            if path in commit[2]:
                found.append(_file_info(path, commit[2][path]))
            elif any(name.startswith(f"{path}/") for name in commit[2]):
                found.append(_folder_info(path))
        return 200, found

    def branch(self, body, repo, name):
        if name in repo.branches:
            return 409, {"error": "Reference already exists"}
        repo.branches[name] = list(repo.branches["main"])
        return 200, {}

    def validate_yaml(self, body):
        text = json.loads(body)["content"]
        try:
            front = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
            assert isinstance(yaml.safe_load(front[1]), dict)
        except (yaml.YAMLError, AssertionError, TypeError):
            return 400, {"errors": [{"message": "no metadata"}], "warnings": []}
        return 200, {"errors": [], "warnings": []}

    def preupload(self, body, repo, revision):
        commit = repo.at(revision)
        if commit is None:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        answers = []
        for file in json.loads(body)["files"]:
            large, there = file["path"].endswith((".safetensors", ".parquet")), commit[2].get(file["path"])
            oid = None if there is None else hashlib.sha256(there).hexdigest() if large else _git_oid(there)
            mode = "lfs" if large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": answers}

    def batch(self, body, repo):
        objects = []
        for asked in json.loads(body)["objects"]:
            oid, size, href = asked["oid"], asked["size"], f"{self.hub.url}/storage/{asked['oid']}"
            found = {"oid": oid, "size": size}
            if oid not in self.hub.blobs:
                upload = {"href": f"{href}?signature=secret"}
                if self.hub.chunk_size:
                    numbers = range(1, -(-size // self.hub.chunk_size) + 1)
                    upload["href"] = f"{href}/complete"
                    upload["header"] = {f"{n:05d}": f"{href}/{n}" for n in numbers}
                    upload["header"]["chunk_size"] = str(self.hub.chunk_size)
                found["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/verify"}}
            objects.append(found)
        return 200, {"objects": objects, "transfer": "basic"}

    def put(self, body, oid, part=None):
        if part is not None:
            self.hub.parts.setdefault(oid, {})[int(part)] = body
            return 200, b"", {"ETag": hashlib.md5(body).hexdigest()}
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "content does not match"}
        self.hub.blobs[oid] = body
        return 200, b""

    def complete(self, body, oid):
        parts = self.hub.parts[oid]
        return self.put(b"".join(parts[part["partNumber"]] for part in json.loads(body)["parts"]), oid)

    def verify(self, body):
        return (200 if json.loads(body)["oid"] in self.hub.blobs else 404), {}

    def commit(self, body, repo, revision):
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if repo.at(revision) is None:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        head, _, files = repo.at(revision)
        if header.get("parentCommit") not in (None, head):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        files = dict(files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(revision, header["summary"], files)
        repo_id = next(name for name, each in self.hub.repositories.items() if each is repo)
        return 200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}"}

    def resolve(self, body, repo, revision, name):
        commit = repo.at(revision)
        if commit is None:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        if name not in commit[2]:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit[0]}
        content = commit[2][name]
        headers = {"X-Repo-Commit": commit[0], "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        return 200, content, {**headers, "Content-Type": "application/octet-stream"}


def _file_info(name, content):
    return {"type": "file", "path": name, "size": len(content), "oid": _git_oid(content)}


def _folder_info(name):
    return {"type": "directory", "path": name, "oid": _git_oid(name.encode())}


def _git_oid(content):
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()


# Datasets have the type in their id, as in the paths: `datasets/me/store`.
_REPO, _REVISION = r"(?P<repo>(datasets/)?[\w.-]+/[\w.-]+)", r"(?P<revision>[\w./-]+)"
_API = rf"/api/(models/)?{_REPO}"
_ROUTES = (
    ("POST", "/api/repos/create", _Handler.create, True),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml, False),
    ("POST", f"{_API}/branch/(?P<name>.+)", _Handler.branch, True),
    ("POST", f"{_API}/preupload/{_REVISION}", _Handler.preupload, True),
    ("POST", f"{_API}/commit/{_REVISION}", _Handler.commit, True),
    ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info, False),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler.tree, False),
    ("GET", f"{_API}(/revision/{_REVISION})?", _Handler.info, False),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch, True),
    ("PUT", r"/storage/(?P<oid>\w+)(/(?P<part>\d+))?", _Handler.put, False),
    ("POST", r"/storage/(?P<oid>\w+)/complete", _Handler.complete, False),
    ("POST", "/verify", _Handler.verify, True),
    ("GET HEAD", f"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve, False),
)

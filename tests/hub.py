"""A stand-in for the Hugging Face hub: an HTTP server that answers what `huggingface_hub` and `datasets` ask.

    with hub(folder) as server:                       # HF_ENDPOINT and the client's own constants point to it
        sha = server.commit("org/set", {"data/train-00000-of-00001.parquet": data}, private=True)
        load_dataset("org/set", token=server.token)

A repository is a list of commits, a commit the files of that revision; contents lie in a folder by their SHA-256. What
is asked is a table, `Hub.routes`: a method, a pattern of the path and the function that answers, so that another file
can add to it what a client needs for writing.

The answers are those of the hub's own API as huggingface_hub 2.4 reads them: listings in pages with a `Link` to the
next, files by range, large ones by way of a redirect, and X-Error-Code where something isn't there or isn't allowed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode

import pytest

from tests.hub_http import Answer, Blob, RefusedError, Request, as_json, serve

_REPOSITORY = r"/api/(?P<kind>datasets|models)/(?P<name>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>[^/]+)"
_IN_LFS = (".parquet", ".arrow", ".tar", ".gz", ".zip", ".png", ".jpg", ".bin", ".safetensors")
_TIME = "2026-01-01T00:00:00.000Z"


Tree = dict[str, Blob]


@dataclass
class Repository:
    """All commits of a repository, by their SHA; what its branches and tags name."""

    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def sha(self, revision: str) -> str | None:
        """The commit that a branch, a tag or the commit's own SHA names."""
        known = self.branches | self.tags | {sha: sha for sha in self.commits}
        return known.get(revision.removeprefix("refs/heads/").removeprefix("refs/tags/"))


class Hub:
    """The repositories, and how each request is answered.

    `token`: the one that may read all. `page`: entries of a listing that one answer holds. `asked`: the requests so
    far, as "METHOD path"; `sent`: bytes of files sent so far.
    """

    def __init__(self, folder: Path, page: int = 1000) -> None:
        self.folder, self.page = folder, page
        self.token = "hf_the_token_that_may_read"
        self.strangers_token = "hf_the_token_of_somebody_else"
        self.url = ""
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.asked: list[str] = []
        self.sent = 0
        self.routes: list[tuple[str, str, Callable[[Request, re.Match[str]], Answer]]] = [
            ("GET", rf"{_REPOSITORY}(?:/revision/{_REVISION})?", self._info),
            ("GET", rf"{_REPOSITORY}/refs", self._refs),
            ("GET", rf"{_REPOSITORY}/tree/{_REVISION}(?:/(?P<path>.+))?", self._tree),
            ("POST", rf"{_REPOSITORY}/paths-info/{_REVISION}", self._paths_info),
            (
                "GET|HEAD",
                rf"(?:/(?P<kind>datasets))?/(?P<name>[^/]+/[^/]+)/resolve/{_REVISION}/(?P<path>.+)",
                self._resolve,
            ),
            ("GET|HEAD", r"/store/(?P<sha256>[0-9a-f]{64})", self._stored),
        ]

    def commit(
        self,
        name: str,
        files: Mapping[str, bytes | str | Path | None],
        *,
        kind: str = "datasets",
        branch: str = "main",
        tag: str | None = None,
        private: bool | None = None,
        gated: bool | None = None,
    ) -> str:
        """Add a commit to a branch of a repository, made where it isn't there: files that are new or changed, None for
        those that go. Its SHA."""
        repository = self.repositories.setdefault((kind, name), Repository())
        before = repository.branches.get(branch)
        tree = dict(repository.commits.get(before or "", {}))
        for path, content in files.items():
            if content is None:
                del tree[path]
            else:
                tree[path] = self.store(content)
        contents = sorted((path, blob.sha256) for path, blob in tree.items())
        names = json.dumps([before, contents, len(repository.commits)])
        sha = hashlib.sha1(names.encode()).hexdigest()
        repository.commits[sha] = tree
        repository.branches[branch] = sha
        if tag is not None:
            repository.tags[tag] = sha
        repository.private = repository.private if private is None else private
        repository.gated = repository.gated if gated is None else gated
        return sha

    def store(self, content: bytes | str | Path) -> Blob:
        """Keep a file's content."""
        if isinstance(content, Path):
            content = content.read_bytes()
        data = content.encode() if isinstance(content, str) else content
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.folder / sha256
        if not path.exists():
            path.write_bytes(data)
        git_name = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return Blob(path, len(data), sha256, git_name)

    def read(self, name: str, path: str, *, kind: str = "datasets", revision: str = "main") -> bytes:
        """A file's content as it lies in a repository now."""
        repository = self.repositories[kind, name]
        sha = repository.sha(revision)
        assert sha is not None
        return repository.commits[sha][path].path.read_bytes()

    def answer(self, request: Request) -> Answer:
        """Look a request up in the table of routes; an error is an answer too."""
        self.asked.append(f"{request.method} {request.path}")
        try:
            for methods, pattern, function in self.routes:
                match = re.fullmatch(pattern, request.path)
                if match and request.method in methods.split("|"):
                    return function(request, match)
            raise RefusedError(404, None, f"no such path: {request.method} {request.path}")
        except RefusedError as refused:
            return refused.answer

    def repository(self, request: Request, match: re.Match[str]) -> Repository:
        """The repository that a request is about, if its token may see it.

        As the hub does it, without a token a private one and none at all are the same.
        """
        if request.token not in (None, self.token, self.strangers_token):
            raise RefusedError(401, None, "Invalid credentials in Authorization header")
        repository = self.repositories.get((match["kind"] or "models", match["name"]))
        if repository is None or (repository.private and request.token != self.token):
            status, message = (
                (401, "Invalid username or password.") if request.token is None else (404, "Repository not found")
            )
            raise RefusedError(status, "RepoNotFound", message)
        return repository

    def revision(self, repository: Repository, match: re.Match[str]) -> str:
        """The commit that a request is about."""
        revision = unquote(match["revision"] or "main")
        sha = repository.sha(revision)
        if sha is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _info(self, request: Request, match: re.Match[str]) -> Answer:
        repository = self.repository(request, match)
        sha = self.revision(repository, match)
        return as_json(
            {
                "_id": sha[:24],
                "id": match["name"],
                "author": match["name"].partition("/")[0],
                "sha": sha,
                "createdAt": _TIME,
                "lastModified": _TIME,
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(repository.commits[sha])],
            }
        )

    def _refs(self, request: Request, match: re.Match[str]) -> Answer:
        repository = self.repository(request, match)

        def listed(names: dict[str, str], kind: str) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in sorted(names.items())
            ]

        return as_json(
            {"branches": listed(repository.branches, "heads"), "tags": listed(repository.tags, "tags"), "converts": []}
        )

    def _tree(self, request: Request, match: re.Match[str]) -> Answer:
        repository = self.repository(request, match)
        tree = repository.commits[self.revision(repository, match)]
        folder = unquote(match["path"] or "").strip("/")
        entries = [
            entry
            for entry in _entries(tree)
            if (not folder or entry["path"].startswith(f"{folder}/"))
            and (request.flag("recursive") or "/" not in entry["path"][len(folder) + 1 if folder else 0 :])
        ]
        if folder and not entries:
            raise RefusedError(404, "EntryNotFound", f"{folder} does not exist on {match['revision']!r}")
        start = int(request.query.get("cursor", ["0"])[0])
        headers = {}
        if start + self.page < len(entries):
            query = urlencode({**{key: value[0] for key, value in request.query.items()}, "cursor": start + self.page})
            headers["Link"] = f'<{self.url}{quote(request.path, safe="/%")}?{query}>; rel="next"'
        return as_json(entries[start : start + self.page], **headers)

    def _paths_info(self, request: Request, match: re.Match[str]) -> Answer:
        repository = self.repository(request, match)
        tree = repository.commits[self.revision(repository, match)]
        form = parse_qs(request.body.decode())
        return as_json([entry for entry in _entries(tree) if entry["path"] in form.get("paths", [])])

    def _resolve(self, request: Request, match: re.Match[str]) -> Answer:
        repository = self.repository(request, match)
        sha = self.revision(repository, match)
        if repository.gated and request.token != self.token:
            status = 401 if request.token is None else 403
            raise RefusedError(status, "GatedRepo", f"Access to dataset {match['name']} is restricted.")
        path = unquote(match["path"])
        blob = repository.commits[sha].get(path)
        if blob is None:
            answer = RefusedError(404, "EntryNotFound", "Entry not found").answer
            answer.headers["X-Repo-Commit"] = sha
            return answer
        headers = {"X-Repo-Commit": sha, "ETag": f'"{blob.git_name}"'}
        if not path.endswith(_IN_LFS):
            return Answer(200, blob, headers)
        headers |= {
            "X-Linked-Size": str(blob.size),
            "X-Linked-ETag": f'"{blob.sha256}"',
            "Location": f"{self.url}/store/{blob.sha256}",
        }
        return Answer(302, b"", headers)

    def _stored(self, request: Request, match: re.Match[str]) -> Answer:
        path = self.folder / match["sha256"]
        if not path.exists():
            raise RefusedError(404, None, "no such object")
        return Answer(200, Blob(path, path.stat().st_size, match["sha256"], ""), {"ETag": f'"{match["sha256"]}"'})


def _entries(tree: Tree) -> list[dict[str, Any]]:
    """The files and folders of a commit as listings give them, by name."""
    folders = {path.rpartition("/")[0] for path in tree} - {""}
    for folder in list(folders):
        folders.update("/".join(folder.split("/")[:depth]) for depth in range(1, folder.count("/") + 1))
    entries = [
        {"type": "directory", "oid": hashlib.sha1(folder.encode()).hexdigest(), "size": 0, "path": folder}
        for folder in folders
    ]
    for path, blob in tree.items():
        entry: dict[str, Any] = {"type": "file", "oid": blob.git_name, "size": blob.size, "path": path}
        if path.endswith(_IN_LFS):
            entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
        entries.append(entry)
    return sorted(entries, key=lambda entry: str(entry["path"]))


@contextmanager
def hub(folder: Path, *, page: int = 1000) -> Iterator[Hub]:
    """A hub that `huggingface_hub` and `datasets` take for the real one, in this process and in those that it starts.

    `folder`: for contents, caches and the token file; nothing of the user's own is read.
    """
    import datasets.config
    from huggingface_hub import HfFileSystem, constants

    for name in ("store", "cache", "home"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    server = Hub(folder / "store", page)
    with serve(server), pytest.MonkeyPatch.context() as patch:
        home = str(folder / "home")
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_HOME", home)
        for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            patch.delenv(variable, raising=False)
        # Both libraries read the environment when they are imported.
        patch.setattr(constants, "ENDPOINT", server.url)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_TOKEN_PATH", f"{home}/token")
        patch.setattr(constants, "HF_HUB_CACHE", f"{home}/hub")
        patch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        patch.setattr(datasets.config, "HUB_DATASETS_URL", server.url + "/datasets/{repo_id}/resolve/{revision}/{path}")
        HfFileSystem.clear_instance_cache()
        try:
            yield server
        finally:
            HfFileSystem.clear_instance_cache()

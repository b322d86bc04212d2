"""What the stand-in for the hub answers to those who write: `huggingface_hub`'s create_repo, uploads and commits.

    with hub(folder) as server, writable(server):
        HfApi(token=server.token).create_repo("org/new", repo_type="dataset")

Large files go to git LFS's store, as those of a repository without Xet do. `server.token` may write to the repositories
of `org`, and nobody to others.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from tests.hub import Hub, Repository
from tests.hub_http import Answer, RefusedError, Request, as_json

ORGANISATION = "org"
_OF_API = r"/api/(?P<kind>datasets|models)/(?P<name>[^/]+/[^/]+)"
_LARGE = (".parquet", ".safetensors", ".bin")
_SMALL_BYTES = 10 << 20


class Writing:
    """The answers to requests that write. `uploaded`: the hashes of files sent to the store. `commits`: the operations
    of each."""

    def __init__(self, server: Hub) -> None:
        self.server = server
        self.uploaded: list[str] = []
        self.commits: list[list[dict[str, Any]]] = []
        server.routes[:] = [
            (methods, pattern, self._elsewhere if function == server._resolve else function)
            for methods, pattern, function in server.routes
        ]
        server.routes += [
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", self._validate),
            ("POST", rf"{_OF_API}/preupload/(?P<revision>[^/]+)", self._preupload),
            ("POST", r"(?:/(?P<kind>datasets))?/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            ("PUT", r"/upload/(?P<sha256>[0-9a-f]{64})", self._upload),
            ("POST", rf"{_OF_API}/commit/(?P<revision>[^/]+)", self._commit),
        ]

    def _elsewhere(self, request: Request, match: re.Match[str]) -> Answer:
        """A file's content is on another host than the hub, as the client expects it of its store."""
        answer = self.server._resolve(request, match)
        if "Location" in answer.headers:
            answer.headers["Location"] = answer.headers["Location"].replace("127.0.0.1", "localhost")
        return answer

    def _may_write(self, request: Request, owner: str) -> None:
        if request.token not in (self.server.token, self.server.strangers_token):
            raise RefusedError(401, None, "Invalid credentials in Authorization header")
        if request.token != self.server.token or owner != ORGANISATION:
            raise RefusedError(403, None, f"You don't have the rights to write to {owner}")

    def _repository(self, request: Request, match: re.Match[str]) -> Repository:
        repository = self.server.repository(request, match)
        self._may_write(request, match["name"].partition("/")[0])
        return repository

    def _create(self, request: Request, match: re.Match[str]) -> Answer:
        asked = json.loads(request.body)
        self._may_write(request, asked["organization"])
        kind, name = f"{asked.get('type') or 'model'}s", f"{asked['organization']}/{asked['name']}"
        if (kind, name) in self.server.repositories:
            raise RefusedError(409, None, f"You already created this {asked['type']} repo: {name}")
        private = asked.get("visibility") == "private"
        self.server.commit(name, {".gitattributes": "*.parquet filter=lfs\n"}, kind=kind, private=private)
        return as_json({"url": f"{self.server.url}/{'datasets/' if kind == 'datasets' else ''}{name}", "name": name})

    def _validate(self, request: Request, match: re.Match[str]) -> Answer:
        content = json.loads(request.body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            data = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError as error:
            data = str(error)
        errors = [] if isinstance(data, dict) else [{"message": f"not a table: {data}"}]
        answer = as_json({"errors": errors, "warnings": []})
        answer.status = 400 if errors else 200
        return answer

    def _preupload(self, request: Request, match: re.Match[str]) -> Answer:
        repository = self._repository(request, match)
        tree = repository.commits[self.server.revision(repository, match)]
        files = []
        for file in json.loads(request.body)["files"]:
            large = file["path"].endswith(_LARGE) or file["size"] > _SMALL_BYTES
            there = tree.get(file["path"])
            oid = there and (there.sha256 if large else there.git_name)
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return as_json({"files": files})

    def _batch(self, request: Request, match: re.Match[str]) -> Answer:
        self._repository(request, match)
        objects = []
        for each in json.loads(request.body)["objects"]:
            there = (self.server.folder / each["oid"]).exists()
            upload = {"upload": {"href": f"{self.server.url}/upload/{each['oid']}"}}
            objects.append({"oid": each["oid"], "size": each["size"], **({} if there else {"actions": upload})})
        return as_json({"transfer": "basic", "objects": objects})

    def _upload(self, request: Request, match: re.Match[str]) -> Answer:
        if hashlib.sha256(request.body).hexdigest() != match["sha256"]:
            raise RefusedError(400, None, "the content is another")
        self.server.store(request.body)
        self.uploaded.append(match["sha256"])
        return Answer(200)

    def _commit(self, request: Request, match: re.Match[str]) -> Answer:
        repository = self._repository(request, match)
        operations = [json.loads(line) for line in request.body.decode().splitlines()]
        header = operations[0]["value"]
        head = self.server.revision(repository, match)
        if header.get("parentCommit", head) != head:
            raise RefusedError(412, None, "The branch has changed since")
        files: dict[str, bytes | None] = {}
        for operation in operations[1:]:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = (self.server.folder / value["oid"]).read_bytes()
            elif operation["key"] == "deletedFile":
                files[value["path"]] = None
            else:
                raise RefusedError(400, None, f"unknown: {operation['key']}")
        sha = self.server.commit(match["name"], files, kind=match["kind"])
        self.commits.append(operations)
        return as_json(
            {"commitUrl": f"{self.server.url}/{match['name']}/commit/{sha}", "commitOid": sha, "success": True}
        )


@contextmanager
def writable(server: Hub) -> Iterator[Writing]:
    """Let the hub be written to; the client sends large files by git LFS meanwhile."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield Writing(server)

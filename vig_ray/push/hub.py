"""Writing to a repository of the Hugging Face hub: one commit, in which only what changed is sent."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported, but not by its stubs

from vig_ray.errors import StageError
from vig_ray.push.repository import CARD, FACTS, Repository
from vig_ray.storage import one_line

_TRANSPORT: type[BaseException] = HfHubHTTPError.__bases__[0]  # the errors of whichever HTTP client the hub's one uses
_ATTRIBUTES = ".gitattributes"


@dataclass(frozen=True)
class There:
    """What a repository holds now. `commit`: its head. `facts`: its vig-ray.json. `card`: the hash of its README.md."""

    commit: str | None
    names: frozenset[str]
    facts: dict[str, Any]
    card: str | None
    private: bool


@dataclass(frozen=True)
class Outcome:
    """What was done. `commit`: the new one, None where nothing had changed. `card_kept`: an edited one was left."""

    url: str
    commit: str | None
    sent: int
    deleted: int
    card_kept: bool


class HubRepository:
    """The repository `name` on the hub. Everything raises StageError, in one line."""

    def __init__(self, name: str, kind: str) -> None:
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise StageError(f"--to {name}: {one_line(error)}") from error
        if "/" not in name:
            raise StageError(f"--to {name}: needs the user or organisation as well, as ORG/NAME")
        self._name, self._kind = name, kind
        self._api = HfApi()

    def check_token(self) -> None:
        """See that there is a token at all."""
        if get_token() is None:
            raise StageError("no token of the hub on this machine: `hf auth login` stores one, or set HF_TOKEN")

    def look(self) -> There | None:
        """What is there; None where nothing is."""
        with self._one_line():
            try:
                info = self._api.repo_info(self._name, repo_type=self._kind)
            except RepositoryNotFoundError:
                return None
            names = frozenset(sibling.rfilename for sibling in getattr(info, "siblings", None) or ())
            facts = self._read(FACTS, info.sha) if FACTS in names else None
            card = self._read(CARD, info.sha) if CARD in names else None
        try:
            told = json.loads(facts or "{}")
        except ValueError:
            told = {}
        told = told if isinstance(told, dict) and told.get("written_by") == "vig push" else {}
        return There(info.sha, names, told, None if card is None else _hash(card), bool(info.private))

    def check(self, there: There | None, *, overwrite: bool) -> None:
        """Raise StageError where somebody else's files are there."""
        if there is None or overwrite or there.facts or there.names <= {_ATTRIBUTES}:
            return
        raise StageError(
            f"{self._name}: is there already, and `vig push` didn't write it ({len(there.names):,} files, such as "
            f"{min(there.names)}); choose another name, or --overwrite to add to it and replace its card"
        )

    def write(self, repository: Repository, there: There | None, *, public: bool, overwrite: bool) -> Outcome:
        """Make the repository `there` where it isn't, and commit."""
        with self._one_line():
            if there is None:
                self._api.create_repo(self._name, repo_type=self._kind, private=not public)
                made = self._api.repo_info(self._name, repo_type=self._kind)
                there = There(made.sha, frozenset(), {}, None, not public)
            return self._commit(repository, there, overwrite)

    def _commit(self, repository: Repository, there: There, overwrite: bool) -> Outcome:
        card = repository.card.encode()
        # A person has confirmed the licence there, or added words.
        kept = bool(there.facts) and not overwrite and there.card is not None and there.card != there.facts.get("card")
        facts = {
            "written_by": "vig push",
            "files": repository.names,
            "card": there.facts.get("card") if kept else _hash(card),
            **repository.facts,
        }
        small = {**repository.small, FACTS: (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode()}
        additions = [CommitOperationAdd(name, content) for name, content in small.items()]
        additions += [] if kept else [CommitOperationAdd(CARD, card)]
        with tempfile.TemporaryDirectory(prefix="vig-push-") as folder:
            for number, part in enumerate(repository.parts):
                additions.append(self._sent(part.name, part.at(os.path.join(folder, f"{number}")), folder))
            gone = sorted(set(there.facts.get("files", ())) & there.names - set(repository.names) - {CARD})
            info = self._api.create_commit(
                self._name,
                [*additions, *(CommitOperationDelete(name) for name in gone)],
                commit_message="Upload by vig push",
                repo_type=self._kind,
                parent_commit=there.commit,
            )
        url = f"{self._api.endpoint}/{'datasets/' if self._kind == 'dataset' else ''}{self._name}"
        changed = info.oid != there.commit
        return Outcome(url, info.oid if changed else None, len(additions) if changed else 0, len(gone), kept)

    def _sent(self, name: str, path: str, folder: str) -> CommitOperationAdd:
        """Send a file, so that it need not lie here until the commit."""
        addition = CommitOperationAdd(name, path)
        self._api.preupload_lfs_files(self._name, [addition], repo_type=self._kind)
        if path.startswith(f"{folder}{os.sep}"):
            if addition.path_or_fileobj != b"":  # so small that it goes with the commit
                with open(path, "rb") as file:
                    addition = CommitOperationAdd(name, file.read())
            os.unlink(path)
        return addition

    def _read(self, name: str, commit: str | None) -> bytes:
        path = self._api.hf_hub_download(self._name, name, repo_type=self._kind, revision=commit)
        with open(path, "rb") as file:
            return file.read()

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except StageError:
            raise
        except OfflineModeIsEnabled as error:
            raise StageError(f"{self._name}: HF_HUB_OFFLINE is set, so nothing is asked of the hub or sent") from error
        except (_TRANSPORT, OSError, ValueError, RuntimeError) as error:
            raise StageError(f"{self._name}: {self._told(error)}") from error

    def _told(self, error: BaseException) -> str:
        refused = error if isinstance(error, HfHubHTTPError) else error.__cause__
        if not isinstance(refused, HfHubHTTPError):
            if isinstance(error, _TRANSPORT) or isinstance(error.__cause__, _TRANSPORT):
                return f"the hub at {self._api.endpoint} can't be reached: {one_line(error)[:200]}"
            return one_line(error)[:300]
        status = refused.response.status_code
        owner = self._name.partition("/")[0]
        if status == 401:
            return "the hub doesn't take this token; `hf auth login` stores another"
        if status == 403:
            return f"this token may not write to {owner}'s repositories; make one that may, or name another --to"
        if status == 409:
            return "there is a repository of this name, which this token may not see; choose another"
        if status == 412:
            return "somebody else has changed it meanwhile; push again"
        return f"the hub refused: {refused.server_message or one_line(refused)}"[:300]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

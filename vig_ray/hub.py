"""The Hugging Face hub: which commit a name means, files in ranges or as a stream, and its errors in one line.

The endpoint (HF_ENDPOINT) and the token (HF_TOKEN, or the file that `hf auth login` writes) are huggingface_hub's own.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyarrow as pa

from vig_ray.errors import StageError
from vig_ray.storage import one_line

_TIMEOUT_S = 60
_REVISIONS_SHOWN = 20


def commit_of(repository: str, revision: str | None) -> str:
    """The SHA that a revision (a branch, a tag, a commit; None: main) of the dataset ORG/NAME means now.

    Raises StageError where the dataset or the revision isn't there, or can't be seen with the user's token.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    uri = f"hf://datasets/{repository}"
    with explained(uri):
        try:
            sha = HfApi().dataset_info(repository, revision=revision, timeout=_TIMEOUT_S).sha
        except RevisionNotFoundError as error:
            refs = HfApi().list_repo_refs(repository, repo_type="dataset")
            names = [ref.name for ref in (*refs.branches, *refs.tags)]
            shown = ", ".join(names[:_REVISIONS_SHOWN]) + (", ..." if len(names) > _REVISIONS_SHOWN else "")
            raise StageError(
                f"{uri}: has no revision {revision!r}; it has {shown}, and commits by their SHA"
            ) from error
    if sha is None:
        raise StageError(f"{uri}: the hub names no commit of it")
    return sha


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what the hub answers, or its silence, into a StageError: one line about `uri` that says what to do."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    # That of the httpx which the client uses.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # isort: skip

    try:
        yield
    except GatedRepoError as error:
        if get_token() is None:
            advice = "give the token of an account that has access (HF_TOKEN, or `hf auth login`)"
        else:
            advice = "ask for access on its page, with the account of your token"
        raise StageError(f"{uri}: gated, its owners decide who may read it; {advice}") from error
    except RepositoryNotFoundError as error:
        if get_token() is None:
            advice = "a private one needs a token that may read it (HF_TOKEN, or `hf auth login`)"
        else:
            advice = "or your token may not read it"
        raise StageError(f"{uri}: no such dataset on the hub; check its name, {advice}") from error
    except OfflineModeIsEnabled as error:
        raise StageError(f"{uri}: HF_HUB_OFFLINE is set, so the hub isn't asked; unset it, or name a folder") from error
    except HfHubHTTPError as error:
        raise StageError(f"{uri}: the hub refuses: {one_line(error)[:300]}") from error
    except (HTTPError, ConnectionError, TimeoutError) as error:
        from huggingface_hub import constants

        cause = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise StageError(f"{uri}: the hub at {constants.ENDPOINT} can't be reached ({cause}); try again") from error


def explained_if_of_hub(uri: str) -> AbstractContextManager[None]:
    """`explained` for hf://, nothing for others."""
    return explained(uri) if uri.startswith("hf://") else nullcontext()


def open_stream(uri: str) -> pa.NativeFile:
    """A file of the hub to be read once from start to end, over one connection.

    Raises StageError, here or while it is read.
    """
    fs, path = _file_system(uri)
    with explained(uri):
        return pa.PythonFile(_Explained(fs.open(path, "rb", block_size=0), uri), mode="r")


def open_ranges(uri: str, size: int | None = None) -> pa.NativeFile:
    """A file of the hub of which parts are read, each by one request of just its range; `size`: in bytes, if known.

    Raises StageError, here or while it is read.
    """
    fs, path = _file_system(uri)
    with explained(uri):
        return pa.PythonFile(_Explained(fs.open(path, "rb", cache_type="none", size=size), uri), mode="r")


def _file_system(uri: str) -> tuple[Any, str]:
    from huggingface_hub import HfFileSystem

    return HfFileSystem(), uri.removeprefix("hf://")


class _Explained(io.RawIOBase):
    """A file of the hub whose errors say what to do."""

    def __init__(self, file: Any, uri: str) -> None:
        self._file, self._uri = file, uri

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with explained(self._uri):
            data: bytes = self._file.read(size)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._file.seek(offset, whence)
        return self.tell()

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            del self._file  # closes its connection
        super().close()

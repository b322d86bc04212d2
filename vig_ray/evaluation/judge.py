"""A judge: a model behind an OpenAI-compatible API that says what an answer is worth.

Its replies are kept on disk under a digest of what was asked, so that nothing is asked twice: a killed run goes on, and
another table of the same answers costs nothing. The key comes from the environment variable OPENAI_API_KEY of each
machine that asks, and is written nowhere.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import vig_ray
from vig_ray.dataset.hosts import seconds_of
from vig_ray.errors import StageError
from vig_ray.storage import join, one_line, read_bytes, write_bytes

log = logging.getLogger(__name__)
T = TypeVar("T")

KEY = "OPENAI_API_KEY"
_MOST_BYTES = 8 << 20  # of a reply
_LONGEST_REST_S = 120.0
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_REFUSED = frozenset({400, 413, 422})  # this request, and not the next
_TRIES_OF_CHECK = 2
_READINGS = 3  # replies that are asked for until one can be read


class JudgePrompt(NamedTuple):
    """What a judge is asked. `temperature`: of its first reply."""

    text: str
    system: str | None = None
    temperature: float = 0.0
    max_tokens: int = 1024


class JudgeError(Exception):
    """A judge didn't take a request, or gave no reply that can be read. `asked`, `replied`: what was said."""

    def __init__(self, message: str, asked: str, replied: str | None = None) -> None:
        super().__init__(message)
        self.asked, self.replied = asked, replied


@dataclass(frozen=True)
class JudgeOptions:
    """`url`: the API's address, such as http://HOST:8000/v1; `model`: the judge's name there. `cache`: a folder, a path
    or URI. `tries`: of a request that fails in passing; the first rest is `backoff_s`, and each is twice the last.
    `timeout_s`: how long the judge may be silent."""

    url: str
    model: str
    cache: str
    tries: int = 6
    backoff_s: float = 1.0
    timeout_s: float = 180.0


def default_cache() -> str:
    """Where replies are kept on this machine, beside what else is remembered on it."""
    return os.path.join(os.environ.get("VIG_RAY_CACHE") or os.path.expanduser("~/.cache/vig-ray"), "judge")


class Judge:
    """Asks one judge; may be called from many threads. Raises StageError for an address that is none."""

    def __init__(self, options: JudgeOptions) -> None:
        self._options = options
        self._endpoint = _endpoint(options.url)
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._over = threading.Event()  # set once it is clear that the judge is down, so that nobody waits for it
        self._answered = 0  # requests, roughly: several threads count

    def check(self) -> None:
        """Ask for one word. Raises StageError, in one line, where the judge can't be asked."""
        self._over.clear()
        try:
            self._post(self._body(JudgePrompt("Reply with the one word: ready.", max_tokens=16)), _TRIES_OF_CHECK)
        except _RefusedError as error:
            raise StageError(f"{self._name}: {error}") from error

    def verdict(self, prompt: JudgePrompt, read: Callable[[str], T | None]) -> tuple[T, str]:
        """What `read` makes of the judge's reply, and the reply.

        Where it makes None of one, the judge is asked again, each time at a temperature higher by 0.5, as MM-Vet's
        evaluator does. Raises JudgeError where that doesn't help or it won't take the request, StageError where the
        judge is down.
        """
        reply = ""
        for reading in range(_READINGS):
            body = self._body(prompt._replace(temperature=prompt.temperature + reading / 2))
            kept = self._kept(body)
            try:
                reply = kept if kept is not None else self._post(body, self._options.tries)
            except _RefusedError as error:
                raise JudgeError(f"the judge refused the request: {error}", prompt.text) from error
            found = read(reply)
            if found is not None:  # what can't be read isn't kept: another run may have more luck
                if kept is None:
                    self._keep(body, reply)
                return found, reply
        said = one_line(ValueError(reply[:120]))
        raise JudgeError(f"no verdict in {_READINGS} replies of the judge, the last: {said}", prompt.text, reply)

    def _kept(self, body: dict[str, Any]) -> str | None:
        """The reply to a request that is kept; None where there is none that can be read."""
        path = self._path(body)
        try:
            reply = json.loads(read_bytes(path))["reply"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.info("%s: can't be read, so the judge is asked again: %s", path, one_line(error))
            return None
        return reply if isinstance(reply, str) else None

    def _keep(self, body: dict[str, Any], reply: str) -> None:
        content = {"url": self._endpoint, "request": body, "reply": reply}
        try:
            write_bytes(self._path(body), json.dumps(content, indent=1).encode())
        except StageError as error:
            raise StageError(f"{error}; --task-options TASK.judge_cache=FOLDER names another place") from error

    def _path(self, body: dict[str, Any]) -> str:
        name = hashlib.sha256(json.dumps([self._endpoint, body], sort_keys=True).encode()).hexdigest()
        return join(self._options.cache, name[:2], f"{name}.json")

    def _body(self, prompt: JudgePrompt) -> dict[str, Any]:
        system = [{"role": "system", "content": prompt.system}] if prompt.system else []
        return {
            "model": self._options.model,
            "messages": [*system, {"role": "user", "content": prompt.text}],
            "temperature": prompt.temperature,
            "max_tokens": prompt.max_tokens,
        }

    @property
    def _name(self) -> str:
        return f"--judge {self._options.url}, {self._options.model}"

    def _post(self, body: dict[str, Any], tries: int) -> str:
        """The judge's reply to a request, tried again where it may help. Raises StageError where the judge is down, and
        _RefusedError where it has answered others between the last two tries."""
        rest, told, answered = self._options.backoff_s, "", self._answered
        for trial in range(tries):
            if self._over.is_set():
                break
            try:
                reply = self._post_once(body)
                self._answered += 1
                return reply
            except _AgainError as error:
                told = str(error)
                if trial + 1 < tries:
                    answered = self._answered
                    pause = rest * random.uniform(0.75, 1.25) if error.seconds is None else error.seconds
                    self._over.wait(min(pause, _LONGEST_REST_S))
                    rest *= 2
        if told and self._answered > answered:
            raise _RefusedError(f"{told}, {tries} times")
        self._over.set()
        raise StageError(
            f"{self._name}: gives no answer{told and f': {told}'}; what it has said is kept in {self._options.cache}, "
            "and the same command goes on from there"
        )

    def _post_once(self, body: dict[str, Any]) -> str:
        key = os.environ.get(KEY, "")
        headers = {"Content-Type": "application/json", "User-Agent": f"vig-ray/{vig_ray.__version__}"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._endpoint, json.dumps(body).encode(), headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._options.timeout_s) as answer:
                return _content(answer.read(_MOST_BYTES))
        except urllib.error.HTTPError as error:
            raise self._fault(error, key) from error
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            raise _AgainError(one_line(getattr(error, "reason", None) or error)) from error

    def _fault(self, error: urllib.error.HTTPError, key: str) -> Exception:
        """What to raise for an answer that isn't 200."""
        with error:
            try:
                said = _message(error.read(_MOST_BYTES))
            except (OSError, http.client.HTTPException):
                said = ""
        said = f"HTTP {error.code}{said and f', {said}'}"
        said = said.replace(key, "***") if key else said
        if error.code in _AGAIN:
            return _AgainError(said, seconds_of(error.headers.get("Retry-After")))
        if error.code in _REFUSED:
            return _RefusedError(said)
        if error.code in (401, 403):
            return StageError(f"{self._name}: {said}; the environment variable {KEY} holds the key on each machine")
        if 300 <= error.code < 400:
            where = error.headers.get("Location") or "nowhere"
            return StageError(
                f"{self._name}: {said}: redirects to {where}, where the key isn't sent; name that address"
            )
        return StageError(f"{self._name}: {said}; expected an OpenAI-compatible API that has this model")


class _AgainError(Exception):
    """It may work when tried again: after so many seconds, or as backing off has it."""

    def __init__(self, message: str, seconds: float | None = None) -> None:
        super().__init__(message)
        self.seconds = seconds


class _RefusedError(Exception):
    """This request isn't taken; another may be."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Doesn't follow: what is sent along, the key, is for the host that was named."""

    def redirect_request(self, *_: Any) -> None:
        """None: the redirect is an error."""


def _endpoint(url: str) -> str:
    """The address that is asked. Raises StageError."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise StageError(f"--judge {url}: takes the address of an OpenAI-compatible API, such as http://HOST:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise StageError(f"--judge: an address with a name or password in it would be recorded; {KEY} holds the key")
    if any(name != "api-version" for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise StageError(f"--judge: what follows ? in an address would be recorded; leave it out, {KEY} holds the key")
    path = parts.path.rstrip("/")
    path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
    return urlunsplit(parts._replace(path=path, fragment=""))


def _content(data: bytes) -> str:
    """The reply's text, "" where the judge said nothing. Raises _AgainError for what is no reply."""
    try:
        content = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _AgainError(f"its answer is no chat completion: {data[:120]!r}") from error
    # JSON can hold half a surrogate pair; the row that keeps the reply can't.
    return content.encode("utf-8", "replace").decode() if isinstance(content, str) else ""


def _message(data: bytes) -> str:
    """What an error's body says, on one line."""
    text = data[:2000].decode("utf-8", "replace")
    try:
        whole = json.loads(data)
        error = whole.get("error", whole)
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    return " ".join(text.split())[:200]

"""What is told of what workers raise."""

from __future__ import annotations

import pytest
import ray

from vig_ray.cluster import failure, footer_readers
from vig_ray.errors import StageError


@ray.remote
class Refusing:
    """An actor whose constructor says what to do about what went wrong."""

    def __init__(self) -> None:
        try:
            raise OSError("disk")
        except OSError as error:
            raise StageError("--model: not there; name another") from error

    def ready(self) -> None:
        """Never."""


def test_what_to_do_is_told_before_the_first_cause(local_ray: None) -> None:
    with pytest.raises(ray.exceptions.RayError) as raised:
        ray.get(Refusing.remote().ready.remote())
    assert str(failure(raised.value, "the work")) == "--model: not there; name another"


@ray.remote(max_retries=0)
def raising(error: Exception) -> None:
    try:
        raise error
    except StageError:
        raise
    except Exception as inner:
        raise RuntimeError("a wrapper") from inner


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StageError("--model: not there"), "--model: not there"),
        (ValueError("two\n    lines of it"), "the work failed: ValueError: two lines of it"),
        (KeyError("name"), "the work failed: KeyError: 'name'"),
    ],
)
def test_the_first_cause_is_told_on_one_line(local_ray: None, error: Exception, told: str) -> None:
    with pytest.raises(ray.exceptions.RayError) as raised:
        ray.get(raising.remote(error))
    assert str(failure(raised.value, "the work")) == told


def test_footers_are_read_by_as_many_actors_as_there_is_work_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    name = "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"
    monkeypatch.delenv(name, raising=False)
    for files, readers in ((1, "1"), (640, "10"), (10**6, "32")):
        with footer_readers(files):
            assert os.environ[name] == readers
        assert name not in os.environ
    monkeypatch.setenv(name, "7")
    with footer_readers(1):
        assert os.environ[name] == "7"

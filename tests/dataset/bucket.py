"""A bucket of an S3 server of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest

from vig_ray import storage

_KEYS: dict[str, Any] = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}


@contextmanager
def bucket_at(endpoint: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A new bucket, and the environment that leads to its server; empty at the end."""
    for variable, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(variable, value)
    storage._s3.cache_clear()
    bucket = boto3.resource("s3", endpoint_url=endpoint, **_KEYS).create_bucket(Bucket=name)
    yield bucket
    bucket.objects.all().delete()
    storage._s3.cache_clear()

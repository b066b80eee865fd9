from pathlib import Path

import pytest

from evomerge.errors import ConfigError
from evomerge.storage.object_store import object_url, open_object_store


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket/pop/run", "s3://bucket/pop/run"),
        (Path("s3://bucket/run"), "s3://bucket/run"),  # pathlib makes one slash of two
        ("S3://bucket/run/", "s3://bucket/run"),
        ("gs://bucket/run", "gs://bucket/run"),
        ("az://container/run", "az://container/run"),
        ("populations/run", None),
        (Path("/a/b"), None),
        ("run", None),
        ("a:b", None),
    ],
)
def test_urls_are_told_from_paths(given, url):
    assert object_url(given) == url


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("s3://key:SECRET@bucket/run", "no user, password or query part"),
        ("s3://bucket/run?X-Amz-Signature=SECRET", "no user, password or query part"),
        ("s3://bucket/run#SECRET", "no user, password or query part"),
        ("file:///tmp/run", "give the path itself"),
        ("https://host/run", "only if it is not there yet"),
        ("memory://x/run", "only if it is not there yet"),
        ("s3://bucket", "expected s3://BUCKET/RUN"),
        ("s3://bucket/../run", "expected s3://BUCKET/RUN"),
        ("s3://bucket/a b", "expected s3://BUCKET/RUN"),
    ],
)
def test_urls_that_cannot_hold_a_run_are_refused_without_showing_secrets(given, says):
    with pytest.raises(ConfigError, match=says) as refused:
        object_url(Path(given))
    assert "SECRET" not in str(refused.value)


def test_plain_http_is_for_this_machine_only(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://192.0.2.1:9000")
    from evomerge.errors import RunError
    from evomerge.storage import object_store

    monkeypatch.setattr(object_store, "RETRY_SECONDS", 0.0)
    with pytest.raises(RunError, match="s3://bucket/run/x: cannot be read"):
        open_object_store("s3://bucket/run").get("x")

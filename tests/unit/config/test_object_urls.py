"""URLs of object stores in the config: which are taken, and that no secret is shown."""

from __future__ import annotations

import pytest

from hvdtrain.config.load import parse_config
from hvdtrain.errors import ConfigError

PHASES = "phases: [{epochs: 1, image_size: 16, batch_per_worker: 4}]"


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://my.bucket-1/some/runs/", "s3://my.bucket-1/some/runs"),
        ("gs://bucket/a b", "gs://bucket/a b"),
        ("gcs://bucket/x", "gcs://bucket/x"),
        ("az://container/x", "az://container/x"),
        ("abfs://container/ümlaut", "abfs://container/ümlaut"),
        ("folder/s3:/x", "folder/s3:/x"),
    ],
)
def test_taken(url: str, taken: str) -> None:
    cfg = parse_config(PHASES, overrides=[f"checkpoint.mirror={url}"])
    assert cfg.checkpoint.mirror == taken


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("s3://bucket/a-{000..199}.tar", "s3://bucket/a-{000..199}.tar"),
        ("s3://bucket/", "s3://bucket"),
        ("gs://bucket/some/a-*.tar", "gs://bucket/some/a-*.tar"),
        ("https://host:8080/a[0-9].tar", "https://host:8080/a[0-9].tar"),
        ("http://[::1]:80/my%20set/", "http://[::1]:80/my%20set"),
        ("folder/s3:/x", "folder/s3:/x"),
    ],
)
def test_datasets_that_are_taken(url: str, taken: str) -> None:
    for key in ("train", "val"):
        cfg = parse_config(PHASES, overrides=[f"data.{key}={url}"])
        assert getattr(cfg.data, key) == taken


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://user:hush1@host/x", "a user or password in a URL is refused"),
        ("s3://AK:hu/sh1@bucket/x", "a user or password in a URL is refused"),
        ("https://host/x?X-Amz-Signature=hush1", "a URL with ? or # is refused"),
        ("https://host/x#hush1", "a URL with ? or # is refused"),
        ("file:///tmp/x", "expected a path, or a URL with http://"),
        ("simplecache::s3://bucket", "expected a path, or a URL with http://"),
        ("https://host", "expected https://HOST/PATH"),
        ("https://host/../x", "expected https://HOST/PATH"),
        ("s3://bucket:80/x", "expected s3://BUCKET/PATH"),
        ("s3://bucket//x", "expected s3://BUCKET/PATH"),
        ("s3://bucket/" + 1000 * "x", "expected s3://BUCKET/PATH"),
    ],
)
def test_datasets_that_are_refused_without_their_secrets(url: str, message: str) -> None:
    for key in ("train", "val"):
        with pytest.raises(ConfigError) as error:
            parse_config(PHASES, overrides=[f"data.{key}={url}"])
        assert message in str(error.value)
        assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://user:hush1@bucket/x", "a user, password or key in a URL is refused"),
        ("s3://hush1@bucket/x", "a user, password or key in a URL is refused"),
        ("s3://AK:hu/sh1@bucket", "a user, password or key in a URL is refused"),
        ("s3://bucket/x?key=hush1", "a user, password or key in a URL is refused"),
        ("gs://bucket/x#hush", "a user, password or key in a URL is refused"),
        ("https://user:hush1@host/x?sig=hush1", "expected a folder, or a URL with s3://, gs://"),
        ("file:///tmp/x", "expected a folder, or a URL with"),
        ("memory://bucket", "expected a folder, or a URL with"),
        ("S3://bucket", "expected a folder, or a URL with"),
        ("simplecache::s3://bucket", "expected a folder, or a URL with"),
        ("os.system://bucket", "expected a folder, or a URL with"),
        ("s3://", "expected s3://BUCKET or s3://BUCKET/PREFIX"),
        ("s3:///x", "expected s3://BUCKET or"),
        ("s3://..", "expected s3://BUCKET or"),
        ("s3://bucket/../x", "expected s3://BUCKET or"),
        ("s3://bucket//x", "expected s3://BUCKET or"),
        ("s3://bucket/*", "expected s3://BUCKET or"),
        ("s3://bucket/a\nb", "expected s3://BUCKET or"),
        ("s3://bucket/" + 1000 * "x", "expected s3://BUCKET or"),
    ],
)
def test_refused_without_its_secrets(url: str, message: str) -> None:
    shown = []
    with pytest.raises(ConfigError) as error:
        parse_config(PHASES, overrides=[f"checkpoint.mirror={url}"])
    shown.append(str(error.value))
    quoted = url.replace("\n", "\\n")
    with pytest.raises(ConfigError) as error:
        parse_config(f'checkpoint: {{mirror: "{quoted}"}}\n{PHASES}')
    shown.append(str(error.value))
    for line in shown:
        assert message in line
        assert "hush" not in line
        assert "\n" not in line
        assert len(line) < 800

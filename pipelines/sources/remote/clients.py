"""How requests reach a web server, S3 and Google Cloud Storage: one interface over their own clients.

Credentials are found by these clients, as their documentation says (netrc; environment and ~/.aws; Google's
application default credentials), and are neither asked for nor shown. Without any, requests are anonymous.
The interface of fsspec, which the mirror of checkpoints uses, hides the ETag of an answer and so does not fit.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from hvdtrain.errors import ConfigError, DataError
from pipelines.sources.remote.faults import passing, refused, root_cause

CONNECT_S = 10.0
STALL_S = 20.0
"""A server that sends nothing for so long has stalled; the request is made again."""
CHUNK = 2**18  # bytes of an answer taken at once
_CONNECTIONS = 64
_PAGES = 1000  # of a listing, of a thousand names each
_GOOGLE = "https://storage.googleapis.com"


class Answer(NamedTuple):
    """An answer of a server whose body is still to be read."""

    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    chunks: Iterator[bytes]


class Client(Protocol):
    """Reaches one kind of store. Safe from several threads."""

    def get(self, url: str, headers: Mapping[str, str]) -> AbstractContextManager[Answer]:
        """The answer to a request with `Range` and `If-Match`, or without. Raises OSError for a fault
        that may pass, DataError for any other."""
        ...

    def names(self, url: str) -> list[str]:
        """The names of the objects directly below `url`, which ends in a slash."""
        ...


def client_for(url: str) -> Client:
    """A new client for a URL. Raises ConfigError if its package is missing."""
    protocol = url.partition("://")[0]
    if protocol == "s3":
        return _S3()
    return _Google() if protocol in ("gs", "gcs") else _Web()


def _need(module: str, protocol: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{protocol}:// needs {module}, which cannot be imported ({reason}): pip install "
            f"'hvdtrain[{extra}]'"
        ) from None


class _Web:
    """A web server: netrc, proxies and certificates as requests finds them."""

    def __init__(self) -> None:
        self._requests = _need("requests", "http", "http")
        self._urllib3 = _need("urllib3", "http", "http")
        self._thread = threading.local()

    @contextlib.contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        with self._faults(url), self._sent(self._address(url), headers, url) as answer:
            yield answer

    def names(self, url: str) -> list[str]:
        raise DataError(
            f"{url}: a web server does not list its files: name tar shards by a pattern such as "
            "shard-{000..099}.tar, or a .txt file with a name on each line"
        )

    @contextlib.contextmanager
    def _sent(self, address: str, headers: Mapping[str, str], url: str) -> Iterator[Answer]:
        asked = {**headers, "Accept-Encoding": "identity"}
        timeout = (CONNECT_S, STALL_S)
        with self._session(url).get(address, headers=asked, stream=True, timeout=timeout) as found:
            low = {name.lower(): value for name, value in found.headers.items()}
            if low.get("content-encoding", "identity") != "identity":
                raise DataError(
                    f"{url}: the server compresses what it sends, found {low['content-encoding'][:20]}"
                )
            yield Answer(found.status_code, low, found.raw.stream(CHUNK, decode_content=False))

    def _session(self, _url: str) -> Any:
        """Of this thread: it keeps its connections open."""
        if not hasattr(self._thread, "session"):
            self._thread.session = self._new_session()
        return self._thread.session

    def _new_session(self) -> Any:
        return self._requests.Session()

    def _address(self, url: str) -> str:
        return url

    @contextlib.contextmanager
    def _faults(self, url: str) -> Iterator[None]:
        """Turn the exceptions of the packages into ours. Their texts may hold secrets, such as a proxy's."""
        lasting = (
            self._requests.exceptions.SSLError,
            self._requests.exceptions.InvalidURL,
            self._requests.exceptions.InvalidSchema,
            self._requests.exceptions.TooManyRedirects,
        )
        slow = (self._requests.exceptions.Timeout, self._urllib3.exceptions.TimeoutError)
        try:
            yield
        except lasting as error:
            raise DataError(f"{url}: {type(error).__name__}: {root_cause(error)}") from None
        except slow:
            raise stalled() from None
        except (
            self._requests.exceptions.RequestException,
            self._urllib3.exceptions.HTTPError,
        ) as error:
            raise passing(root_cause(error)) from None


class _Google(_Web):
    """Google Cloud Storage: its XML interface, which speaks plain HTTP."""

    def __init__(self) -> None:
        super().__init__()
        self._auth = _need("google.auth", "gs", "gs")
        transport = _need("google.auth.transport.requests", "gs", "gs")
        emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")  # as Google's own clients have it
        if emulator and "://" not in emulator:
            emulator = f"http://{emulator}"
        self._base = emulator.rstrip("/") or _GOOGLE
        self._credentials: Any = None
        if not emulator:
            scopes = ["https://www.googleapis.com/auth/devstorage.read_only"]
            with contextlib.suppress(self._auth.exceptions.DefaultCredentialsError):
                self._credentials, _project = self._auth.default(scopes=scopes)
        self._authorized = transport.AuthorizedSession

    def names(self, url: str) -> list[str]:
        bucket, prefix = _bucket_and_key(url)
        found: list[str] = []
        token: str | None = None
        for _page in range(_PAGES):
            query = {"prefix": prefix, "delimiter": "/", "fields": "items(name),nextPageToken"}
            query |= {"pageToken": token} if token else {}
            with self._faults(url):
                answer = self._session(url).get(
                    f"{self._base}/storage/v1/b/{quote(bucket)}/o",
                    params=query,
                    timeout=(CONNECT_S, STALL_S),
                )
                if answer.status_code != 200:
                    raise refused(url, answer.status_code)
                page = answer.json()
            found += [item["name"][len(prefix) :] for item in page.get("items", [])]
            token = page.get("nextPageToken")
            if token is None:
                return found
        raise DataError(f"{url}: more than {_PAGES * 1000:,} objects in it")

    def _new_session(self) -> Any:
        if self._credentials is None:
            return super()._new_session()
        return self._authorized(self._credentials)

    def _address(self, url: str) -> str:
        bucket, key = _bucket_and_key(url)
        return f"{self._base}/{quote(bucket)}/{quote(key, safe='/~')}"

    @contextlib.contextmanager
    def _faults(self, url: str) -> Iterator[None]:
        try:
            with super()._faults(url):
                yield
        except self._auth.exceptions.TransportError:
            raise passing("Google's server for credentials does not answer") from None
        except self._auth.exceptions.GoogleAuthError as error:
            raise DataError(f"{url}: credentials of Google: {type(error).__name__}") from None


class _S3:
    """S3, and what speaks like it (AWS_ENDPOINT_URL)."""

    def __init__(self) -> None:
        self._errors = _need("botocore.exceptions", "s3", "s3")
        self._urllib3 = _need("urllib3", "s3", "s3")
        config = _need("botocore.config", "s3", "s3")
        with self._faults("s3://"):
            session = _need("botocore.session", "s3", "s3").get_session()
            anonymous = session.get_credentials() is None
            unsigned = (
                {"signature_version": _need("botocore", "s3", "s3").UNSIGNED} if anonymous else {}
            )
            self._client = session.create_client(
                "s3",
                config=config.Config(
                    connect_timeout=CONNECT_S,
                    read_timeout=STALL_S,
                    max_pool_connections=_CONNECTIONS,
                    retries={"total_max_attempts": 1},  # ours are counted
                    **unsigned,
                ),
            )

    @contextlib.contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        bucket, key = _bucket_and_key(url)
        conditions = {name.replace("-", ""): value for name, value in headers.items()}
        with self._faults(url):
            try:
                found = self._client.get_object(Bucket=bucket, Key=key, **conditions)
            except self._errors.ClientError as error:
                yield Answer(_status(error), {}, iter(()))
                return
            meta = found["ResponseMetadata"]
            with contextlib.closing(found["Body"]) as body:
                yield Answer(meta["HTTPStatusCode"], meta["HTTPHeaders"], body.iter_chunks(CHUNK))

    def names(self, url: str) -> list[str]:
        bucket, prefix = _bucket_and_key(url)
        found: list[str] = []
        with self._faults(url):
            pages = self._client.get_paginator("list_objects_v2")
            try:
                for number, page in enumerate(
                    pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
                ):
                    if number >= _PAGES:
                        raise DataError(f"{url}: more than {_PAGES * 1000:,} objects in it")
                    found += [item["Key"][len(prefix) :] for item in page.get("Contents", [])]
            except self._errors.ClientError as error:
                raise refused(url, _status(error)) from None
        return found

    @contextlib.contextmanager
    def _faults(self, url: str) -> Iterator[None]:
        slow = (self._errors.ConnectTimeoutError, self._errors.ReadTimeoutError)
        lasting = (
            self._errors.NoCredentialsError,
            self._errors.PartialCredentialsError,
            self._errors.CredentialRetrievalError,
            self._errors.ProfileNotFound,
            self._errors.ParamValidationError,
            self._errors.SSLError,
        )
        try:
            yield
        except (*slow, self._urllib3.exceptions.TimeoutError):
            raise stalled() from None
        except lasting as error:
            raise DataError(f"{url}: {type(error).__name__}: {root_cause(error)}") from None
        except (self._errors.BotoCoreError, self._urllib3.exceptions.HTTPError) as error:
            raise passing(root_cause(error)) from None


def _status(error: Any) -> int:
    """Of botocore's ClientError; 403 where none came, as for credentials that could not be used."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 403))


def _bucket_and_key(url: str) -> tuple[str, str]:
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, key


def stalled() -> OSError:
    """The fault of a server that does not answer, or does not go on."""
    return OSError(errno.ETIMEDOUT, f"no answer for {STALL_S:g} s")

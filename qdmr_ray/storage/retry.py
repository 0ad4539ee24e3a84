"""Decides which failures of an S3-compatible store are retried and for how long; words errors.

    store = Store("http://minio:9000", None)
    bucket = open_bucket(store, "photos")
    size = persistently(lambda: obstore.head(bucket, "key")["size"], store.address)

A store that worked before gets two minutes, so that its hiccups don't end a training run; an
address that never answered gets 20 seconds, so that a wrong one is reported soon.
"""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

from obstore.exceptions import BaseError
from obstore.store import S3Store

from qdmr_ray.errors import QdmrError, SettingsError

if TYPE_CHECKING:
    from obstore.store import ClientConfig

_log = logging.getLogger(__name__)
T = TypeVar("T")

# A failing operation is retried for so long if the store has answered this process before ...
PATIENCE_SECONDS = 120.0
# ... but at least so often: one upload of many gigabytes may take longer than that ...
LEAST_ATTEMPTS = 4
# ... and for so long if the store never has answered.
FIRST_CONTACT_SECONDS = 20.0
# Pauses are drawn from 0 to a bound ("full jitter", AWS Architecture Blog, "Exponential Backoff And
# Jitter"), so that workers that failed together don't retry together.
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
# Shorter failures concern nobody; longer ones explain why a run stands still.
_WARN_AFTER_SECONDS = 5.0

# The handshake of https is part of connecting.
_CONNECT_SECONDS = 5.0
# Seconds without a byte, from the request to the answer and between bytes of the answer.
_ANSWER_SECONDS = 15.0
# An upload's answer comes after all bytes were sent, perhaps over a slow line.
_UPLOAD_ANSWER_SECONDS = 120.0
# A failed part of an upload is retried alone before the whole upload is.
_PART_ATTEMPTS = 4
# S3-compatible stores ignore the region, but a signature needs one.
_DEFAULT_REGION = "us-east-1"
# A run may outlast a session's credentials; botocore renews them 10 to 15 minutes before the end.
_CREDENTIALS_TTL = timedelta(minutes=5)

STORE_ERRORS = (BaseError, FileNotFoundError)
# obstore has a type for few answers only; the others are in its text. A HEAD has no document.
_STATUS = re.compile(r"status code: (\d{3})")
_DOCUMENT = re.compile(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", re.DOTALL)
# The cause of a broken connection, as Rust prints it below the message.
_CAUSE = re.compile(r'(?:message|error): "([^"]+)"|InvalidCertificate\(\s*([^}]*?)[\s,)]*\n\s+}')
_REDIRECT = "Received redirect without LOCATION"
_TRANSIENT_STATUSES = {408, 429, 500, 502, 503, 504}
# These codes come with statuses of lasting failures.
# NoSuchUpload: it was lost with the answer to its end, or with a server; it starts anew.
_TRANSIENT_CODES = {"RequestTimeout", "SlowDown", "InternalError", "NoSuchUpload"}
_CREDENTIAL_CODES = {
    *("ExpiredToken", "IncompleteSignature", "InvalidAccessKeyId", "InvalidClientTokenId"),
    *("InvalidToken", "MissingAuthenticationToken", "SignatureDoesNotMatch"),
    *("TokenRefreshRequired", "UnrecognizedClientException"),
}
_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile or the instance's role"

_answered: set[str] = set()


@dataclass(frozen=True)
class Store:
    """An S3-compatible store; ``endpoint`` is None for Amazon's own."""

    endpoint: str | None
    region: str | None

    def __post_init__(self) -> None:
        if self.endpoint is not None:
            check_endpoint(self.endpoint, "AWS_ENDPOINT_URL or s3_endpoint")

    @property
    def address(self) -> str:
        """The store's name in messages."""
        return self.endpoint or f"Amazon S3 ({self.region or _DEFAULT_REGION})"


def check_endpoint(endpoint: str, setting: str) -> None:
    """Raises SettingsError where a store's address holds more than the place: messages, pages and
    the files of a run show the address, and a password or token in it would be read there."""
    if {*"@?#"} & {*endpoint}:
        shown = re.sub(r"[?#].*", "?…", re.sub(r".*@", "…@", endpoint, flags=re.DOTALL))
        raise SettingsError(
            f"{setting} is {shown!r}, which has a user, a password or a query in it: write "
            f"http://HOST:PORT alone, and set {_CREDENTIALS}"
        )


@lru_cache(maxsize=32)
def open_bucket(store: Store, name: str, uploading: bool = False) -> S3Store:
    """Returns the bucket, opened once for each process; each request is sent once. ``uploading`` is
    for large objects, with time for slow lines and several attempts at each part."""
    seconds = _UPLOAD_ANSWER_SECONDS if uploading else _ANSWER_SECONDS
    options: ClientConfig = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=seconds),
        # The limit of a whole request: an object of many gigabytes may take long.
        "timeout": timedelta(days=1),
    }
    if authority := os.environ.get("AWS_CA_BUNDLE"):
        options["root_certificate"] = Path(authority).read_bytes()
    config: dict[str, Any] = {
        "region": store.region or _DEFAULT_REGION,
        "virtual_hosted_style_request": store.endpoint is None and "." not in name,
        # Not every compatible store deletes many objects in one request.
        "disable_bulk_delete": True,
        **({} if store.endpoint is None else {"endpoint": store.endpoint}),
    }
    if not os.environ.get("AWS_ACCESS_KEY_ID"):
        config |= _from_aws_chain(store.region)
    retries: Any = {"max_retries": _PART_ATTEMPTS - 1 if uploading else 0}
    return S3Store(name, client_options=options, retry_config=retries, **config)


def _from_aws_chain(region: str | None) -> dict[str, Any]:
    """Returns credentials and region of a profile, an SSO session, a web identity or the instance's
    role. Without any, requests are not signed: public data can be read."""
    # Imported here: it takes half a second, and most runs have keys in the environment.
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session()
    found: dict[str, Any] = {"region": region or session.region_name or _DEFAULT_REGION}
    if session.get_credentials() is None:
        return found | {"skip_signature": True}
    return found | {"credential_provider": Boto3CredentialProvider(session, ttl=_CREDENTIALS_TTL)}


class ShortAnswer(BaseError):  # noqa: N818
    """The store sent fewer bytes than the object has."""


class PatienceEnded(BaseError):  # noqa: N818
    """A store kept failing for ``seconds``; ``before``: it had answered this process before."""

    def __init__(self, reason: str, seconds: float, before: bool) -> None:
        super().__init__(reason)
        self.reason, self.seconds, self.before = reason, seconds, before


def persistently(operation: Callable[[], T], address: str) -> T:
    """Returns what ``operation`` returns; after a transient failure, it is called again. Raises
    PatienceEnded if it kept failing, and obstore's own error when trying again cannot help."""
    started = monotonic()
    attempts, warned = 0, False
    while True:
        try:
            result = operation()
        except STORE_ERRORS as error:
            failure, cause = Failure.of(error), error
            if not failure.is_transient:
                if isinstance(error, FileNotFoundError):
                    _answered.add(address)  # "there is no such file" is an answer too
                raise
        else:
            _answered.add(address)
            return result
        attempts += 1
        spent, before = monotonic() - started, address in _answered
        left = (PATIENCE_SECONDS if before else FIRST_CONTACT_SECONDS) - spent
        if left <= 0 and (not before or attempts >= LEAST_ATTEMPTS):
            raise PatienceEnded(failure.reason, spent, before) from cause
        if spent >= _WARN_AFTER_SECONDS and not warned:
            warned = True
            _log.warning("%s fails (%s); trying again for %.0f s", address, failure.reason, left)
        # The exponent is bounded since 2.0 ** 1024 is an error.
        bound = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(attempts - 1, 64))
        pause = random.uniform(0, bound)
        # The last attempt comes when patience ends, not a pause earlier.
        sleep(min(pause, left) if left > 0 else pause)


@dataclass(frozen=True)
class Failure:
    """The contents of an obstore error: the answer's HTTP status and S3 code, if one came."""

    status: int | None
    code: str
    reason: str
    is_transient: bool

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Parses obstore's text, the only place where it keeps status and code."""
        message, _, details = str(error).partition("\n\nDebug source:")
        answer, document = _STATUS.search(message), _DOCUMENT.search(message)
        status = int(answer[1]) if answer else None
        code = document[1] if document else ""
        passing = status in _TRANSIENT_STATUSES or code in _TRANSIENT_CODES
        if status is None:
            lasting = ("InvalidCertificate", "BadScheme", _REDIRECT)
            passing = passing or not any(sign in str(error) for sign in lasting)
        causes = [match[1] or match[2] for match in _CAUSE.finditer(details)]
        causes += ["timeout"] if "TimedOut" in details else []
        reason = " ".join([*causes, message.rpartition(" - ")[2]][0].split())
        if answer or document:
            reason = f"{code}: {document[2]}" if document else f"HTTP status {status}"
        return cls(status, code, reason, passing)


def store_error(uri: str, what: str, address: str, error: Exception) -> QdmrError:
    """Returns a store's error as one line that says what to do. ``what`` is the participle of the
    operation: read, written, listed, deleted."""
    if isinstance(error, PatienceEnded):
        remedy = "check the address (AWS_ENDPOINT_URL or s3_endpoint) and that the store runs"
        if error.before:
            remedy = "see that the store works, then start again"
        return QdmrError(
            f"{uri}: cannot be {what}, {address} gave no usable answer for {error.seconds:.0f} s "
            f"({error.reason}); {remedy}"
        )
    failure = Failure.of(error)
    reason = failure.reason
    if failure.code == "NoSuchBucket":
        bucket = uri.split("/")[2]
        return QdmrError(f"{uri}: {address} has no bucket {bucket}; create it or check the address")
    if isinstance(error, FileNotFoundError):
        return QdmrError(f"{uri}: no such file or folder; check the path")
    if failure.code in _CREDENTIAL_CODES:
        return QdmrError(f"{uri}: {address} refuses the credentials ({reason}); set {_CREDENTIALS}")
    if failure.code == "RequestTimeTooSkewed":
        return QdmrError(f"{uri}: cannot be {what} ({reason}); set this machine's clock")
    if failure.status in (401, 403):
        return QdmrError(
            f"{uri}: access denied by {address}, it cannot be {what}; check the credentials "
            f"({_CREDENTIALS}) and what they allow"
        )
    if _REDIRECT in str(error) or failure.code == "AuthorizationHeaderMalformed":
        return QdmrError(f"{uri}: the bucket lies in another region; set AWS_REGION to it")
    if "InvalidCertificate" in str(error):
        return QdmrError(
            f"{uri}: the certificate of {address} is not trusted ({reason}); add its authority to "
            "this machine's certificates, or name its file in AWS_CA_BUNDLE"
        )
    return QdmrError(f"{uri}: {address} refuses that it is {what} ({reason})")

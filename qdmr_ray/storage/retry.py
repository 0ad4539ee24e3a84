"""Patience with an S3-compatible store: what is tried again, for how long, and what is said.

    store = s3_store("http://minio:9000", None)
    info = persistently(
        lambda: store.trying_once().get_file_info("bucket/key"), address=store.address
    )

A store that worked before is given two minutes, so that its hiccups don't end a training run; an
address that never answered is given a third of a minute, so that a wrong one is told soon.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable
from functools import lru_cache
from time import monotonic, sleep
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from qdmr_ray.errors import QdmrError

_log = logging.getLogger(__name__)
T = TypeVar("T")

# How long a failing operation is tried when the store has answered this process before ...
PATIENCE_SECONDS = 120.0
# ... but at least so often: one upload of many gigabytes may take longer than that.
LEAST_ATTEMPTS = 4
# How long when it never has.
FIRST_CONTACT_SECONDS = 20.0
# Pauses are drawn from 0 to a bound ("full jitter", AWS Architecture Blog, "Exponential Backoff
# And Jitter"), so that workers that failed together don't come back together.
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
# Shorter failures are nobody's concern; longer ones explain why a run stands still.
_WARN_AFTER_SECONDS = 5.0

# pyarrow sends less than 10 MiB in one request when it may open late (measured with 21 and 26).
LARGEST_SINGLE_REQUEST = 8 << 20
# Bounds the handshake of https too. The library's own 1 s is little for a crowded network.
_CONNECT_SECONDS = 5.0
# On Linux: seconds without a byte. The library's own 3 are too few for a store under load.
_ANSWER_SECONDS = 15.0
# The store answers when a part of 10 MiB, or the object made of all parts, is on its disks.
_UPLOAD_ANSWER_SECONDS = 30.0
# Pauses between n attempts grow as 1, 2, 4, 8, 16, 20, 20, ... s, each times a random number from
# 0 to 1: 3.5 s together on average for 4, 105 s for 15 (under 60 s once in 100 times).
_PART_ATTEMPTS = 4
_PATIENT_ATTEMPTS = 15
# S3-compatible stores ignore the region, but a signature needs one.
_DEFAULT_REGION = "us-east-1"

# How pyarrow words an error of the AWS library. An error without a document, such as any answer
# to HEAD, has no name.
_AWS_ERROR = re.compile(
    r"AWS Error (?P<name>UNKNOWN|\[code \d+\]|[A-Z0-9_]+)(?: \(HTTP status (?P<status>\d+)\))?"
    r" during \w+ operation: (?:curlCode: (?P<curl>\d+), )?(?P<text>.*)"
)
# What follows the reason: curl's details and the store's number of the request.
_TRIMMINGS = re.compile(r"; Details: .*| \(Request ID: .*")
_TRANSIENT_NAMES = {
    "NETWORK_CONNECTION",
    "SLOW_DOWN",
    "THROTTLING",
    "REQUEST_TIMEOUT",
    "INTERNAL_FAILURE",
    "SERVICE_UNAVAILABLE",
    # The upload was lost with the answer to its end, or with a server; it starts anew.
    "NO_SUCH_UPLOAD",
}
_TRANSIENT_STATUSES = {"408", "429", "500", "502", "503", "504"}
# curl.se/libcurl/c/libcurl-errors.html: the other side's certificate, or ours to judge it by.
_CERTIFICATE_CURL_CODES = {"51", "58", "60", "77", "83"}
# Deleting many objects is one request, and each that failed is listed in this text.
_DELETE_ERRORS = re.compile(r"Got the following \d+ errors when deleting objects.*\s+- (.*)")
_CREDENTIAL_NAMES = {
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "INVALID_SIGNATURE",
    "INCOMPLETE_SIGNATURE",
    "MISSING_AUTHENTICATION_TOKEN",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNRECOGNIZED_CLIENT",
}
_CREDENTIAL_TEXTS = re.compile(r"ExpiredToken|InvalidToken|TokenRefreshRequired")
_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile or the instance's role"

_answered: set[str] = set()


class S3Store(fs.S3FileSystem):
    """A store as pyarrow and Ray get it: the AWS library itself tries each request for a while.

    Ray Train copies checkpoints through it, out of reach of ``persistently``. ``Location`` does
    its own trying and uses the two others, which belong to the same store.
    """

    def __init__(self, endpoint: str | None, region: str | None) -> None:
        options = _s3_options(endpoint, region, _PATIENT_ATTEMPTS, _UPLOAD_ANSWER_SECONDS)
        super().__init__(**options)
        self._endpoint = endpoint

    def __reduce__(self) -> tuple[Any, ...]:
        # pyarrow's own forgets the attempts.
        return s3_store, (self._endpoint, self.region)

    @property
    def address(self) -> str:
        """What messages call the store."""
        return self._endpoint or f"Amazon S3 ({self.region})"

    def trying_once(self) -> fs.S3FileSystem:
        """Sends each request once, and up to LARGEST_SINGLE_REQUEST bytes in one request."""
        return _s3_trying_once(self._endpoint, self.region)

    def uploading_in_parts(self) -> fs.S3FileSystem:
        """For objects of more bytes: a part that fails is not yet a reason to send all again."""
        return _s3_uploading_in_parts(self._endpoint, self.region)


@lru_cache(maxsize=8)
def s3_store(endpoint: str | None, region: str | None) -> S3Store:
    """The store at ``endpoint`` (None: Amazon's own), one object for each process."""
    return S3Store(endpoint, region)


@lru_cache(maxsize=8)
def _s3_trying_once(endpoint: str | None, region: str | None) -> fs.S3FileSystem:
    options = _s3_options(endpoint, region, 1, _ANSWER_SECONDS)
    try:
        return fs.S3FileSystem(**options, allow_delayed_open=True)
    except TypeError:
        return fs.S3FileSystem(**options)  # pyarrow before 21: three requests for each object


@lru_cache(maxsize=8)
def _s3_uploading_in_parts(endpoint: str | None, region: str | None) -> fs.S3FileSystem:
    # Opened late, an upload whose first request fails leaves an empty object behind (pyarrow 26).
    return fs.S3FileSystem(**_s3_options(endpoint, region, _PART_ATTEMPTS, _UPLOAD_ANSWER_SECONDS))


def _s3_options(
    endpoint: str | None, region: str | None, attempts: int, answer_seconds: float
) -> dict[str, Any]:
    return {
        "endpoint_override": endpoint,
        "region": region if endpoint is None else region or _DEFAULT_REGION,
        "connect_timeout": _CONNECT_SECONDS,
        "request_timeout": answer_seconds,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
    }


class ShortAnswer(OSError):  # noqa: N818
    """The store sent fewer bytes than the object has."""


class PatienceEnded(OSError):  # noqa: N818
    """A store kept failing for ``seconds``; ``before``: it had answered this process before."""

    def __init__(self, reason: str, seconds: float, before: bool) -> None:
        super().__init__(reason)
        self.reason, self.seconds, self.before = reason, seconds, before


def has_answered(address: str) -> bool:
    """Whether the store at ``address`` has done anything for this process."""
    return address in _answered


def persistently(operation: Callable[[], T], *, address: str) -> T:
    """What ``operation`` returns; after a passing failure it is called again, from the start.

    Raises:
        PatienceEnded: it kept failing.
        OSError, pa.ArrowException: what ``operation`` raised, when trying again cannot help.
    """
    started = monotonic()
    attempts, warned = 0, False
    while True:
        try:
            result = operation()
        except FileNotFoundError:
            _answered.add(address)  # "there is no such file" is an answer too
            raise
        except (OSError, pa.ArrowException) as error:
            if not is_transient(error):
                raise
            failure = error
        else:
            _answered.add(address)
            return result
        attempts += 1
        spent, before = monotonic() - started, has_answered(address)
        left = (PATIENCE_SECONDS if before else FIRST_CONTACT_SECONDS) - spent
        if left <= 0 and (not before or attempts >= LEAST_ATTEMPTS):
            raise PatienceEnded(_reason(failure), spent, before) from failure
        if spent >= _WARN_AFTER_SECONDS and not warned:
            warned = True
            _log.warning("%s fails (%s); trying again for %.0f s", address, _reason(failure), left)
        pause = random.uniform(0, _longest_pause(attempts))
        # The last attempt comes when patience ends, not a pause earlier.
        sleep(min(pause, left) if left > 0 else pause)


def _longest_pause(attempts: int) -> float:
    # The exponent is bounded since 2.0 ** 1024 is an error.
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(attempts - 1, 64))


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later; False for every error that is not known."""
    if isinstance(error, ShortAnswer):
        return True
    found = _AWS_ERROR.search(str(error))
    if found is None:
        text = str(error)
        return _DELETE_ERRORS.search(text) is not None and "Access Denied" not in text
    if found["curl"] in _CERTIFICATE_CURL_CODES:
        return False
    return found["name"] in _TRANSIENT_NAMES or found["status"] in _TRANSIENT_STATUSES


def store_error(uri: str, what: str, address: str, error: Exception) -> QdmrError | None:
    """One line that says what to do about an error of a store; None for any other error.

    ``what`` is the participle of what was wanted: read, written, listed, deleted.
    """
    if isinstance(error, PatienceEnded):
        remedy = (
            "see that the store works, then start again"
            if error.before
            else "check the address (AWS_ENDPOINT_URL or s3_endpoint) and that the store runs"
        )
        return QdmrError(
            f"{uri}: cannot be {what}, {address} gave no usable answer for {error.seconds:.0f} s "
            f"({error.reason}); {remedy}"
        )
    found = _AWS_ERROR.search(str(error))
    if found is None:
        failed = _DELETE_ERRORS.search(str(error))
        return QdmrError(f"{uri}: cannot be {what} ({failed[1]})") if failed else None
    name, status, reason = found["name"], found["status"], _reason(error)
    if name == "NO_SUCH_BUCKET":
        return no_bucket(uri, address)
    if name in _CREDENTIAL_NAMES or _CREDENTIAL_TEXTS.search(found["text"]):
        return QdmrError(f"{uri}: {address} refuses the credentials ({reason}); set {_CREDENTIALS}")
    if name == "ACCESS_DENIED" or status in ("401", "403"):
        return QdmrError(
            f"{uri}: access denied by {address}, it cannot be {what}; check the credentials "
            f"({_CREDENTIALS}) and what they allow"
        )
    if name == "REQUEST_TIME_TOO_SKEWED":
        return QdmrError(f"{uri}: cannot be {what} ({reason}); set this machine's clock")
    if status == "301" or "AuthorizationHeaderMalformed" in found["text"]:
        return QdmrError(f"{uri}: the bucket lies in another region; set AWS_REGION to it")
    if found["curl"] in _CERTIFICATE_CURL_CODES:
        return QdmrError(
            f"{uri}: the certificate of {address} is not trusted ({reason}); add its authority to "
            "this machine's certificates"
        )
    return QdmrError(f"{uri}: {address} refuses that it is {what} ({reason})")


def no_bucket(uri: str, address: str) -> QdmrError:
    """Says that the bucket of ``uri``, an ``s3://`` address, does not exist."""
    bucket = uri.split("/")[2]
    return QdmrError(f"{uri}: {address} has no bucket {bucket}; create it or check the address")


def _reason(error: Exception) -> str:
    """The part of a store's error that tells a reader something."""
    message = " ".join(str(error).split())
    found = _AWS_ERROR.search(message)
    if found is None:
        return message
    text = _TRIMMINGS.sub("", found["text"])
    if found["curl"] is not None:
        return text
    if found["status"] is not None:
        document = "" if text.startswith("No response body") else f": {text}"
        return f"HTTP status {found['status']}{document}"
    return text if found["name"].startswith("[") else f"{found['name']}: {text}"

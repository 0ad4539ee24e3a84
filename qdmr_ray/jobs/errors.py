"""Errors of Ray's jobs API as one line each, told apart by type and HTTP status. Their texts are
not searched: they hold names of jobs, which may contain any digits and words."""

import asyncio
import re

from qdmr_ray.errors import QdmrError

# Ray's client raises this text for any answer that isn't good (dashboard_sdk.py, _raise_error).
_FAILED_REQUEST = re.compile(r"Request failed with status code (\d{3}):")


def explained(error: Exception, address: str, job: str | None) -> QdmrError:
    """Returns the error as one line; ``job`` is the one that was asked for or submitted."""
    if isinstance(error, QdmrError):
        return error
    from ray.exceptions import AuthenticationError

    status, text = status_of(error), " ".join(str(error).split())
    if isinstance(error, AuthenticationError) or status in (401, 403):
        return QdmrError(
            f"{address}: refuses without its token; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH=FILE (or RAY_AUTH_TOKEN)"
        )
    if job and status == 404:
        return QdmrError(f"{address}: has no job {job}; qdmr jobs list shows all")
    if job and status and f"submission_id {job} already exists" in text:
        return QdmrError(
            f"{address}: there is a job of this name already, --name {job}; choose another"
        )
    if is_lost(error):
        return QdmrError(f"{address}: no Ray cluster answers there; is the tunnel up?")
    return QdmrError(f"{address}: {text[:300]}")


def status_of(error: Exception) -> int | None:
    """Returns the HTTP status behind an error of Ray's client, or None."""
    status = getattr(error, "status", getattr(getattr(error, "response", None), "status_code", 0))
    if isinstance(status, int) and status:
        return status
    found = _FAILED_REQUEST.match(str(error)) if isinstance(error, RuntimeError) else None
    return int(found[1]) if found else None


def is_lost(error: Exception) -> bool:
    """Returns whether nothing answered, or an answer broke off."""
    import aiohttp
    import requests

    if isinstance(error, requests.exceptions.SSLError | aiohttp.ClientSSLError):
        return False
    return isinstance(
        error,
        ConnectionError
        | requests.exceptions.ConnectionError
        | requests.exceptions.Timeout
        | requests.exceptions.ChunkedEncodingError
        | aiohttp.ClientConnectionError
        | asyncio.TimeoutError,
    )

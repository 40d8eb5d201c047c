"""Files over HTTP: asked for again where a server stumbles, gone on with where a line breaks."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from r1jax.config import ConfigError, DataError

HUB = "https://huggingface.co"  # the only one that sees HF_TOKEN
MIRROR = "R1JAX_MIRROR"  # has https://HOST/PATH as $R1JAX_MIRROR/HOST/PATH
TIMEOUT = 30.0  # seconds without a byte
TRIES = 5  # without a byte between them
PAUSE, LONGEST_PAUSE = 1.0, 120.0  # seconds before the next, doubled each time
PIECE = 1 << 18
MOST_BYTES = 1 << 30  # of a file, which is held in memory

Told = Callable[[int, int], None]  # of bytes that are here, of how many (0: not known)


class _Again(Exception):
    """What may pass; the seconds that the server asks to be left alone."""

    def __init__(self, why: str, seconds: float = 0.0) -> None:
        super().__init__(why)
        self.seconds = seconds


@dataclass
class _File:
    """What has come of a file."""

    data: bytearray = field(default_factory=bytearray)
    size: int = 0  # 0: not known
    etag: str = ""


def download(url: str, told: Told = lambda done, size: None) -> bytes:
    """The content at a URL. DataError, in a sentence, where it cannot be had.

    Proxies are those of the environment (https_proxy, no_proxy), a mirror that of R1JAX_MIRROR.
    """
    asked, file, tries = mirrored(url), _File(), 0
    while True:
        before = len(file.data)
        try:
            _go_on(asked, file, told)
            return bytes(file.data)
        except _Again as error:
            tries = 1 if len(file.data) > before else tries + 1
            if tries >= TRIES:
                raise DataError(f"{asked}: {error}; tried {TRIES} times") from None
            pause = max(PAUSE * 2 ** (tries - 1), error.seconds)
            time.sleep(min(pause, LONGEST_PAUSE))


def mirrored(url: str) -> str:
    """Where a URL is asked for."""
    if not (mirror := os.environ.get(MIRROR, "")):
        return url
    if not mirror.startswith(("http://", "https://")):
        raise ConfigError(f"{MIRROR}={mirror} is no address, expected http://... or https://...")
    return f"{mirror.rstrip('/')}/{url.partition('://')[2]}"


def _go_on(url: str, file: _File, told: Told) -> None:
    """Reads what is missing. _Again where that may help, DataError where not."""
    try:
        opener = urllib.request.build_opener(_Redirects)
        with opener.open(_request(url, file), timeout=TIMEOUT) as response:
            _take(response, file)
            while piece := response.read1(PIECE):  # what is there is kept, should it stall
                file.data += piece
                told(len(file.data), file.size)
                if len(file.data) > MOST_BYTES:
                    raise DataError(f"{url} is larger than {MOST_BYTES:,} bytes")
    except urllib.error.HTTPError as error:
        _refused(url, error, file)
    except ssl.SSLCertVerificationError as error:
        raise _untrusted(url, error) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise _untrusted(url, error.reason) from None
        raise _Again(_no_answer(error.reason)) from None
    except (http.client.HTTPException, OSError) as error:
        raise _Again(_no_answer(error)) from None
    if file.size and len(file.data) != file.size:
        raise _Again(f"the line broke after {len(file.data):,} of {file.size:,} bytes")


def _take(response: Any, file: _File) -> None:
    """Sees where the answer begins: behind what is here, or anew."""
    headers = response.headers
    follows = headers.get("Content-Range", "").startswith(f"bytes {len(file.data)}-")
    if response.status != 206 or not follows:
        file.data.clear()
    if response.status == 206 and not follows:
        raise _Again("another part of the file came than was asked for")
    length = headers.get("Content-Length", "")
    file.size = len(file.data) + int(length) if length.isdigit() else 0
    file.etag = headers.get("ETag", "")


def _refused(url: str, error: urllib.error.HTTPError, file: _File) -> None:
    said = f"HTTP {error.code} {error.reason}".rstrip()
    if error.code == 416:  # the file is another one by now
        file.data.clear()
    if error.code in (408, 416, 425, 429) or error.code >= 500:
        after = (error.headers.get("Retry-After") or "").strip()
        raise _Again(said, float(after) if after.isdigit() else 0.0) from None
    if error.code in (401, 403):
        terms = ""
        if url.startswith(f"{HUB}/"):
            terms = "; accept its terms there and set HF_TOKEN to a token of that account"
        raise DataError(f"{url}: {said}: it may not be read{terms}") from None
    if error.code in (404, 410):
        raise DataError(f"{url}: {said}: its owner has moved or deleted it") from None
    raise DataError(f"{url}: {said}") from None


def _untrusted(url: str, error: ssl.SSLCertVerificationError) -> DataError:
    return DataError(
        f"{url}: its certificate is not trusted ({error.verify_message}); behind a proxy that opens"
        " connections, SSL_CERT_FILE names its certificates"
    )


def _no_answer(error: object) -> str:
    if isinstance(error, socket.gaierror):
        return "no network: the host's name is not known here (behind a proxy, set https_proxy)"
    if isinstance(error, TimeoutError):
        return f"no byte for {TIMEOUT:g} seconds"
    return f"no answer: {error or type(error).__name__}"


def _request(url: str, file: _File) -> urllib.request.Request:
    """A question for a file, or for the rest of it."""
    headers = {"User-Agent": "r1jax", "Accept-Encoding": "identity"}
    if file.data:
        headers["Range"] = f"bytes={len(file.data)}-"
        if file.etag and not file.etag.startswith("W/"):
            headers["If-Range"] = file.etag
    request = urllib.request.Request(url, headers=headers)
    if (token := os.environ.get("HF_TOKEN", "").strip()) and _place(url) == _place(HUB):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return request


def _place(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http(s) alone, never from https to http, and with no token that is for another."""

    def redirect_request(self, req: Any, *answer: Any) -> urllib.request.Request:
        there = urljoin(req.full_url, answer[-1])
        allowed = ("https",) if req.type == "https" else ("http", "https")
        if urlsplit(there).scheme not in allowed:
            raise DataError(f"{req.full_url} leads to {there}, which is not followed")
        request = _request(there, _File())
        for name in ("Range", "If-range"):
            if name in req.headers:
                request.add_header(name, req.headers[name])
        return request

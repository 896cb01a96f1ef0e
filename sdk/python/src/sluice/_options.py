"""The options of a client."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

from sluice.errors import ValidationError
from sluice.types import WriteError

DEFAULT_URL = "http://127.0.0.1:8080"
CLOSE_TIMEOUT = 10.0
SERVER_BATCH_WRITES_MAX = 50_000
SERVER_BATCH_BYTES_MAX = 16 << 20

OnError: TypeAlias = Callable[[WriteError], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The checked options of a client. `Client` documents them."""

    url: str
    api_key: str | None
    batch_writes_max: int
    batch_bytes_max: int
    batch_age_max: float
    queue_writes_max: int
    queue_bytes_max: int
    fail_when_full: bool
    block_timeout: float | None
    retry_for: float | None
    wait_applied: float | None
    request_timeout: float
    gzip: bool
    ca_file: str | os.PathLike[str] | None
    spool_dir: str | os.PathLike[str] | None
    strict: bool
    trace_event_name: str
    on_error: OnError | None

    def __post_init__(self) -> None:
        if not _is_base(self.url):
            raise ValidationError("url", "must be such as http://127.0.0.1:8080")
        if self.api_key is not None and not re.fullmatch("[!-~]+", self.api_key):
            raise ValidationError("api_key", "must be printable ASCII")
        for name in ("batch_writes_max", "batch_bytes_max", "queue_writes_max", "queue_bytes_max"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValidationError(name, "must be a whole number, 1 or more")
        for name, most in (
            ("batch_writes_max", SERVER_BATCH_WRITES_MAX),
            ("batch_bytes_max", SERVER_BATCH_BYTES_MAX),
        ):
            if getattr(self, name) > most:
                raise ValidationError(name, f"must be at most {most}, the server's own limit")
        for name in ("batch_age_max", "block_timeout", "retry_for", "request_timeout"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValidationError(name, "must be seconds, 0 or more")
        if self.wait_applied is not None and not 1 <= self.wait_applied <= 30:
            raise ValidationError("wait_applied", "must be 1 to 30 seconds")
        if not self.request_timeout:
            raise ValidationError("request_timeout", "must be more than 0 seconds")


def _is_base(text: str) -> bool:
    """Whether the text is a URL to which paths can be appended."""
    try:
        url = urlsplit(text)
        return (
            url.scheme in ("http", "https")
            and bool(url.hostname)
            and url.port != 0  # raises ValueError for an invalid port
            and url.username is None
            and not (url.query or url.fragment)
            and re.fullmatch("[!-~]*", text) is not None
        )
    except ValueError:
        return False

"""What can go wrong. Every exception of this package is a `SluiceError`."""

from __future__ import annotations


class SluiceError(Exception):
    """The base of all errors of this package."""


class ValidationError(SluiceError, ValueError):
    """The call was refused and nothing was queued or sent.

    `field` names what is wrong, such as `latency` or `output_embeddings[1]`; it is empty where the
    whole write is, and the option's name where an option of the client is. `detail` says why.
    """

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(field, detail)
        self.field = field
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.field}: {self.detail}" if self.field else self.detail


class QueueFullError(SluiceError):
    """The queue is full and the write was not queued.

    Raised with `fail_when_full`, and without it when `block_timeout` is over.
    """


class ApiError(SluiceError):
    """What the server answered instead of what was asked for.

    `status` is the HTTP status, `code` the server's word for it, such as `unknown_event`, and
    `field` what it is about. An answer that is not the server's own, such as a proxy's, has a
    status only.
    """

    def __init__(self, status: int, code: str = "", detail: str = "", field: str = "") -> None:
        super().__init__(status, code, detail, field)
        self.status = status
        self.code = code
        self.detail = detail
        self.field = field

    def __str__(self) -> str:
        text = f"{self.status} {self.code}".rstrip()
        what = " ".join(part for part in (self.field, self.detail) if part)
        return f"{text}: {what}" if what else text


class NetworkError(SluiceError):
    """The server could not be asked, or its answer not be read."""


class FlushTimeoutError(SluiceError, TimeoutError):
    """A flush or close ran out of time; `left` is how many writes were not answered by then.

    Its `__cause__` is why the last batch was not acknowledged, if it was not.
    """

    def __init__(self, left: int) -> None:
        super().__init__(left)
        self.left = left

    def __str__(self) -> str:
        return f"{self.left} {'write was' if self.left == 1 else 'writes were'} not sent in time"


class ClosedError(SluiceError):
    """The client is closed."""

    def __init__(self) -> None:
        super().__init__("the client is closed")


class SpoolError(SluiceError):
    """The spool's directory cannot be used, or a write not be put there; it was not queued."""


class SpoolInUseError(SpoolError):
    """Another client, of this process or of another one, has the spool's directory open."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.directory = directory

    def __str__(self) -> str:
        return f"the spool directory {self.directory} is in use by another client"

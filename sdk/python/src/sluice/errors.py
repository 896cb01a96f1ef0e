"""The exceptions of this package. Each is a `SluiceError`."""

from __future__ import annotations


class SluiceError(Exception):
    """The base class of all exceptions of this package."""


class ValidationError(SluiceError, ValueError):
    """An argument of the call is invalid. Nothing was queued or sent.

    `field` is the argument's name in the API, such as `latency` or `output_embeddings[1]`, or the
    name of an option. It is empty if the write as a whole is invalid. `detail` says why.
    """

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(field, detail)
        self.field = field
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.field}: {self.detail}" if self.field else self.detail


class QueueFullError(SluiceError):
    """The queue is full and the write was not queued.

    With `fail_when_full`, it is raised at once; otherwise when `block_timeout` is over.
    """


class ApiError(SluiceError):
    """The server refused a request or a write.

    `status` is the HTTP status of the answer, or of the write within a batch. `code` is the code of
    the server's problem document, such as `unknown_event`. `field` is the field or parameter at
    fault, and `detail` an explanation for humans. If a proxy answered, only `status` is set.
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
    """The server could not be reached, or its answer could not be read."""


class FlushTimeoutError(SluiceError, TimeoutError):
    """A flush or close ran out of time.

    `left` is the number of unanswered writes. `__cause__` is the error of the last batch, if the
    batch was not acknowledged.
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
    """The spool's directory cannot be used, or a write could not be written to it.

    The write was not queued.
    """


class SpoolInUseError(SpoolError):
    """Another client, of this or another process, has the spool's directory open."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.directory = directory

    def __str__(self) -> str:
        return f"the spool directory {self.directory} is in use by another client"

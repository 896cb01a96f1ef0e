"""Collects the parts of a stream for the output of its event."""

from __future__ import annotations

import base64
import codecs

from sluice import _payload
from sluice._encode import STREAM_BYTES_MAX, Snapshot


class Parts:
    """Collects the parts of a stream for the output of its event, up to STREAM_BYTES_MAX."""

    def __init__(self) -> None:
        self._kept: list[str | bytes | Snapshot] = []
        self._kinds: set[type] = set()
        self._room = STREAM_BYTES_MAX
        self._bytes = 0
        self._count = 0

    def add(self, part: object) -> None:
        """Adds a copy of a part, as the part is now."""
        kept: str | bytes | Snapshot
        if isinstance(part, str):
            kept = str.__str__(part)
            size = len(kept) if kept.isascii() else len(kept.encode("utf-8", "surrogatepass"))
        elif isinstance(part, (bytes, bytearray, memoryview)):
            kept = bytes(part)
            size = len(kept)
        else:
            encoded = _payload.encode(part, rename=True)
            kept = Snapshot(encoded)
            size = len(encoded)
        self._kinds.add(type(kept))
        self._bytes += size
        self._count += 1
        if size > self._room:
            if self._room > 0 and not isinstance(kept, Snapshot):
                self._kept.append(kept[: self._room])
            self._room = 0
            return
        self._kept.append(kept)
        self._room -= size

    def joined(self) -> bytes:
        """Returns the parts as JSON: texts or bytes joined, other parts as an array."""
        if self._kinds == {str}:
            text = "".join(part for part in self._kept if isinstance(part, str))
            return self._text(text)
        if self._kinds == {bytes}:
            return self._text(
                _decoded(b"".join(part for part in self._kept if isinstance(part, bytes)))
            )
        members = [
            part.json if isinstance(part, Snapshot) else _payload.encode(part)
            for part in self._kept
        ]
        if self._room == 0:
            cut = {"sluice_truncated": {"bytes": self._bytes, "parts": self._count}}
            members.append(_payload.encode(cut))
        return b"[%b]" % b",".join(members)

    def _text(self, text: str) -> bytes:
        if self._room == 0 and self._bytes > STREAM_BYTES_MAX:
            text = f"{text}… [sluice_truncated: {self._bytes} bytes]"
        return _payload.encode(text)


def _decoded(data: bytes) -> str:
    """Decodes bytes as UTF-8, whose last character may be incomplete; other bytes as base64."""
    try:
        decoder = codecs.getincrementaldecoder("utf-8")()
        text = decoder.decode(data)
    except UnicodeDecodeError:
        return base64.b64encode(data).decode()
    return text + "\ufffd" if decoder.getstate()[0] else text

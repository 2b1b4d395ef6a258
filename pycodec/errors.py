"""The exceptions of pycodec: what goes wrong with a picture or a file is a :class:`CodecError`."""

from __future__ import annotations


class CodecError(Exception):
    """Something is wrong with a picture, a file or an argument.

    The message is one line that says what is wrong, where, and what to do about it.

    Args:
        message: the line.
        section: name of the file section in which the fault lies, if it lies in one.
        offset: byte offset of the fault from the start of the file, if it is known.
    """

    def __init__(
        self, message: str = "", *, section: str | None = None, offset: int | None = None
    ) -> None:
        super().__init__(message)
        self.section = section
        self.offset = offset

    def __str__(self) -> str:
        where = []
        if self.section is not None:
            where.append(f"section {self.section}")
        if self.offset is not None:
            where.append(f"byte {self.offset}")
        message = super().__str__()
        return f"{message} ({', '.join(where)})" if where else message


class CorruptStreamError(CodecError):
    """The data are damaged or truncated."""


class UnsupportedError(CodecError):
    """The data are valid, but need a newer version, another model or another build."""


class InputError(CodecError, ValueError):
    """The caller's picture or argument cannot be used."""

"""Folders to read from and write to: of this machine, or fsspec URLs such as ``s3://bucket/a``.

Paths are relative to their folder, with ``/`` between the parts. A file is written whole or not at
all. Folders can be sent to other processes and machines.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from pycodec.errors import CodecError, InputError
from pycodec.images import atomic_write

STATE_FOLDER = ".pycodec-batch"
"""Holds what a batch knows about its folder, and files that are being written; never listed."""
TEMPORARY = f"{STATE_FOLDER}/tmp"

# Where a file appears as a whole when its upload ends: a temporary name would only cost a copy.
_ATOMIC_PROTOCOLS = frozenset(
    ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "r2", "memory")
)
# What tells a file's content from an older one, in the words of the file systems of fsspec.
_VERSION_KEYS = (
    *("ETag", "etag", "md5Hash", "content_md5", "checksum"),
    *("mtime", "LastModified", "last_modified", "modified", "updated", "created"),
)


@dataclass(frozen=True)
class FileInfo:
    """A file in a folder.

    Attributes:
        path: relative to the folder.
        size: in bytes.
        version: changes whenever the content does; empty if the file system cannot tell.
    """

    path: str
    size: int
    version: str


def open_folder(url: str | os.PathLike) -> LocalFolder | UrlFolder:
    """The folder at a path or an fsspec URL; it need not exist.

    Raises:
        CodecError: fsspec, or what it needs for this kind of URL, is not installed.
        InputError: the URL is not understood.
    """
    url = os.fspath(url)
    return UrlFolder(url) if "://" in url else LocalFolder(url)


@contextlib.contextmanager
def open_file(url: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file at a path or an fsspec URL, open for reading.

    Raises:
        InputError: it cannot be opened.
        CodecError: see :func:`open_folder`.
    """
    url = os.fspath(url)
    opener = _import_fsspec().open if "://" in url else open
    stack = contextlib.ExitStack()
    try:
        file = stack.enter_context(opener(url, "rb"))
    except ImportError as error:
        raise CodecError(f"{url}: {error}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{url}: cannot be read: {_reason(error)}") from error
    with stack:
        yield file


def read_file(url: str | os.PathLike) -> bytes:
    """The content of a file at a path or an fsspec URL; raises as :func:`open_file`."""
    with open_file(url) as file:
        try:
            return file.read()
        except OSError as error:
            raise InputError(f"{os.fspath(url)}: cannot be read: {_reason(error)}") from error


class LocalFolder:
    """A folder of this machine, or one that is mounted on it."""

    def __init__(self, path: str) -> None:
        self.url = path
        self._root = os.path.abspath(path)

    def full_path(self, path: str) -> str:
        return os.path.join(self._root, path)

    def location(self, path: str) -> str:
        """What :func:`open_file` takes."""
        return self.full_path(path)

    def exists(self) -> bool:
        return os.path.isdir(self._root)

    def list(
        self, below: str = "", on_error: Callable[[str, OSError], None] | None = None
    ) -> Iterator[FileInfo]:
        """All files of the folder ``below`` and its subfolders, sorted; links to folders are not
        followed.

        Args:
            on_error: called with a path that cannot be looked at, and why; None: errors are raised.
        """
        try:
            with os.scandir(self.full_path(below) if below else self._root) as entries:
                entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if on_error is None:
                raise
            on_error(below or ".", error)
            return
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != STATE_FOLDER:
                        yield from self.list(path, on_error)
                elif entry.is_file():
                    status = entry.stat()
                    yield FileInfo(path, status.st_size, str(status.st_mtime_ns))
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    raise FileNotFoundError(errno.ENOENT, "the link leads nowhere", entry.path)
            except OSError as error:
                if on_error is None:
                    raise
                on_error(path, error)

    def read(self, path: str) -> bytes | None:
        """The content of a file, or None if there is none.

        Raises:
            InputError: it cannot be read.
        """
        try:
            with open(self.full_path(path), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {_reason(error)}") from error

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole or not at all, and the folders that lead to it.

        Raises:
            CodecError: it cannot be written.
        """
        target, temporary = self.full_path(path), self.full_path(TEMPORARY)
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.makedirs(temporary, exist_ok=True)
        except OSError as error:
            raise CodecError(f"{path}: its folder cannot be made: {_reason(error)}") from error
        atomic_write(target, data, temporary_folder=temporary)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        try:
            os.unlink(self.full_path(path))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise CodecError(f"{path}: cannot be removed: {_reason(error)}") from error

    def names(self, folder: str) -> list[str]:
        """Names of the files in one folder, sorted; none if there is no such folder."""
        try:
            return sorted(os.listdir(self.full_path(folder)))
        except FileNotFoundError:
            return []


class UrlFolder:
    """A folder that fsspec reaches."""

    def __init__(self, url: str) -> None:
        self.url = url
        fsspec = _import_fsspec()
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise CodecError(f"{url}: {error}") from error
        except ValueError as error:
            raise InputError(f"{url}: {error}") from error
        self._root = root.rstrip("/")
        protocols = self._fs.protocol
        protocols = {protocols} if isinstance(protocols, str) else set(protocols)
        self._atomic = bool(protocols & _ATOMIC_PROTOCOLS)

    def __reduce__(self) -> tuple[Any, ...]:
        return UrlFolder, (self.url,)  # connections stay where they are

    def full_path(self, path: str) -> str:
        return f"{self._root}/{path}"

    def location(self, path: str) -> str:
        """As :meth:`LocalFolder.location`."""
        return f"{self.url.rstrip('/')}/{path}"

    def exists(self) -> bool:
        self._fs.invalidate_cache()
        return self._fs.isdir(self._root)

    def list(
        self, below: str = "", on_error: Callable[[str, OSError], None] | None = None
    ) -> Iterator[FileInfo]:
        """As :meth:`LocalFolder.list`."""
        top = self.full_path(below) if below else self._root
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(top, detail=True)
        except OSError as error:
            if on_error is None:
                raise
            on_error(below or ".", error)
            return
        for full, info in sorted(found.items()):
            path = full[len(self._root) + 1 :]
            if STATE_FOLDER not in path.split("/"):
                version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
                yield FileInfo(path, info.get("size") or 0, version)

    def read(self, path: str) -> bytes | None:
        """As :meth:`LocalFolder.read`."""
        try:
            return self._fs.cat_file(self.full_path(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # each file system has its own kinds
            raise InputError(f"{path}: cannot be read: {_reason(error)}") from error

    def write(self, path: str, data: bytes) -> None:
        """As :meth:`LocalFolder.write`."""
        target = self.full_path(path)
        try:
            self._fs.makedirs(posixpath.dirname(target), exist_ok=True)
            if self._atomic:
                self._fs.pipe_file(target, data)
                return
            self._fs.makedirs(self.full_path(TEMPORARY), exist_ok=True)
            temporary = self.full_path(f"{TEMPORARY}/{secrets.token_hex(8)}")
            try:
                self._fs.pipe_file(temporary, data)
                if self._fs.isdir(target):  # it would be moved into the folder
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
                self._fs.mv(temporary, target)
            except BaseException:
                self._fs.invalidate_cache()
                if self._fs.exists(temporary):
                    self._fs.rm_file(temporary)
                raise
        except Exception as error:
            raise CodecError(f"{path}: cannot be written: {_reason(error)}") from error

    def remove(self, path: str) -> None:
        """As :meth:`LocalFolder.remove`."""
        try:
            self._fs.rm_file(self.full_path(path))
        except FileNotFoundError:
            pass
        except Exception as error:
            raise CodecError(f"{path}: cannot be removed: {_reason(error)}") from error

    def names(self, folder: str) -> list[str]:
        """As :meth:`LocalFolder.names`."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self.full_path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(posixpath.basename(full) for full in found)


Folder = LocalFolder | UrlFolder


def _import_fsspec() -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise CodecError("URLs need the package fsspec: pip install 'pycodec[data]'") from error
    return fsspec


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None)
    return text.lower() if text else str(error) or type(error).__name__

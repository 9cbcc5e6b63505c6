"""The images of a multipart body, read into memory within the limits; no file is written."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NamedTuple

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vitcls.serve.limits import Guest, Limits, Refusal

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "image"
_LONGEST_NAME = 255  # characters of a file's name that are repeated to its client
# What is still read of a body that is refused, and how long: a client that is cut off while it sends
# sees a broken connection instead of the reason.
_LEFT_TO_READ, _SECONDS_TO_READ = 8_000_000, 2.0


class Upload(NamedTuple):
    """An image file as it was sent.

    Attributes:
        name: that the client gave it, or its place in the request.
        data: its bytes; of one that is too large, none.
        is_too_large: whether it has more bytes than are taken.
    """

    name: str
    data: bytes
    is_too_large: bool


async def read_uploads(request: Request, limits: Limits, guest: Guest) -> list[Upload]:
    """Read the body of a request.

    Args:
        request: whose body has not been read.
        limits: of each image and of their number.
        guest: takes a place for each image as it begins.

    Returns:
        its images, at least one.

    Raises:
        Refusal: 400, 408, 413, 415, 422 or 429.
    """
    boundary, parts, stream = _boundary(request), _Parts(limits, guest), request.stream()
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        _check_length(request, limits)
        async with asyncio.timeout(limits.timeout):
            await _parse(stream, parser, limits.max_body)
    except FormParserError as error:
        raise Refusal(400, "The body is no multipart/form-data that can be read.") from error
    except TimeoutError as error:
        raise Refusal(408, f"The body did not arrive within {limits.timeout:g} seconds.") from error
    except Refusal:
        await _read_on(stream)
        raise
    return parts.uploads()


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise Refusal(415, f"Send the images as multipart/form-data, each in a field {FIELD!r}.")
    if not options.get(b"boundary"):
        raise Refusal(400, "The content type names no boundary.")
    return options[b"boundary"]


def _check_length(request: Request, limits: Limits) -> None:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.max_body:
        raise _body_too_large(limits.max_body)


async def _parse(stream: AsyncIterator[bytes], parser: MultipartParser, max_body: int) -> None:
    read = 0
    async for chunk in stream:
        read += len(chunk)
        if read > max_body:  # whatever its length was said to be
            raise _body_too_large(max_body)
        parser.write(chunk)
    parser.finalize()


def _body_too_large(max_body: int) -> Refusal:
    return Refusal(413, f"The body is larger than {max_body:,} bytes, the most that is taken.")


async def _read_on(stream: AsyncIterator[bytes]) -> None:
    """Let the client finish sending, so that it reads why it is refused."""
    read = 0
    try:
        async with asyncio.timeout(_SECONDS_TO_READ):
            async for chunk in stream:
                read += len(chunk)
                if read > _LEFT_TO_READ:
                    return
    except TimeoutError:
        return


class _Parts:
    """The parts of a body, as the parser meets them."""

    def __init__(self, limits: Limits, guest: Guest) -> None:
        self._limits = limits
        self._guest = guest
        self._uploads: list[Upload] = []
        self._data = bytearray()
        self._header = b""
        self._headers: dict[bytes, bytes] = {}
        self._value = b""
        self._is_too_large = False
        self._has_ended = False

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._field,
            "on_header_value": self._more_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._check_field,
            "on_part_data": self._more,
            "on_part_end": self._finish,
            "on_end": self._end,
        }

    def uploads(self) -> list[Upload]:
        """All of them, once the body is read."""
        if not self._has_ended:
            raise Refusal(400, "The body ends before its last boundary.")
        if not self._uploads:
            raise Refusal(422, f"There is no image in the request; send each in a field {FIELD!r}.")
        return self._uploads

    def _begin(self) -> None:
        if len(self._uploads) >= self._limits.max_images:
            raise Refusal(413, f"The request has more than {self._limits.max_images} images, the most that are taken.")
        self._guest.take()
        self._data, self._headers, self._is_too_large = bytearray(), {}, False
        self._header = self._value = b""

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _more_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _check_field(self) -> None:
        field = self._option(b"name")
        if field != FIELD:
            raise Refusal(
                422,
                f"The request has a field {field[:_LONGEST_NAME]!r}; it takes images alone, each in a field {FIELD!r} "
                "(what else is asked stands in the address, such as ?top_k=3).",
            )

    def _more(self, data: bytes, start: int, end: int) -> None:
        self._is_too_large |= len(self._data) + end - start > self._limits.max_bytes
        if self._is_too_large:
            self._data.clear()
        else:
            self._data += data[start:end]

    def _finish(self) -> None:
        name = self._option(b"filename") or f"{FIELD} {len(self._uploads) + 1}"
        self._uploads.append(Upload(name[:_LONGEST_NAME], bytes(self._data), self._is_too_large))
        self._data = bytearray()

    def _end(self) -> None:
        self._has_ended = True

    def _option(self, name: bytes) -> str:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        return options.get(name, b"").decode(errors="replace")

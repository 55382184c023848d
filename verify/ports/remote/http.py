"""A server as a port: each question is one POST."""

from __future__ import annotations

import io
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from verify.errors import PortError, UsageError
from verify.ports.port import Dtype, Floats, Port, Tokens
from verify.ports.remote.process import TIMEOUT
from verify.ports.remote.protocol import Refused, answer, question

_NAMED = {"http": HTTPConnection, "https": HTTPSConnection}


class HttpPort(Port):
    """A server that answers ``POST`` at one address.

    A status of 400, 413 or 422 refuses the question; any other than 200 is an error of the port.

    Args:
        url: ``http://localhost:8000/logits``.
        dtype: what it declares to compute in.
        timeout: seconds without a byte.
    """

    def __init__(self, url: str, dtype: Dtype | None = None, timeout: float = TIMEOUT) -> None:
        self.name = url
        self.dtype = dtype or "float32"
        self.weights_from = url
        self._timeout = timeout
        parts = urlsplit(url)
        if parts.scheme not in _NAMED or not parts.hostname:
            raise UsageError(f"--port {url}: not the address of a server")
        self._scheme, self._host, self._port = parts.scheme, parts.hostname, parts.port
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def logits(self, tokens: Tokens) -> Floats:
        # One connection for each question: servers close idle ones when they like.
        connection = _NAMED[self._scheme](self._host, self._port, timeout=self._timeout)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", self._target, question(tokens), headers)
            response = connection.getresponse()
            body = response.read()
        except TimeoutError:
            raise PortError(f"{self.name}: no answer within {self._timeout:g} s") from None
        except (OSError, HTTPException) as e:
            raise PortError(f"{self.name}: {_words(e)}") from None
        finally:
            connection.close()
        if response.status in (400, 413, 422):
            said = body[:400].decode(errors="replace").strip()
            raise Refused(f"{self.name}: refused with status {response.status}: {said}")
        if response.status != 200:
            raise PortError(f"{self.name}: status {response.status} {response.reason}")
        try:
            # A body needs no end of line.
            return answer(io.BytesIO(body if body.endswith(b"\n") else body + b"\n"), self.name)
        except EOFError:
            raise PortError(f"{self.name}: the answer of {len(body)} bytes is cut short") from None


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__

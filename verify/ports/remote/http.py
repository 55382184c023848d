"""A server as a port: each question is one POST."""

from __future__ import annotations

import io
import socket
import ssl
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import urlsplit

from gpt_verify.errors import PortError, Refused, UsageError, shortened
from gpt_verify.port import Dtype, Floats, Port, Tokens
from gpt_verify.ports.remote.process import TIMEOUT
from gpt_verify.ports.remote.protocol import LARGEST_VOCABULARY, answer, largest, question
from gpt_verify.ports.remote.timed import Deadline, TimedSocket

_PORTS = {"http": 80, "https": 443}
#: Bytes of an answer without logits that are read, to quote some of them.
_QUOTED = 4096


class HttpPort(Port):
    """A server that answers ``POST`` at one address.

    A status of 400, 413 or 422 refuses the question; any other than 200 is an error of the port.
    Nothing is asked of any other address than this one: a redirection is an error, too.

    Args:
        url: ``http://localhost:8000/logits``.
        dtype: what it declares to compute in.
        timeout: seconds that one answer may take, from the first to its last byte.
        vocabulary: how many logits a position has, by which it is known how long an answer may be.
    """

    def __init__(
        self,
        url: str,
        dtype: Dtype | None = None,
        timeout: float = TIMEOUT,
        vocabulary: int = LARGEST_VOCABULARY,
    ) -> None:
        self.name = url
        self.dtype = dtype or "float32"
        self.weights_from = url
        self._timeout, self._vocabulary = timeout, vocabulary
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as e:  # a port that is no number, a bracket that is not closed
            raise UsageError(f"--port {url}: not the address of a server: {e}") from None
        if parts.scheme not in _PORTS or not parts.hostname:
            raise UsageError(f"--port {url}: not the address of a server")
        self._host, self._port = parts.hostname, port or _PORTS[parts.scheme]
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def logits(self, tokens: Tokens) -> Floats:
        most = largest(tokens, self._vocabulary)
        # One connection for each question: servers close idle ones when they like.
        deadline = Deadline(self._timeout)
        try:
            with self._connected(deadline) as connected:
                connection = HTTPConnection(self._host, self._port)
                connection.sock = TimedSocket(connected, deadline)
                headers = {"Content-Type": "application/json", "Connection": "close"}
                connection.request("POST", self._target, question(tokens), headers)
                response = connection.getresponse()
                body = response.read(most + 1 if response.status == 200 else _QUOTED)
        except TimeoutError:
            raise PortError(f"{self.name}: no answer within {self._timeout:g} s") from None
        except (OSError, HTTPException, ValueError) as e:  # ValueError: a target with a space
            raise PortError(f"{self.name}: {_message(e)}") from None
        return self._understood(response, body, most)

    def _understood(self, response: HTTPResponse, body: bytes, most: int) -> Floats:
        if response.status in (400, 413, 422):
            said = shortened(body.decode(errors="replace"))
            raise Refused(f"{self.name}: refused with status {response.status}: {said}")
        if 300 <= response.status < 400:
            where = shortened(response.getheader("Location") or "nowhere")
            raise PortError(
                f"{self.name}: status {response.status}, on to {where}, which is not followed"
            )
        if response.status != 200:
            reason = shortened(response.reason or "")
            raise PortError(f"{self.name}: status {response.status} {reason}".rstrip())
        if len(body) > most:
            raise PortError(f"{self.name}: answered with more than {most} bytes")
        try:
            # A body needs no end of line.
            whole = body if body.endswith(b"\n") else body + b"\n"
            return answer(io.BytesIO(whole), self.name, most + 1)
        except EOFError:
            raise PortError(f"{self.name}: the answer of {len(body)} bytes is cut short") from None

    def _connected(self, deadline: Deadline) -> socket.socket:
        """A connection to the first address of the host that has one."""
        problem: OSError = OSError("the host has no address")
        kind = socket.SOCK_STREAM
        for family, _, protocol, _, address in socket.getaddrinfo(
            self._host, self._port, type=kind
        ):
            connected = socket.socket(family, kind, protocol)
            try:
                connected.settimeout(deadline.rest())
                connected.connect(address)
                # Headers and body go out one after the other, and shall not wait for each other.
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    connected.settimeout(deadline.rest())  # for the whole handshake
                    return self._tls.wrap_socket(connected, server_hostname=self._host)
                return connected
            except TimeoutError:
                connected.close()
                raise
            except OSError as e:
                connected.close()
                problem = e
        raise problem


def _message(error: Exception) -> str:
    return shortened(str(error) or type(error).__name__)

"""An RTSP server for one client: plays an MPEG transport stream over the connection itself (RFC 2326, 10.12)."""

import socket
import struct
import threading
from contextlib import contextmanager

SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=film\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track1\r\n"
RTP = 188 * 7  # bytes of a transport stream in a packet


def _answer(number: str, *headers: str, body: str = "", status: str = "200 OK") -> bytes:
    lines = [f"RTSP/1.0 {status}", f"CSeq: {number}", *headers, *([f"Content-Length: {len(body)}"] if body else [])]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def _play(connection, stream: bytes) -> None:
    for number, start in enumerate(range(0, len(stream), RTP)):
        packet = struct.pack(">BBHII", 0x80, 33, number & 0xFFFF, number, 1) + stream[start : start + RTP]
        connection.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)


def _serve(server, stream: bytes) -> None:
    connection, _ = server.accept()
    with connection, connection.makefile("rb") as requests:
        while request := requests.readline().decode().split():
            headers = {}
            while line := requests.readline().decode().strip():
                name, _, headers[name.lower()] = (part.strip() for part in line.partition(":"))
            number, transport = headers["cseq"], headers.get("transport", "")
            if request[0] == "OPTIONS":
                connection.sendall(_answer(number, "Public: DESCRIBE, SETUP, PLAY"))
            elif request[0] == "DESCRIBE":
                connection.sendall(_answer(number, "Content-Type: application/sdp", body=SDP))
            elif request[0] == "SETUP" and "TCP" not in transport:
                connection.sendall(_answer(number, status="461 Unsupported Transport"))
            elif request[0] == "SETUP":
                connection.sendall(_answer(number, f"Transport: {transport}", "Session: 1"))
            elif request[0] == "PLAY":
                connection.sendall(_answer(number, "Session: 1"))
                _play(connection, stream)
                return


@contextmanager
def served(stream: bytes):
    """The address at which the stream is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_serve, args=(server, stream), daemon=True)
        thread.start()
        yield f"rtsp://127.0.0.1:{server.getsockname()[1]}/film"
        thread.join()

"""HTTP and S3 servers on loopback that misbehave: answers have, in turn, the faults of a bad network."""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from typing import Any

from werkzeug.serving import make_server

FAULTS = ("drop", "stall", "503", "short", "cut")
"""No answer; none in time; "unavailable"; fewer bytes than were asked for; fewer than the header says."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool):
        fault = self.server.next_fault()
        path = Path(self.server.folder) / self.path.lstrip("/").partition("?")[0]
        if fault == "stall":
            self.server.over.wait(5)  # longer than the client's patience
        if fault in ("drop", "stall"):
            self.close_connection = True
            return
        if fault == "503" or not path.is_file():
            self.send_error(503 if fault == "503" else 404)
            return
        data, status = path.read_bytes(), 200
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and self.server.ranges:
            start, end = int(asked[1]), int(asked[2] or len(data) - 1)
            size, data, status = len(data), data[start : end + 1], 206
        if fault == "short" and asked and len(data) > 1:
            data = data[: len(data) // 2]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{size}")
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{zlib.crc32(path.read_bytes())}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
            self.close_connection = fault == "cut"

    def log_message(self, format: str, *args: Any):
        pass


@contextmanager
def http_server(folder: Path, faults: Sequence[str | None] = (None,), ranges: bool = True) -> Iterator[str]:
    """Serves a folder's files; the URL of the folder. The faults come in turn, over all connections."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.ranges, server.over = folder, ranges, threading.Event()
    server.daemon_threads = True
    turns, lock = cycle(faults), threading.Lock()

    def next_fault():
        with lock:
            return next(turns)

    server.next_fault = next_fault
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def s3_server(bucket: str, folder: Path, faults: Sequence[str | None] = (None,)) -> Iterator[dict[str, Any]]:
    """moto's S3 with a folder's files in a bucket; gives what fsspec needs to reach it. Faults hit GETs."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    moto = DomainDispatcherApplication(create_backend_app)
    turns, lock = cycle(faults), threading.Lock()

    def application(environ, start_response):
        faulty = environ["REQUEST_METHOD"] == "GET" and environ.get("HTTP_RANGE")
        with lock:
            fault = next(turns) if faulty else None
        if fault == "503":
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        body = b"".join(moto(environ, start_response))
        return [body[: len(body) // 2] if fault == "cut" else body]

    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    options = {"endpoint_url": f"http://127.0.0.1:{server.port}", "key": "test", "secret": "test"}
    try:
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=options["endpoint_url"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.iterdir()):
            client.put_object(Bucket=bucket, Key=path.name, Body=path.read_bytes())
        client.close()
        yield options
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

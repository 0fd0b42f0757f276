"""HTTP, S3 and GCS servers and a hub on loopback, whose answers have, in turn, faults of a bad network."""

from __future__ import annotations

import json
import re
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from werkzeug.serving import make_server

FAULTS = ("drop", "stall", "503", "short", "cut")
"""No answer; none in time; "unavailable"; fewer bytes than were asked for; fewer than the header says.

Other numbers are answers, too.
"""
HUB_DATASET = "someone/something"
GCS_BUCKET = "data"


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
        if (fault or "").isdigit() or not path.is_file():
            self.send_error(int(fault) if fault and fault.isdigit() else 404)
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

    def _say(self, what: Any):
        body = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any):
        pass


class _Hub(_Handler):
    """What Hugging Face's client asks of a data set: that it is there, its files, and what each is."""

    def do_GET(self):
        if self.path.startswith(f"/api/datasets/{HUB_DATASET}"):
            self._say(self._files() if "/tree/" in self.path else {"id": HUB_DATASET})
            return
        self.path = self.path.removeprefix(f"/datasets/{HUB_DATASET}/resolve/main")
        super().do_GET()

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._say([file for file in self._files() if file["path"] in asked])

    def _files(self) -> list[dict[str, Any]]:
        files = sorted(Path(self.server.folder).iterdir())
        return [
            {
                "type": "file",
                "path": file.name,
                "size": file.stat().st_size,
                "oid": str(zlib.crc32(file.read_bytes())),
            }
            for file in files
        ]


class _Gcs(_Handler):
    """What gcsfs asks of Google Cloud Storage: the objects of a bucket, what each is, and its bytes."""

    def do_GET(self):
        url = urlsplit(self.path)
        objects = {path.name: path for path in sorted(Path(self.server.folder).iterdir())}
        place, _, name = url.path.partition(f"/b/{GCS_BUCKET}/o")
        if place.startswith("/download"):
            self.path = name
            super().do_GET()
        elif not name:
            prefix = parse_qs(url.query).get("prefix", [""])[0]
            self._say({"items": [_object(path) for path in objects.values() if path.name.startswith(prefix)]})
        elif path := objects.get(name.removeprefix("/")):
            self._say(_object(path))
        else:
            self.send_error(404)


def _object(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"bucket": GCS_BUCKET, "name": path.name, "size": str(len(data)), "etag": str(zlib.crc32(data))}


@contextmanager
def gcs_server(folder: Path, faults: Sequence[str | None] = (None,)) -> Iterator[str]:
    """Google Cloud Storage whose only bucket, `GCS_BUCKET`, has a folder's files. Faults hit their bytes."""
    with http_server(folder, faults, handler=_Gcs) as url:
        yield url


@contextmanager
def hub_server(folder: Path, faults: Sequence[str | None] = (None,)) -> Iterator[str]:
    """A hub whose only data set, `HUB_DATASET`, has a folder's files; its endpoint. Faults hit the files."""
    with http_server(folder, faults, handler=_Hub) as url:
        yield url


@contextmanager
def http_server(
    folder: Path,
    faults: Sequence[str | None] = (None,),
    ranges: bool = True,
    handler: type[BaseHTTPRequestHandler] = _Handler,
) -> Iterator[str]:
    """Serves a folder's files; the URL of the folder. The faults come in turn, over all connections."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), handler)
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

"""An S3 store for tests: moto's server in a separate process, behind a proxy in this process that injects faults."""

import hashlib
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

BUCKET = "bucket"
REGION = "us-east-1"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}
_DELAY_S = 0.3
# moto shows objects only to their owner; it does not check signatures.
_OWNER = f"AWS4-HMAC-SHA256 Credential=test/20260101/{REGION}/s3/aws4_request, SignedHeaders=host, Signature=none"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "date", "server"}


@dataclass(frozen=True)
class Faults:
    """The share of requests per kind of fault, and patterns of requests that always fail.

    The draw depends on the seed, the request and how often it was made, but not on the order of threads.
    """

    seed: int = 0
    slow_down: float = 0.0  # answered 503 SlowDown
    delay: float = 0.0  # response is delayed
    cut_upload: float = 0.0  # PUT and POST: cut off in the middle of the request body
    cut_download: float = 0.0  # GET: cut off in the middle of the response body
    refuse_writes: str | None = None  # pattern of keys that cannot be written
    refuse_reads: str | None = None  # pattern of keys that cannot be read
    silent_first: str | None = None  # pattern of keys whose first request of each kind gets no response
    hold_writes: str | None = None  # pattern of keys whose uploads stop half-way and never finish


class ObjectStore:
    """A running store with one bucket."""

    def __init__(self, port: int, host: str) -> None:
        self.faults = Faults()
        self.done: Counter[str] = Counter()  # number of injected faults by kind
        self.is_holding = threading.Event()  # set when an upload is held
        self._port = port
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._host = host
        self._proxy = _Proxy(self, host)
        self._thread = threading.Thread(target=self._proxy.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.request("PUT", f"/{BUCKET}")

    @property
    def endpoint(self) -> str:
        """The address of the proxy."""
        return f"http://{self._host}:{self._proxy.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that make a process use this store for every s3:// path."""
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.endpoint}

    def uri(self, path: str) -> str:
        return f"s3://{BUCKET}/{path}"

    def all_keys(self) -> list[str]:
        """All keys of the bucket, listed without the proxy."""
        listing = self.request("GET", f"/{BUCKET}?list-type=2&max-keys=100000")[2].decode()
        return [unquote(key) for key in re.findall("<Key>(.*?)</Key>", listing)]

    def put(self, key: str, content: bytes) -> None:
        """Writes an object, without the proxy."""
        assert self.request("PUT", f"/{BUCKET}/{key}", None, content)[0] == 200

    def content(self, key: str) -> bytes:
        """Content of an object, read without the proxy."""
        status, _, body = self.request("GET", f"/{BUCKET}/{key}")
        assert status == 200, f"{key}: {status}"
        return body

    def count_requests(self, method: str, key: str) -> int:
        """How often clients have requested an object."""
        with self._lock:
            return sum(n for request, n in self._seen.items() if request.startswith(f"{method} /{BUCKET}/{key} "))

    def close(self) -> None:
        self._ended.set()
        self._proxy.shutdown()
        self._thread.join()
        self._proxy.server_close()

    def draw_fault(self, method: str, target: str) -> str | None:
        """The kind of fault to inject into a request, or None; counts it."""
        kind = self._draw_fault(method, target)
        if kind is not None:
            self.done[kind] += 1
        return kind

    def _draw_fault(self, method: str, target: str) -> str | None:
        faults, parts = self.faults, urlsplit(target)
        key = unquote(parts.path)
        is_write = method in ("PUT", "POST")
        # Query values such as an upload id differ from run to run.
        request = f"{method} {key} {'&'.join(sorted(re.findall(r'partNumber=[0-9]+|[a-z-]+(?==|&|$)', parts.query)))}"
        with self._lock:
            self._seen[request] += 1
            attempt = self._seen[request]
        if _matches(faults.refuse_writes if is_write else faults.refuse_reads, key):
            return "refuse"
        if is_write and _matches(faults.hold_writes, key):
            return "hold"
        if attempt == 1 and _matches(faults.silent_first, key):
            return "silent"
        draw = int.from_bytes(hashlib.sha256(f"{faults.seed} {request} {attempt}".encode()).digest()[:8]) / 2**64
        shares = {
            "slow_down": faults.slow_down,
            "delay": faults.delay,
            "cut": {"PUT": faults.cut_upload, "POST": faults.cut_upload, "GET": faults.cut_download}.get(method, 0.0),
        }
        for kind, share in shares.items():
            if draw < share:
                return kind
            draw -= share
        return None

    def wait_for_end(self, at_most_s: float | None = None) -> None:
        self._ended.wait(at_most_s)

    def request(
        self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        """Sends a request to the store without the proxy; returns status, headers and body of the response."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, target, body, headers or {"Authorization": _OWNER})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()


def _matches(pattern: str | None, key: str) -> bool:
    return pattern is not None and re.search(pattern, key) is not None


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, store: ObjectStore, host: str) -> None:
        self.store = store
        super().__init__((host, 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Does nothing: tests kill clients on purpose."""


class _Handler(BaseHTTPRequestHandler):
    """Forwards only whole requests: the store never receives a partial upload, as real stores never show one."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each response waits 40 ms
    server: _Proxy

    def _handle(self) -> None:
        store = self.server.store
        fault = store.draw_fault(self.command, self.path)
        is_cut_upload = fault == "cut" and self.command != "GET"
        if is_cut_upload or fault == "hold":
            self.rfile.read(1)
            if fault == "hold":
                store.is_holding.set()
                store.wait_for_end()
            self.close_connection = True
            return
        body = self._body()
        if fault == "silent":
            store.wait_for_end()
            self.close_connection = True
        elif fault == "slow_down":
            self._respond(503, {}, _error("SlowDown", "Please reduce your request rate."))
        elif fault == "refuse":
            self._respond(403, {}, _error("AccessDenied", "Access Denied"))
        else:
            if fault == "delay":
                store.wait_for_end(_DELAY_S)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            self._respond(*store.request(self.command, self.path, headers, body), is_cut=fault == "cut")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _respond(self, status: int, headers: dict[str, str], body: bytes, is_cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if is_cut else body)
        self.close_connection |= is_cut

    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing."""


def _error(code: str, message: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


@contextmanager
def object_store(host: str = "127.0.0.1") -> Iterator[ObjectStore]:
    """Starts a store and stops it. The store's process always ends when this process ends.

    Args:
        host: address of this host at which clients find the store.
    """
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # one line per request
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        store = ObjectStore(int(process.stdout.readline()), host)
        try:
            yield store
        finally:
            store.close()
            process.stdin.close()


def _serve() -> None:
    """Main function of the store's process: prints its port, and ends when its stdin is closed."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    _serve()

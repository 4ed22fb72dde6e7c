"""A proxy in front of an S3 server that loses answers, answers 500, and lets connections hang."""

import collections
import contextlib
import http.client
import http.server
import random
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

HOP = ("transfer-encoding", "connection", "content-length")


@contextlib.contextmanager
def proxy(server: str, fault: Callable[[str, str], str]) -> Iterator[tuple[str, collections.Counter]]:
    """Runs a proxy.

    Args:
      server: its address, `http://host:port`.
      fault: of a request's method and path: "" for none, "cut" and "lost" for a request that is done and whose
        connection is cut, or that is answered 500; "500" for one that is not done; "hang" for one that never ends.

    Yields:
      The proxy's address, and how many requests had which fault.
    """
    counts: collections.Counter = collections.Counter()
    ended, lock = threading.Event(), threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer is sent at once: in two parts, the second waits 40 ms for the first's receipt

        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                kind = fault(self.command, self.path)
                counts[kind] += 1
            if kind == "hang":
                ended.wait()
            if kind == "500":
                return self.answer(500, {}, b"")
            if kind != "hang":
                status, headers, contents = self.forward(body)
            if kind in ("cut", "hang"):
                self.close_connection = True
            elif kind == "lost":
                self.answer(500, {}, b"")
            else:
                self.answer(status, headers, contents)

        def forward(self, body: bytes) -> tuple[int, dict, bytes]:
            connection = http.client.HTTPConnection(urlsplit(server).netloc)
            with contextlib.closing(connection):
                connection.request(self.command, self.path, body, dict(self.headers))
                response = connection.getresponse()
                return response.status, dict(response.getheaders()), response.read()

        def answer(self, status: int, headers: dict, contents: bytes) -> None:
            self.send_response_only(status)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(contents))
            for name, value in headers.items():
                if name.lower() not in HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(contents)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_request

        def log_message(self, *_) -> None:
            """Is silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}", counts
        finally:
            ended.set()
            listening.shutdown()
            thread.join()


def one_in_twenty(seed: int) -> Callable[[str, str], str]:
    """One answer in twenty is lost, in one way or another; and one connection hangs, before a conditional write."""
    rng, hangs = random.Random(seed), ["hang"]

    def fault(method: str, path: str) -> str:
        # After a request with a body, curl takes five seconds longer to see that nothing moves.
        if hangs and method == "HEAD" and rng.random() < 0.2:
            return hangs.pop()
        return rng.choice(["cut", "lost", "500"]) if rng.random() < 0.05 else ""

    return fault


def once(method: str, kind: str) -> Callable[[str, str], str]:
    """The first request with a method has a fault."""
    left = [kind]
    return lambda actual, path: left.pop() if left and actual == method else ""

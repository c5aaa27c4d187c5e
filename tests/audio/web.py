"""A web server for one folder: byte ranges, a listing, and faults on demand."""

import http.server
import re
import threading
from contextlib import contextmanager
from pathlib import Path


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        state = self.server.state
        wanted = self.headers.get("Range")
        state["asked"].append((self.command, self.path, wanted))
        state["silent"].wait()
        if state["faults"] > 0:
            state["faults"] -= 1
            self.send_error(503)
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            super().do_GET()
            return
        data, status = path.read_bytes(), 200
        total = len(data)
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "")
        if span and state["ranges"]:
            first, last = int(span[1]), min(int(span[2]), total - 1)
            data, status = data[first : last + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if state["ranges"]:
            self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@contextmanager
def served(folder):
    """(URL, state) of a server; state: `asked` requests, `faults` to come, `ranges`, `silent`."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: _Handler(*args, directory=str(folder))
    )
    server.daemon_threads = True
    server.state = {"asked": [], "faults": 0, "ranges": True, "silent": threading.Event()}
    server.state["silent"].set()  # cleared, the server says nothing until it is set again
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.state
    finally:
        server.state["silent"].set()
        server.shutdown()
        server.server_close()
        thread.join()

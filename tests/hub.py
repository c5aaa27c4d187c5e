"""A stand-in for the Hugging Face Hub's HTTP interface: what is committed can be fetched again."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories in memory: name -> file -> content; `url` is where they are served."""

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words):
                pass

            def do_POST(self):
                size = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(size) if size else self._chunks()
                self._json(*hub.post(self.path.split("?")[0], body))

            def do_GET(self):
                self._get(with_body=True)

            def do_HEAD(self):
                self._get(with_body=False)

            def _chunks(self):
                parts = []
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    while size := int(self.rfile.readline(), 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                return b"".join(parts)

            def _get(self, with_body):
                path = self.path.split("?")[0]
                if "/resolve/" in path:
                    repo, _, rest = path[1:].partition("/resolve/")
                    content = hub.repos.get(repo, {}).get(rest.partition("/")[2])
                    if content is None:
                        self._json(
                            404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
                        )
                        return
                    etag = hashlib.sha256(content).hexdigest()
                    self._reply(
                        200, content, with_body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
                    )
                else:
                    self._json(*hub.get(path), with_body=with_body)

            def _json(self, status, content, headers=None, with_body=True):
                headers = {"Content-Type": "application/json", **(headers or {})}
                self._reply(status, json.dumps(content).encode(), with_body, headers)

            def _reply(self, status, content, with_body, headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if with_body:
                    self.wfile.write(content)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def post(self, path, body):
        content = body.decode()
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.repos.setdefault(name, {})
            return 200, {"url": f"{self.url}/{name}", "name": name, "id": name}
        repo = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = json.loads(content)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return 200, {"files": modes}
        if "/commit/" in path:
            for line in content.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            url = f"{self.url}/{repo}/commit/{COMMIT}"
            return 200, {"commitUrl": url, "commitOid": COMMIT, "success": True}
        return 200, {}

    def get(self, path):
        parts = path.strip("/").split("/")
        repo = "/".join(parts[2:4])
        if parts[:2] != ["api", "models"] or repo not in self.repos:
            return 404, {"error": "Repository not found"}
        if "tree" in parts:
            return 200, [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in self.repos[repo].items()
            ]
        siblings = [{"rfilename": name} for name in self.repos[repo]]
        return 200, {"id": repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}

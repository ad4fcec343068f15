"""The Hugging Face hub as huggingface_hub sees it: repositories of small files, on this machine."""

import contextlib
import hashlib
import http.server
import json
import os
import threading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def environment(endpoint, cache, *, offline=False):
    """The variables of a process that uses a server, or is told that there is no network."""
    return os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": str(int(offline)),
        "JAX_PLATFORMS": "cpu",
        "no_proxy": "127.0.0.1",
    }


@contextlib.contextmanager
def serve(repositories):
    """Serves {"organisation/name": {file name: bytes}}; gives the address and the list of requests.

    Each repository has one commit, `COMMIT`, on its branch main.
    """
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            requests.append(f"{self.command} {self.path}")
            parts = self.path.split("?")[0].strip("/").split("/")
            if len(parts) < 4:
                return self.answer(404)
            if parts[:2] == ["api", "models"]:
                repository, revision = "/".join(parts[2:4]), parts[5] if parts[5:] else "main"
            else:
                repository, revision = "/".join(parts[:2]), parts[3]
            files = repositories.get(repository)
            if files is None:
                return self.answer(404, error="RepoNotFound")
            if revision not in ("main", COMMIT):
                return self.answer(404, error="RevisionNotFound")
            if parts[0] == "api":
                siblings = [{"rfilename": name} for name in files]
                info = {"id": repository, "sha": COMMIT, "siblings": siblings}
                return self.answer(200, json.dumps(info).encode(), "application/json")
            content = files.get("/".join(parts[4:]))
            if content is None:
                return self.answer(404, error="EntryNotFound")
            return self.answer(200, content)

        def answer(self, status, content=b"", kind="application/octet-stream", error=""):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

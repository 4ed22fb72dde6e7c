"""A hub on this machine that repositories can be made in, written to by commits, and read from; in memory.

It speaks the calls of `huggingface_hub` that a push and a download take: repos/create, model info, tree, validate-yaml,
preupload, the LFS batch with its uploads, commit and resolve.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import time
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

LARGE = (".npz", ".safetensors", ".png")  # stored apart from git


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """The state of the hub.

    Attributes:
        commits: by repository, its commits: (id, {path: content}, message), the last one the main branch.
        objects: large files by sha256.
        log: the routes that were asked for.
        faults: by route, what happens to its next requests: a status, "lost" (it is done, and 500 is answered), or a
            function that is called first.
        token: what a request has to show; None where any may write.
    """

    def __init__(self):
        self.commits, self.objects, self.log, self.faults, self.token = {}, {}, [], {}, None
        self.endpoint = ""

    def files(self, repository):
        return self.commits[repository][-1][1]

    def commit(self, repository, files, message="by hand"):
        oid = hashlib.sha1(f"{repository}{len(self.commits.get(repository, []))}{message}".encode()).hexdigest()
        self.commits.setdefault(repository, []).append((oid, files, message))
        return oid

    def at(self, repository, revision):
        return next(c for c in reversed(self.commits[repository]) if revision in (c[0], "main", None))

    # Routes: each takes the match of its path and the body, and returns a status and an answer.
    def create(self, match, body):
        repository = json.loads(body)
        name = f"{repository['organization']}/{repository['name']}"
        status = 409 if name in self.commits else 200
        if name not in self.commits:
            self.commit(name, {".gitattributes": b"*.npz filter=lfs\n"}, "initial commit")
        return status, {"url": f"{self.endpoint}/{name}", "private": repository.get("visibility") == "private"}

    def info(self, match, body):
        oid, files, _ = self.at(match[1], match[2])
        return 200, {"id": match[1], "sha": oid, "siblings": [{"rfilename": path} for path in files], "tags": []}

    def tree(self, match, body):
        entries = []
        for path, content in sorted(self.at(match[1], match[2])[1].items()):
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
            if path.endswith(LARGE):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 9}
            entries.append(entry)
        inside = (match[3] or "").strip("/")
        return 200, [entry for entry in entries if entry["path"].startswith(inside)]

    def validate(self, match, body):
        card = json.loads(body)["content"]
        good = re.match(r"---\n(.*\n)+---\n", card) is not None
        return (200, {"errors": [], "warnings": []}) if good else (400, {"errors": [{"message": "no metadata"}]})

    def preupload(self, match, body):
        held, answers = self.files(match[1]), []
        for file in json.loads(body)["files"]:
            large, content = file["path"].endswith(LARGE), held.get(file["path"])
            oid = None
            if content is not None:
                oid = hashlib.sha256(content).hexdigest() if large else git_oid(content)
            mode = "lfs" if large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": answers}

    def batch(self, match, body):
        objects = []
        for one in json.loads(body)["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.endpoint}/upload/{one['oid']}"}}}
            objects.append(one | ({} if one["oid"] in self.objects else upload))
        return 200, {"transfer": "basic", "objects": objects}

    def upload(self, match, body):
        if hashlib.sha256(body).hexdigest() != match[1]:
            return 400, {"error": "another content"}
        self.objects[match[1]] = body
        return 200, {}

    def write(self, match, body):
        lines = [json.loads(line) for line in body.splitlines()]
        head, files, _ = self.commits[match[1]][-1]
        files, message = dict(files), ""
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit", head) != head:
                    return 412, {"error": "the parent commit is not the head"}
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.objects:
                    return 400, {"error": f"{value['path']} was not uploaded"}
                files[value["path"]] = self.objects[value["oid"]]
            else:
                del files[value["path"]]
        oid = self.commit(match[1], files, message)
        return 200, {"commitUrl": f"{self.endpoint}/{match[1]}/commit/{oid}", "commitOid": oid}


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    "create": ("POST", r"/api/repos/create"),
    "validate": ("POST", r"/api/validate-yaml"),
    "preupload": ("POST", rf"/api/models/{_NAME}/preupload/\w+"),
    "write": ("POST", rf"/api/models/{_NAME}/commit/\w+"),
    "batch": ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch"),
    "upload": ("PUT", r"/upload/(\w+)"),
    "tree": ("GET", rf"/api/models/{_NAME}/tree/(\w+)(/.*)?"),
    "info": ("GET", rf"/api/models/{_NAME}(?:/revision/(\w+))?"),
    "resolve": ("GET", rf"/{_NAME}/resolve/(\w+)/(.+)"),
}


def _handler(hub):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body, path = self._body(), unquote(urlsplit(self.path).path)
            method = "GET" if self.command == "HEAD" else self.command
            for route, (verb, pattern) in ROUTES.items():
                if verb == method and (match := re.fullmatch(pattern, path)):
                    return self._answer(route, match, body)
            return self._send(404, b"{}")

        do_HEAD = do_POST = do_PUT = do_GET

        def _answer(self, route, match, body):
            hub.log.append(route)
            fault = hub.faults[route].pop(0) if hub.faults.get(route) else None
            if callable(fault):
                fault()
            if isinstance(fault, int):
                return self._send(fault, json.dumps({"error": "a fault of the test's"}).encode())
            shown = self.headers.get("Authorization")
            if route != "upload" and hub.token is not None and shown != f"Bearer {hub.token}":
                return self._send(401, b'{"error": "Invalid username or password."}')
            if match.re.groups and "/" in match[1] and match[1] not in hub.commits:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if route == "resolve":
                oid, files, _ = hub.at(match[1], match[2])
                if match[3] not in files:
                    return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                return self._send(200, files[match[3]], {"ETag": f'"{git_oid(files[match[3]])}"', "X-Repo-Commit": oid})
            status, answer = getattr(hub, route)(match, body)
            return self._send(500 if fault == "lost" else status, json.dumps(answer).encode())

        def _body(self):
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _send(self, status, content, headers=None):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    return Handler


@contextlib.contextmanager
def serving(monkeypatch, home):
    """Runs a hub, and has `huggingface_hub` take it for the hub, with its cache in a folder and no waiting.

    Args:
        monkeypatch: pytest's.
        home: the folder of the cache.

    Yields:
        The hub.
    """
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    settings = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the library's attempts
    yield hub
    server.shutdown()
    server.server_close()

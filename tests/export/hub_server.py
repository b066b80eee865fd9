"""The part of the Hugging Face hub's HTTP API that a push needs, on loopback.

It keeps repositories as commits of whole files. Large files go through git-lfs' batch API, as on
the hub where the client has no Xet. Source: the requests of huggingface_hub 2.4.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

TOKEN = "hf_test_token_of_no_account"


@dataclass
class Repo:
    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)


@dataclass
class Hub:
    """What the server holds, and how it misbehaves."""

    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    breaks_at: str = ""  # a part of the path that is answered with 403


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.breaks_at and self.hub.breaks_at in path:
            self._answer(403, {"error": "You don't have the rights to do this"})
        elif path.startswith("/objects/") and self.command == "PUT":
            self.hub.objects[path.rpartition("/")[2]] = body
            self._answer(200, {})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            yaml.safe_load(json.loads(body)["content"].split("---")[1])
            self._answer(200, {"errors": [], "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif path.startswith("/api/models/"):
            self._model(path.removeprefix("/api/models/"), body)
        else:
            self._answer(404, {"error": f"no {path}"})

    def _create(self, body: dict) -> None:
        name = f"{body['organization']}/{body['name']}"
        url = {"url": f"http://{self.headers['Host']}/{name}"}
        if name in self.hub.repos:
            self._answer(409, url | {"error": "You already created this model repo"})
            return
        self.hub.repos[name] = Repo(body.get("visibility") == "private")
        self._answer(200, url)

    def _batch(self, body: dict) -> None:
        href = f"http://{self.headers['Host']}/objects/"
        objects = [
            item | {"actions": {"upload": {"href": href + item["oid"]}}} for item in body["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _model(self, path: str, body: bytes) -> None:
        name, rest = "/".join(path.split("/")[:2]), path.split("/")[2:]
        repo = self.hub.repos.get(name)
        if repo is None:
            self._answer(404, {"error": "Repository not found"})
        elif not rest or rest[0] == "revision":
            self._answer(200, {"id": name, "private": repo.private, "siblings": []})
        elif rest[0] == "preupload":
            files = [
                {"path": item["path"], "shouldIgnore": False, "uploadMode": _mode(item["path"])}
                for item in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif rest[0] == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            files = dict(self._file(line["key"], line["value"]) for line in lines[1:])
            repo.commits.append((lines[0]["value"]["summary"], files))
            oid = hashlib.sha1(body).hexdigest()
            url = f"http://{self.headers['Host']}/{name}/commit/{oid}"
            self._answer(200, {"commitUrl": url, "commitOid": oid})

    def _file(self, key: str, value: dict) -> tuple[str, bytes]:
        if key == "file":
            return value["path"], base64.b64decode(value["content"])
        content = self.hub.objects[value["oid"]]
        assert hashlib.sha256(content).hexdigest() == value["oid"]
        return value["path"], content

    def _answer(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Stay quiet."""


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".gguf")) else "regular"


class HubServer:
    """A hub on a free port of loopback; use as a context manager."""

    def __init__(self) -> None:
        self.hub = Hub()
        handler = type("Handler", (_Handler,), {"hub": self.hub})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

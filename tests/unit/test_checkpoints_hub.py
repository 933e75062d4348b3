"""Hub ids, against a stand-in hub on this machine that speaks as much of the protocol as a download needs."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from hanmo.checkpoints.locate import local_folder
from hanmo.errors import UnsupportedError
from tests import processes
from tests.unit.transformers_models import write_model

COMMIT = "0" * 39 + "1"


class Hub(BaseHTTPRequestHandler):
    """One repository, someone/small, with the files of a folder."""

    protocol_version = "HTTP/1.1"

    def __init__(self, folder: Path, breaks: list[str], *args: object):
        self.folder, self.breaks = folder, breaks
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/someone/small"):
            if "/tree/" in path:
                files = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                    for file in sorted(self.folder.iterdir())
                ]
                return self.send(200, json.dumps(files).encode(), body, {"Content-Type": "application/json"})
            siblings = [{"rfilename": file.name} for file in sorted(self.folder.iterdir())]
            info = {"id": "someone/small", "modelId": "someone/small", "sha": COMMIT, "siblings": siblings}
            return self.send(200, json.dumps(info).encode(), body, {"Content-Type": "application/json"})
        file = self.folder / path.rsplit("/", 1)[-1]
        if not path.startswith("/someone/small/resolve/") or not file.is_file():
            return self.send(404, b"", body, {"X-Error-Code": "RepoNotFound"})
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if body and file.suffix == ".safetensors" and not self.breaks:
            self.breaks.append("once")  # the connection breaks in the middle of the weights
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return None
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.send(206 if start else 200, data[start:], body, headers)

    def send(self, status: int, data: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    folder = write_model("llama", tmp_path / "small")
    (folder / "modeling_small.py").write_text("raise SystemExit('remote code has run')")
    breaks: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder, breaks))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", breaks
    server.shutdown()


def hanmo(endpoint: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
    command = [sys.executable, "-m", "hanmo", *words]
    return processes.run(command, env=environment, timeout=300)


def test_a_model_is_downloaded_though_the_connection_breaks(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, breaks = hub
    words = ("generate", "someone/small", "你好", "max_new_tokens=3", "do_sample=false")
    first = hanmo(endpoint, tmp_path / "home", *words)
    if first.returncode:  # the library gave up on the broken connection: asking again goes on
        assert "cannot give it" in first.stderr
        first = hanmo(endpoint, tmp_path / "home", *words)
    assert first.returncode == 0, first.stderr
    assert breaks == ["once"]
    assert not list((tmp_path / "home").rglob("*.py"))  # code is not even fetched


def test_what_is_not_there(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    result = hanmo(hub[0], tmp_path / "home", "chat", "nobody/nothing")
    assert result.returncode == 2
    assert "nobody/nothing: no such folder here, and no such model on" in result.stderr


def test_paths_are_left_alone(tmp_path: Path) -> None:
    assert local_folder(tmp_path) == tmp_path
    assert local_folder("not-there") == Path("not-there")


def test_modelscope_needs_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(UnsupportedError, match="pip install modelscope"):
        local_folder("modelscope:someone/small")

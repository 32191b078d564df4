"""A model on the hub, planned by its headers: against a small server of the hub's layout that counts what it sends."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from gguf_models import write
from tiny_families import make
from typer.testing import CliRunner

from lumoe.cli.moe.plan import app
from lumoe.errors import UserError
from lumoe.moe.checkpoint import hub
from lumoe.moe.checkpoint.hub import HubName
from lumoe.moe.checkpoint.outline import read_outline
from lumoe.moe.planning.inputs import Known

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WIDE = {"hidden_size": 256, "intermediate_size": 512}


class Hub(ThreadingHTTPServer):
    """Repositories of one folder each, at revision main, v1 or the commit.

    Attributes:
        sent: bytes of files that were sent, by name and first byte.
        broken: what is wrong with the server: a status, or a word.
    """

    daemon_threads = True

    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.sent, self.broken = repositories, dict[tuple[str, int], int](), None
        self.tokens: set[str | None] = set()
        self.over = Event()

    broken: int | str | None

    @property
    def total(self) -> int:
        return sum(self.sent.values())


class Handler(BaseHTTPRequestHandler):
    """The two addresses that are asked for: a model's list of files, and a file."""

    server: Hub

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.broken == "silent":
            self.server.over.wait(10)
            return
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        folder = self.server.repositories.get((listing or file or [None] * 2)[1] or "")
        revision = (listing or file or [None] * 3)[2] or "main"
        if folder is None:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "v1", COMMIT):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif listing:
            self.list(listing[1], folder)
        else:
            assert file is not None
            assert revision == COMMIT  # all of one commit, whatever is pushed meanwhile
            self.send(folder / file[3])

    def list(self, name: str, folder: Path) -> None:
        if self.server.broken == "html":
            self.answer(200, b"<html>a page</html>", {})
            return
        files = [path for path in folder.rglob("*") if path.is_file()]
        found = [{"rfilename": str(path.relative_to(folder)), "size": path.stat().st_size} for path in files]
        self.answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": found}).encode(), {})

    def send(self, path: Path) -> None:
        content, broken = path.read_bytes(), self.server.broken
        if broken == 403:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        if isinstance(broken, int):
            self.answer(broken, b"", {})
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert asked is not None
        begin, end = int(asked[1]), int(asked[2]) + 1
        assert end <= len(content)
        if broken == "whole" and end - begin < len(content):
            self.answer(200, content, {})
            return
        part = content[begin:end]
        key = path.name, begin
        self.server.sent[key] = self.server.sent.get(key, 0) + len(part)
        self.answer(206, part, {"Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from transformers import MixtralForCausalLM

    root = tmp_path_factory.mktemp("repositories")
    make("mixtral", root / "one", torch.bfloat16, **WIDE)
    model = MixtralForCausalLM.from_pretrained(root / "one", dtype=torch.bfloat16)
    model.save_pretrained(root / "many", max_shard_size="2MB")
    (root / "coded" / "sub").mkdir(parents=True)
    write(root / "one", root / "coded" / "tiny-Q8_0.gguf", "Q8_0")
    write(root / "one", root / "coded" / "sub" / "tiny-Q4_0.gguf", "Q4_0")
    (root / "empty").mkdir()
    (root / "empty" / "README.md").write_text("nothing")
    return {f"tiny/{path.name}": path for path in root.iterdir()}


@pytest.fixture
def server(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    server = Hub(folders)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("HF_TOKEN", "a-token")
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def header_bytes(path: Path) -> int:
    return 8 + int(struct.unpack("<Q", path.read_bytes()[:8])[0])


@pytest.mark.parametrize("name", ["one", "many"])
def test_headers_alone_are_fetched(name: str, server: Hub, folders: dict[str, Path]) -> None:
    folder = folders[f"tiny/{name}"]
    found = read_outline(f"hub:tiny/{name}")
    shards = list(folder.glob("*.safetensors"))
    assert len(shards) == 1 if name == "one" else len(shards) > 2
    # Byte for byte: two small files whole, and of each shard its header's length and its header.
    small = ["config.json", *(["model.safetensors.index.json"] if name == "many" else [])]
    expected = {(file, 0): (folder / file).stat().st_size for file in small}
    for shard in shards:
        expected |= {(shard.name, 0): 8, (shard.name, 8): header_bytes(shard) - 8}
    assert server.sent == expected
    assert server.total < 0.05 * sum(shard.stat().st_size for shard in shards)
    assert found.parts.sizes == read_outline(str(folder)).parts.sizes
    assert found.parts.source.startswith(f"read from the headers of {len(shards)} safetensors file")
    assert f"commit {COMMIT[:12]}; {server.total / 1e3:.2f} kB read" in found.parts.source
    assert server.tokens == {"Bearer a-token"}


@pytest.mark.parametrize(
    ("asked", "file"),
    [("hub:tiny/coded:tiny-Q8_0.gguf", "tiny-Q8_0.gguf"), ("hub:tiny/coded@v1:q4_0", "sub/tiny-Q4_0.gguf")],
)
def test_gguf_headers_alone_are_fetched(asked: str, file: str, server: Hub, folders: dict[str, Path]) -> None:
    path = folders["tiny/coded"] / file
    found = read_outline(asked)
    assert {name for name, _ in server.sent} == {path.name}
    assert server.total == 64 << 10 < 0.05 * path.stat().st_size
    assert found.parts.sizes == read_outline(str(path)).parts.sizes
    assert found.memory(4, 64).stored == path.stem.removeprefix("tiny-")


def test_the_command_plans_a_model_on_the_hub(server: Hub) -> None:
    arguments = ["plan", "--model", "hub:tiny/many@main", "--budget", "60%", "--prefer", "throughput"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "routed experts" in result.output
    assert "; 18 of 786.43 kB" in result.output  # 3 · 256 · 512 weights of 2 bytes, 6 in each of 3 layers
    assert "speed       not known" in result.output
    with pytest.raises(UserError, match="need the model's files"):
        CliRunner().invoke(app, [*arguments, "--quantized", "folder"], catch_exceptions=False)


def test_measurements_are_looked_for_under_the_name_of_the_repository() -> None:
    for model in ("hub:org/a-b.c", "hub:org/a-b.c@main", "hub:org/a-b.c:Q4_K_M", "hub:org/a-b.c@x/y:z/w.gguf"):
        folder = Path("results/moe/a-b.c")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "machine.json").write_text("{}")
        assert Known.find(model).hardware == str(folder / "machine.json")


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("model", "broken", "message"),
    [
        ("hub:tiny/absent", None, "hub:tiny/absent: no such repository"),
        ("hub:tiny/one@v9", None, "no revision 'v9'"),
        ("hub:tiny/one", 403, "gated; accept the terms at .*/tiny/one and set HF_TOKEN"),
        ("hub:tiny/one", 401, "no such repository|answered with 401"),
        ("hub:tiny/one", 500, "answered with 500"),
        ("hub:tiny/one", "whole", "does not send parts of files"),
        ("hub:tiny/one", "silent", "no answer from http://127.0.0.1:.* within 0.2 s"),
        ("hub:tiny/one", "html", "does not answer as a hub does"),
        ("hub:tiny/coded", None, "2 GGUF files; name one: sub/tiny-Q4_0.gguf, tiny-Q8_0.gguf"),
        ("hub:tiny/one:Q4_0", None, "neither config.json nor a GGUF file"),
        ("hub:tiny/empty", None, "neither config.json nor a GGUF file"),
        ("hub:one", None, "write it as hub:ORG/NAME"),
        ("hub:../one/two", None, "write it as hub:ORG/NAME"),
        ("hub:-bad-/..one", None, "does not answer as a hub does|no such repository"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    model: str, broken: int | str | None, message: str, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.2)
    server.broken = broken
    with pytest.raises(UserError, match=message):
        read_outline(model)
    assert server.total < 10_000


def test_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9 cannot be reached; check the network"):
        read_outline("hub:tiny/one")


def test_names_on_the_hub() -> None:
    assert HubName.parse("hub:a/b") == HubName("a/b")
    assert HubName.parse("hub:a/b@refs/pr/1") == HubName("a/b", "refs/pr/1")
    assert HubName.parse("hub:a/b-GGUF@v1:sub/x-Q4_K_M.gguf") == HubName("a/b-GGUF", "v1", "sub/x-Q4_K_M.gguf")

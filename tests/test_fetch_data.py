"""Data over HTTP, against a server of this machine that fails in every way; no file of others."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from r1jax import fetch_data
from r1jax.benchmarks import conversions as to
from r1jax.benchmarks import sources
from r1jax.benchmarks.catalog import KINDS
from r1jax.benchmarks.sources import SOURCES, TO_BRING, Source, sources_of
from r1jax.config import ConfigError, DataError
from r1jax.data import download as http
from r1jax.data.download import download

SHARED = Path(__file__).parents[2] / "shared/data"
ORIGINAL = b'{"question": "1 + 1?", "answer": 2.0}\n{"question": "2 + 2?", "answer": 4.0}\n'
WRITTEN = (
    b'{"id": 0, "problem": "1 + 1?", "answer": "2"}\n'
    b'{"id": 1, "problem": "2 + 2?", "answer": "4"}\n'
)
SUMS = partial(
    to.renamed,
    keys={"id": "#", "problem": "question", "answer": "answer"},
    changes={"answer": to.whole},
)
SHA256 = hashlib.sha256(WRITTEN).hexdigest()
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Gives a path's next answer; the last one again and again."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        answers = self.server.answers.get(self.path, [status(404)])
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *_: object) -> None:
        pass

    def give(self, code: int, body: bytes, **headers: object) -> None:
        self.send_response(code)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        pass  # a client that has hung up


def status(code: int, body: bytes = b"", **headers: object) -> Answer:
    return lambda handler: handler.give(code, body, **headers)


def whole(handler: Handler) -> None:
    handler.give(200, ORIGINAL)


def torn(handler: Handler) -> None:
    """Half of it under the length of all."""
    handler.give(200, ORIGINAL[:30], Content_Length=len(ORIGINAL), ETag='"one"')


def rest(handler: Handler) -> None:
    """What was asked for, as a server does that knows ranges."""
    start = int(handler.headers["Range"].removeprefix("bytes=").rstrip("-"))
    said = f"bytes {start}-{len(ORIGINAL) - 1}/{len(ORIGINAL)}"
    handler.give(206, ORIGINAL[start:], Content_Range=said)


def no_ranges(handler: Handler) -> None:
    """All of it or nothing."""
    (status(416) if handler.headers["Range"] else whole)(handler)


def stalls(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(ORIGINAL[:10])
    handler.wfile.flush()
    threading.Event().wait(1.0)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have waited."""
    waited: list[float] = []
    monkeypatch.setattr(http.time, "sleep", waited.append)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HF_TOKEN", http.MIRROR):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return waited


def sums(server: Server, sha256: str = SHA256, **more: Any) -> Source:
    return Source("sums/sums.jsonl", (f"{server.url}/sums",), SUMS, 2, "MIT", sha256, **more)


# ---- the file ----


def test_a_file_is_written_with_where_it_is_from(server: Server, tmp_path: Path) -> None:
    server.answers["/sums"] = [whole]
    assert fetch_data.fetch(sums(server), str(tmp_path), download) == "2 rows, sha256 as known"
    assert (tmp_path / "sums/sums.jsonl").read_bytes() == WRITTEN
    said = json.loads((tmp_path / "sums/SOURCE.json").read_text())["sums.jsonl"]
    assert said["sha256"] == SHA256
    assert (said["urls"], said["licence"], said["pinned"]) == ([f"{server.url}/sums"], "MIT", True)
    assert sorted(os.listdir(tmp_path / "sums")) == ["SOURCE.json", "sums.jsonl"]
    assert fetch_data.fetch(sums(server), str(tmp_path), download) == "is there"
    assert len(server.asked) == 1


def test_another_file_is_replaced_only_when_told(server: Server, tmp_path: Path) -> None:
    server.answers["/sums"] = [whole]
    path = tmp_path / "sums/sums.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"mine\n")
    with pytest.raises(DataError, match=rf"{path} is there with .*, not {SHA256}; --overwrite"):
        fetch_data.fetch(sums(server), str(tmp_path), download)
    assert (path.read_bytes(), server.asked) == (b"mine\n", [])
    fetch_data.fetch(sums(server), str(tmp_path), download, overwrite=True)
    assert path.read_bytes() == WRITTEN


def test_what_converts_to_other_bytes_is_not_written(server: Server, tmp_path: Path) -> None:
    server.answers["/sums"] = [status(200, ORIGINAL.replace(b"4.0", b"5.0"))]
    changed = hashlib.sha256(WRITTEN.replace(b'"4"', b'"5"')).hexdigest()
    with pytest.raises(DataError, match=f"has the sha256 {changed}, expected {SHA256}") as error:
        fetch_data.fetch(sums(server), str(tmp_path), download)
    assert f"{server.url}/sums" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "body", [b"<!DOCTYPE html><p>Sign in</p>", b"", b"[1, 2]", b'{"q": 1}', b"\x1f\x8bno", b"\xff{"]
)
def test_what_is_something_else_is_said(server: Server, tmp_path: Path, body: bytes) -> None:
    server.answers["/sums"] = [status(200, body)]
    with pytest.raises(DataError):
        fetch_data.fetch(sums(server), str(tmp_path), download)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match=f"what {server.url}/sums gave is not what it was: BadZip"):
        fetch_data.converted(
            Source("a", (f"{server.url}/sums",), to.mmlu_pro, 1, ""), [b"<p>no zip</p>"]
        )


def test_an_unpinned_file_is_recorded(server: Server, tmp_path: Path) -> None:
    server.answers["/sums"] = [whole]
    said = fetch_data.fetch(sums(server, ""), str(tmp_path), download)
    assert said.startswith("2 rows, unpinned") and SHA256 in said
    record = json.loads((tmp_path / "sums/SOURCE.json").read_text())["sums.jsonl"]
    assert (record["sha256"], record["pinned"]) == (SHA256, False)
    assert "recorded" in fetch_data.fetch(sums(server, ""), str(tmp_path), download)
    assert len(server.asked) == 1
    (tmp_path / "sums/SOURCE.json").unlink()
    with pytest.raises(DataError, match=r"no SOURCE.json that says where it is from; --overwrite"):
        fetch_data.fetch(sums(server, ""), str(tmp_path), download)


def test_a_full_disk_is_a_sentence(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    server.answers["/sums"] = [whole]
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"sums.jsonl cannot be written: No space left"):
        fetch_data.fetch(sums(server), str(tmp_path), download)
    assert list((tmp_path / "sums").iterdir()) == []


def test_a_bucket(server: Server, bucket: epath.Path) -> None:
    server.answers["/sums"] = [whole]
    there = f"{bucket}/data"
    assert "sha256 as known" in fetch_data.fetch(sums(server), there, download)
    assert (bucket / "data/sums/sums.jsonl").read_bytes() == WRITTEN
    assert fetch_data.fetch(sums(server), there, download) == "is there"
    (bucket / "data/sums/sums.jsonl").write_bytes(b"mine\n")
    with pytest.raises(DataError, match="--overwrite"):
        fetch_data.fetch(sums(server), there, download)


# ---- the line ----


def test_a_stumbling_server_is_asked_again(server: Server, pauses: list[float]) -> None:
    asked_to_wait = status(429, Retry_After=7)
    server.answers["/sums"] = [status(503), status(500), asked_to_wait, whole]
    assert download(f"{server.url}/sums") == ORIGINAL
    assert pauses == [1.0, 2.0, 7.0]


def test_a_server_that_stays_down(server: Server, pauses: list[float]) -> None:
    server.answers["/sums"] = [status(502)]
    with pytest.raises(DataError, match=r"/sums: HTTP 502 Bad Gateway; tried 5 times"):
        download(f"{server.url}/sums")
    assert (len(server.asked), pauses) == (5, [1.0, 2.0, 4.0, 8.0])


def test_no_pause_is_longer_than_two_minutes(server: Server, pauses: list[float]) -> None:
    server.answers["/sums"] = [status(429, Retry_After=86_400), whole]
    download(f"{server.url}/sums")
    assert pauses == [120.0]


def test_a_broken_line_is_gone_on_with(server: Server) -> None:
    server.answers["/sums"] = [torn, rest]
    assert download(f"{server.url}/sums") == ORIGINAL
    assert server.asked[1][1]["Range"] == "bytes=30-"
    assert server.asked[1][1]["If-Range"] == '"one"'


def test_a_server_without_ranges_begins_anew(server: Server) -> None:
    server.answers["/sums"] = [torn, torn, whole]
    assert download(f"{server.url}/sums") == ORIGINAL


def test_another_part_is_not_glued_on(server: Server) -> None:
    server.answers["/sums"] = [torn, status(206, b"xx", Content_Range="bytes 7-8/9"), whole]
    assert download(f"{server.url}/sums") == ORIGINAL
    server.answers["/sums"] = [torn, no_ranges]
    assert download(f"{server.url}/sums") == ORIGINAL


def test_a_line_that_breaks_for_ever(server: Server) -> None:
    server.answers["/sums"] = [torn]
    with pytest.raises(DataError, match=r"the line broke after 30 of 76 bytes; tried 5 times"):
        download(f"{server.url}/sums")


def test_a_stalling_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT", 0.2)
    server.answers["/sums"] = [stalls, rest]
    assert download(f"{server.url}/sums") == ORIGINAL
    server.answers["/slow"] = [stalls]
    monkeypatch.setattr(http, "TRIES", 2)
    with pytest.raises(DataError, match=r"no byte for 0.2 seconds"):
        download(f"{server.url}/slow")


def test_progress_is_told(server: Server) -> None:
    server.answers["/sums"] = [torn, rest]
    told: list[tuple[int, int]] = []
    download(f"{server.url}/sums", lambda done, size: told.append((done, size)))
    assert told == [(30, 76), (76, 76)]


def test_a_file_that_never_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST_BYTES", 50)
    server.answers["/sums"] = [whole]
    with pytest.raises(DataError, match="larger than 50 bytes"):
        download(f"{server.url}/sums")


def test_what_is_refused_is_not_asked_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"/gone: HTTP 404 Not Found: its owner has moved"):
        download(f"{server.url}/gone")
    server.answers["/locked"] = [status(403)]
    with pytest.raises(DataError, match=r"HTTP 403 Forbidden: it may not be read$"):
        download(f"{server.url}/locked")
    monkeypatch.setattr(http, "HUB", server.url)
    with pytest.raises(DataError, match=r"read; accept its terms there and set HF_TOKEN"):
        download(f"{server.url}/locked")
    server.answers["/odd"] = [status(418)]
    with pytest.raises(DataError, match=r"/odd: HTTP 418"):
        download(f"{server.url}/odd")
    assert len(server.asked) == 4


def test_no_network(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.server_close()
    with pytest.raises(DataError, match=r"/sums: no answer: .*refused; tried 5 times"):
        download(f"{server.url}/sums")

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DataError, match=r"no network: the host's name is not known here"):
        download("http://raw.githubusercontent.com/sums")


# ---- redirects, tokens, mirrors, proxies ----


def test_a_token_is_the_hubs_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Server()
    threading.Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(http, "HUB", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    server.answers["/sums"] = [status(302, Location=f"{other.url}/cdn")]
    other.answers["/cdn"] = [torn, rest]
    server.answers["/moved"] = [status(307, Location="/here")]
    server.answers["/here"] = [whole]
    assert download(f"{server.url}/sums") == ORIGINAL
    assert download(f"{server.url}/moved") == ORIGINAL
    assert {headers["Authorization"] for _, headers in server.asked} == {"Bearer hf_secret"}
    assert [headers.get("Authorization") for _, headers in other.asked] == [None, None]
    assert other.asked[1][1]["Range"] == "bytes=30-"  # it goes on behind the redirect
    other.shutdown()
    other.server_close()


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_lead_to_no_other_scheme(server: Server, place: str) -> None:
    server.answers["/sums"] = [status(302, Location=place)]
    with pytest.raises(DataError, match="is not (followed|allowed)"):
        download(f"{server.url}/sums")


def test_redirects_do_not_lead_from_https_to_http() -> None:
    request = http.urllib.request.Request("https://a.test/x")
    with pytest.raises(DataError, match=r"leads to http://b.test/, which is not followed"):
        http._Redirects().redirect_request(request, None, 302, "", {}, "http://b.test/")


def test_a_circle_of_redirects_ends(server: Server) -> None:
    server.answers["/sums"] = [status(302, Location="/sums")]
    with pytest.raises(DataError, match="HTTP 302"):
        download(f"{server.url}/sums")


def test_a_mirror(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(http.MIRROR, f"{server.url}/m/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.answers["/m/huggingface.co/datasets/a"] = [whole]
    assert download("https://huggingface.co/datasets/a") == ORIGINAL
    assert "Authorization" not in server.asked[0][1]
    monkeypatch.setenv(http.MIRROR, "/mnt/mirror")
    with pytest.raises(ConfigError, match="R1JAX_MIRROR=/mnt/mirror is no address"):
        download("https://huggingface.co/datasets/a")


def test_a_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    server.answers["http://data.test/sums"] = [whole]
    assert download("http://data.test/sums") == ORIGINAL


# ---- the command ----


def test_one_file_that_fails_keeps_no_other_away(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    server.answers["/sums"] = [whole]
    gone = Source("gone/gone.jsonl", (f"{server.url}/gone",), SUMS, 2, "CC0", SHA256)
    monkeypatch.setattr(sources, "SOURCES", {"gone": (gone,), "sums": (sums(server),)})
    with pytest.raises(DataError, match=r"^1 of 2 files are not fetched:\n  .*/gone: HTTP 404"):
        fetch_data.fetch_all(["gone", "sums"], str(tmp_path), overwrite=False)
    out = capsys.readouterr().out
    assert out.index("licence: MIT") < out.index("2 rows, sha256 as known")
    assert (tmp_path / "sums/sums.jsonl").exists()
    assert not (tmp_path / "gone").exists()


def test_progress_is_a_line_in_ten_seconds(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    now = [0.0]
    monkeypatch.setattr(fetch_data.time, "monotonic", lambda: now[0])
    with fetch_data.Line("https://a.test/b/c.zip") as line:
        for second in range(25):
            now[0] = float(second)
            line(second * 1_000_000, 30_000_000)
    assert capsys.readouterr().out == (
        "  a.test c.zip 10.0 of 30.0 MB\n  a.test c.zip 20.0 of 30.0 MB\n"
    )


def test_the_table_has_every_file() -> None:
    table = fetch_data.listing()
    for name, files in SOURCES.items():
        for source in files:
            assert name in table and source.file in table and source.licence in table
    assert ("drop/drop.jsonl" in table) and table.count("(unpinned)") == 3
    assert all(f"{name}: " in table for name in TO_BRING)


def test_every_benchmark_has_a_source_or_a_sentence() -> None:
    for name, kind in KINDS.items():
        if name in TO_BRING or (kind.file.partition("/")[0] not in SOURCES and kind.needs):
            with pytest.raises(ConfigError, match=f"{name} cannot be fetched: "):
                sources_of(name)
        else:
            assert kind.needs or kind.file in {source.file for source in sources_of(name)}


def test_sources_are_pinned_to_commits() -> None:
    files = [source for group in SOURCES.values() for source in group]
    for source in files:
        assert source.sha256 == "" or len(bytes.fromhex(source.sha256)) == 32
        assert source.licence
        for url in source.urls:
            host, *parts = url.removeprefix("https://").split("/")
            if host in ("raw.githubusercontent.com", "codeload.github.com"):
                commit = parts[3] if host.startswith("codeload") else parts[2]
                assert len(bytes.fromhex(commit)) == 20, url
    assert [source.file for source in files if not source.sha256] == [
        "drop/drop.jsonl",
        "drop/drop_train.jsonl",
        "alpaca_eval/df_gamed.csv",
    ]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no data here")
def test_the_hashes_are_those_of_the_data() -> None:
    files = {source.file: source for group in SOURCES.values() for source in group}
    there = [name for name in files if (SHARED / name).exists()]
    assert len(there) > 40
    for name in there:
        data = (SHARED / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == files[name].sha256, name
        assert data.count(b"\n") == files[name].rows, name


RUN = """
import sys
from functools import partial
from r1jax import fetch_data
from r1jax.benchmarks import conversions as to, sources
convert = partial(to.renamed, keys={"id": "#", "problem": "question", "answer": "answer"},
                  changes={"answer": to.whole})
source = sources.Source("sums/sums.jsonl", ("https://a.test/sums",), convert, 2, "MIT", SHA)
sources.SOURCES = fetch_data.SOURCES = {"sums": (source,)}
fetch_data.define_flags()
fetch_data.run_command(fetch_data.main, arguments=True)
"""


def command(*args: str, mirror: str = "", code: str = "") -> subprocess.Popen[str]:
    start = ["-c", code] if code else ["-m", "r1jax.fetch_data"]
    return subprocess.Popen(
        [sys.executable, *start, *args],
        env=os.environ | {http.MIRROR: mirror, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_killed_and_run_again(server: Server, tmp_path: Path) -> None:
    code = RUN.replace("SHA", repr(SHA256))
    hangs = threading.Event()

    def hang(handler: Handler) -> None:
        torn(handler)
        handler.wfile.flush()
        hangs.set()
        threading.Event().wait(20)

    server.answers["/a.test/sums"] = [hang, whole]
    process = command("sums", "--data", str(tmp_path), mirror=server.url, code=code)
    assert hangs.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "sums/sums.jsonl").exists()
    process = command("all", f"--data={tmp_path}", mirror=server.url, code=code)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "sums/sums.jsonl: a.test/sums; licence: MIT" in out
    assert (tmp_path / "sums/sums.jsonl").read_bytes() == WRITTEN


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("aime24",), "--data DIR is missing"),
        (("aime24", "--data", "DIR"), "/raw.githubusercontent.com/QwenLM/Qwen2.5-Math/a45202bd"),
    ],
)
def test_mistakes_are_a_sentence(
    server: Server, tmp_path: Path, args: tuple[str, ...], said: str
) -> None:
    words = [str(tmp_path) if arg == "DIR" else arg for arg in args]
    process = command(*words, mirror=server.url)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said in err and err.startswith("error: ") and "Traceback" not in err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("aime", r"'aime' is no benchmark; there are aime24, aime25, .*, gpqa_diamond"),
        ("cnmo24", r"cnmo24 cannot be fetched: cnmo24/cnmo24.jsonl \(id, problem, answer\)"),
        ("gpqa_diamond", r"gpqa_diamond cannot be fetched: its authors ask"),
    ],
)
def test_names_that_cannot_be_fetched(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fetch_data.fetch_all(["gsm8k", name], str(tmp_path), overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_benchmarks_name_leads_to_its_files() -> None:
    assert sources_of("mgsm_zh") == sources_of("mgsm_en_zh") == SOURCES["mgsm_en_zh"]
    assert sources_of("knights") == SOURCES["knights_knaves"]


# ---- others' shapes ----


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def packed(**files: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), text)
    return out.getvalue()


def test_json_rows() -> None:
    row = {"a": "é"}
    as_lines, array = lines(row), json.dumps([row]).encode()
    for data in (as_lines, array, b"\xef\xbb\xbf" + array, gzip.compress(as_lines)):
        assert to.as_it_is([data]) == [row]
    assert to.without([lines({"a": 1, "urls": [2], "b": 3})], ["urls"]) == [{"a": 1, "b": 3}]


@pytest.mark.parametrize(("given", "expected"), [("033", "33"), (27.0, "27"), (0, "0"), ("7", "7")])
def test_whole_numbers(given: Any, expected: str) -> None:
    assert to.whole(given) == expected


def test_no_whole_number() -> None:
    with pytest.raises(DataError, match="has 2.5 where a whole number"):
        to.whole(2.5)


def test_gsm8k() -> None:
    row = {"question": "How many?", "answer": "He has #### of\n<<2*617=1234>>1234.\n#### 1,234"}
    assert to.gsm8k([lines(row)], "test") == [
        {"id": "gsm8k/test/0", "problem": "How many?", "answer": "1234", "solution": row["answer"]}
    ]


def test_marred_latex_is_mended() -> None:
    row = {"id": "4", "problem": "\triangle and \frac{1}{2}", "answer": 7}
    assert to.aime25([lines(row)]) == [
        {"id": "4", "problem": "\\triangle and \\frac{1}{2}", "answer": "7"}
    ]


def test_years_of_the_aime() -> None:
    row = {"year": 1999, "aime_number": 1, "problem_number": 9, "solution": "long"}
    row |= {"problem": "p", "answer": "3", "difficulty": 4.5}
    assert to.aime_years([lines(row)])[0] == {
        "id": "1999-1-9",
        "problem": "p",
        "answer": "3",
        "difficulty": 4.5,
    }


def test_gaokao_labels() -> None:
    rows = [{"question": "q", "label": "B", "answer": None}, {"question": "r", "answer": "2"}]
    assert to.gaokao([lines(*rows)], "x") == [
        {"question": "q", "label": "B", "answer": "B", "id": "x/0"},
        {"question": "r", "answer": "2", "id": "x/1"},
    ]


def test_mgsm_pairs() -> None:
    english, chinese = b"One, two?\t2,125\n", "一？\t2,125\n".encode()
    assert to.mgsm([english, chinese]) == [
        {"id": 0, "problem_en": "One, two?", "problem_zh": "一？", "answer": "2125"}
        | {"answer_zh": "2125"}
    ]
    with pytest.raises(ValueError, match="zip"):
        to.mgsm([english, chinese * 2])


def test_math_out_of_a_repository() -> None:
    def problem(solution: str) -> str:
        about = {"type": "Algebra", "level": "Level 2"}
        return json.dumps({"problem": "p", "solution": solution} | about)

    archive = packed(
        r__data__math__train__b__10_dot_json=problem("$\\boxed{1}$ or \\boxed{\\frac{1}{2}}."),
        r__data__math__train__b__9_dot_json=problem("$\\boxed 3$"),
        r__data__math__train__a__1_dot_json=problem("\\boxed{}"),
        r__data__math__test__a__1_dot_json=problem("\\boxed{4}"),
        r__data__math__README_dot_json="no",
    )
    rows = to.math_problems([archive], "train")
    assert [(row["id"], row["answer"]) for row in rows] == [
        ("train/a/1.json", "0"),
        ("train/b/9.json", "3"),
        ("train/b/10.json", "\\frac{1}{2}"),
    ]
    for held_out in (True, False):
        named = lines({"unique_id": "test/a/1.json" if held_out else "test/a/2.json"})
        (row,) = to.math_problems([archive, named], "test")
        assert row["in_math500"] is held_out and "solution" not in row
    with pytest.raises(DataError, match="open brace"):
        to.last_boxed("\\boxed{1")


def test_tables_of_mmlu_and_ceval() -> None:
    archive = packed(
        data__test__b_test_dot_csv='"Two\r\nlines?",1,2,3,4,C\n',
        data__test__a_test_dot_csv="Who?,w,x,y,z,A\n",
        data__val__a_val_dot_csv="No?,w,x,y,z,A\n",
    )
    assert to.mmlu([archive], "test") == [
        {"id": "a/test/0", "subject": "a", "question": "Who?", "choices": ["w", "x", "y", "z"]}
        | {"answer": "A"},
        {"id": "b/test/0", "subject": "b", "question": "Two\nlines?"}
        | {"choices": ["1", "2", "3", "4"], "answer": "C"},
    ]
    archive = packed(
        dev__a_dev_dot_csv="id,question,A,B,C,D,answer,explanation\n5,谁,1,2,3,4,D,因\n"
    )
    assert to.ceval([archive], "dev") == [
        {"id": "a/dev/5", "subject": "a", "question": "谁", "choices": ["1", "2", "3", "4"]}
        | {"answer": "D", "explanation": "因"}
    ]


def test_redux_names_mmlus_questions() -> None:
    archive = packed(data__test__a_test_dot_csv=" Who?,w,x,y,z,A\n")
    verdicts = "question,choices,groundtruth_answer,error_type,model\n"
    verdicts += "Who?,\"['w', 'x', 'y', 'z']\",0,ok,A\nWhom?,\"['w', 'x', 'y', 'z']\",3,bad,A\n"
    choices = ["w", "x", "y", "z"]
    assert to.mmlu_redux([verdicts.encode(), archive]) == [
        {"id": "a/0", "subject": "a", "answer": "A", "error_type": "ok", "mmlu_id": "a/test/0"},
        {"id": "a/1", "subject": "a", "question": "Whom?", "choices": choices, "answer": "D"}
        | {"error_type": "bad", "mmlu_id": None},
    ]


def test_mmlu_pro_is_sorted_and_has_no_predictions() -> None:
    about = {"question": "q", "options": ["x", "y"], "answer": "B", "category": "c", "pred": "A"}
    archive = packed(out_dot_json=json.dumps([{"question_id": n} | about for n in (7, 3)]))
    rows = to.mmlu_pro([archive])
    assert [row["id"] for row in rows] == [3, 7]
    assert list(rows[0]) == ["id", "category", "question", "choices", "answer"]


def test_simpleqa_reads_its_metadata() -> None:
    cell = "{'topic': 'Art', 'answer_type': 'Date', 'urls': ['https://x']}"
    data = f'metadata,problem,answer\n"{cell}",When?,1999\n'.encode()
    assert to.simpleqa([data]) == [
        {"id": 0, "problem": "When?", "answer": "1999", "topic": "Art", "answer_type": "Date"}
    ]
    evil = data.replace(b"{'topic'", b"__import__('os').getcwd() or {'topic'")
    with pytest.raises(ValueError, match="malformed"):
        to.simpleqa([evil])


def test_code_and_ratings() -> None:
    row = {"problem": "p", "solutions": "s", "tests": {"functional": "t"}}
    assert to.leetcode([lines(row)], True) == [
        {"id": 0, "problem": "p", "test": "t", "solution": "s"}
    ]
    assert to.leetcode([lines(row)], False) == [{"id": 0, "problem": "p", "test": "t"}]
    assert to.ratings([b'{"-5": 2, "1900": 7}']) == [
        {"rating": "-5", "count": 2},
        {"rating": "1900", "count": 7},
    ]


def test_a_table_that_stays_one(tmp_path: Path) -> None:
    data = b"index,a\n0,1\n1,2\n"
    source = Source("x/x.csv", ("u",), partial(to.table_with, columns=("index", "a")), 0, "MIT")
    assert "2 rows" in fetch_data.fetch(source, str(tmp_path), lambda url: data)
    assert (tmp_path / "x/x.csv").read_bytes() == data
    with pytest.raises(DataError, match="no column 'a'; it has <p>Sign in</p>"):
        to.table_with([b"<p>Sign in</p>"], ["a"])


def test_knights_out_of_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    row = {"index": 9, "quiz": "q", "names": ["Zoe", "Al"], "solution": [True, False]}
    row |= {"cot_head": "h", "cot_repeat_steps": ["1", "2"], "cot_foot": "f"}
    row |= {"solution_text_format": "(1) Zoe is a knight"}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    assert [r["id"] for r in to.knights([data, data], "test")] == [
        "kk/3ppl/test/9",
        "kk/4ppl/test/9",
    ]
    assert to.knights([data], "test")[0]["solution"] == [True, False]
    assert to.knights_thoughts([data], 5) == [
        {"id": "kk/3ppl/train/9", "think": "h\n1\n2\nf", "answer": "(1) Zoe is a knight"}
    ]


def test_parquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"needs pyarrow: pip install"):
        to.knights([b""], "test")


@pytest.mark.slow
def test_countdown_is_generated_to_the_byte(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    for source in SOURCES["countdown"]:
        assert "sha256 as known" in fetch_data.fetch(source, str(tmp_path), download)

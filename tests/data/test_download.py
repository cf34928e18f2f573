"""Downloads from a server of our own: whole, cut off, resumed, wrong."""

from __future__ import annotations

import hashlib
import http.server
import io
import tarfile
import threading

import pytest

from bessemer import data
from bessemer.data import About, download
from bessemer.data.about import Download
from bessemer.errors import DataError, FileError, UsageError

CONTENT = bytes(range(256)) * 4096  # 1 MiB: several chunks


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `cuts` says after how many bytes the next connections break, `ranges` whether Range is heard."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cuts, self.ranges, self.asked = {}, [], True, []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = self.headers["Range"]
        self.server.asked.append((self.path, wanted))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404, "Not Found")
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else None
        self.wfile.write(content[start : None if cut is None else start + cut])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def described(*addresses, content=CONTENT, file="x.bin"):
    return About(
        "x",
        "",
        files=f"{file} from its publisher",
        folders=("x",),
        marks=("x.bin",),
        downloads=(Download(file, hashlib.md5(content).hexdigest(), addresses),),
    )


def test_a_file_arrives_whole_and_progress_is_told(server, tmp_path):
    server.files["/x.bin"] = CONTENT
    told = []
    download.get(described(f"{server.address}/x.bin"), tmp_path / "x", lambda *what: told.append(what))
    assert (tmp_path / "x" / "x.bin").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["x.bin"]
    assert told[0] == ("x.bin", 0, len(CONTENT))
    assert told[-1] == ("x.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_a_file_that_is_there_is_not_asked_for_again(server, tmp_path):
    (tmp_path / "x.bin").write_bytes(CONTENT)
    download.get(described(f"{server.address}/x.bin"), tmp_path)
    assert server.asked == []


def test_a_damaged_file_that_is_there_is_replaced(server, tmp_path):
    server.files["/x.bin"] = CONTENT
    (tmp_path / "x.bin").write_bytes(CONTENT[:-1])
    download.get(described(f"{server.address}/x.bin"), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_an_interrupted_download_goes_on_where_it_stopped(server, tmp_path):
    server.files["/x.bin"] = CONTENT
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:300_000])
    told = []
    download.get(described(f"{server.address}/x.bin"), tmp_path, lambda *what: told.append(what))
    assert server.asked == [("/x.bin", "bytes=300000-")]
    assert told[0] == ("x.bin", 300_000, len(CONTENT))
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_server_that_cuts_off_is_asked_for_the_rest(server, tmp_path):
    server.files["/x.bin"], server.cuts = CONTENT, [100_000, 50_000]
    download.get(described(f"{server.address}/x.bin"), tmp_path)
    assert [wanted for _, wanted in server.asked] == [None, "bytes=100000-", "bytes=150000-"]
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_server_that_keeps_cutting_off_leaves_what_came_for_the_next_time(server, tmp_path):
    server.files["/x.bin"], server.cuts = CONTENT, [1000, 1000, 1000]
    about = described(f"{server.address}/x.bin")
    with pytest.raises(
        DataError, match=r"cut off after 3,000 of 1,048,576 bytes.*repeat the command to go on from there"
    ):
        download.get(about, tmp_path)
    assert not (tmp_path / "x.bin").exists()
    assert (tmp_path / "x.bin.part").read_bytes() == CONTENT[:3000]
    download.get(about, tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_server_that_knows_no_ranges_sends_it_all_again(server, tmp_path):
    server.files["/x.bin"], server.ranges = CONTENT, False
    (tmp_path / "x.bin.part").write_bytes(b"other" * 1000)
    download.get(described(f"{server.address}/x.bin"), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"x", b"other" * 1000], ids=["whole", "too long", "another file"])
def test_whatever_an_earlier_attempt_left_the_end_is_right(server, tmp_path, left):
    server.files["/x.bin"] = CONTENT
    (tmp_path / "x.bin.part").write_bytes(left)
    download.get(described(f"{server.address}/x.bin"), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert not (tmp_path / "x.bin.part").exists()


def test_another_file_than_the_published_one_is_not_kept(server, tmp_path):
    server.files["/x.bin"] = b"<html>please log in</html>"
    with pytest.raises(DataError, match=rf"its MD5 is \w+, not the published {hashlib.md5(CONTENT).hexdigest()}"):
        download.get(described(f"{server.address}/x.bin"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(server.asked) == 1


def test_the_next_address_is_asked_where_one_fails(server, tmp_path):
    server.files |= {"/wrong": b"wrong", "/right": CONTENT}
    download.get(described(*(f"{server.address}/{name}" for name in ("missing", "wrong", "right"))), tmp_path)
    assert [path for path, _ in server.asked] == ["/missing", "/wrong", "/right"]
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_where_nobody_answers_the_error_says_what_to_put_where(server, tmp_path):
    with pytest.raises(DataError) as problem:
        download.get(described(f"{server.address}/x.bin", "http://127.0.0.1:9/x.bin"), tmp_path)
    for part in (
        "HTTP 404",
        "127.0.0.1:9: Connection refused",
        "get x.bin from its publisher by other means",
        str(tmp_path),
    ):
        assert part in str(problem.value)


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "x").write_text("in the way")
    with pytest.raises(FileError, match=rf"{tmp_path}/x cannot be written"):
        download.get(described(f"{server.address}/x.bin"), tmp_path / "x")


def archive(*members):
    """A .tar.gz of (name, content), where bytes are a file and text is the target of a link."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def test_an_archive_is_unpacked_and_removed(server, tmp_path):
    content = archive(("batches/x.bin", b"one"), ("batches/readme.html", b"two"))
    server.files["/x.tar.gz"] = content
    download.get(described(f"{server.address}/x.tar.gz", content=content, file="x.tar.gz"), tmp_path / "x")
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == {
        "x.bin": b"one",
        "readme.html": b"two",
    }


def test_an_archive_writes_nothing_outside_its_folder(server, tmp_path):
    content = archive(
        ("../../outside", b"1"),
        ("/tmp/bessemer-outside", b"2"),
        ("link", "/etc"),
        ("link/inside", b"3"),
        ("a/..", b"4"),
    )
    server.files["/x.tar.gz"] = content
    download.get(described(f"{server.address}/x.tar.gz", content=content, file="x.tar.gz"), tmp_path / "deep" / "x")
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir())
    assert found == ["deep/x/bessemer-outside", "deep/x/inside", "deep/x/outside"]
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_there_is_nothing_to_download_for_embedded_and_own_images():
    for name in ("digits", "folder"):
        with pytest.raises(UsageError, match=f"{name}: there is nothing to download"):
            data.get(name)


def test_data_that_is_there_is_checked_and_not_downloaded(real_data, monkeypatch):
    monkeypatch.setattr(download, "get", None)
    assert "as published" in data.get("mnist", real_data("mnist"))


@pytest.fixture
def served_mnist(server, tmp_path, real_data, monkeypatch):
    """The real MNIST, packed by us and served under digests of ours."""
    files = sorted((real_data("mnist") / "mnist").glob("*.gz"))
    server.files = {f"/{file.name}": file.read_bytes() for file in files}
    downloads = tuple(
        Download(path[1:], hashlib.md5(content).hexdigest(), (f"{server.address}{path}",))
        for path, content in server.files.items()
    )
    about = data.ABOUT["mnist"]
    monkeypatch.setitem(data.ABOUT, "mnist", About(**{**vars(about), "downloads": downloads}))
    return server


def test_get_leaves_a_data_set_that_can_be_loaded(served_mnist, tmp_path):
    assert "mnist: 60,000 training and 10,000 test images" in data.get("mnist", tmp_path / "new")
    assert len(data.load("mnist", tmp_path / "new").test) == 10_000


def test_get_mends_what_is_damaged(served_mnist, tmp_path):
    data.get("mnist")
    file = tmp_path / "cache" / "bessemer" / "data" / "mnist" / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:1000])
    served_mnist.asked.clear()
    assert "as published" in data.get("mnist")
    assert [path for path, _ in served_mnist.asked] == [f"/{file.name}"]

"""Fetching from owners (a loopback server stands for them) and unpacking archives that nobody should trust."""

import hashlib
import io
import os
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hf_seqrec.dataset_scripts import download as module
from hf_seqrec.dataset_scripts.amazon import Amazon
from hf_seqrec.dataset_scripts.download import checksum, download, unpack
from hf_seqrec.dataset_scripts.movielens import MovieLens
from hf_seqrec.dataset_scripts.readers import RawDataError
from hf_seqrec.dataset_scripts.yelp import Yelp


CONTENT = bytes(range(256)) * 40
MD5 = hashlib.md5(CONTENT).hexdigest()


class Owner(ThreadingHTTPServer):
    """Serves CONTENT with ranges; `cut` bytes are sent before the connection breaks, `etag` names the version."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cut, self.etag, self.content, self.ranges = None, '"v1"', CONTENT, []
        self.url = f"http://127.0.0.1:{self.server_port}/data.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        owner, content = self.server, self.server.content
        if self.path.endswith("?404"):
            self.send_error(404)
            return
        if self.path.endswith(".md5"):
            content = f"MD5 (data.bin) = {MD5}\n".encode()
        asked = self.headers.get("Range")
        owner.ranges.append(asked)
        start = int(asked[len("bytes=") : -1]) if asked and self.headers.get("If-Range") == owner.etag else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if owner.etag:
            self.send_header("ETag", owner.etag)
        self.end_headers()
        self.wfile.write(content[start:][: owner.cut])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def owner():
    server = Owner()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_file_arrives_whole_and_checked(tmp_path, owner):
    target = download(owner.url, tmp_path / "new/data.bin", md5_url=owner.url + ".md5")
    assert target.read_bytes() == CONTENT
    assert [file.name for file in target.parent.iterdir()] == ["data.bin"]


def test_a_broken_download_goes_on_where_it_stopped(tmp_path, owner):
    owner.cut = 3_000
    with pytest.raises(OSError, match="got 3,000 of 10,240 bytes; run the same command again"):
        download(owner.url, tmp_path / "data.bin")
    assert not (tmp_path / "data.bin").exists()
    owner.cut = None
    assert download(owner.url, tmp_path / "data.bin", md5=MD5).read_bytes() == CONTENT
    assert owner.ranges == [None, "bytes=3000-"]


def test_a_part_of_an_older_version_is_thrown_away(tmp_path, owner):
    owner.cut = 3_000
    with pytest.raises(OSError, match="run the same command again"):
        download(owner.url, tmp_path / "data.bin")
    owner.cut, owner.etag, owner.content = None, '"v2"', CONTENT[::-1]
    assert download(owner.url, tmp_path / "data.bin").read_bytes() == CONTENT[::-1]


def test_a_complete_part_needs_nothing_more(tmp_path, owner):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    (tmp_path / "data.bin.part.etag").write_text('"v1"')
    assert download(owner.url, tmp_path / "data.bin", md5=MD5).read_bytes() == CONTENT


def test_without_a_version_a_part_is_never_continued(tmp_path, owner):
    owner.etag = None
    (tmp_path / "data.bin.part").write_bytes(b"something else")
    assert download(owner.url, tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing_behind(tmp_path, owner):
    owner.content = CONTENT[:-1] + b"!"
    with pytest.raises(RawDataError, match=f"the owner publishes {MD5}"):
        download(owner.url, tmp_path / "data.bin", md5_url=owner.url + ".md5")
    assert list(tmp_path.iterdir()) == []


def test_only_web_addresses_are_fetched(tmp_path):
    with pytest.raises(ValueError, match="no http or https address"):
        download("file:///etc/hostname", tmp_path / "data.bin")


def test_an_unreachable_server_is_one_clear_error(tmp_path, owner):
    owner.shutdown()
    owner.server_close()
    with pytest.raises(OSError, match="cannot be reached"):
        download(owner.url, tmp_path / "data.bin")


def test_an_owner_who_wants_an_agreement_is_not_asked(tmp_path):
    with pytest.raises(
        RawDataError, match=r"offers no direct download of yelp_academic_dataset_review\.json\. Accept the agree"
    ):
        Yelp().download(tmp_path)


def test_a_converter_fetches_its_archive_once(tmp_path, owner, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "1::1::5::1\n")
        archive.writestr("ml-1m/movies.dat", "1::Heat (1995)::Crime\n")
    asked = []

    def fetch(url, target, md5, md5_url):
        asked.append((url, md5_url))
        target.write_bytes(buffer.getvalue())

    monkeypatch.setattr("hf_seqrec.dataset_scripts.base.download", fetch)
    converter = MovieLens(edition="1m")
    converter.download(tmp_path)
    converter.download(tmp_path)
    url = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
    assert asked == [(url, url + ".md5")]
    assert converter.locate(tmp_path)["items"][0].read_text() == "1::Heat (1995)::Crime\n"


def test_amazon_2023_comes_from_the_hub(tmp_path, hub):
    from huggingface_hub import HfApi

    api, repo = HfApi(), "McAuley-Lab/Amazon-Reviews-2023"
    api.create_repo(repo, repo_type="dataset", exist_ok=True)
    converter = Amazon(edition="2023", category="All_Beauty", source="ratings")
    files = {
        "benchmark/0core/rating_only/All_Beauty.csv": b"ratings",
        "raw/meta_categories/meta_All_Beauty.jsonl": b"meta",
    }
    for path, content in files.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=repo, repo_type="dataset")
    converter.download(tmp_path)
    found = converter.locate(tmp_path)
    assert [path.read_bytes() for paths in found.values() for path in paths] == [b"ratings", b"meta"]


def test_a_newer_archive_is_unpacked_again(tmp_path):
    def pack(text):
        with zipfile.ZipFile(tmp_path / "ml-20m.zip", "w") as archive:
            archive.writestr("ml-20m/ratings.csv", text)
            archive.writestr("ml-20m/movies.csv", "")

    pack("old")
    os.utime(tmp_path / "ml-20m.zip", (1, 1))
    converter = MovieLens(edition="20m")
    assert converter.locate(tmp_path)["interactions"][0].read_text() == "old"
    pack("new")
    os.utime(tmp_path / "ml-20m.zip", (2**32, 2**32))
    assert converter.locate(tmp_path)["interactions"][0].read_text() == "new"


def test_a_checksum_that_cannot_be_read_stops_the_download(tmp_path, owner):
    with pytest.raises(OSError, match=r"checksum .* cannot be read"):
        download(owner.url, tmp_path / "data.bin", md5_url=owner.url.replace("data.bin", "gone.md5x") + "?404")
    assert list(tmp_path.iterdir()) == []


def write_zip(path, name, data=b"x", link=False):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.csv", "fine")
        info = zipfile.ZipInfo(name)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = (0o120777 if link else 0o100644) << 16
        archive.writestr(info, data)


def write_tar(path, name, data=b"x", link=False):
    with tarfile.open(path, "w:gz") as archive:
        good = tarfile.TarInfo("good.csv")
        archive.addfile(good, io.BytesIO())
        info = tarfile.TarInfo(name)
        if link:
            info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        else:
            info.size = len(data)
        archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize(
    ("name", "link", "message"),
    [
        ("../evil.csv", False, "outside its folder"),
        ("a/../../evil.csv", False, "outside its folder"),
        ("/tmp/evil.csv", False, "outside its folder"),
        ("C:\\evil.csv", False, "outside its folder"),
        ("..\\evil.csv", False, "outside its folder"),
        ("link.csv", True, "which is a link"),
    ],
)
def test_unsafe_archives_are_refused_whole(tmp_path, write, name, link, message):
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in/archive"
    write(archive, name, link=link)
    with pytest.raises(RawDataError, match=message):
        unpack(archive, tmp_path / "in/out", {"good.csv"})
    assert [file.name for file in tmp_path.rglob("*")] == ["in", "archive"]


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, write):
    write(tmp_path / "archive", "bomb.csv", bytes(5_000_000))
    assert (tmp_path / "archive").stat().st_size < 50_000
    with pytest.raises(RawDataError, match="unpacks to more than 1,000,000 bytes"):
        unpack(tmp_path / "archive", tmp_path / "out", {"bomb.csv"}, max_bytes=1_000_000)
    assert not (tmp_path / "out").exists()


def test_a_cut_archive_is_refused(tmp_path):
    write_zip(tmp_path / "a.zip", "data.csv", bytes(1000))
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-30])
    with pytest.raises(RawDataError, match="damaged or no archive"):
        unpack(tmp_path / "a.zip", tmp_path / "out", {"data.csv"})
    assert not (tmp_path / "out").exists()


def test_an_archive_with_one_name_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data.csv", "first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("data.csv", "second")
    with pytest.raises(RawDataError, match=r"holds 'data\.csv' twice"):
        unpack(tmp_path / "a.zip", tmp_path / "out", {"data.csv"})


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_changed_bytes_inside_an_archive_are_noticed(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", compression) as archive:
        archive.writestr("data.csv", "".join(f"{i},{i * i}\n" for i in range(500)))
    broken = bytearray((tmp_path / "a.zip").read_bytes())
    broken[200:220] = b"x" * 20
    (tmp_path / "a.zip").write_bytes(broken)
    with pytest.raises(RawDataError, match="damaged"):
        unpack(tmp_path / "a.zip", tmp_path / "out", {"data.csv"})


def test_checksums_are_those_of_hashlib(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    assert checksum(tmp_path / "file", "md5") == MD5
    assert checksum(tmp_path / "file") == hashlib.sha256(CONTENT).hexdigest()
    assert module.UNPACK_LIMIT_BYTES > 9 << 30

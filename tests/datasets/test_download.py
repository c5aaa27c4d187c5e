import dataclasses
import hashlib
import http.server
import threading

import pytest

from ssmast.datasets import TASKS, prepare_task
from ssmast.datasets import builder as registry
from ssmast.datasets.builder import main
from ssmast.datasets.download import Remote, fetch
from tests.datasets.test_sounds import esc

CONTENT = bytes(range(256)) * 40


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server.site
        start = 0
        given = self.headers.get("Range")
        site["asked"].append(given)
        if site["errors"]:
            self.send_error(site["errors"].pop(0))
            return
        content = site["content"]
        if given and site["ranges"]:
            start = int(given.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = start + site["cuts"].pop(0) if site["cuts"] else len(content)
        self.wfile.write(content[start:stop])

    def log_message(self, *words):
        pass


@pytest.fixture
def site():
    """A local server: `content` served, `cuts` answers cut short, `errors` instead of answers."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = {"content": CONTENT, "ranges": True, "cuts": [], "errors": [], "asked": []}
    server.site["url"] = f"http://127.0.0.1:{server.server_port}/some.tar.gz?download=1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.site
    server.shutdown()
    thread.join()
    server.server_close()


def remote(site, **options):
    checksum = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
    return Remote(**{"url": site["url"], "checksum": checksum, **options})


def get(site, folder, **options):
    return fetch(remote(site, **options), folder, pause_seconds=0.0)


def test_a_file_arrives_whole_under_its_name(site, tmp_path):
    seen = []
    path = fetch(remote(site), tmp_path, progress=lambda *what: seen.append(what))
    assert path == tmp_path / "some.tar.gz"
    assert path.read_bytes() == CONTENT
    assert ("some.tar.gz", len(CONTENT), len(CONTENT)) in seen
    assert [file.name for file in tmp_path.iterdir()] == ["some.tar.gz"]
    assert get(site, tmp_path) == path
    assert site["asked"] == [None]  # the second time it was there already


def test_a_cut_answer_goes_on_where_it_stopped(site, tmp_path):
    site["cuts"] = [1000, 2000]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site["asked"] == [None, "bytes=1000-", "bytes=3000-"]


def test_a_later_run_goes_on_with_what_arrived(site, tmp_path):
    site["errors"] = [500] * 5
    (tmp_path / "some.tar.gz.partial").write_bytes(CONTENT[:500])
    with pytest.raises(OSError, match="what arrived is kept, run the same command again"):
        get(site, tmp_path)
    site["asked"].clear()
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site["asked"] == ["bytes=500-"]


def test_a_server_without_ranges_is_asked_for_all_again(site, tmp_path):
    site["ranges"] = False
    (tmp_path / "some.tar.gz.partial").write_bytes(b"x" * 500)
    assert get(site, tmp_path).read_bytes() == CONTENT


def test_a_partial_file_that_is_whole_or_too_long_is_settled(site, tmp_path):
    partial = tmp_path / "some.tar.gz.partial"
    partial.write_bytes(CONTENT)
    assert get(site, tmp_path).read_bytes() == CONTENT
    (tmp_path / "some.tar.gz").unlink()
    partial.write_bytes(CONTENT + b"more")
    assert get(site, tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_no_file_behind(site, tmp_path):
    with pytest.raises(ValueError, match="arrived with a wrong checksum"):
        get(site, tmp_path, checksum="md5:" + "0" * 32)
    assert not list(tmp_path.iterdir())
    (tmp_path / "some.tar.gz").write_bytes(b"mine")
    with pytest.raises(ValueError, match="move it away"):
        get(site, tmp_path)
    assert (tmp_path / "some.tar.gz").read_bytes() == b"mine"


def test_what_is_not_there_is_not_asked_for_again(site, tmp_path):
    site["errors"] = [404]
    with pytest.raises(OSError, match="404"):
        get(site, tmp_path)
    assert len(site["asked"]) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "/etc/passwd"])
def test_only_http_is_spoken(url, tmp_path):
    with pytest.raises(ValueError, match="only http and https"):
        fetch(Remote(url=url), tmp_path)


@pytest.fixture
def esc50_here(site, monkeypatch):
    """ESC-50 with its archive on the local server."""
    (official,) = TASKS["esc50"].downloads
    here = dataclasses.replace(official, url=site["url"], checksum=remote(site).checksum)
    task = dataclasses.replace(TASKS["esc50"], downloads=(here,))
    monkeypatch.setitem(registry.TASKS, "esc50", task)


def test_an_archive_is_fetched_and_the_command_that_unpacks_it_printed(
    esc50_here, mini, tmp_path, capsys
):
    root = tmp_path / "with space"
    words = ["task=esc50", f"root={root}", f"out={tmp_path / 'out'}", "download=true"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"unzip -q '{root}/ESC-50-master.zip' -d '{root}'" in text
    assert [file.name for file in root.iterdir()] == ["ESC-50-master.zip"]  # nothing unpacked
    assert not (tmp_path / "out").exists()
    esc(type(mini)(root / "ESC-50-master"))  # what the user's unzip would do
    assert main(words) == 0
    assert "esc50, subset=all: 2 fold 1 + 2 fold 2" in capsys.readouterr().out
    assert (tmp_path / "out/metadata.csv").is_file()


def test_what_is_given_on_request_prints_its_page(tmp_path):
    report = prepare_task("iemocap", root=tmp_path, out=tmp_path / "out", download=True)
    assert report.out is None
    assert "https://sail.usc.edu/iemocap" in report.messages[0]
    assert "not built yet" in report.messages[1]


def test_a_list_without_a_published_checksum_says_its_own(site, mini, monkeypatch):
    task = dataclasses.replace(
        TASKS["vggsound"], downloads=(Remote(url=site["url"], name="vggsound.csv"),)
    )
    monkeypatch.setitem(registry.TASKS, "vggsound", task)
    site["content"] = b"aaaaaaaaaaa,1,dog barking,train\n"
    report = prepare_task("vggsound", root=mini.root, out=mini.root.parent / "out", download=True)
    assert hashlib.sha256(site["content"]).hexdigest() in report.messages[0]
    assert report.out is None  # the list is there, the sound is not
    mini.touch("wav/aaaaaaaaaaa_000001.wav")
    report = prepare_task("vggsound", root=mini.root, out=mini.root.parent / "out", download=True)
    assert report.facts["counts"] == {"train": 1}

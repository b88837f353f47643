import re
from pathlib import Path

import pytest

from intone.serve import pages

UI = Path(pages.__file__).parent / "ui"


def test_pages_are_open_and_nothing_from_elsewhere_or_inline_may_run(server):
    http = server.http
    for path in ("/", "/runs", "/favicon.ico", *(f"/ui/{file.name}" for file in UI.iterdir())):
        answer = http.get(path)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    tag = http.get("/").headers["etag"]
    assert http.get("/", headers={"If-None-Match": tag}).status_code == 304
    for path in ("/ui/..%2fpages.py", "/ui/%2e%2e/pages.py", "/ui/none.js", "/ui/"):
        assert http.get(path).status_code == 404, path


@pytest.mark.parametrize("file", sorted(UI.iterdir()), ids=lambda file: file.name)
def test_files_of_the_pages_name_no_other_place_and_parse_no_html(file):
    text = file.read_text()
    others = [word for word in re.findall(r"https?://[^\s\"'`)]+", text) if "www.w3.org" not in word]
    assert others == []
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    if file.suffix == ".html":
        assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", text)


def test_runs_are_asked_for_as_json_and_errors_have_openais_shape(server):
    http = server.http
    assert http.get("/api/runs").json()["can_load"] is True
    assert http.get("/api/runs/tiny").json()["train"][0]["newest_save"] == 9
    for path in ("/api/runs/none", "/api/runs/none/log?stage=sft", "/api/runs/..%2ftiny"):
        answer = http.get(path)
        assert answer.status_code == 404 and set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert http.get("/api/runs/tiny/log?stage=rl").status_code == 400
    assert http.get("/api/runs/tiny/log?stage=sft&offset=x").status_code == 400
    assert http.post("/api/runs/none/load").status_code == 404
    loaded = http.post("/api/runs/tiny/load?stage=sft").json()
    assert loaded["model"] == "tiny/sft"

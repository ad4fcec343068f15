"""Addresses of the Hugging Face hub, and their files: of a server, of its cache, or of neither."""

import json
import subprocess
import sys

import hugging_face_server
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flair_jax.errors import UserError
from flair_jax.weights import hugging_face
from flair_jax.weights.hugging_face import Address, parse

NAMES = st.text("abcXYZ019._-#", min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://IGNF/FLAIR-INC", Address("IGNF/FLAIR-INC")),
        ("hf://IGNF/FLAIR-INC/", Address("IGNF/FLAIR-INC")),
        ("hf://a/b@v1.0", Address("a/b", "v1.0")),
        ("hf://a/b@v1.0/w.pth", Address("a/b", "v1.0", "w.pth")),
        ("hf://a/b@refs/pr/3", Address("a/b", "refs/pr/3")),
        ("hf://a/b@refs/pr/3/x/w.pth", Address("a/b", "refs/pr/3", "x/w.pth")),
        ("hf://a/b/x/w@2.pth", Address("a/b", None, "x/w@2.pth")),
    ],
)
def test_addresses(text, address):
    assert parse(text) == address


@given(NAMES, NAMES, st.none() | NAMES, st.just("") | NAMES)
def test_an_address_reads_as_it_is_written(organisation, name, revision, file):
    address = Address(f"{organisation}/{name}", revision, file)
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["hf://", "hf://a", "hf:a/b", "hf://a//b", "hf://a/@v1", "hf:/a/b"]
)
def test_what_is_no_address(text):
    with pytest.raises(UserError, match="is not of the form hf://organisation/repository"):
        parse(text)


# Runs each of its arguments, a JSON list: the names of files to fetch of an address.
FETCH = """
import json, sys
from flair_jax.errors import UserError
from flair_jax.weights import hugging_face
for argument in sys.argv[1:]:
    text, names = json.loads(argument)
    address = hugging_face.parse(text)
    try:
        def choose(found):
            print(json.dumps(sorted(found)), file=sys.stderr)
            return names
        paths = hugging_face.download_all(address, choose) if names else [
            hugging_face.download(address)]
        print(json.dumps([path.read_text() for path in paths]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def fetch(cache, endpoint, *requests, offline=False):
    """What a process of its own fetches: lists of contents, or messages."""
    pytest.importorskip("huggingface_hub")
    environment = hugging_face_server.environment(endpoint, cache, offline=offline)
    done = subprocess.run(
        [sys.executable, "-c", FETCH, *(json.dumps(r) for r in requests)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    notes = [line for line in lines if line.startswith("note:")]
    return [json.loads(line) for line in lines if line not in notes], notes


def test_files_come_from_the_hub_and_then_from_its_cache(tmp_path):
    files = {"a.json": b"spec", "sub/w.bin": b"weights", "other": b"not asked for"}
    asked = ["hf://o/n", ["a.json", "sub/w.bin"]]
    of_commit = [f"hf://o/n@{hugging_face_server.COMMIT}", ["sub/w.bin"]]
    with hugging_face_server.serve({"o/n": files}) as (endpoint, requests):
        found, notes = fetch(
            tmp_path, endpoint, asked, of_commit, ["hf://o/n/sub/w.bin", []],
            ["hf://o/none", ["a"]], ["hf://o/n@v9", ["a"]], ["hf://o/n/none.pth", []],
        )  # fmt: skip
        assert found[:3] == [["spec", "weights"], ["weights"], ["weights"]]
        assert not notes
        assert "there is no https://huggingface.co/o/none; or it is private" in found[3]
        assert "has no revision v9: expected a branch, a tag or a commit" in found[4]
        assert "has no file none.pth" in found[5]
        assert sum(r.startswith("GET /o/n/resolve") for r in requests) == 2  # each file once
        # The second file is asked of the commit of the first.
        assert f"HEAD /o/n/resolve/{hugging_face_server.COMMIT}/sub/w.bin" in requests
    # The server is gone: a file that is not in the cache is asked for again for 20 s, so only
    # where huggingface_hub knows that there is no network.
    for offline in (False, True):
        found, notes = fetch(
            tmp_path, endpoint, asked, ["hf://o/n/sub/w.bin", []], ["hf://o/m", ["a"]],
            *([["hf://o/n/other", []]] if offline else []), offline=offline,
        )  # fmt: skip
        assert found[:2] == [["spec", "weights"], ["weights"]]
        assert notes == [
            "note: the Hugging Face hub cannot be reached; hf://o/n is taken from its cache, "
            f"commit {hugging_face_server.COMMIT}"
        ]
        paths = [("o/m", "FOLDER"), ("o/n", "FOLDER/other")]
        for message, (name, path) in zip(found[2:], paths, strict=False):
            assert "is not in the cache and cannot be fetched from the Hugging Face hub" in message
            assert f"run hf download {name} --local-dir=FOLDER, and give the path of {path}" in (
                message
            )


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for ask in (
        lambda: hugging_face.download(parse("hf://o/n/w.pth")),
        lambda: hugging_face.download_all(parse("hf://o/n"), list),
    ):
        with pytest.raises(UserError, match=r"needs huggingface_hub: pip install 'flair-jax\[hub"):
            ask()

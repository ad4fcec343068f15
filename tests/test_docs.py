"""The documentation: commands that parse and run, links that lead somewhere, generated pages."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio

import flair_jax
from flair_jax import config as configuration
from flair_jax.cli import config_flags
from flair_jax.cli.commands import COMMANDS
from flair_jax.cli.parser import Parser
from flair_jax.errors import UserError
from tfds_builder import flags as builder_flags

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = "https://github.com/flair-jax/flair-jax/blob/main/"
PAGES = sorted(
    path.relative_to(ROOT)
    for path in (
        *ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "tfds_builder").rglob("*.md"),
        ROOT / "benchmarks/README.md",
    )
)  # fmt: skip
BLOCK = re.compile(r"(?:(<!-- runs -->)\n+)?```bash\n(.*?)```", re.DOTALL)


def blocks(page):
    """(whether it is to be run, text) of the shell blocks of a page."""
    return [(bool(runs), text) for runs, text in BLOCK.findall((ROOT / page).read_text())]


def commands(text):
    """The commands of this project in a shell block, as lists of words, without redirections.

    Variables are replaced by 1.
    """
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        lexer = shlex.shlex(re.sub(r"\$\w+", "1", line), posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split = True
        words = []
        for word in [*lexer, ";"]:
            if set(word) - set(";&|<>"):
                words.append(word)
            else:
                found += ours(words)
                words = []
    return found


def ours(words):
    """A list of the command of this project in a simple command, if it is one with arguments."""
    for i, word in enumerate(words[:-1]):
        if Path(word).name == "flair-jax":
            return [["flair-jax", *words[i + 1 :]]]
        if words[i : i + 2] == ["-m", "tfds_builder.build"]:
            return [words[i:]]
    return []


def parse(words):
    """Parses a command; raises a UserError if a flag, a value or a key does not exist."""
    if words[0] == "-m":
        parser = Parser("tfds_builder.build", "", ())
        builder_flags.add_flags(parser)
        return parser.parse(words[2:])
    name, *flags = words[1:]
    if name == "--version":
        return None
    if name not in COMMANDS:
        raise UserError(f"there is no command {name}")
    module = importlib.import_module(f"flair_jax.cli.{name.replace('-', '_')}")
    parser = Parser(f"flair-jax {name}", COMMANDS[name], module.EXAMPLES)
    module.add_flags(parser)
    values = parser.parse(flags)
    if hasattr(values, "changes"):
        config = configuration.read(values.config) if values.config else configuration.default()
        config_flags.change(config, values.changes)
    return values


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_parse(page):
    for _, text in blocks(page):
        for words in commands(text):
            try:
                parse(words)
            except UserError as error:
                raise AssertionError(f"{page}: {shlex.join(words)}: {error}") from error


def test_commands_are_found():
    text = "A=1 .venv/bin/flair-jax train \\\n  --config=toy > log 2>&1 &  # flair-jax x\n"
    text += "for i in 1; do srun flair-jax report a; done && python -m tfds_builder.build --shuffle"
    assert commands(text) == [
        ["flair-jax", "train", "--config=toy"],
        ["flair-jax", "report", "a"],
        ["-m", "tfds_builder.build", "--shuffle"],
    ]
    assert sum(len(commands(text)) for page in PAGES for _, text in blocks(page)) > 60
    with pytest.raises(UserError, match="did you mean --output"):
        parse(["flair-jax", "detect", "--outputs=a.tif"])


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        heading = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower().strip()
        found.add(re.sub(r"[^\w\- ]", "", heading).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(SITE):
            target, _, anchor = link.removeprefix(SITE).partition("#")
            path = ROOT / target
        elif "://" in link or link.startswith("mailto:"):
            continue
        else:
            target, _, anchor = link.partition("#")
            path = (ROOT / page).parent / target if target else ROOT / page
            if page.parts[0] == "docs":  # what is elsewhere is not on the site
                assert path.resolve().is_relative_to(DOCS), f"{page}: {link} is not in docs/"
        assert path.exists(), f"{page}: {link} leads nowhere"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page}: {link} has no such heading"


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(
        str(page.relative_to("docs")) for page in PAGES if page.parts[0] == "docs"
    )
    for page in listed:  # and within two links of the README, or of the first page
        assert page in (ROOT / "README.md").read_text() or page in (DOCS / "start.md").read_text()


def test_generated_pages_are_up_to_date():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate_reference.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, page in generate.PAGES.items():
        assert (DOCS / "reference" / name).read_text() == page(), (
            "run python docs/generate_reference.py"
        )


def test_the_readme_is_short_and_begins_with_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 180
    first, second = [body for _, body in blocks("README.md")][:2]
    install = "python3 -m venv .venv && .venv/bin/pip install -e"
    assert first == f"{install} . && .venv/bin/flair-jax train --config=toy\n"
    assert second == f'{install} ".[test]" && .venv/bin/python -m pytest\n'


def test_the_citation_is_of_the_last_release():
    citation = (ROOT / "CITATION.cff").read_text()
    released = re.search(r"^## (\d\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1] == released[1]
    assert re.search(r'^date-released: "(\S+)"$', citation, re.MULTILINE)[1] == released[2]
    assert released[1] == flair_jax.__version__


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(runs for runs, _ in blocks(p))], ids=str)
def test_the_blocks_that_run(page, tmp_path):
    script = tmp_path / "bin" / "flair-jax"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m flair_jax "$@"\n')
    script.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{script.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    for runs, text in blocks(page):
        if runs:
            subprocess.run(
                ["bash", "-euc", text], cwd=tmp_path, env=environment, check=True, timeout=1800
            )
    with rasterio.open(tmp_path / "cover.tif") as cover:
        assert (cover.width, cover.height, cover.nodata) == (512, 512, 255)
        assert cover.read(1).min() >= 1
    for run in ("toy", "toy_rgb"):
        assert (tmp_path / "runs" / run / "index.html").exists()

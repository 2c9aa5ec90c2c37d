"""What the documentation names exists: options, files, links, headings, excerpts of code."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import latency, lp_vs_exact, planners, steady, testbed_links
from bench.engines import __main__ as engines
from bench.overlap import __main__ as overlap
from bench.policies import __main__ as policies
from edgeflow_mpi.examples import digits
from edgeflow_mpi.job.options import build_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "bench/**/*.md", "hostfiles/*.md", "tests/golden/*.md")
    for path in ROOT.glob(pattern)
)
FOREIGN = {
    # pip
    "--no-deps",
    # mpirun
    "--mca", "--prtemca", "--map-by", "--bind-to", "--prefix", "--allow-run-as-root",
}  # fmt: skip
"""Options of other programs that the pages name."""

_FOLDERS = "launch|hostfiles|clusters|docs|bench|tests|edgeflow_mpi"
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(rf"(?<![\w./~-])(?:\./)?((?:{_FOLDERS})/[\w./-]*\w)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_EXCERPT = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page_ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options_of(command)


def known_options() -> set[str]:
    """Of the job, the bench and the example, and of the small commands of the package."""
    parsers = (
        build_parser(),
        latency._parser(),
        lp_vs_exact._parser(),
        planners._parser(),
        overlap._parser(),
        steady._parser(),
        testbed_links._parser(),
        engines._parser(),
        policies._parser(),
        digits._parser(),
    )
    found = {option for parser in parsers for option in options_of(parser)}
    for path in (ROOT / "edgeflow_mpi").rglob("*.py"):
        found |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', path.read_text()))
    return found


def heading_anchor(line: str) -> str:
    """The anchor that a heading has on the usual web sites."""
    text = re.sub(r"[`*]", "", line.lstrip("#").strip()).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = _FENCE.sub("", page.read_text())
    return {heading_anchor(line) for line in text.splitlines() if line.startswith("#")}


def broken_links(page: Path, text: str) -> list[str]:
    broken = []
    for link in _LINK.findall(_FENCE.sub("", text)):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    return broken


def unknown_options(text: str) -> set[str]:
    return set(_OPTION.findall(text)) - known_options() - FOREIGN


def missing_paths(text: str) -> set[str]:
    return {name for name in _PATH.findall(text) if not (ROOT / name).exists()}


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_options_exist(page: Path) -> None:
    assert unknown_options(page.read_text()) == set()


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_paths_exist(page: Path) -> None:
    assert missing_paths(page.read_text()) == set()


def test_the_readme_says_what_a_reader_needs_first() -> None:
    text = (ROOT / "README.md").read_text()
    for command in (
        "./launch/demo.sh",
        "./launch/test.sh",
        "mpirun -hostfile edges.txt python -m edgeflow_mpi.run\n",
    ):
        assert command in text
    assert text.index("./launch/demo.sh") < text.index("./launch/test.sh") < text.index("mpirun")


def test_options_of_the_readme_table_are_those_of_the_job() -> None:
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (`--.*?) \|", text, re.MULTILINE)
    named = {option for row in rows for option in _OPTION.findall(row)}
    assert len(named) > 10
    assert named <= set(options_of(build_parser()))


@pytest.mark.parametrize("page", ["adding-an-operator.md", "adding-an-engine.md"])
def test_code_in_the_guides_is_code_of_the_tree(page: str) -> None:
    """Each excerpt is found in the file that was named last before it."""
    guide = (ROOT / "docs" / page).read_text()
    excerpts = list(_EXCERPT.finditer(guide))
    assert len(excerpts) == guide.count("```python") > 2
    for excerpt in excerpts:
        *_, name = re.findall(r"`([\w./]+\.py)`", guide[: excerpt.start()])
        code = excerpt[1]
        assert code in (ROOT / name).read_text(), f"{name} does not have:\n{code}"


@pytest.mark.parametrize(
    ("text", "link", "option", "path"),
    [
        ("see [this](docs/none.md)", ["docs/none.md"], set(), {"docs/none.md"}),
        ("see [this](README.md#no-such-heading)", ["README.md#no-such-heading"], set(), set()),
        ("use `--no-such-option 3`", [], {"--no-such-option"}, set()),
        ("run `./launch/nothing.sh`", [], set(), {"launch/nothing.sh"}),
        ("`--verify`, `launch/local 4`, [here](LICENSE)", [], set(), set()),
        ("see [us](https://example.org/x) in `a/docs/none`", [], set(), set()),
    ],
    ids=["link", "anchor", "option", "path", "good", "foreign"],
)
def test_a_mistake_is_seen(text: str, link: list[str], option: set[str], path: set[str]) -> None:
    assert broken_links(ROOT / "README.md", text) == link
    assert unknown_options(text) == option
    assert missing_paths(text) == path

"""docs/datasets says what the code does: every task, option, count and command."""

import re
from pathlib import Path

import pytest

from ssmast.datasets import PUBLISHED, TASKS
from ssmast.datasets.builder import main
from ssmast.datasets.task import COPIES

DOCS = Path(__file__).parents[2] / "docs" / "datasets"
PAGES = sorted({task.page for task in TASKS.values()})
SECTIONS = ("Layout", "Split", "Published counts", "Commands", "Metric and protocol", "Traps")


def read(page):
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def commands(text):
    return re.findall(r"^ {4}ssmast prepare (.*)$", text, flags=re.M)


def test_there_is_a_page_for_each_data_set_and_an_index_of_all():
    assert sorted(path.stem for path in DOCS.glob("*.md")) == sorted([*PAGES, "README"])
    index = read("README")
    for name, task in TASKS.items():
        assert f"({task.page}.md)" in index
        assert f"`{name}`" in index


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_every_section_in_order(page):
    assert re.findall(r"^## (.*)$", read(page), flags=re.M) == list(SECTIONS)


@pytest.mark.parametrize("name", TASKS)
def test_the_page_of_a_task_says_what_the_code_says(name):
    task, text = TASKS[name], read(TASKS[name].page)
    assert f"`{name}`" in text
    assert task.homepage in text
    assert task.licence in text
    for remote in task.downloads:
        assert remote.file_name in text
    for option, choice in task.options.items():
        assert f"- `{option}` [{choice.default}]: {choice.help}" in text
    built = [re.search(r"task=(\S+)", line)[1] for line in commands(text)]
    assert name in built


@pytest.mark.parametrize("key", PUBLISHED)
def test_published_counts_on_the_page_are_those_that_are_checked(key):
    name, _, choice = key.partition(",")
    label = f"| `{name}` with `{choice}` |" if choice else f"| `{name}` |"
    text = read(TASKS[name].page)
    (line,) = [line for line in text.splitlines() if line.startswith(label)]
    counts = PUBLISHED[key].counts
    folds = all(part.isdigit() for part in counts)
    words = [f"{count:,}" if folds else f"{part} {count:,}" for part, count in counts.items()]
    assert (
        f"| {', '.join(words) or 'not published'}{' (folds)' * (folds and bool(counts))} |" in line
    )
    assert line.endswith(f"| {PUBLISHED[key].num_classes or ''} | {PUBLISHED[key].source} |")
    if choice:
        option, _, value = choice.partition("=")
        assert TASKS[name].chosen({option: value})[option] == value


def test_copies_of_papers_on_the_pages_are_those_that_are_compared():
    for task, copies in COPIES.items():
        text = read(TASKS[task].page)
        for paper, counts in copies.items():
            words = ", ".join(f"{part} {count:,}" for part, count in counts.items())
            assert any(
                line.startswith(f"| {paper} |") and f"`{task}`" in line and f"| {words} |" in line
                for line in text.splitlines()
            )


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_from_what_its_builder_was_verified(page):
    assert len(re.findall(r"^\| verified on \| .+ \|$", read(page), flags=re.M)) == 1


@pytest.mark.parametrize("page", [*PAGES, "README"])
def test_every_command_on_a_page_is_understood(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = commands(read(page))
    assert found or page == "README"
    for line in found:
        assert main([*line.split(), "--dry-run"]) == 0
        task = re.search(r"task=(\S+)", line)[1]
        assert capsys.readouterr().out.startswith(task)
    assert not list(tmp_path.iterdir())

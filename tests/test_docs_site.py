"""The documents hold together: links, anchors, pictures, navigation, references, launch files."""

import importlib
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *sorted(DOCS.rglob("*.md")),
    *sorted(page for page in ROOT.glob("*.md") if page.name != "CHANGELOG.md"),
    *(ROOT / name for name in ("linear_eval/README.md", "benchmarks/README.md")),
]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def prose(page):
    """The page without its code blocks and code between backticks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "code", re.sub(r"^ {4}.*$", "", text, flags=re.M))


def links(text):
    """Targets of links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page):
    """Names that a heading of the page can be reached by, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    titles = [re.sub(r"[`*]|\]\(.*?\)|\[", "", title) for title in titles]
    plain = [unicodedata.normalize("NFKD", title).lower() for title in titles]
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip()) for title in plain}


def dead(page, text):
    """Links of the text that lead nowhere, seen from the page."""
    wrong = []
    for link in links(text):
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = target.exists() and ROOT in target.parents
        if not inside or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_of_the_page_is_dead(page):
    assert not dead(page, prose(page))


@pytest.mark.parametrize("link", ["nowhere.md", "data.md#nowhere", "../../outside.md", "#nowhere"])
def test_a_dead_link_would_be_found(link):
    assert dead(DOCS / "index.md", f"[a]({link})") == [link]


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_pages_of_the_site_stay_on_the_site(page):
    for link in links(prose(page)):
        if not link.startswith("http"):
            assert DOCS in (page.parent / link.partition("#")[0]).resolve().parents


def nav_pages(entries):
    """Every page that the navigation names."""
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from nav_pages(value) if isinstance(value, list) else [value]


def test_the_navigation_names_every_page_once():
    named = list(nav_pages(SITE["nav"]))
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_every_reference_names_something_that_has_a_docstring():
    names = [
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: ([\w.]+)", page.read_text(encoding="utf-8"), re.M)
    ]
    assert len(names) > 40
    for name in names:
        module, last = name, ""
        if re.search(r"\.[A-Z]\w*$", name):
            module, last = name.rsplit(".", 1)
        found = importlib.import_module(module)
        assert (getattr(found, last) if last else found).__doc__, name


def test_members_that_a_reference_chooses_exist():
    for page in (DOCS / "reference").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for name, members in re.findall(
            r"^::: ([\w.]+)\n(?: {4,}[^\n]*\n)*? +members: \[(.*?)\]", text, re.M
        ):
            for member in members.split(", "):
                assert hasattr(importlib.import_module(name), member), f"{name}.{member}"


def test_every_command_has_its_keys_in_the_reference():
    from ssmast.cli import COMMANDS

    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert name == "demo" or re.search(rf"^## `ssmast {name}[` ]", text, re.M)


def test_the_figures_that_are_drawn_are_those_that_are_shown(tmp_path):
    done = subprocess.run(
        [sys.executable, str(DOCS / "figures"), f"out={tmp_path}"],
        capture_output=True, text=True, timeout=240, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    drawn = {file.name for file in tmp_path.iterdir()}
    assert drawn == {file.name for file in (DOCS / "images").glob("*.svg")}
    shown = {Path(link).name for page in PAGES for link in links(prose(page))}
    assert drawn <= shown
    for file in tmp_path.iterdir():
        text = file.read_text(encoding="utf-8")
        ElementTree.fromstring(text)
        assert "prefers-color-scheme:dark" in text
        assert "var(--ink)" in text


@pytest.mark.parametrize("picture", sorted((DOCS / "images").iterdir()), ids=lambda file: file.name)
def test_pictures_are_small_and_have_a_text_beside_them(picture):
    assert picture.stat().st_size < 500_000
    shown = [
        text
        for page in PAGES
        for text, link in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
        if Path(link).name == picture.name
    ]
    assert shown
    assert all(len(text) > 20 for text in shown)


@pytest.mark.parametrize("name", ["two_machines.yaml", "pretrain.sbatch"])
def test_the_page_shows_the_launch_file_as_it_is(name):
    page = (DOCS / "gpus.md").read_text(encoding="utf-8")
    assert (DOCS / "launch" / name).read_text(encoding="utf-8") in page


def test_accelerate_reads_the_launch_file():
    config = load_config_from_file(str(DOCS / "launch" / "two_machines.yaml"))
    assert (config.num_machines, config.num_processes, config.machine_rank) == (2, 16, 0)


def test_the_slurm_job_starts_one_launcher_a_node_with_its_own_rank(tmp_path):
    """Run with stand-ins for srun, scontrol and accelerate: two nodes, eight GPUs each."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    programs = {
        "scontrol": "printf 'node1\\nnode2\\n'",
        "srun": 'shift; for node in 0 1; do SLURM_NODEID=$node "$@"; done',
        "accelerate": 'printf "%s|" "$@"; echo',
    }
    for name, body in programs.items():
        file = bin_folder / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)
    given = {
        "PATH": f"{bin_folder}:/usr/bin:/bin",
        "SLURM_GPUS_PER_NODE": "h100:8",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "41234",
        "SLURM_NNODES": "2",
    }
    job = DOCS / "launch" / "pretrain.sbatch"
    done = subprocess.run(
        ["/bin/bash", str(job), "recipe=ss_mast_base", "data=a b"],
        capture_output=True, text=True, cwd=tmp_path, env=given, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (line.split("|")[:-1] for line in done.stdout.splitlines())
    assert first[0] == "launch"
    flags = dict(zip(first[2:12:2], first[3:12:2], strict=True))
    assert flags == {
        "--num_machines": "2",
        "--num_processes": "16",
        "--machine_rank": "0",
        "--main_process_ip": "node1",
        "--main_process_port": "21234",
    }
    assert [(a, b) for a, b in zip(first, second, strict=True) if a != b] == [("0", "1")]
    assert first[12:] == [
        *("-m", "ssmast", "pretrain"),
        *("processes=16", "resume=auto", "recipe=ss_mast_base", "data=a b"),
    ]


def test_the_tables_of_keys_are_those_of_the_settings(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "reference")
    keys = importlib.import_module("keys")
    text = keys.PAGE.read_text(encoding="utf-8")
    assert keys.filled(text) == text, "write them anew: python docs/reference/keys.py"
    assert "| `optim.lr` | `" in text
    assert "| `data` | required |" in text

"""What the README and the pages under docs/ say: links lead somewhere, commands are understood, the first example runs."""

import re
import shlex

import pytest
import yaml
from PIL import Image

import asyrp
from asyrp.options import FLAGS, WITHOUT_EFFECT
from asyrp.parsing import parse_args
from utils.files import ROOT

PAGES = [ROOT / "README.md", ROOT / "examples/README.md", *sorted((ROOT / "docs").glob("*.md"))]
# In shell scripts, as in the pages, these start main.py.
STARTS = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:python|torchrun(?: --\S+(?: [^-\s]\S*)?)*) main\.py (.*)$")


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def commands():
    """(name of the page, words for main.py) of every whole command line."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                found = STARTS.match(line)
                if found and "..." not in line:
                    yield page.name, shlex.split(found[1].replace("$photos", "--custom_train_dataset_dir a"), comments=True)


COMMANDS = list(commands())


def anchors(page):
    """What GitHub calls the headings of a page."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
    named = re.findall(r"`((?:asyrp|configs|docs|examples|losses|models|scripts|tests|utils)/[\w./-]+)`", text_of(page))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else "")
def test_commands_are_understood(page, words):
    given, notices = parse_args(words)
    assert not notices
    if given["config"].startswith(("celeba", "avatar")):
        assert (ROOT / "configs" / given["config"]).is_file()


def test_there_are_commands_to_test():
    assert len([page for page, _ in COMMANDS if page == "README.md"]) >= 4
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_in_tables_are_flags(page):
    """In prose and tables, of main.py or of a script."""
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "scripts").rglob("*.py"))
    known = FLAGS.keys() | WITHOUT_EFFECT | set(re.findall(r'"--(\w+)"', scripts)) | {"help"}
    known |= {"standalone", "nproc_per_node", "logdir"}  # of torchrun and TensorBoard
    # The flags of base-model training are the fields of its settings.
    known |= set(re.findall(r"^    (\w+):", (ROOT / "asyrp/base_model/settings.py").read_text(encoding="utf-8"), re.MULTILINE))
    named = {flag for code in re.findall(r"`([^`\n]*)`", text_of(page)) for flag in re.findall(r"(?<![\w-])--(\w+)", code)}
    assert named <= known


def test_the_published_settings_are_those_of_the_config():
    """The README says that its long command and its short one are the same training."""
    [train] = [parse_args(words)[0] for page, words in COMMANDS if page == "README.md" and "--retrain" in words]
    published = yaml.safe_load((ROOT / "configs/celeba.yml").read_text())["editing"]
    assert published.pop("clip_source") == FLAGS["clip_source"].default
    assert {name: train[name] for name in published} == published


def test_the_first_example_of_the_readme_runs(tmp_path, monkeypatch):
    [example] = blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    exec(compile(example, "README.md", "exec"), {})
    with Image.open("smiling.png") as picture:
        assert picture.width > 3 * 96


def test_the_readme_is_short():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 150


def test_the_index_names_every_page():
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", text_of(ROOT / "docs/README.md")))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked


def test_every_public_name_is_explained():
    explained = set(re.findall(r"`asyrp\.(\w+)", text_of(ROOT / "docs/python.md")))
    assert set(asyrp.__all__) <= explained


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_rates_of_a_processor(page):
    assert not re.search(r"\d (images|faces|steps) (a|per) second|images a second", text_of(page))

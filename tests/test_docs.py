"""The documentation site builds without a warning, its links lead somewhere, and a browser finds and shows pages."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from screenshots import PHONE, shoot

from src import ROOT
from tests.conftest import once, serving
from tests.engine.deploy.served import browser
from tests.seen import faults

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")
PAGES = sorted((ROOT / "docs").glob("*.md"))
# What a newcomer looks for, and the page that tells him.
SEARCHED = {
    "regression": "your_own",
    "multi-label": "your_own",
    "segmentation": "your_own",
    "own callback": "own_code",
    "own loss": "own_code",
    "class weights": "train",
    "weighted sampling": "own_code",
    "cross-validation": "cross_validation",
    "num_workers": "data",
    "Mac": "platforms",
    "Windows": "platforms",
    "VS Code": "platforms",
    "uv": "",
    "notebook": "notebook",
    "Docker": "container",
    "use this template": "own_project",
    "early stopping": "train",
    "freeze": "own_code",
    "learning rate": "search",
    "Hugging Face": "own_code",
    "hydra": "coming_from",
    "s3": "remote_files",
    "object detection": "detection",
    "compare runs": "compare",
    "WeightedCrossEntropy": "reference/tasks",
}


def build(folder: Path) -> str:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return str(folder / "site")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(once(tmp_path_factory, "docs", build))


class Page(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        self.loaded += [found[name] for name in ("src", "href") if tag not in ("a", "svg") and name in found]


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path.resolve(): Page(path) for path in site.rglob("*.html")}


@pytest.mark.slow
def test_every_link_and_anchor_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    count = 0
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), (path, link)
            assert not parts.fragment or unquote(parts.fragment) in pages[target].anchors, (path, link)
            count += 1
    assert count > 1000


@pytest.mark.slow
def test_a_page_loads_nothing_from_other_hosts(pages: dict[Path, Page]) -> None:
    loaded = {link for page in pages.values() for link in page.loaded if urlsplit(link).netloc}
    assert loaded == set()


@pytest.mark.slow
def test_every_link_to_the_repository_names_a_file(pages: dict[Path, Page]) -> None:
    links = {link for page in pages.values() for link in page.links if "/blob/main/" in link}
    assert links
    for link in links:
        assert (ROOT / link.partition("/blob/main/")[2].partition("#")[0]).is_file(), link


@pytest.mark.slow
def test_every_page_is_in_the_navigation(site: Path, pages: dict[Path, Page]) -> None:
    linked = {(site / link).resolve() for link in pages[(site / "index.html").resolve()].links if "//" not in link}
    for page in PAGES:
        assert (site / page.stem).resolve() in linked or page.stem == "index", page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_page_opens_with_what_one_types(page: Path) -> None:
    if page.stem == "figures":  # written by a script
        return
    _title, _, first, *_ = page.read_text(encoding="utf-8").splitlines()
    assert first == "```bash", f"{page.name} opens with {first!r}"


@pytest.mark.slow
def test_public_classes_are_in_the_reference(site: Path) -> None:
    text = (site / "reference" / "tasks" / "index.html").read_text(encoding="utf-8")
    for path in sorted((ROOT / "src" / "tasks").glob("[!_]*.py")):
        for name in re.findall(r"^class ([A-Z]\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert f'id="src.tasks.{path.stem}.{name}"' in text, name


@pytest.fixture(scope="module")
def shown(site: Path) -> Iterator[tuple[Any, str]]:
    """A page of a browser, and the address of the site."""
    with serving(site) as address, browser() as page:
        yield page, address


@pytest.mark.slow
def test_a_search_finds_what_a_newcomer_looks_for(shown: tuple[Any, str]) -> None:
    page, address = shown
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": 1200, "height": 800})
    page.goto(address)
    page.keyboard.press("/")
    missing = {}
    for words, expected in SEARCHED.items():
        page.locator("input.md-search__input").fill("")
        page.wait_for_function("!document.querySelector('.md-search-result__item')")
        page.keyboard.type(words)
        page.get_by_text(re.compile("matching document")).wait_for()
        page.wait_for_timeout(400)  # results of its first letters are replaced
        found = page.eval_on_selector_all(
            ".md-search-result__item > a:first-child", "all => all.slice(0, 4).map(one => one.href)"
        )
        if not any(urlsplit(link).path.strip("/") == expected for link in found):
            missing[words] = found
    assert missing == {}
    assert all(urlsplit(url).hostname == "127.0.0.1" for url in asked)


@pytest.mark.slow
def test_pictures_of_the_site_are_made_on_a_computer_and_a_phone(shown: tuple[Any, str], tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as thread:  # the browser of `shown` has this one
        files = thread.submit(shoot, shown[1], tmp_path, "site").result()
    assert [path.name for path in files] == ["site.png", "site_phone.png"]
    assert all(path.stat().st_size > 20_000 for path in files)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_a_phone_and_can_be_read(shown: tuple[Any, str], site: Path, scheme: str) -> None:
    page, address = shown
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme=scheme)
    page.goto(address)
    page.evaluate("localStorage.clear()")  # a choice made before
    found = {}
    for path in ["", *(f"{one.stem}/" for one in PAGES if one.stem != "index"), "reference/tasks/"]:
        page.goto(f"{address}{path}")
        assert page.locator(f'body[data-md-color-scheme="{"slate" if scheme == "dark" else "default"}"]').count()
        found[path] = faults(page)
    assert {path: one for path, one in found.items() if one} == {}

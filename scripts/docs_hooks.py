"""Hooks of mkdocs.yml: pages made from docstrings and from CHANGELOG.md, and links to files outside of docs/."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ("data", "training", "training.optim", "tensorboard", "parts")  # packages whose classes a user may name


def packages() -> dict[str, str]:
    """The packages that the reference describes, by the name of their page."""
    domains = sorted(path.parent.name for path in (ROOT / "src").glob("*/__init__.py"))
    found = {name: f"src.{name}" for name in domains if name != "engine"}
    return found | {f"engine_{name.replace('.', '_')}": f"src.engine.{name}" for name in ENGINE}


def reference(package: str) -> str:
    """A page with everything public of the modules of a package."""
    folder = ROOT / package.replace(".", "/")
    modules = sorted(path.stem for path in folder.glob("*.py") if not path.name.startswith("_"))
    blocks = "\n\n".join(f"::: {package}.{module}" for module in modules)
    return f"---\nsearch: {{boost: 0.1}}\n---\n# {package}\n\n`from {package}.{modules[0]} import ...`\n\n{blocks}\n"


def on_config(config: Any) -> Any:
    """Leave out pages that a project does not have, and add those that the navigation does not list."""
    there = {path.name for path in Path(config.docs_dir).glob("*.md")} | {"changelog.md"}
    listed = {page for group in config.nav for page in _pages(group)}
    for group in config.nav:
        for title, pages in group.items():
            if isinstance(pages, list):
                group[title] = [page for page in pages if there >= set(_pages(page))]
    if more := sorted(there - listed):
        config.nav.append({"More": more})
    config.nav.append({"Reference": [{package: f"reference/{name}.md"} for name, package in packages().items()]})
    return config


def _pages(entry: Any) -> list[str]:
    (found,) = entry.values()
    return [found] if isinstance(found, str) else [page for one in found for page in _pages(one)]


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    made = {f"reference/{name}.md": reference(package) for name, package in packages().items()}
    made["changelog.md"] = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Links to files outside of docs/ lead to the repository, or to the page made from them."""
    markdown = markdown.replace("](../CHANGELOG.md)", "](changelog.md)")
    return re.sub(r"\]\(\.\./([^)]+)\)", rf"]({config.extra['repository']}/blob/main/\1)", markdown)

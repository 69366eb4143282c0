"""Which files of configs/ can run in this tree: a domain may have been deleted."""

import re
from pathlib import Path

from src import ROOT
from src.engine.cli.config import is_recipe, load_config
from src.engine.system.errors import InputError

FOUND = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))
SEARCHES = [path for path in FOUND if path.startswith("configs/tune/")]
DELETED = {
    name
    for name in ("vision", "text", "audio", "multimodal", "biology")
    if not (ROOT / "src" / name / "__init__.py").is_file()
}


def can_run(config: str) -> bool:
    """Whether a file's classes, or the recipe of a search, are in this tree.

    Always True while no domain has been deleted, and in the folder of a domain: a file there that names a class
    that does not exist is a mistake, and its test shows that.
    """
    if not (ROOT / config).is_file():
        return False
    if not DELETED or Path(config).parent.name in {path.name for path in (ROOT / "src").iterdir()}:
        return True
    if config in SEARCHES:
        recipe = re.search(r"^recipe: (\S+)", (ROOT / config).read_text(encoding="utf-8"), re.MULTILINE)
        return recipe is None or can_run(recipe[1])
    try:
        load_config(config)
    except InputError:
        return False
    return True


CONFIGS = [path for path in FOUND if path not in SEARCHES and can_run(path)]
RECIPES = [path for path in CONFIGS if is_recipe(load_config(path)[1])]
OVERLAYS = [path for path in CONFIGS if path not in RECIPES]

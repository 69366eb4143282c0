"""The files of configs/: recipes, overlays and searches."""

from src import ROOT
from src.engine.cli.config import is_recipe, load_config

FOUND = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))
CONFIGS = [path for path in FOUND if "/tune/" not in path]  # a project without searches names no folder of them
RECIPES = [path for path in CONFIGS if is_recipe(load_config(path)[1])]
OVERLAYS = [path for path in CONFIGS if path not in RECIPES]

"""Parts that a project can do without: each adds itself by the functions that it defines, see `system/hooks.py`."""

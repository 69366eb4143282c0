"""New projects: the files of this template that a choice needs."""

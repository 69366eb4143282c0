"""The code behind the commands: you need not read it."""

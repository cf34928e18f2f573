"""The command line: one file a command. This is the only room that prints."""

from bessemer.cli.main import main

__all__ = ["main"]

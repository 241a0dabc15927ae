"""``python -m taxbreak_fx``: the CLI without its installed script."""

from taxbreak_fx.cli import entry

entry()

"""Reports: each module reads a finished ``Review`` and returns text; ``content`` chooses what they show."""

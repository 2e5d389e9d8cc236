"""The command ``husai compare``: loading files, comparison, JSON document, table."""

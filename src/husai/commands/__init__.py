"""The commands of ``husai``: their options and their output; the library does the work."""

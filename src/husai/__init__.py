"""HUSAI: would I find these features again?"""

__version__ = "0.1.0"

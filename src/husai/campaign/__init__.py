"""Campaigns: plans of many SAEs, their training, and the records that a comparison reads."""

import lazy_loader

# the public names are listed in __init__.pyi; each is imported when it is first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The data of the studies: modular arithmetic, and planted dictionaries with known features."""

import lazy_loader

# the names are listed in __init__.pyi; each is imported when it is first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Sparse autoencoders: architectures, training of many at once in a bank, and their files."""

import lazy_loader

# the names are listed in __init__.pyi; each is imported when it is first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

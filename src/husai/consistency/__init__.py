"""Which features of an SAE return with another seed: scores, their nulls and their statistics."""

import lazy_loader

# the public names are listed in __init__.pyi; each is imported when it is first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Single features: cards of what each is and does, and which to keep."""

import lazy_loader

# the names stand in __init__.pyi; each is imported when it is first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

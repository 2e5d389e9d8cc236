"""The base of every parameter group."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen group of parameters in which an unknown key is an error.

    Every group of parameters in the project derives from it, so that a typo is reported with the
    field's name before any work starts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

"""Read HUSAI's own SAE files: one safetensors file with the configuration in its header."""

from __future__ import annotations

from pathlib import Path

from husai.boundary import check_file, reading
from husai.sae.formats.declared import take
from husai.sae.formats.reading import Contract, Hints, Reading, decoder_only, layer_of
from husai.sae.trained import read_sae

_TENSORS = {"W_enc": "dF", "b_enc": "F", "W_dec": "Fd", "b_dec": "d", "threshold": "F"}


def read(path: Path, hints: Hints) -> Reading:
    """Read the file ``path``.

    Raises
    ------
    InputError
        When it is incomplete, or its tensors have changed or are not finite.
    """
    with reading(path):
        check_file(path)
        sae = read_sae(path)
        tensors = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
        if sae.threshold is not None:
            tensors["threshold"] = sae.threshold
        take(path, tensors, _TENSORS, optional=("threshold",))
    campaign_header = sae.provenance.get("campaign", {})
    given = sae.provenance.get("contract", {})
    hook = campaign_header.get("hook_name", given.get("hook"))
    position = campaign_header.get("position", given.get("position"))
    contract = Contract(
        model=campaign_header.get("model", given.get("model")),
        hook=hook,
        layer=layer_of(hook),
        position=None if position is None else str(position),
        scale=given.get("scale", "none"),
    )
    name = sae.config.architecture
    read_as = decoder_only(path, "husai", sae.W_dec, "", contract, name)
    return Reading(path, "husai", read_as.W_dec, sae, "", contract, name)

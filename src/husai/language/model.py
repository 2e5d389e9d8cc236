"""Load a language model from a folder or the hub, read its hooks, and change what they carry."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from husai.errors import InputError, needs
from husai.language.config import LanguageModelConfig
from husai.text import find_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformer_lens.model_bridge import TransformerBridge

logger = logging.getLogger(__name__)

Kind = Literal["causal", "masked", "encoder"]
Change = Callable[["torch.Tensor"], "torch.Tensor"]

HEAD = re.compile(r"(.+)\.head(\d+)")
BLOCK_OUTPUT = re.compile(r"blocks\.(\d+)\.hook_out")


class _StopForward(Exception):
    """Raised in a hook to end a forward pass when all wanted values have been read."""


class BlockOutput(NamedTuple):
    """The output ``value`` of a block, ``[batch, position, d]``, from which a pass can go on.

    ``last`` is the block's number, and ``in_tuple`` whether the block returns a tuple.
    """

    last: int
    value: torch.Tensor
    in_tuple: bool


@dataclass(frozen=True)
class LanguageModel:
    """A model with its tokenizer.

    Attributes
    ----------
    bridge
        The model, as TransformerLens loads it.
    tokenizer
        Its tokenizer, from Hugging Face.
    kind
        A ``causal`` model predicts the next token and a ``masked`` one masked tokens; an
        ``encoder`` predicts no tokens.
    about
        Name, revision, kind and a fingerprint of the weights: JSON data.
    """

    bridge: TransformerBridge
    tokenizer: Any
    kind: Kind
    about: Mapping[str, Any]

    @property
    def device(self) -> torch.device:
        """Device on which the model computes."""
        return next(self.bridge.parameters()).device

    @property
    def d_vocab(self) -> int:
        """Number of tokens in its vocabulary."""
        return int(self.bridge.cfg.d_vocab)

    @property
    def context(self) -> int:
        """Most tokens that it can read at once."""
        return int(self.bridge.cfg.n_ctx)

    def values(
        self, ids: torch.Tensor, attention: torch.Tensor, hooks: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Read hooks in one forward pass, which stops after the last of them.

        Parameters
        ----------
        ids, attention
            ``[batch, position]`` token ids, and 1 for a token or 0 for padding.
        hooks
            Names of hooks, with a head or without.

        Returns
        -------
        dict
            For each hook ``[batch, position, d]``; several heads are concatenated.

        Raises
        ------
        InputError
            When a hook does not fire, or has no position axis.
        """
        import torch

        wanted = {name: _base(name) for name in hooks}
        waiting = set(wanted.values())
        found: dict[str, torch.Tensor] = {}

        def keep(base: str) -> Callable[..., None]:
            def hook(value: torch.Tensor, hook: Any = None) -> None:
                found[base] = value.detach()
                waiting.discard(base)
                if not waiting:
                    raise _StopForward

            return hook

        with torch.no_grad(), suppress(_StopForward):
            self.bridge.run_with_hooks(
                ids.to(self.device),
                attention_mask=attention.to(self.device),
                fwd_hooks=[(base, keep(base)) for base in sorted(waiting)],
            )
        if waiting:
            raise InputError(
                f"reading.hook_names: '{min(waiting)}' exists in the model but does not fire in "
                "this configuration"
            )
        return {
            name: _rows_of(found[base], name, tuple(ids.shape)) for name, base in wanted.items()
        }

    def outputs(
        self,
        ids: torch.Tensor,
        attention: torch.Tensor,
        hook: str | None = None,
        change: Change | None = None,
        *,
        embedding: bool = False,
        after: BlockOutput | None = None,
    ) -> torch.Tensor:
        """Run the model, with a change at one hook if wanted, and return its outputs.

        Parameters
        ----------
        ids, attention
            As for :meth:`values`.
        hook, change
            A hook, and a function that returns new values for its ``[batch, position, d]``.
        embedding
            Return the last block's output instead of the logits; an encoder has no logits.
        after
            From :meth:`block_output` of the same tokens and hook: the blocks up to the hook are
            not run again.

        Returns
        -------
        torch.Tensor
            Logits ``[batch, position, d_vocab]``, or the last block's output
            ``[batch, position, d_model]``.
        """
        import torch

        hooks: list[tuple[str, Callable[..., Any]]] = []
        if after is not None and change is not None:
            after = after._replace(value=change(after.value))
        elif hook is not None and change is not None:
            apply = change

            def splice(value: torch.Tensor, hook_point: Any = None, **_: Any) -> torch.Tensor:
                return _put_back(value, hook, apply(_rows_of(value, hook, tuple(ids.shape))))

            hooks.append((_base(hook), lambda value, hook: splice(value)))
        last: list[torch.Tensor] = []
        if embedding:

            def read(value: torch.Tensor, hook: Any = None) -> None:
                last.append(value.detach())
                raise _StopForward

            # added after the change, so that it reads the changed values where both are at one hook
            hooks.append((f"blocks.{int(self.bridge.cfg.n_layers) - 1}.hook_out", read))
        with torch.no_grad(), suppress(_StopForward), self._going_on(after):
            last.append(
                self.bridge.run_with_hooks(
                    ids.to(self.device), attention_mask=attention.to(self.device), fwd_hooks=hooks
                )
            )
        return last[0]

    def block_output(
        self, ids: torch.Tensor, attention: torch.Tensor, hook: str
    ) -> BlockOutput | None:
        """Run the model up to a hook, if that is the output of a block that is not the last.

        Parameters
        ----------
        ids, attention
            As for :meth:`values`.
        hook
            A hook. With None as the result, a pass that changes it has to run the whole model.
        """
        match = BLOCK_OUTPUT.fullmatch(hook)
        number = int(match.group(1)) if match else -1
        if not 0 <= number < int(self.bridge.cfg.n_layers) - 1:
            return None
        kinds: list[bool] = []
        handle = self.bridge.blocks[0].register_forward_hook(
            lambda block, given, output: kinds.append(isinstance(output, tuple))
        )
        try:
            # the hook of the next block, so that the first block has returned
            value = self.values(ids, attention, [hook, f"blocks.{number + 1}.hook_in"])[hook]
        finally:
            handle.remove()
        return BlockOutput(number, value, kinds[0])

    @contextmanager
    def _going_on(self, after: BlockOutput | None) -> Iterator[None]:
        """Let every block up to a given one return this one's output, without running."""
        if after is None:
            yield
            return
        returned = (after.value,) if after.in_tuple else after.value
        blocks = list(self.bridge.blocks)[: after.last + 1]
        try:
            for block in blocks:
                vars(block)["forward"] = lambda *given, **options: returned
            yield
        finally:
            for block in blocks:
                vars(block).pop("forward", None)


def _base(name: str) -> str:
    match = HEAD.fullmatch(name)
    return match.group(1) if match else name


def _rows_of(value: torch.Tensor, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a hook's values as ``[batch, position, d]``: of one head, or of all concatenated."""
    if value.dim() < 3 or tuple(value.shape[:2]) != shape:
        raise InputError(
            f"reading.hook_names: '{name}' has values of shape {list(value.shape)}, which does not "
            "begin with [batch, position]; choose a hook on the residual stream, the attention "
            "output or the MLP"
        )
    match = HEAD.fullmatch(name)
    if match is None:
        return value.flatten(2)
    head = int(match.group(2))
    if value.dim() != 4 or head >= value.shape[2]:
        heads = f"{value.shape[2]} heads" if value.dim() == 4 else "no heads"
        raise InputError(f"reading.hook_names: '{name}': the hook has {heads}")
    return value[:, :, head]


def _put_back(value: torch.Tensor, name: str, rows: torch.Tensor) -> torch.Tensor:
    match = HEAD.fullmatch(name)
    if match is None:
        return rows.reshape(value.shape).to(value.dtype)
    changed = value.clone()
    changed[:, :, int(match.group(2))] = rows.to(value.dtype)
    return changed


def load_language_model(config: LanguageModelConfig, *, trained: bool = True) -> LanguageModel:
    """Load a model with its trained weights, or with new ones drawn from ``config.untrained_seed``.

    Parameters
    ----------
    config
        Which model, and how.
    trained
        False for new initial weights.

    Raises
    ------
    InputError
        When the model or a GPU that is asked for does not exist, TransformerLens does not know the
        architecture, or the tokenizer belongs to another model.
    """
    import torch

    needs("transformer_lens", "lm")
    from transformer_lens.model_bridge import TransformerBridge

    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    if config.device == "cuda" and not on_gpu:
        raise InputError(
            "language_model.device: cuda, but this machine has no GPU; use auto or cpu"
        )
    source = _source(config.name)
    dtype = getattr(torch, config.dtype)
    hub, tokenizer = _described(config)
    # TransformerLens may add a head to a model that has none, so the kind is taken from the file
    kind = _kind(list(hub.architectures or ()))
    device = "cuda" if on_gpu else "cpu"
    with _boundary(config.name), torch.random.fork_rng():
        torch.manual_seed(config.untrained_seed)
        bridge = TransformerBridge.boot_transformers(
            source,
            device=device,
            dtype=dtype,
            tokenizer=tokenizer,
            revision=config.revision,
            load_weights=trained,
        )
        if not trained:  # TransformerLens moves and casts only weights that it loads
            bridge = bridge.to(device=device, dtype=dtype)
        bridge = bridge.eval()
    if len(tokenizer) > int(bridge.cfg.d_vocab):
        raise InputError(
            f"language_model.tokenizer: it has {len(tokenizer)} tokens, but the model knows only "
            f"{bridge.cfg.d_vocab}; give the model's own tokenizer"
        )
    about = {
        "name": config.name,
        "revision": config.revision or getattr(hub, "_commit_hash", None),
        "kind": kind,
        "dtype": config.dtype,
        "weights": _fingerprint(bridge),
    }
    return LanguageModel(bridge, tokenizer, kind, about)


def model_kind(config: LanguageModelConfig) -> Kind:
    """Say what a model predicts, by its configuration file alone.

    Raises
    ------
    InputError
        When the model does not exist.
    """
    from transformers import AutoConfig

    source = _source(config.name)
    with _boundary(config.name):
        hub = AutoConfig.from_pretrained(source, revision=config.revision)
    return _kind(list(hub.architectures or ()))


def load_tokenizer(config: LanguageModelConfig) -> tuple[Any, int]:
    """Load a model's tokenizer without the model.

    Parameters
    ----------
    config
        Which model or tokenizer.

    Returns
    -------
    tokenizer
        The tokenizer.
    n_vocabulary
        Number of tokens that the model knows.

    Raises
    ------
    InputError
        When the model or the tokenizer does not exist.
    """
    hub, tokenizer = _described(config)
    return tokenizer, int(hub.get_text_config().vocab_size)


def _described(config: LanguageModelConfig) -> tuple[Any, Any]:
    """Load a model's configuration and its tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    source = _source(config.name)
    with _boundary(config.name):
        hub = AutoConfig.from_pretrained(source, revision=config.revision)
    if config.tokenizer is None:
        with _boundary(config.name):
            return hub, AutoTokenizer.from_pretrained(source, revision=config.revision)
    field = "language_model.tokenizer"
    own = _source(config.tokenizer, field)
    with _boundary(config.tokenizer, field):
        return hub, AutoTokenizer.from_pretrained(own)


def _source(name: str, field: str = "language_model.name") -> str:
    package, colon, _ = name.partition(":")
    local = Path(name).exists() or (colon and package.isidentifier())
    looks_local = name.startswith((".", "/", "~"))
    return str(find_path(name, field)) if local or looks_local else name


@contextmanager
def _boundary(name: str, field: str = "language_model.name") -> Iterator[None]:
    """Turn an error that another library raises about a name into a message of one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{field}: {name} cannot be loaded ({type(error).__name__}: {reason}); "
            "check the name, or give a folder"
        ) from error


def _kind(architectures: list[str]) -> Kind:
    if any(name.endswith("ForMaskedLM") for name in architectures):
        return "masked"
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        return "causal"
    return "encoder"


def _fingerprint(bridge: TransformerBridge) -> str:
    """Return sixteen hex digits that depend on the names, shapes and some values of the weights."""
    content = hashlib.sha256()
    for name, parameter in sorted(bridge.original_model.named_parameters()):
        flat = parameter.detach().flatten()
        values = flat[:: max(1, len(flat) // 64)].float().cpu().numpy().tobytes()
        content.update(f"{name} {list(parameter.shape)} ".encode() + values)
    return content.hexdigest()[:16]


def check_hooks(model: LanguageModel, hooks: Sequence[str]) -> None:
    """Check that every hook exists.

    Raises
    ------
    InputError
        When one does not exist; the message lists hooks with similar names.
    """
    known = sorted({str(name) for name in model.bridge.hook_dict})
    aliases = getattr(model.bridge, "hook_aliases", {}) or {}
    for name in hooks:
        base = _base(name)
        if base in model.bridge.hook_dict or base in aliases or _resolves(model.bridge, base):
            continue
        last = base.split(".")[-1]
        alike = get_close_matches(base, known, n=4, cutoff=0.0)
        same = [hook for hook in known if hook.split(".")[-1] == last]
        close = list(dict.fromkeys([*get_close_matches(base, same, n=3, cutoff=0.0), *alike]))
        raise InputError(
            f"reading.hook_names: no hook '{base}' in {model.about['name']}; similar names: "
            f"{', '.join(close[:6])}"
        )


def _resolves(bridge: TransformerBridge, name: str) -> bool:
    """Whether a name, such as hook_resid_pre, is another name of a hook."""
    target: Any = bridge
    try:
        for part in name.split("."):
            target = target[int(part)] if part.isdigit() else getattr(target, part)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return False
    return hasattr(target, "add_hook")

"""The families of models: which module answers to a ``config.json``, and which name to a tensor."""

import contextlib
import difflib
import importlib
import json
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from icl_jax.interop.assemble import is_floating
from icl_jax.interop.harmless import refuse_unread
from icl_jax.interop.options import Options
from icl_jax.interop.relatives import relative_of
from icl_jax.interop.safetensors import MappedTensors, listed
from icl_jax.interop.table import Tensor

#: Buffers that older files carry: they are computed, not learned.
BUFFERS = (
    r"(.*\.)?rotary_emb\.inv_freq",
    r"(.*\.)?(attn|attention)\.(bias|masked_bias)",
    r"(.*\.)?position_ids",
)

# Output kernels that are the embedding again where the head is tied.
_TIED = r"lm_head\.weight|embed_out\.weight|cls\.predictions\.decoder\.weight"

# What a model that was wrapped (compiled, or copied to several devices) puts into its names.
_WRAPPED = re.compile(r"^(_orig_mod\.|module\.)+|(?<=\.)_orig_mod\.")

# What a tensor is called depends on which model was saved: one with a head has a prefix, and one
# that reads more than text has another.
_PREFIX = re.compile(
    r"^(language_model\.model|model\.language_model|language_model|model|transformer|bert|gpt_neox"
    r"|backbone)\."
)

# What quantised weights are multiplied by.
_SCALES = r"(weight|input)_scale(_inv)?$|\.(qzeros|g_idx|SCB|absmax)$|_proj_(blocks|scales)$"

#: What to do about quantised weights.
DEQUANTISE = (
    "dequantise them once, in transformers: "
    "from_pretrained(OLD, dtype=...), model.dequantize(), save_pretrained(NEW); "
    "weights in MXFP4 (gpt-oss) with from_pretrained(OLD, dtype=..., "
    "quantization_config=Mxfp4Config(dequantize=True))"
)

# Names of TensorFlow's days, as BERT's own files have them.
_OLDER = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


class Family(Protocol):
    """What a module of ``interop.families`` offers.

    It may also have ``IGNORED``: regular expressions of stored names, without their prefix, of
    what the model does not need (a pooler, say). And ``HARMLESS``: options that it need not read,
    beside those of ``harmless.COMMON``. And ``NO_LORA``: why PEFT takes no adapter of the family.
    And ``fused_table``: a second ``table`` for files that have
    the same numbers in other tensors (all experts of a layer in two, say).

    Attributes:
      ARCHITECTURES: the "architectures" and "model_type" of config.json that it answers to.
    """

    ARCHITECTURES: tuple[str, ...]

    def build(self, config: Options) -> Any:
        """The Flax model that a configuration describes."""

    def table(self, model: Any, config: Options) -> tuple[Tensor, ...]:
        """Where the stored tensors go in the model's parameters."""

    def tiny(self) -> dict[str, Any]:
        """config.json of a tiny model."""


def families() -> dict[str, Family]:
    """Name -> module of every family."""
    package = importlib.import_module("icl_jax.interop.families")
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        if hasattr(module, "ARCHITECTURES"):  # Else it is what families share.
            found[info.name] = module
    return found


def family_of(config: Mapping[str, Any]) -> tuple[str, Family]:
    """The name and the module of the family that a config.json belongs to.

    All that the file names, architectures and model_type, must be of that family; an architecture
    may be one of its models with another head.

    Raises:
      ValueError: none does; the message lists those that there are, and the nearest.
    """
    known = families()
    architectures = config.get("architectures")
    architectures = [] if architectures is None else architectures
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise ValueError(
            f"config.json: architectures must be a list of texts, got {json.dumps(architectures)}."
        )
    kind = config.get("model_type")
    given = [*architectures, *([] if kind is None else [kind])]
    for name, family in known.items():
        if given and all(_is_called(family, one) for one in given):
            return name, family
    of = {one: [n for n in known if _is_called(known[n], one)] for one in map(str, given)}
    strange = [one for one in of if not of[one]]
    supported = "; ".join(f"{name}: {', '.join(known[name].ARCHITECTURES)}" for name in known)
    nearest = {near: one for one in reversed(strange) if (near := _nearest(one))}
    hints = [f"The nearest to {one} is {near}. " for near, one in nearest.items()]
    if len(strange) < len(of):
        said = "; ".join(f"{one}: {' or '.join(names) or 'of none'}" for one, names in of.items())
        hints.append(
            f"Their families are not the same ({said}). If the weights are of one of them, let "
            "architectures and model_type say so. "
        )
    raise ValueError(
        f"config.json: architectures = {json.dumps(architectures)}, model_type = "
        f"{json.dumps(kind)} is not supported. {''.join(hints)}Supported are {supported}."
    )


def _is_called(family: Family, name: Any) -> bool:
    """Whether an architecture or model_type is the family's, if with another head."""
    stems = [
        re.escape(match[1])
        for known in family.ARCHITECTURES
        if (match := re.fullmatch(r"([A-Z]\w*?)(ForCausalLM|LMHeadModel|Model)", known))
    ]
    heads = r"((Text)?Model|LMHeadModel|DoubleHeadsModel|For[A-Z]\w*)"
    return name in family.ARCHITECTURES or any(
        re.fullmatch(stem + heads, str(name)) for stem in stems
    )


def _nearest(name: str) -> str:
    """The supported relative and the difference, or the name most like one; empty where none is."""
    relative = relative_of(name)
    if relative is not None:
        family, difference = relative
        return f"{families()[family].ARCHITECTURES[0]}, but {difference}"
    known = {one.lower(): one for family in families().values() for one in family.ARCHITECTURES}
    close = difflib.get_close_matches(name.lower(), known, 1)
    return known[close[0]] if close else ""


@contextlib.contextmanager
def described_by(options: Options) -> Iterator[None]:
    """Makes what a model raises while it is built an error that names the configuration."""
    try:
        yield
    except Exception as error:  # Whatever numbers that do not go together come to.
        if isinstance(error, ValueError) and str(error).startswith(options.where):
            raise
        raise ValueError(
            f"{options.where}: no model can be built of it: {error} ({type(error).__name__})."
        ) from error


def build_model(options: Options) -> tuple[str, Family, Any]:
    """The name and the module of a configuration's family, and the model that it describes.

    Raises:
      ValueError: no such family; an option that is damaged, not supported, or not known.
    """
    name, family = family_of(options.config)
    with described_by(options):
        model = family.build(options)
    refuse_unread(options, getattr(family, "HARMLESS", None))
    return name, family, model


def descent_of(config: Mapping[str, Any]) -> str:
    """How an architecture that is not listed was understood; empty for one that is."""
    architectures = config.get("architectures") or []
    _, family = family_of(config)
    if not architectures or any(asked in family.ARCHITECTURES for asked in architectures):
        return ""
    return (
        f"{', '.join(architectures)} is not listed and was read as {family.ARCHITECTURES[0]} "
        f"because of model_type = {config['model_type']}: it may have another head, or none."
    )


def fitting_table(
    family: Family, model: Any, config: Options, stored: Iterable[str]
) -> tuple[Tensor, ...]:
    """The family's key table; of two, the one with the larger share of its names in the files.

    Args:
      family: of the model.
      model: the Flax model.
      config: config.json.
      stored: names in the files.
    """
    there = {_canonical(name) for name in stored}
    tables = [family.table(model, config)]
    if hasattr(family, "fused_table"):
        tables.append(family.fused_table(model, config))
    return max(
        tables,
        key=lambda table: sum(_canonical(one.name) in there for one in table) / len(table),
    )


def match_names(
    table: Iterable[Tensor],
    tensors: MappedTensors,
    *,
    tied: bool,
    ignored: Iterable[str] = (),
    read_as: str = "",
) -> dict[str, str]:
    """Finds the tensors of a table in the files, and checks all names, shapes and dtypes.

    Args:
      table: what the model needs.
      tensors: what the files have.
      tied: whether the output kernel is the embedding; a stored one must then be equal to it.
      ignored: regular expressions of stored names that the model does not need.
      read_as: what to add to an error about names: how the configuration was understood.

    Returns:
      Name in the table -> name in the files; they differ by a prefix such as ``model.``.

    Raises:
      ValueError: listing the missing, the extra and the wrongly shaped tensors, and those that are
        no floating-point numbers.
    """
    found: dict[str, str] = {}
    twice = []
    for name in tensors:
        if _canonical(name) in found:
            twice.append(f"{name} (also {found[_canonical(name)]})")
        found[_canonical(name)] = name
    names: dict[str, str] = {}
    missing, wrong = [], []
    copies = [key for key in found if tied and re.fullmatch(_TIED, key)]
    for tensor in table:
        key = _canonical(tensor.name)
        if key not in found and copies and _is_embedding(tensor):
            key = copies[0]  # Saved under the name of the head alone: they are the same.
        if key not in found:
            missing.append(tensor.name)
            continue
        name = names[tensor.name] = found.pop(key)
        entry = tensors.entries[name]
        if entry.shape != tensor.shape:
            wrong.append(f"{name} is {entry.shape}, expected {tensor.shape}")
        elif not is_floating(entry.dtype):
            wrong.append(f"{name} has dtype {entry.dtype}, expected floating point")
    copies = [found[key] for key in copies if key in found]
    skip = re.compile("|".join((*BUFFERS, *ignored)))
    extra = [key for key in found if found[key] not in copies and not skip.fullmatch(key)]
    problems = {
        "missing": missing,
        "extra": [found[key] for key in extra],
        "wrong": wrong,
        "stored twice": twice,
    }
    if any(problems.values()):
        text = "; ".join(f"{len(p)} {kind}: {listed(p)}" for kind, p in problems.items() if p)
        if any(re.search(_SCALES, key) for key in extra):
            text += f". Some are scales of quantised weights, which are not supported: {DEQUANTISE}"
        raise ValueError(
            f"{tensors.folder}: the tensors do not fit config.json: {text}. "
            + (read_as or "Are they of one checkpoint?")
        )
    embedding = [tensor.name for tensor in table if _is_embedding(tensor)]
    for name in copies:
        if embedding and not _equal(tensors, name, names[embedding[0]]):
            raise ValueError(
                f"{tensors.folder}: config.json ties the head to the embedding, but {name} differs "
                f"from {names[embedding[0]]}. Set tie_word_embeddings to false in config.json if "
                "the head is its own."
            )
    return names


def _is_embedding(tensor: Tensor) -> bool:
    return any(piece.path == ("embedding",) for piece in tensor.pieces)


def _canonical(name: str) -> str:
    """A name as all versions of a checkpoint share it."""
    name = _WRAPPED.sub("", name)
    for older, newer in _OLDER:
        if name.endswith(older):
            name = name.removesuffix(older) + newer
    return _PREFIX.sub("", name)


def _equal(tensors: MappedTensors, one: str, other: str) -> bool:
    """Whether two stored tensors are the same, bit for bit."""
    a, b = tensors[one], tensors[other]
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8)
    for start in range(0, a.size, 2**22):
        if not np.array_equal(a[start : start + 2**22], b[start : start + 2**22]):
            return False
        tensors.release(one)
        tensors.release(other)
    return True

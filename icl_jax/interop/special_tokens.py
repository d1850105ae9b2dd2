"""The special tokens that the files beside tokenizer.json name, in the order that ids depend on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The special tokens that every tokenizer knows, in the order in which new ones get their ids.
NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))

_EXTRA, _OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens: texts, or the ``tokenizers.AddedToken`` that a file describes.

    Attributes:
      named: name -> token, as chat templates use them (``bos_token``, ...).
      extra: those without a name.
      stated: the texts of those that make a token of added_tokens.json a special one.
    """

    named: dict[str, Any]
    extra: tuple[Any, ...]
    stated: frozenset[str]

    @property
    def texts(self) -> dict[str, str]:
        """Name -> text."""
        return {name: str(token) for name, token in self.named.items()}


def read_special_tokens(
    tokenizers: Any,
    folder: Path,
    config: dict[str, Any],
    beside: dict[str, Any],
    defaults: dict[str, str],
) -> SpecialTokens:
    """What tokenizer_config.json, special_tokens_map.json and a class say.

    Args:
      tokenizers: the package.
      folder: of the checkpoint.
      config: of tokenizer_config.json.
      beside: of special_tokens_map.json; empty where it does not count.
      defaults: name -> text of the tokens that the class has where no file says another.

    Raises:
      ValueError: one of them is no token.
    """
    try:
        named = _named(tokenizers, config, beside, defaults)
        extra, stated = _extra(tokenizers, config, beside)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder}: damaged special tokens in tokenizer_config.json or special_tokens_map.json "
            f"({error}). Fetch the tokenizer's files again."
        ) from error
    said = {name: config.get(name) for name in NAMES} | {
        name: str(named[name]) for name in NAMES if name in beside and name in named
    }
    stated |= {text for text in said.values() if isinstance(text, str)}
    return SpecialTokens(named, extra, frozenset(stated))


def _named(
    tokenizers: Any, config: dict[str, Any], beside: dict[str, Any], defaults: dict[str, str]
) -> dict[str, Any]:
    common = defaults | {
        name: _token(tokenizers, source[name], special=source is beside)
        for source in (config, beside)
        for name in NAMES
        if name in source
    }
    # A model's own names: objects, then texts, then those in objects of their own.
    described = {
        name: _token(tokenizers, value, special=source is beside)
        for source, kinds in ((config, dict), (beside, str | dict))
        for name, value in source.items()
        if _is_own(name) and isinstance(value, kinds) and (source is beside or "__type" in value)
    }
    own = described | {
        name: value for name, value in config.items() if _is_own(name) and isinstance(value, str)
    }
    for listed in (config.get(_EXTRA) or config.get(_OLD_EXTRA), beside.get(_EXTRA)):
        if isinstance(listed, dict):
            own |= {name: _token(tokenizers, value) for name, value in listed.items()}
    ordered = {name: common.get(name) for name in NAMES} | own
    return {name: token for name, token in ordered.items() if token is not None}


def _extra(
    tokenizers: Any, config: dict[str, Any], beside: dict[str, Any]
) -> tuple[tuple[Any, ...], set[str]]:
    """The tokens without a name, and the texts of those that are special from the start."""
    # The older name says something only where the newer one lists nothing.
    given = config.get(_EXTRA)
    listed = given or config.get(_OLD_EXTRA) or []
    has_list = (_EXTRA in config or _OLD_EXTRA in config) and not isinstance(listed, dict)
    older = config.get(_OLD_EXTRA) if given else None
    found = [_token(tokenizers, token) for token in listed] if has_list else []
    more = beside.get(_EXTRA)
    if isinstance(more, dict):
        found, has_list = [], False
    elif more is not None:
        has_list = True
        found += [_token(tokenizers, token, special=True) for token in more if token not in found]
    stated = {str(token) for token in found}
    if not has_list:
        older = beside.get(_OLD_EXTRA, older)
        found = [_token(tokenizers, token, special=True) for token in older or []]
    return tuple(found), stated


def _is_own(name: str) -> bool:
    """Whether a setting is a special token that only some models know."""
    return name.endswith("_token") and name not in NAMES


def _token(tokenizers: Any, value: Any, *, special: bool = False) -> Any:
    """A token as it is added: a text, or what an object says of it; None stays None."""
    if not isinstance(value, dict):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"a token must be a text or an object, got {value!r}")
        return value
    about = {name: said for name, said in value.items() if name != "__type"}
    return tokenizers.AddedToken(**(about | {"special": True} if special else about))

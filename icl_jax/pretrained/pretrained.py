"""A checkpoint, its parameters and its tokenizer as one object with a few verbs."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from icl_jax import checks
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.interop import huggingface
from icl_jax.interop.generation_config import stop_tokens
from icl_jax.interop.huggingface import Checkpoint
from icl_jax.interop.spans import Prompt, check_prompt
from icl_jax.interop.tokenizer import Tokenizer, has_tokenizer, load_tokenizer
from icl_jax.language.attribution import attribute
from icl_jax.language.ends import room
from icl_jax.language.generation import generate, patched_generate
from icl_jax.language.observed import Observed, observe, observed_generate
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from icl_jax.language.sampling import GREEDY, Sampling
from icl_jax.measures.function_space import relative_error
from icl_jax.patches.bank import Bank
from icl_jax.patches.extraction import Loop
from icl_jax.patches.output import OutputPolicy
from icl_jax.pretrained.export import FORMS, Form, export_prompt
from icl_jax.pretrained.notebook import Inside, as_html
from icl_jax.pretrained.prompts import is_several, make_prompt
from icl_jax.pretrained.results import (
    Attributed,
    Exported,
    Generated,
    Logits,
    Written,
    piece,
)
from icl_jax.shown import count
from icl_jax.stack.sites import Edits

#: Settings of generation_config.json that the arguments of ``generate`` replace.
_LENGTH = ("max_new_tokens", "max_length")
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def load(
    path_or_name: str | Path,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    shardings: Any = None,
    revision: str | None = None,
    offline: bool = False,
) -> "Pretrained":
    """Loads a checkpoint with its tokenizer: model in hand, text in, text out.

    Args:
      path_or_name: a folder, or a name on the Hugging Face hub (or in its cache).
      dtype, mesh, shardings, revision, offline: as ``interop.huggingface.load`` takes them.

    Raises:
      FileNotFoundError, ValueError, ImportError: as ``interop.huggingface.load`` and
        ``interop.tokenizer.load_tokenizer`` do.

    Examples:
      >>> import tempfile
      >>> from icl_jax.interop.huggingface import make_tiny
      >>> folder = tempfile.mkdtemp()  # or the folder of a checkpoint, or its name on the hub
      >>> _ = make_tiny("llama", folder, jax.random.key(0))
      >>> model = load(folder)
      >>> logits = model.logits(list(range(3, 13)), remove=range(1, 8))  # token ids; or text
      >>> bool(jnp.allclose(logits.patched_KV, logits.full_KV, atol=1e-4))
      True
    """
    checkpoint = huggingface.load(
        path_or_name,
        dtype=dtype,
        mesh=mesh,
        shardings=shardings,
        revision=revision,
        offline=offline,
    )
    has_one = has_tokenizer(checkpoint.folder)
    tokenizer = load_tokenizer(checkpoint.folder) if has_one else None
    return Pretrained(checkpoint, tokenizer, Path(path_or_name).name)


@dataclass(frozen=True)
class Pretrained:
    """A model that can be asked in text, over the pure functions of ``language``.

    Every verb takes a prompt as text, as messages, as token ids or as what ``prompt`` made, and
    what of it to remove (or to keep); a list of prompts gives a list.

    Attributes:
      checkpoint: model, parameters and configuration.
      tokenizer: of the checkpoint; None where it has none that can be read.
      name: how it was asked for.

    Examples:
      >>> import tempfile
      >>> from icl_jax.interop.huggingface import make_tiny
      >>> from icl_jax.interop.tokenizer import save_tokenizer, train_bpe
      >>> folder = tempfile.mkdtemp()
      >>> _ = make_tiny("llama", folder, jax.random.key(0), vocab_size=300)
      >>> _ = save_tokenizer(folder, train_bpe(["Ada built it in 1871."], 300))
      >>> prompt = load(folder).prompt("Ada built it. Who built it?", remove="Ada built it.")
      >>> len(prompt.kept) < len(prompt.tokens)
      True
    """

    checkpoint: Checkpoint
    tokenizer: Tokenizer | None
    name: str

    @property
    def model(self) -> LanguageModel:
        """The Flax module."""
        model: LanguageModel = self.checkpoint.model
        return model

    @property
    def params(self) -> Params:
        """Its parameters."""
        return self.checkpoint.params

    @property
    def sampling(self) -> Sampling:
        """How its makers mean tokens to be drawn; to be given to ``generate``."""
        config = self.checkpoint.generation
        penalty = config.repetition_penalty or 1.0
        if not config.do_sample:
            return Sampling(repetition_penalty=penalty)
        temperature = 1.0 if config.temperature is None else config.temperature
        least = config.min_p or None
        return Sampling(temperature, config.top_k or None, config.top_p or None, least, penalty)

    @property
    def stop(self) -> tuple[int, ...]:
        """The tokens that end a text; ValueError for one that the model does not have."""
        own = () if self.tokenizer is None else self.tokenizer.eos_ids
        found = self.checkpoint
        return stop_tokens(
            found.generation, own, vocab_size=self.model.vocab_size, folder=found.folder
        )

    def prompt(
        self, prompt: Any, *, remove: Any = None, keep: Any = None, keep_bos: bool = True
    ) -> Any:
        """The tokens of a prompt, and the positions that stay.

        Args:
          prompt: a text, messages, token ids, a line of a prompts' file as a dictionary; or a list
            of prompts.
          remove: what goes: a text in it, a span of characters or a list of them; the numbers of
            messages; positions of token ids. With several prompts a list with that of each.
          keep: what stays, likewise; give one of the two.
          keep_bos: whether a BOS in front stays when the text after it is removed.

        Returns:
          A ``Prompt``, or a list of them.

        Raises:
          ValueError: a part that is not there, nothing kept, or tokens that the model cannot read.
        """
        if is_several(prompt):
            removes, keeps = (
                _each(name, len(prompt), one) for name, one in (("remove", remove), ("keep", keep))
            )
            return [
                self.prompt(one, remove=remove, keep=keep, keep_bos=keep_bos)
                for one, remove, keep in zip(prompt, removes, keeps, strict=True)
            ]
        made = make_prompt(prompt, self.tokenizer, remove=remove, keep=keep, keep_bos=keep_bos)
        if _removes(made) or not len(made.tokens):
            check_prompt(made, vocab_size=self.model.vocab_size, max_length=room(self.model))
        return made

    def patches(
        self,
        prompt: Any,
        *,
        remove: Any = None,
        keep: Any = None,
        loop: Loop = "closed",
        output: OutputPolicy = "auto",
    ) -> Any:
        """The patches that stand for what is removed: ``prompt_patches`` of text.

        Returns:
          A ``Bank``, or a list of them.

        Raises:
          ValueError: nothing is removed, or as ``prompt`` and ``prompt_patches`` do.
        """
        made, tokens, kept = self._removal("patches", prompt, remove, keep)
        del made
        return prompt_patches(self.model, self.params, tokens, kept, loop=loop, output=output)

    def logits(
        self, prompt: Any, *, remove: Any = None, keep: Any = None, bank: Bank | None = None
    ) -> Any:
        """Logits at the kept positions, with everything there, patched and alone.

        Args:
          prompt, remove, keep: as in ``prompt``; without a removal there is one run.
          bank: of this prompt, for the patched run; made here when left out.

        Returns:
          A ``Logits``, or a list of them.
        """
        made = self.prompt(prompt, remove=remove, keep=keep)
        several = made if isinstance(made, list) else [made]
        tokens, kept = [one.tokens for one in several], [one.kept for one in several]
        full = full_logits(self.model, self.params, tokens, kept)
        found = [Logits(full_KV, tokenizer=self.tokenizer) for full_KV in full]
        cut = [number for number, one in enumerate(several) if _removes(one)]
        if cut:
            tokens, kept = [tokens[number] for number in cut], [kept[number] for number in cut]
            run = (self.model, self.params, tokens)
            banks = prompt_patches(*run, kept) if bank is None else [bank]
            runs = zip(patched_logits(*run, banks), alone_logits(*run, kept), strict=True)
            for number, (patched_KV, alone_KV) in zip(cut, runs, strict=True):
                found[number] = Logits(full[number], patched_KV, alone_KV, self.tokenizer)
        return found if isinstance(made, list) else found[0]

    def generate(
        self,
        prompt: Any,
        num_tokens: int,
        *,
        remove: Any = None,
        keep: Any = None,
        sampling: Sampling | None = None,
        key: Array | None = None,
        stop: Collection[int] | None = None,
        output: OutputPolicy = "auto",
        capture: Collection[str] = (),
        edit: Edits | None = None,
        progress: Callable[[], None] | None = None,
    ) -> Any:
        """Writes on: with everything there and, where something is removed, patched and alone.

        Args:
          prompt, remove, keep: as in ``prompt``; the last token has to stay.
          num_tokens: the most to write.
          sampling: greedy when left out; ``self.sampling`` is what the checkpoint's makers mean.
          key: of the draws; needed unless greedy. Of several prompts each has draws of its own.
          stop: token ids after which to stop; ``self.stop`` when left out.
          output: which weight carries the residual change of the patched run.
          capture, edit: names of activations to read and to change, as in ``observed_generate``; of
            a prompt of which nothing is removed.
          progress: called for every token of the run with everything.

        Returns:
          A ``Generated``, or a list of them.

        Raises:
          ValueError: as ``generate`` and ``patched_generate``; activations together with a removal;
            some prompts with a removal and some without.
        """
        made = self.prompt(prompt, remove=remove, keep=keep)
        several: Sequence[Prompt] = made if isinstance(made, list) else [made]
        replaced = _LENGTH if sampling is None else (*_LENGTH, *_SAMPLING)
        ignored = self.checkpoint.generation.ignored(replaced)
        # One prompt alone is no batch: its draws are those of the key itself.
        tokens: Any = [one.tokens for one in several] if isinstance(made, list) else made.tokens
        run = (self.model, self.params, tokens, num_tokens)
        drawn: dict[str, Any] = {
            "sampling": GREEDY if sampling is None else sampling,
            "key": key,
            "stop": self.stop if stop is None else stop,
        }
        if not any(map(_removes, several)):
            seen = observed_generate(*run, capture=capture, edit=edit, progress=progress, **drawn)
            found = [
                Generated(
                    self._written(one.tokens_N), activations=one.activations, not_applied=ignored
                )
                for one in (seen if isinstance(made, list) else [seen])
            ]
            return found if isinstance(made, list) else found[0]
        if capture or edit:
            raise ValueError(
                "generate: capture and edit are of one run, and a removal asks for three. Leave "
                "remove and keep out, or give the kept text alone as the prompt."
            )
        _, _, kept = self._removal("generate", made, None, None)
        patched = patched_generate(*run[:3], kept, num_tokens, output=output, **drawn)
        full = generate(*run, progress=progress, **drawn)
        left = [one.tokens[one.kept] for one in several]
        if isinstance(made, list):
            alone = generate(*run[:2], left, num_tokens, positions_T=kept, **drawn)
        else:
            alone = [generate(*run[:2], left[0], num_tokens, positions_T=kept, **drawn)]
            patched, full = [patched], [full]
        found = [
            Generated(
                self._written(full_N),
                self._written(one.tokens_N),
                self._written(alone_N),
                one,
                not_applied=ignored,
            )
            for full_N, one, alone_N in zip(full, patched, alone, strict=True)
        ]
        return found if isinstance(made, list) else found[0]

    def observe(
        self,
        prompt: Any,
        *,
        capture: Collection[str] = (),
        edit: Edits | None = None,
        remove: Any = None,
        keep: Any = None,
        bank: Bank | None = None,
    ) -> Any:
        """Reads and changes activations by name: ``language.observed.observe`` of text.

        Without a ``bank`` the whole prompt is run; with that of a removal the kept tokens alone.

        Returns:
          An ``Observed``, or a list of them.

        Raises:
          ValueError: several prompts and a ``bank``, which is of one.
        """
        made = self.prompt(prompt, remove=remove, keep=keep)
        if isinstance(made, list):
            if bank is not None:
                raise ValueError(
                    f"observe: bank is of one prompt, got {len(made)} prompts. Observe each with "
                    "its own bank."
                )
            return [self.observe(one, capture=capture, edit=edit) for one in made]
        found: Observed = observe(
            self.model, self.params, made.tokens, capture=capture, edit=edit, bank=bank
        )
        return found

    def attribute(self, prompt: Any, *, remove: Any = None, keep: Any = None, row: int = -1) -> Any:
        """Which removed token, through which head, wrote the update in every layer.

        Args:
          prompt, remove, keep: as in ``prompt``.
          row: of the kept positions; the last one by default.

        Returns:
          An ``Attributed``, or a list of them.

        Raises:
          ValueError, TypeError: as ``attribute_block`` does; or nothing is removed.
        """
        made, _, _ = self._removal("attribute", prompt, remove, keep)
        if isinstance(made, list):
            return [self.attribute(one, row=row) for one in made]
        run = (self.model, self.params, made.tokens, made.kept)
        found = jax.device_get(attribute(*run, row=row))
        texts = [piece(self.tokenizer, int(token)) for token in made.tokens]
        return Attributed(found.shares_LAT, found.remainder_L, texts)

    def export(
        self,
        prompt: Any,
        folder: str | Path,
        *,
        remove: Any = None,
        keep: Any = None,
        form: Form = "checkpoint",
        output: OutputPolicy = "auto",
    ) -> Exported:
        """Writes what is removed as weights: see ``export_prompt`` for what they are exact for.

        Args:
          prompt, remove, keep: as in ``prompt``; one prompt.
          folder: to make; one that is there must be empty.
          form: ``checkpoint``, or ``peft`` for a LoRA adapter of rank 1.
          output: which weight carries the residual change; an adapter has its own policy.

        Raises:
          ValueError: several prompts, or as ``export_prompt`` does.
          FileExistsError: the folder has something in it.
        """
        checks.one_of("export", "form", form, FORMS)
        made, _, _ = self._removal("export", prompt, remove, keep)
        if isinstance(made, list):
            raise ValueError("export: a folder holds one prompt; export each into its own.")
        weights = export_prompt(form, self.checkpoint, made, folder, output)
        kept = made.tokens[made.kept]
        positions = np.arange(len(kept))
        actual_V = alone_logits(self.model, weights.params, kept, positions)[-1]
        expected_V = full_logits(self.model, self.params, made.tokens, made.kept)[-1]
        error = float(relative_error(actual_V, expected_V))
        return Exported(Path(folder), form, weights, error)

    def _removal(self, where: str, prompt: Any, remove: Any, keep: Any) -> tuple[Any, Any, Any]:
        """A prompt or several, of each of which something is removed, its tokens and what stays."""
        made = self.prompt(prompt, remove=remove, keep=keep)
        several: Sequence[Prompt] = made if isinstance(made, list) else [made]
        for number, one in enumerate(several):
            if not _removes(one):
                which = f" of prompt {number}" if isinstance(made, list) else ""
                raise ValueError(
                    f"{where}: nothing{which} is removed, so there is no context to turn into "
                    "weights. Say what goes: remove=TEXT, a part of the prompt."
                )
        if isinstance(made, list):
            return made, [one.tokens for one in made], [one.kept for one in made]
        return made, made.tokens, made.kept

    def _written(self, tokens_N: np.ndarray) -> Written:
        if self.tokenizer is None:
            return Written(" ".join(map(str, tokens_N)), tokens_N)
        return Written(self.tokenizer.decode(tokens_N), tokens_N)

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        model, checkpoint = self.model, self.checkpoint
        numbers = count(sum(leaf.size for leaf in leaves))
        dtype = str(self.params["embedding"].dtype)
        lines = [
            f"{self.name}: {checkpoint.family}, {numbers} parameters in {dtype}",
            f"  {len(model.blocks)} layers of width {model.width}, vocabulary {model.vocab_size}",
        ]
        if checkpoint.max_positions is not None:
            lines[-1] += f", up to {checkpoint.max_positions} tokens"
        if self.tokenizer is None:
            lines.append("  no tokenizer that can be read: prompts are token ids")
        else:
            begins = "texts begin with BOS" if self.tokenizer.adds_bos else "no BOS in front"
            chat = ", chat template" if self.tokenizer.chat_template is not None else ""
            lines.append(f"  tokenizer: {begins}{chat}")
        ignored = checkpoint.generation.ignored()
        if ignored:
            lines.append(f"  generation_config.json, not applied: {', '.join(ignored)}")
        return "Pretrained(" + "\n".join(lines) + ")"

    def _repr_html_(self) -> str:
        found = self.checkpoint
        inside = Inside(self.model, self.params, found.config, found.generation)
        return as_html(repr(self), inside)


def _removes(prompt: Prompt) -> bool:
    return len(prompt.kept) < len(prompt.tokens)


def _each(name: str, count: int, parts: Any) -> Sequence[Any]:
    """What goes of each of several prompts."""
    if parts is None:
        return [None] * count
    if not isinstance(parts, list) or len(parts) != count:
        got = f"{len(parts)}" if isinstance(parts, list) else repr(parts)[:60]
        raise ValueError(
            f"prompt: with several prompts {name} must be a list with that of each of the {count}, "
            f"got {got}."
        )
    return parts

"""The page: what the script is told, and the places that it fills."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.language.interactive.shell import packed, write_interactive
from experiments.language.prompt_page.measure import Arrays
from icl_jax.pretrained.pretrained import Pretrained
from icl_jax.pretrained.results import piece
from icl_jax.records import Run
from icl_jax.report.page import Section, number

#: What a kernel of the page is called.
NAMES = {
    "input": "all input kernels",
    "output": "output (residual change)",
}

BODY = """
<div class="controls" role="group" aria-label="What is shown">
<label>Target token<select id="target"></select></label>
<label>Kernel<select id="kernel"></select></label>
<label>Head<select id="head"></select></label>
<label><span>Layer <span class="value" id="layer-name"></span></span>
<input type="range" id="layer" min="0" step="1"></label>
</div>
<section aria-labelledby="prompt-title">
<h2 id="prompt-title">The prompt</h2>
<p class="hint">Blue tokens add to the update, orange ones (dotted below) take away from it. The
dark token is the target; tokens underlined with dots stay beside it and write nothing.
<span class="screen">Left and right arrows move from token to token, up and down from layer to
layer; Enter makes a token the target, where it can be.</span></p>
<div class="tokens" id="tokens" role="listbox" aria-label="Tokens of the prompt"></div>
<div class="legend"><span id="least"></span><span class="ramp" aria-hidden="true"></span>
<span id="most"></span><span id="of"></span></div>
<p class="sum" id="sum"></p>
</section>
<div class="two">
<section><h2 id="first-title">Largest shares</h2><div id="first"></div></section>
<section><h2>Heads of this layer</h2><div id="heads"></div></section>
</div>
<section>
<h2>All layers</h2>
<p class="hint">A row per layer, the first one on top; a column per token, and at the far right, set
off by an empty one, the remainder. <span class="screen">A click picks layer and token.</span></p>
<div id="all"></div>
<div class="axis"><span>first token</span><span>remainder</span></div>
</section>
<div class="two">
<section><h2>Size of the update</h2><p class="hint" id="size-hint"></p><div id="sizes"></div>
<div class="axis"><span>layer 0</span><span id="last-layer"></span></div></section>
<section><h2>What it is worth</h2><div id="worth"></div></section>
</div>
<section>
<h2>What the numbers are</h2>
<p class="hint">Alone, with the weights <code>W + dW</code>, the target gives what it gives with the
context in front. Attention is a sum over heads and tokens, so <code>dW</code> is one, too: a share
is <code>&lt;dW of a token, dW&gt; / |dW|²</code>, and shares add up to 1. Where a norm stands
between attention and kernel, the norm's denominator is held at its value with the context; what
that leaves is the remainder. The residual stream behind a plain skip has none.</p>
</section>
"""


def texts(pretrained: Pretrained, ids: np.ndarray) -> list[str]:
    """Token ids as text, one by one."""
    return [piece(pretrained.tokenizer, int(token)) for token in ids.ravel()]


def summarise(arrays: Arrays) -> dict[str, Any]:
    """Errors of the patched run and of the sums, and how large remainders are."""
    sums = {
        name: np.abs(shares.tokens.sum(axis=(-2, -1), dtype=np.float64) + shares.remainder - 1)
        for name, shares in arrays.shares.items()
    }
    return {
        "num_tokens": len(arrays.token_ids),
        "targets": arrays.targets,
        "patched_error": arrays.patched_error.max(),
        "alone_error": arrays.alone_error.min(),
        "other_error": _least(arrays.other_error),
        "most_by_one": _most_by_one(arrays),
        "even_share": _even_share(arrays),
        "sum_error": {name: error.max() for name, error in sums.items()},
        "remainder": {
            name: np.median(np.abs(shares.remainder)) for name, shares in arrays.shares.items()
        },
    }


def _least(values_N: np.ndarray) -> float | None:
    """The smallest that was measured, if one was."""
    measured = values_N[~np.isnan(values_N)]
    return float(measured.min()) if measured.size else None


def _most_by_one(arrays: Arrays) -> float:
    """The largest share of a single token in an update, median over targets and layers."""
    by_token_NLT = next(iter(arrays.shares.values())).tokens.sum(axis=-2)
    return float(np.median(by_token_NLT.max(axis=-1)))


def _even_share(arrays: Arrays) -> float:
    """What each context token would have if all wrote as much, median over targets."""
    seen_NT = np.arange(len(arrays.token_ids)) < arrays.targets[:, None]
    return float(np.median(1 / np.sum(seen_NT & (arrays.kept == 0), axis=-1)))


def claims(summary: dict[str, Any], remove: str) -> list[Section]:
    """What was found, beside its nulls."""
    context = "that part" if remove else "what stands before it"
    null = ""
    if summary["other_error"] is not None:
        null = (
            ", and with those of the same context backwards, the nearest null, by at least "
            f"{number(summary['other_error'])}"
        )
    kernel, *_ = summary["sum_error"]
    sums = number(max(summary["sum_error"].values()))
    shares = f"Shares add up to 1 to {sums}, without a remainder"
    if largest := max(summary["remainder"].values()):
        shares = (
            f"Shares and the norm's remainder add up to 1 to {sums}; the remainder is "
            f"{number(largest)} of the update (median, of the kernel where that is most)"
        )
    return [
        Section(
            f"A target alone, with changed weights, says what it says having read {context}",
            "",
            verdict=f"Its logits are off by at most {number(summary['patched_error'])}, relative; "
            "with the model's own weights, without a change, by at least "
            f"{number(summary['alone_error'])}{null}.",
        ),
        Section(
            "The change is a sum over tokens and heads",
            "",
            verdict=f"{shares}. The token that writes most of a layer's update has "
            f"{100 * summary['most_by_one']:.1f} % of it (median; "
            f"{NAMES.get(kernel, kernel)}); if all wrote the same, each had "
            f"{100 * summary['even_share']:.1f} %.",
        ),
    ]


def page_data(pretrained: Pretrained, arrays: Arrays) -> dict[str, Any]:
    """What the script reads."""
    likely = np.reshape(texts(pretrained, arrays.likely), arrays.likely.shape)
    return {
        "tokens": texts(pretrained, arrays.token_ids),
        "targets": arrays.targets.tolist(),
        "kept": arrays.kept.tolist(),
        "kernels": [
            {
                "name": name,
                "label": NAMES.get(name, name),
                "shares": packed(shares.tokens),
                "remainder": packed(shares.remainder),
                "norm": packed(shares.norm),
            }
            for name, shares in arrays.shares.items()
        ],
        "patched_error": packed(arrays.patched_error),
        "alone_error": packed(arrays.alone_error),
        "likely": likely.tolist(),
        "probability": packed(arrays.probability),
    }


def write(run: Run, pretrained: Pretrained, remove: str, arrays: Arrays) -> Path:
    """Writes ``report.html``."""
    context = "a part of it" if remove else "what stands before it"
    return write_interactive(
        run,
        title="Which tokens wrote the update?",
        lead=f"{pretrained.name}, {len(pretrained.model.blocks)} layers, a prompt of "
        f"{len(arrays.token_ids)} tokens. For a token, having read {context} is the same as going "
        "through other weights. Here that change of weights is taken apart into the tokens and "
        "heads that wrote it. Tokens, layers and heads are counted from 0.",
        claims=claims(summarise(arrays), remove),
        body=BODY,
        data=page_data(pretrained, arrays),
        script=Path(__file__).with_name("page.js"),
    )

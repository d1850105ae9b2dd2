"""Demonstrations in the update of a prompt's last token."""

import numpy as np
import pytest

from icl_jax.language.attribution import attribute
from icl_jax.language.contributions import group_updates
from tests.language.models import MODELS, VOCAB, params_of

TOKENS = np.random.default_rng(0).integers(0, VOCAB, 20).astype(np.int32)
KEPT = [0, 18, 19]
GROUPS = np.zeros((3, 20), bool)
GROUPS[0, 1:6] = GROUPS[1, 6:11] = GROUPS[2, 11:16] = True  # 16 and 17 are in no group.


def test_groups_share_the_update_as_their_tokens_do():
    run = (MODELS["rotary"], params_of("rotary"))
    found = group_updates(*run, TOKENS, KEPT, GROUPS)
    shares_LAT = np.asarray(attribute(*run, TOKENS, KEPT).shares_LAT)
    gram_LXX = np.asarray(found.gram_LXX)
    assert gram_LXX.shape == (2, 4, 4) and found.attention_LN.shape == (2, 3)
    shares_LX = gram_LXX.sum(axis=2) / gram_LXX.sum(axis=(1, 2))[:, None]
    want_LN = np.stack([shares_LAT[:, :, group_T].sum(axis=(1, 2)) for group_T in GROUPS], axis=1)
    np.testing.assert_allclose(shares_LX[:, :3], want_LN, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.sum(found.gram_XX), 1, rtol=1e-5)
    attention_LN = np.asarray(found.attention_LN)
    assert (attention_LN > 0).all() and (attention_LN.sum(axis=1) < 4).all()  # Of 4 heads.


def test_groups_of_kept_tokens_are_refused():
    run = (MODELS["rotary"], params_of("rotary"))
    groups = GROUPS.copy()
    groups[0, 0] = True
    with pytest.raises(ValueError, match="removed tokens only"):
        group_updates(*run, TOKENS, KEPT, groups)
    with pytest.raises(TypeError, match="booleans"):
        group_updates(*run, TOKENS, KEPT, GROUPS.astype(int))

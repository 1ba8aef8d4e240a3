"""A checkpoint of ours in mlx-lm, on whatever device mlx has here: logits of all positions.

Needs tests/clients/requirements.txt; run it with: pytest -m clients tests/clients
"""

import numpy as np
import pytest
import torch

from minidsv3 import hf
from minidsv3.config import RopeScaling
from minidsv3.data.tokenizer import Tokenizer
from minidsv3.hf.__main__ import main
from tests.data.test_foreign import TEXTS
from tests.hf.example import random_model


@pytest.mark.clients
@torch.no_grad()
@pytest.mark.parametrize("change", [
    {}, dict(tie_word_embeddings=False), dict(q_lora_rank=None), dict(n_group=1, topk_group=1),
    dict(rope_scaling=RopeScaling(4.0, 64, 32.0, 1.0, 1.0, 1.0))], ids=str)
def test_logits_of_all_positions(tmp_path, change):
    """Oracle: mlx-lm in float32 on 200 positions, after convert --no-mtp; its token ids."""
    mlx = pytest.importorskip("mlx.core", reason="pip install -r tests/clients/requirements.txt")
    load = pytest.importorskip("mlx_lm").load
    model = random_model(vocab_size=320, num_nextn_predict_layers=1, max_position_embeddings=256,
                         **change)
    for parameter in model.parameters():         # as large as those of a trained model
        parameter.mul_(0.3)
    hf.save(model, tmp_path / "ours")
    Tokenizer.train(TEXTS, 320).save(tmp_path / "ours", 256)
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "main"), "--no-mtp"]) == 0
    theirs, tokenizer = load(str(tmp_path / "main"))
    text = "def f(x):\n    return x + 1  # Ünïcödé 東京 🙂\n" * 30
    ids = Tokenizer.load(tmp_path / "ours").encode(text)[:200]
    assert tokenizer.encode(text)[:200] == ids and len(ids) == 200
    got = torch.from_numpy(np.array(theirs(mlx.array([ids])).astype(mlx.float32)))[0]
    ours = model(torch.tensor([ids]))[0]
    assert ours.std() > 0.1
    print("DIFF", change, (got - ours).abs().max())
    torch.testing.assert_close(got, ours, rtol=1e-4, atol=1e-4)

"""A checkpoint of ours in llama.cpp itself: token ids, and the logits of all positions.

Needs tests/clients/requirements.txt, and llama.cpp built from source (requirements-build.txt); run
it with: pytest -m clients tests/clients
"""

from itertools import islice

import numpy as np
import pytest
import torch

import train_tiny
from minidsv3 import hf
from minidsv3.config import RopeScaling
from minidsv3.data.tokenizer import OPENING, Tokenizer
from minidsv3.hf.__main__ import main
from minidsv3.infer.text import complete
from tests.clients.test_gguf import made

pytestmark = pytest.mark.clients

HARD = ["x", " ", "\n", "a\r\nb", "  def f(x):\n\treturn x+1\n\n\n", "1234567 8.90e-12",
        "x²³½ ٣٤٥", "don't I'LL we'Ve", "Ünïcödé naïve ﬁ ß ẞ", "e\u0301a\u0308 \u0301",
        "漢字かなカナ混じり12文", "한국어 텍스트", "שלום עולם", "नमस्ते दुनिया",
        "😀👩\u200d👩\u200d👧🏳️\u200d🌈", "\u00a0\u2003\u3000 x", "a\u200bb\u200d",
        "!?#$ %&'()*+,-./:;<=>?@[\\]^_`{|}~", "_snake__case__", "«quoted» “text” — dash…",
        "   \n \t x  ", "https://example.org/a_b?c=d&e=%20f", "\x00\x01\x7f\x85\x9f", "a" * 300,
        " " * 130 + "z", "<|end|> <｜end▁of▁sentence｜>", "λ→∀x∈ℝ: x²≥0 ∎", "€5 £6 ¥7 ₿8",
        "\ufeffBOM", "Ⅷ ⅷ ①②"]


def llama(path):
    """The file in llama.cpp, with a cache in float32 as ours has."""
    llama_cpp = pytest.importorskip(
        "llama_cpp", reason="pip install -r tests/clients/requirements-build.txt")
    return llama_cpp.Llama(str(path), n_ctx=256, logits_all=True, verbose=False, n_threads=1,
                           n_threads_batch=1, type_k=llama_cpp.GGML_TYPE_F32,
                           type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False)


def logits_of(theirs, ids):
    """ids -> logits (T, V) of every position, in one pass."""
    theirs.reset()
    theirs.eval(ids)
    return torch.from_numpy(np.array(theirs.scores[:len(ids)]))


def converted(folder, path):
    """The checkpoint in `folder`, written as the file `path` and loaded by llama.cpp."""
    assert main(["convert", str(folder), str(path)]) == 0
    return llama(path)


@torch.no_grad()
@pytest.mark.parametrize("change", [
    {}, dict(tie_word_embeddings=False), dict(norm_topk_prob=False), dict(n_group=1, topk_group=1),
    dict(n_group=2, topk_group=1, num_experts_per_tok=1), dict(n_shared_experts=2),
    dict(num_hidden_layers=1), dict(first_k_dense_replace=0),
    dict(q_lora_rank=None, num_hidden_layers=27),                      # the shape of Moonlight
    dict(rope_scaling=RopeScaling(4.0, 32, 32.0, 1.0, 1.0, 1.0)),      # as the release has it
    dict(rope_scaling=RopeScaling(4.0, 32, 16.0, 2.0, 0.7, 0.7))], ids=str)
def test_logits_of_all_positions(tmp_path, change):
    """Oracle: llama.cpp in float32; with YaRN almost four times the first window."""
    model = made(tmp_path / "model", **change)
    for parameter in model.parameters():         # as large as those of a trained model
        parameter.mul_(0.3)
    hf.save(model, tmp_path / "model")
    ids = torch.randint(6, 330, (1, 120), generator=torch.Generator().manual_seed(5))
    got = logits_of(converted(tmp_path / "model", tmp_path / "m.gguf"), ids[0].tolist())
    ours = model(ids)[0]
    assert ours.std() > 0.1 and got.shape == (120, 330)
    torch.testing.assert_close(got, ours, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, miniature):
    """A run of 30 steps with the released splits."""
    folder = tmp_path_factory.mktemp("runs") / "released"
    assert train_tiny.main([*miniature, "--steps", "30", "--set", "splits=released",
                            "--set", "vocab_size=400", "--out", str(folder)]) == 0
    return folder


def test_token_ids_of_difficult_texts(trained, tmp_path):
    """Oracle: llama.cpp's ids and bytes; text that spells a special token stays text in both."""
    theirs, ours = converted(trained, tmp_path / "m.gguf"), Tokenizer.load(trained)
    for text in [*HARD, "".join(HARD)]:
        ids = theirs.tokenize(text.encode(), add_bos=False, special=False)
        assert ids == ours.encode(text), ascii(text)
        assert theirs.detokenize(ids) == text.encode(), ascii(text)


def test_the_most_likely_text_is_the_same(trained, tmp_path):
    """Oracle: llama.cpp at temperature 0, one token after the other with its own cache."""
    theirs, tokenizer = converted(trained, tmp_path / "m.gguf"), Tokenizer.load(trained)
    prompt = "def f7"                            # no sign at its end, which we would join
    ours = "".join(piece.text for piece in complete(hf.load(trained), tokenizer, prompt, 40))
    ids = theirs.tokenize((OPENING + prompt).encode(), add_bos=False, special=False)
    assert ids == tokenizer.encode_prompt(prompt)
    new = list(islice(theirs.generate(ids, temp=0.0, repeat_penalty=1.0), 40))
    assert tokenizer.decode(new) == ours and len(set(new)) > 2


@torch.no_grad()
def test_a_folder_in_fp8(trained, tmp_path):
    """Oracle: llama.cpp, which rounds activations to bfloat16 before each product."""
    assert main(["convert", str(trained), str(tmp_path / "fp8"), "--fp8"]) == 0
    ids = Tokenizer.load(trained).encode("def f9(x):\n    return x + 3  # é\n" * 9)[:120]
    got = logits_of(converted(tmp_path / "fp8", tmp_path / "m.gguf"), ids)
    ours = hf.load(tmp_path / "fp8", torch.float32)(torch.tensor([ids]))[0]
    assert (got - ours).abs().max() < 0.02 < ours.std() / 20
    assert (got.argmax(-1) == ours.argmax(-1)).all()

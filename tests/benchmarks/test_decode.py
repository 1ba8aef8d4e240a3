"""The decoding benchmark is fair: same weights, same tokens, and cache bytes as by the formula."""

import json
from itertools import product

import absorbing
import decode
import decoders
import pytest
import torch

from minidsv3 import ModelConfig, hf
from minidsv3.data import corpus
from minidsv3.data.tokenizer import Tokenizer
from minidsv3.infer import generate
from minidsv3.measure.cost import cache_bytes
from tests.parity.models import randomised

CONFIG = ModelConfig(
    vocab_size=280, hidden_size=32, num_hidden_layers=3, intermediate_size=48,
    num_attention_heads=2, q_lora_rank=16, kv_lora_rank=24, qk_nope_head_dim=8, qk_rope_head_dim=4,
    v_head_dim=12, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1,
    moe_intermediate_size=16, first_k_dense_replace=1, rope_scaling=None,
    max_position_embeddings=64)
NAMES = ["ours", "ours, 1 draft", "ours, 2 drafts", "transformers", "transformers, use_mtp"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_text):
    """A checkpoint of random weights, with a tokenizer."""
    folder = tmp_path_factory.mktemp("random")
    hf.save(randomised(CONFIG, torch.float32), folder)
    texts = [document.text for document in corpus.load(str(small_text)).documents]
    Tokenizer.train(texts, CONFIG.vocab_size).save(folder)
    return folder


@pytest.fixture(scope="module")
def pair(folder):
    """Our model, transformers', and its MTP module."""
    ours = hf.load(folder, torch.float32)
    return ours, *decoders.load_theirs(ours)


@pytest.fixture
def tokens():
    """Two prompts of nine tokens."""
    return torch.randint(CONFIG.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_all_contenders_say_what_generate_says(pair, tokens):
    """Oracle: `generate`, for every setting of transformers, every number of drafts, two batches.

    `generate` ends at EOS and this does not, so the texts are compared up to there.
    """
    ours, theirs, module = pair
    for prompts in (tokens, tokens[:1]):
        made = generate(ours, prompts, 12)
        runs = [decoders.run_ours(ours, k, prompts, 12) for k in (0, 1, 2)]
        runs += [decoders.run_theirs(theirs, best, prompts, 12)
                 for best in product(decoders.FOR_PREFILL, decoders.FOR_DECODING)]
        if len(prompts) == 1:
            best = decoders.FOR_DECODING[:2]
            runs.append(decoders.run_with_mtp(theirs, module, best, prompts, 12))
        for run in runs:
            assert run.texts == runs[0].texts and min(run.prefill, run.decode) > 0
            for text, expected, length in zip(run.texts, made.tokens.tolist(), made.lengths):
                assert len(text) == 12 and text[:length] == expected[:length]


def test_cache_bytes_are_the_formulas(pair, tokens):
    """Oracle: bytes per token by `cost`, times the tokens that each cache has space for.

    Ours allocates memory for the whole text and for drafts beyond it. The cache of transformers
    grows with the tokens read, and the last token is never read.
    """
    ours, theirs, module = pair
    main, with_mtp = (cache_bytes(CONFIG, 4)[kind] for kind in ("mla", "mla_with_mtp"))
    best = decoders.FOR_DECODING[:2]
    assert decoders.run_ours(ours, 0, tokens, 12).cache == 2 * (9 + 12) * main
    assert decoders.run_ours(ours, 2, tokens, 12).cache == 2 * (9 + 12 + 2) * with_mtp
    assert decoders.run_theirs(theirs, best, tokens, 12).cache == 2 * (9 + 12 - 1) * main
    held = decoders.run_with_mtp(theirs, module, best, tokens[:1], 12).cache
    assert (9 + 12 - 4) * with_mtp < held <= (9 + 12) * with_mtp


def test_both_count_the_same_drafts(tokens):
    """Oracle: the passes and accepted drafts of transformers; the last draft may differ.

    The head can only give one of four tokens, so that some drafts are accepted and some are not.
    """
    ours = randomised(CONFIG, torch.float32).eval()
    with torch.no_grad():
        ours.lm_head.weight[3:] = 0              # all these tokens have the same logit, 0
    theirs, module = decoders.load_theirs(ours)
    for prompt in tokens.split(1):
        mine = decoders.run_ours(ours, 1, prompt, 30)
        other = decoders.run_with_mtp(theirs, module, decoders.FOR_DECODING[:2], prompt, 30)
        assert mine.texts == other.texts and 2 < other.accepted[0] < other.tried[0]
        assert abs(mine.passes - other.passes) <= 1
        assert abs(mine.accepted[0] - other.accepted[0]) <= 1
        assert other.passes + other.accepted[0] == 30 - 1 and other.tried == [other.passes]


def test_contenders_take_turns_and_begin_in_turn():
    """Oracle: the order written out; the first round is for warming up and is not kept."""
    order = []
    entries = {name: lambda tokens, new, name=name: order.append(name) or name for name in "abc"}
    runs = decode.measure({(1, 2): entries}, {2: torch.zeros(5, 2)}, 3, 4)
    assert "".join(order) == "cababcbcacab"
    assert runs == {(1, 2): {name: [name] * 3 for name in "abc"}}


def test_windows_are_all_there_and_whole():
    """Oracle: the windows of two texts by hand, in any order."""
    found = decode.windows([[1, 2, 3, 4, 5], [6, 7], [8]], 2, seed=0)
    assert sorted(found.tolist()) == [[1, 2], [3, 4], [6, 7]]
    assert not torch.equal(found, decode.windows([[1, 2, 3, 4, 5], [6, 7], [8]], 2, seed=1))


@pytest.mark.parametrize("absorbed, expanded, at", [
    ([1, 2, 8], [4, 4, 4], 8.0), ([1, 4, 16], [4, 4, 4], 4.0), ([1, 1, 1], [2, 2, 2], None),
    ([3, 3, 3], [2, 2, 2], 1), ([1, 2, 4], [2, 1, 8], None)])
def test_the_crossing_lies_where_the_times_meet(absorbed, expanded, at):
    """Oracle: cases by hand, for 1, 4 and 16 tokens; the last crossing counts."""
    assert absorbing.crossing([1, 4, 16], absorbed, expanded) == at


@pytest.mark.slow
def test_the_whole_benchmark_writes_what_it_prints(folder, small_text, tmp_path, capsys):
    """Oracle: names and shapes in decode.json, the formula of `cost`, the printed table."""
    assert decode.main([
        "--model", str(folder), "--data", str(small_text), "--rounds", "1", "--new-tokens", "4",
        "--contexts", "8", "--batches", "1", "2", "--growth", "8", "16",
        "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "decode.json").read_text(encoding="utf-8"))
    assert {"torch", "threads", "transformers", "cpu"} <= set(results["machine"])
    assert [(cell["batch"], cell["context"]) for cell in results["cells"]] == [
        (1, 8), (1, 16), (2, 8)]
    printed = capsys.readouterr().out
    size = cache_bytes(CONFIG, 4)
    for cell in results["cells"]:
        batch, context = cell["batch"], cell["context"]
        assert list(cell["contenders"]) == NAMES[:5 if batch == 1 else 4]
        assert cell["contenders"]["ours"]["cache_bytes"] == batch * (context + 4) * size["mla"]
        for f in cell["contenders"].values():
            assert f["same_text"] == f["texts"] == batch       # the same weights
            assert f" {f['ms_per_token']:.2f} " in printed
            assert f" {f['cache_bytes'] / 1000:,.0f} " in printed
        assert cell["contenders"]["transformers"]["to_transformers"] == 1
        assert cell["contenders"]["ours"]["to_plain"] == 1
    assert set(results["growth"]["percent"]) == set(NAMES)
    assert list(results["absorbing"]) == ["this model", "a middle size"]
    assert len(results["absorbing"]["this model"]["absorbed_ms"]) == 5
    assert (tmp_path / "decode.png").stat().st_size > 5000


def test_a_model_without_mtp_is_measured_without_drafts(small_text, folder, tmp_path):
    """Oracle: the names of the contenders."""
    config = CONFIG.replace(num_nextn_predict_layers=0)
    hf.save(randomised(config, torch.float32), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    arguments = decode.parse_arguments(["--model", str(tmp_path), "--data", str(small_text)])
    _, cells = decode.prepare(arguments, hf.load(tmp_path, torch.float32), [(1, 8)])
    assert list(cells[1, 8][1]) == ["ours", "transformers"]


@pytest.mark.parametrize("arguments, named", [
    (["--rounds", "0"], "--rounds"), (["--new-tokens", "1"], "--new-tokens"),
    (["--contexts", "8", "0"], "--contexts"), (["--batches", "-1"], "--batches"),
    (["--drafts", "0"], "--drafts"), (["--threads", "0"], "--threads"),
    (["--seed", "-1"], "--seed"), (["--contexts", "9999"], "10,003 tokens are more than 64"),
    (["--contexts", "x"], "'x'"), (["--model", "nowhere"], "nowhere"),
    (["--data", "nowhere"], "nowhere")])
def test_bad_input_ends_in_one_line(arguments, named, folder, tmp_path, capsys):
    """Oracle: exit code 2, one line that names the value, no folder made."""
    out = tmp_path / "results"
    short = ["--model", str(folder), "--new-tokens", "4", "--growth", "8", "--contexts", "8"]
    assert decode.main([*short, "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and named in error
    assert not out.exists()


def test_too_short_texts_and_a_file_for_out_end_in_one_line(folder, tmp_path, capsys):
    """Oracle: the advice in the line."""
    short = tmp_path / "short.txt"
    short.write_text("a few words\n" * 9, encoding="utf-8")
    for arguments, named in ((["--data", str(short)], "shorten --contexts"),
                             (["--out", str(short)], "is a file; name a folder"),
                             (["--out", str(short / "x")], "is a file; name a folder")):
        assert decode.main(["--model", str(folder), "--new-tokens", "4", "--contexts", "50",
                            "--growth", "50", "--out", str(tmp_path), *arguments]) == 2
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1
    assert short.read_text(encoding="utf-8").startswith("a few words")

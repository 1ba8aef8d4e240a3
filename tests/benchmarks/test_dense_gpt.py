"""The dense GPT is a correct model of equal work, and the benchmark treats both models alike."""

import math

import pytest
import torch
import torch.nn.functional as F
import train
from contender import Contender
from dense_gpt import DenseGPT, GPTConfig, matched_to, rotate
from torch.utils.flop_counter import FlopCounterMode

from minidsv3 import ModelConfig
from minidsv3.measure.evaluate import evaluate
from minidsv3.model.transformer import DeepSeekV3
from tests.benchmarks.conftest import OURS, RECIPE

SMALL = GPTConfig(vocab_size=37, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
                  intermediate_size=40, tie_word_embeddings=True, rope_theta=10000.0,
                  rms_norm_eps=1e-6, initializer_range=0.02)


class OneBatch:
    """Stands for Batches and always gives the same windows."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(37, (4, 12), generator=generator)

    def take(self, start, count):
        return self.tokens[:count]


@pytest.mark.parametrize("preset", ["tiny", "small", "moonlight-16b"])
def test_as_many_parameters_work_on_a_token_as_in_our_main_model(preset):
    """Oracle: the parameters of both models, built and counted."""
    config = ModelConfig.preset(preset)
    with torch.device("meta"):
        _, active = DeepSeekV3(config).count_parameters()
        dense = sum(p.numel() for p in DenseGPT(matched_to(config)).parameters())
    assert dense == pytest.approx(active, rel=0.02)


def test_work_counts_every_matrix_as_often_as_a_token_meets_it(monkeypatch):
    """Oracle: multiplications for one token counted by torch, without those between tokens.

    Within 2 %, because the sum of the experts' outputs is a product without parameters.
    """
    monkeypatch.setattr("minidsv3.model.mla.attend", lambda q, k, v, scale, visible=None: v)
    monkeypatch.setattr("dense_gpt.attend", lambda q, k, v, scale: v)
    for make in (lambda: DenseGPT(SMALL), lambda: DeepSeekV3(OURS)):
        contender = Contender(make, RECIPE, torch.device("cpu"))
        model = contender.model.double()         # in float64 experts are plain products
        model.activation_dtype = None
        tokens = torch.zeros(1, 2).long()
        hidden, _ = model.hidden_states(tokens)
        with FlopCounterMode(display=False) as counter:
            model(tokens[:, :1])
            for state in model.mtp_states(hidden, tokens)[0]:          # one module, one position
                model.lm_head(state)
        gains = sum(p.numel() for p in model.parameters() if p.dim() == 1)
        assert counter.get_total_flops() / 2 == pytest.approx(contender.at_work() - gains, rel=0.02)


def test_a_later_token_changes_nothing_before_it_and_an_earlier_one_does():
    """Oracle: the same text with one token replaced, in float64."""
    torch.manual_seed(0)
    model = DenseGPT(SMALL).double()
    tokens = torch.randint(37, (2, 9))
    other = tokens.clone()
    other[:, 5] = (other[:, 5] + 1) % 37
    before, after = model(tokens), model(other)
    assert torch.equal(before[:, :5], after[:, :5])
    assert ((before - after)[:, 5:].abs().amax(dim=-1) > 1e-9).all()


def test_rotary_scores_depend_on_distance_alone():
    """Oracle: pairs as complex numbers times exp(i * angle); then all positions shifted by 4.

    Within 1e-5, since angles are float32.
    """
    torch.manual_seed(0)
    model, positions = DenseGPT(SMALL), torch.zeros(1, 13).long()
    tables = tuple(table.double() for table in model.rope_tables(positions))
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).expand(2, 1, 1, 13, 8)  # one vector each
    turned = torch.complex(q[..., :4], q[..., 4:]) * torch.complex(*tables)
    torch.testing.assert_close(rotate(q, tables), torch.cat([turned.real, turned.imag], dim=-1))
    scores = rotate(q, tables)[0, 0] @ rotate(k, tables)[0, 0].T       # (T, T)
    torch.testing.assert_close(scores[4:, 4:], scores[:-4, :-4], atol=1e-5, rtol=0)
    assert (scores[0, 1:] - scores[0, 0]).abs().min() > 1e-3


def test_untrained_it_finds_all_tokens_equally_likely():
    """Oracle: log V nats; such small weights change it by less than a hundredth."""
    torch.manual_seed(0)
    loss = DenseGPT(SMALL).loss(torch.randint(37, (8, 33))).total
    assert loss.item() == pytest.approx(math.log(37), abs=0.03)


def test_the_house_evaluates_it_like_ours():
    """Oracle: the loss in nats on the same windows, computed by hand and converted."""
    torch.manual_seed(0)
    model, tokens = DenseGPT(SMALL), torch.randint(37, (5, 8))
    targets = tokens[:, 1:].clone()
    targets[-1, 4:] = -100
    result = evaluate(model, tokens[:, :-1], targets, raw_bytes=50)
    nats = F.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), targets, reduction="sum").item()
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / 50, rel=1e-5)
    assert result.max_vio == [] and result.mtp_agreement is None


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("make", [lambda: DenseGPT(SMALL), lambda: DeepSeekV3(OURS)])
def test_the_benchmarks_steps_learn_a_batch_by_heart(make, optimizer):
    """Oracle: the loss on one repeated batch falls, for both models and both optimisers."""
    contender = Contender(make, RECIPE.replace(optimizer=optimizer), torch.device("cpu"))
    losses = [contender.step(OneBatch(), (step + 1) / 20) for step in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    assert contender.taken == 20 and contender.seconds > 0


def test_every_parameter_is_trained():
    """Oracle: the weights before and after a step, which all differ."""
    contender = Contender(lambda: DenseGPT(SMALL), RECIPE, torch.device("cpu"))
    before = {name: p.detach().clone() for name, p in contender.model.named_parameters()}
    contender.step(OneBatch(), 0.5)
    for name, parameter in contender.model.named_parameters():
        assert not torch.equal(before[name], parameter), name


def test_models_take_turns_in_every_round():
    """Oracle: the order written out, and results numbered as they were measured."""
    order = []
    results = train.alternate(["a", "b", "c"], 3, lambda name: (order.append(name), len(order))[1])
    assert "".join(order) == "abcabcabc"
    assert results == {"a": [1, 4, 7], "b": [2, 5, 8], "c": [3, 6, 9]}


def test_ratios_are_taken_within_rounds():
    """Oracle: on a machine that halves its speed each round, the ratio stays 1.5."""
    assert train.paired_ratio([30, 15, 7.5], [20, 10, 5]) == 1.5


def test_a_slow_round_favours_no_model():
    """Oracle: by hand. The dense GPT's median is 20; of ours alone it would be 30, not 24."""
    speeds = {train.WITH_MTP: [30, 6, 36], train.WITHOUT_MTP: [10, 5, 20], train.DENSE: [20, 5, 40]}
    assert train.to_dense(speeds) == {
        train.WITH_MTP: {"tokens_per_s": 24.0, "ratio": 1.2},
        train.WITHOUT_MTP: {"tokens_per_s": 10.0, "ratio": 0.5},
        train.DENSE: {"tokens_per_s": 20.0, "ratio": 1.0}}


@pytest.mark.parametrize("arguments, named", [
    (["--jobs", "0"], "--jobs"), (["--rounds", "0"], "--rounds"),
    (["--steps", "-1"], "--steps"), (["--preset", "tinny"], "tinny"),
    (["--device", "abacus"], "abacus"), (["--optimizers", "muon", "sgd"], "sgd"),
    (["--learning-rates", "-1", "1"], "-1"), (["--seed", "-1"], "seed=-1"),
])
def test_bad_input_ends_in_one_line(arguments, named, tmp_path, capsys):
    """Oracle: exit code 2, one line that names the value, no folder made."""
    out = tmp_path / "results"
    assert train.main([*arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and named in error
    assert not out.exists()


def test_an_out_that_is_a_file_is_left_alone(tmp_path, capsys, monkeypatch):
    """Oracle: the file's text afterwards; nothing was measured."""
    monkeypatch.setattr(train, "measure_speed", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for out in ("file", "file/x"):
        assert train.main(["--out", str(tmp_path / out)]) == 2
        assert "is a file; name a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"

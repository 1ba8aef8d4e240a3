"""Parameter counts against published figures, the model itself and sums written out by hand."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minidsv3 import DeepSeekV3, ModelConfig
from minidsv3.config import PRESETS
from minidsv3.measure import accounting, cost

ROOT = Path(__file__).resolve().parent.parent.parent
V3 = ModelConfig.preset("v3-671b")
MOONLIGHT = ModelConfig.preset("moonlight-16b")
KIMI = V3.replace(vocab_size=163840, num_attention_heads=64, n_routed_experts=384, n_group=1,
                  topk_group=1, first_k_dense_replace=1, num_nextn_predict_layers=0)
# No two sizes alike, none a multiple of 128.
ODD = ModelConfig(
    vocab_size=267, hidden_size=136, num_hidden_layers=5, intermediate_size=270,
    num_attention_heads=3, q_lora_rank=70, kv_lora_rank=150, qk_nope_head_dim=50,
    qk_rope_head_dim=36, v_head_dim=44, n_routed_experts=6, num_experts_per_tok=2,
    moe_intermediate_size=130, first_k_dense_replace=2, n_group=3, topk_group=2,
    rope_scaling=None, max_position_embeddings=99)
CONFIGS = {name: ModelConfig.preset(name) for name in PRESETS} | {
    "kimi-k2": KIMI,
    "odd": ODD,
    "odd, tied, two MTP": ODD.replace(tie_word_embeddings=True, num_nextn_predict_layers=2),
    "odd, no query latent, two shared": ODD.replace(
        q_lora_rank=None, n_shared_experts=2, first_k_dense_replace=0, num_nextn_predict_layers=0),
    "odd, none shared, dense": ODD.replace(
        n_shared_experts=0, first_k_dense_replace=9, num_nextn_predict_layers=2),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def on_meta(config):
    """A model on the meta device, which needs no memory."""
    with torch.device("meta"):
        return DeepSeekV3(config)


def test_the_released_model_has_671_billion_parameters():
    """Oracle: the released checkpoint's main model, in total and activated per token."""
    model = on_meta(V3)
    assert model.count_parameters() == (671_026_404_352, 37_552_282_624)
    mtp = sum(parameter.numel() for parameter in model.mtp.parameters())
    assert mtp == 11_610_067_968


def test_moonlight_has_16_billion_parameters():
    """Oracle: 15,960,110,208 in the released file, less 26 * 64 biases that are buffers here."""
    total, active = on_meta(MOONLIGHT).count_parameters()
    assert total == 15_960_110_208 - 26 * 64
    assert active == total - 26 * 58 * 3 * 2048 * 1408 == 2_914_774_528


@pytest.mark.parametrize("tied, rank, shared, dense", [
    (True, 20, 1, 1), (False, None, 2, 0), (True, 20, 0, 5)])
def test_a_small_model_by_hand(tied, rank, shared, dense):
    """Oracle: all matrices written out; with more dense layers than layers there is no expert."""
    V, C, L, H, F, E, K = 261, 24, 3, 2, 10, 6, 2
    config = ModelConfig(
        vocab_size=V, hidden_size=C, num_hidden_layers=L, intermediate_size=30,
        tie_word_embeddings=tied, num_attention_heads=H, q_lora_rank=rank, kv_lora_rank=14,
        qk_nope_head_dim=5, qk_rope_head_dim=4, v_head_dim=7, n_routed_experts=E,
        n_shared_experts=shared, num_experts_per_tok=K, moe_intermediate_size=F,
        first_k_dense_replace=dense, n_group=3, topk_group=2, num_nextn_predict_layers=2,
        rope_scaling=None, max_position_embeddings=99)
    queries = C * H * 9 if rank is None else C * rank + rank + rank * H * 9
    attention = queries + C * (14 + 4) + 14 + 14 * H * (5 + 7) + H * 7 * C
    sparse = max(0, L - dense)
    total = V * C * (1 if tied else 2) + C + L * (attention + 2 * C)
    total += (L - sparse) * 3 * C * 30 + sparse * (E * C + (E + shared) * 3 * C * F)
    active = total - sparse * (E - K) * 3 * C * F
    assert DeepSeekV3(config).count_parameters() == (total, active)
    assert sum(accounting.main_parameters(config).values()) == total
    assert accounting.activated_parameters(config)["all"] == active


# ---- closed formulas ----

# what a parameter's name says it is; the first that fits counts
KINDS = [("embedding", "embed_tokens"), ("head", "lm_head"), ("final_norm", r"^norm\."),
         ("norms", "norm"), ("attention", "self_attn"), ("routed_experts", r"mlp\.experts"),
         ("shared_experts", "shared_experts"), ("router_gates", r"mlp\.gate\."),
         ("eh_proj", "eh_proj"), ("dense_ffn", "mlp")]


def kind_of(name):
    """The component a parameter belongs to."""
    return next(kind for kind, pattern in KINDS if re.search(pattern, name))


@every_config
def test_every_component_is_that_of_the_model(config):
    """Oracle: the parameters of a model on the meta device, sorted by their names."""
    model = on_meta(config)
    main, mtp = Counter(), Counter()
    for name, parameter in model.named_parameters():
        if not name.startswith("mtp."):
            main[kind_of(name)] += parameter.numel()
        elif re.search(r"eh_proj|enorm|hnorm|shared_head", name):
            mtp["eh_proj" if "eh_proj" in name else "norms"] += parameter.numel()
        else:
            mtp["blocks"] += parameter.numel()
    formulas = accounting.main_parameters(config)
    assert {part: count for part, count in formulas.items() if count} == main
    assert sum(formulas.values()) == model.count_parameters()[0]
    assert {part: count for part, count in accounting.mtp_parameters(config).items()
            if count} == mtp


@every_config
def test_a_released_checkpoint_holds_the_models_numbers(config):
    """Oracle: every tensor of a model on the meta device, stored as the format says, one by one."""
    model, stored = on_meta(config), Counter()
    for name, parameter in model.named_parameters():
        kind, shape = kind_of(name), parameter.shape
        if kind not in ("attention", "dense_ffn", "routed_experts", "shared_experts"):
            stored["BF16"] += parameter.numel()
            continue
        stored["F8_E4M3"] += parameter.numel()
        matrices = [shape[-2:]]
        if kind == "routed_experts":           # stacked here; the file has a matrix each
            matrices = [shape[1:]] * shape[0]
            if "gate_up" in name:
                matrices = [(shape[1] // 2, shape[2])] * (2 * shape[0])
        stored["F32"] += sum(math.ceil(m / 128) * math.ceil(n / 128) for m, n in matrices)
    stored["F32"] += sum(router.e_score_correction_bias.numel() for router in model.routers())
    copies = 2 * len(model.mtp) + config.tie_word_embeddings
    stored["BF16"] += copies * model.embed_tokens.weight.numel()
    released = accounting.released_parameters(config)
    assert {dtype: released[dtype] for dtype in ("F8_E4M3", "BF16", "F32")} == stored
    assert released["total"] == sum(stored.values())


def test_the_components_of_the_released_model():
    """Oracle: products of the released shapes, done by hand."""
    assert accounting.main_parameters(V3) == {
        "embedding": 926_679_040, "head": 926_679_040, "attention": 11_413_422_080,
        "dense_ffn": 1_189_085_184, "routed_experts": 653_908_770_816,
        "shared_experts": 2_554_331_136, "router_gates": 106_430_464,
        "norms": 1_006_592 - 7_168, "final_norm": 7_168}
    dense, sparse = (accounting.block_parameters(V3, kind) for kind in (False, True))
    assert dense["attention"] == sparse["attention"] == 187_105_280
    assert dense["norms"] == 16_384 and dense["dense_ffn"] == 396_361_728
    assert sparse["shared_experts"] == 44_040_192 and sparse["router_gates"] == 1_835_008
    assert sum(dense.values()) == 583_483_392 and sum(sparse.values()) == 11_507_286_016
    assert accounting.mtp_parameters(V3) == {
        "blocks": 11_507_286_016, "eh_proj": 102_760_448, "norms": 21_504}


def test_the_released_checkpoint_to_the_last_number():
    """Oracle: totals by dtype that the hub shows for DeepSeek-V3."""
    assert accounting.released_parameters(V3) == {
        "F8_E4M3": 680_571_043_840, "BF16": 3_918_786_560, "F32": 41_555_600,
        "total": 684_531_386_000, "tensor_bytes": 688_574_839_360}


def test_activated_parameters_in_every_convention():
    """Oracle: published counts: "37B" of 671B, 2.24B of Moonlight, 32B of Kimi-K2's 1T."""
    assert accounting.activated_parameters(V3) == {
        "all": 37_552_282_624, "without_embedding": 36_625_603_584,
        "without_embedding_and_head": 35_698_924_544,
        "mtp": 688_100_352, "mtp_with_embedding_and_head": 2_541_458_432}
    moonlight = accounting.activated_parameters(MOONLIGHT)
    assert moonlight["all"] == 2_914_774_528 and moonlight["mtp_with_embedding_and_head"] == 0
    assert round(moonlight["without_embedding_and_head"] / 1e9, 2) == 2.24
    assert sum(accounting.main_parameters(KIMI).values()) == 1_026_408_209_408
    assert accounting.activated_parameters(KIMI)["all"] == 32_861_477_888


def test_a_tied_matrix_works_once():
    """Oracle: the same model untied has one vocabulary more, and only as an embedding."""
    tied, untied = ({**accounting.activated_parameters(ODD.replace(tie_word_embeddings=tie))}
                    for tie in (True, False))
    assert tied["all"] == tied["without_embedding"] == untied["without_embedding"]
    assert untied["all"] - tied["all"] == 267 * 136
    assert tied["mtp_with_embedding_and_head"] - tied["mtp"] == 267 * 136


# ---- FLOPs ----


def test_flops_and_mfu_of_the_report():
    """Oracle: DeepSeek's ISCA 2025 paper: 385 TFLOP/s, 38.94 % causal, 432, 43.73 % non-causal,
    on the same run; the other digits were computed by hand from 180K hours.
    """
    flops = accounting.training_flops(V3, 4096)
    rounded = {name: round(count / 1e9, 2) for name, count in flops.items()}
    assert rounded == {"matrices": 219.75, "causal": 250.46, "non_causal": 281.16,
                       "causal_with_mtp": 260.65}
    run = cost.Run()
    mfu = {name: cost.utilisation(count, run) for name, count in flops.items()}
    assert {name: round(100 * share, 1) for name, share in mfu.items()} == {
        "matrices": 34.3, "causal": 39.1, "non_causal": 43.9, "causal_with_mtp": 40.7}
    assert mfu["causal"] == pytest.approx(0.3894, rel=0.004)
    assert mfu["non_causal"] == pytest.approx(0.4373, rel=0.004)
    assert round(mfu["causal"] * 989.4, 1) == 386.5
    assert cost.utilisation(flops["causal"], run, peak=2 * 989.4e12) == mfu["causal"] / 2


def test_decoding_flops_of_the_released_model():
    """Oracle: multiply-adds of one layer written out; a cache of one token needs no expansion."""
    flops = accounting.decoding_flops(V3, 1000)
    assert flops["absorbed"] == 2 * (36_625_603_584 + 61 * 139_264 * 1000)
    assert flops["expanded"] == 2 * (36_625_603_584
                                     + 61 * (16_777_216 * 999 + 40_960 * 1000))
    one = accounting.decoding_flops(V3, 1)
    assert one["expanded"] == 2 * (36_625_603_584 + 61 * 40_960)


def test_training_flops_are_those_that_torch_counts(monkeypatch):
    """Oracle: torch's counter of matrix products, forwards and backwards, on a dense model.

    It counts all pairs of the window, and neither norms nor the embedding. Values keep their width:
    padding them for the fused kernel would add work that is not the model's.
    """
    from torch.utils.flop_counter import FlopCounterMode

    config = ODD.replace(first_k_dense_replace=9, num_nextn_predict_layers=0)
    model, window = on_meta(config), 12
    tokens = torch.zeros(1, window, dtype=torch.long, device="meta")
    monkeypatch.setattr("minidsv3.model.mla.attend",
                        lambda q, k, v, scale, visible: F.scaled_dot_product_attention(
                            q, k, v, is_causal=True, scale=scale))
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    main = accounting.main_parameters(config)
    norms = 6 * (main["norms"] + main["final_norm"])
    expected = accounting.training_flops(config, window)["non_causal"] - norms
    assert counter.get_total_flops() == window * expected


# ---- the command ----


def run(arguments, capsys):
    """Exit code, standard output and error of the command."""
    code = accounting.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_json_holds_plain_numbers(capsys):
    """Oracle: known numbers with all digits, which the tables round."""
    code, out, _ = run(["v3-671b", "--json"], capsys)
    values = json.loads(out)
    assert code == 0 and values["model"] == "v3-671b"
    assert values["parameters"]["main_model"] == 671_026_404_352
    assert values["parameters"]["mtp_modules"] == 11_610_067_968
    assert values["parameters"]["router_biases_apart"] == 14_848
    assert values["released_checkpoint"]["total"] == 684_531_386_000
    assert values["cache_bytes_per_token"]["mla"] == 70_272
    assert values["run"]["gpu_hours"] == 2_788_000 and values["run"]["dollars"] == 5_576_000
    assert values["run"]["pre_training_hours"] == 2_664_000
    assert values["run"]["context_extension_dollars"] == 238_000
    assert round(values["mfu"]["causal"], 3) == 0.391
    # 16 stages, 64 ranks for experts, 128 for the rest: what 80 GB can hold.
    assert values["training_memory_bytes"]["total"]["and_sharded"] < 80e9
    assert values["training_memory_bytes"]["total"]["one_gpu"] > 80e9


def test_tables_are_readable(capsys):
    """Oracle: some cells written out, and the width of a terminal."""
    _, out, _ = run(["v3-671b"], capsys)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in ["main model 671,026,404,352", "MTP modules 11,610,067,968", "MLA 70,272",
                 "causal 250.46 GFLOP", "causal 39.06 %", "dollars 5,576,000", "limit 170.67",
                 "pre training hours 2,664,000", "pre training dollars 5,328,000",
                 "context extension hours 119,000", "context extension dollars 238,000",
                 "post training hours 5,000", "post training dollars 10,000",
                 "days per trillion tokens 3.66", "weights 1.37 TB 1.37 TB 3.48 GB"]:
        assert line in lines
    assert max(map(len, out.splitlines())) <= 100


def test_the_bill_is_the_reports_alone(capsys):
    """Oracle: the keys; a folder of the same architecture has the same figures as its preset."""
    _, of_preset, _ = run(["tiny", "--json"], capsys)
    _, of_folder, _ = run([ROOT / "checkpoints" / "tiny", "--json"], capsys)
    of_preset, of_folder = json.loads(of_preset), json.loads(of_folder)
    assert "run" not in of_preset and "mfu" not in of_preset
    assert of_preset.pop("model") == "tiny" and of_folder.pop("model").endswith("tiny")
    assert of_preset == of_folder


@every_config
def test_any_model_has_tables(config):
    """Oracle: every cell is a number or the word never; no number is negative."""
    for table in accounting.tables(config):
        for line in accounting.as_text(table).splitlines()[1:]:
            assert re.search(r"(\d|never|%|FLOP|B|recomputation +and sharded)$", line), line
            assert not re.search(r"-\d|nan|inf", line), line


@pytest.mark.parametrize("arguments, words", [
    (["huge"], ["'huge'", "tiny, short, small, moonlight-16b, v3-671b", "config.json"]),
    ([], ["NAME", "--help"]), (["tiny", "--colour"], ["--colour", "--help"]),
    (["tiny", "small"], ["small", "--help"])])
def test_bad_input_is_one_line(arguments, words, capsys):
    """Oracle: exit code 2, the words in order, nothing on standard output."""
    code, out, error = run(arguments, capsys)
    assert code == 2 and out == "" and len(error.splitlines()) == 1
    assert re.search(".*".join(map(re.escape, ["error: ", *words])), error), error


@pytest.mark.parametrize("content, words", [
    (None, ["config.json"]), ("{", ["config.json"]),
    ('{"model_type": "llama"}', ["'llama'"]),
    ('{"model_type": "deepseek_v3", "hidden_size": 0}', ["hidden_size=0"])])
def test_a_folder_that_is_no_checkpoint_is_one_line(content, words, tmp_path, capsys):
    """Oracle: exit code 2 and the words."""
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    code, out, error = run([tmp_path], capsys)
    assert code == 2 and out == "" and len(error.splitlines()) == 1
    assert all(word in error for word in words), error

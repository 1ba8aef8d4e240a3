"""The prefill and the decode process: their texts, and what happens if one of them is killed."""

import multiprocessing
import threading
import time

import pytest
import torch

from minidsv3 import DeepSeekV3, hf
from minidsv3.infer import generate
from minidsv3.infer.decoder import Sequence
from minidsv3.infer.sampling import Sampler
from minidsv3.serve.serving import serve_separated
from tests.infer.conftest import SMALL

pytestmark = pytest.mark.multi
SAMPLED = Sampler(temperature=1.0, top_p=0.95)


def prompts_of(count):
    generator = torch.Generator().manual_seed(8)
    return [torch.randint(5, 300, (1 + 7 * i % 30,), generator=generator) for i in range(count)]


def requests_of(prompts, sampler=None, new=12):
    return [Sequence(prompt.tolist(), new, {1}, sampler, i) for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize("speculative, sampler", [(0, None), (2, SAMPLED)])
def test_64_requests_are_answered_as_alone(model, folder, speculative, sampler):
    """Oracle: `generate` in this process, one request at a time; none is lost or answered twice."""
    prompts = prompts_of(64)
    ends = []
    served = serve_separated(folder, requests_of(prompts, sampler), 5, 40, speculative,
                             progress=lambda: ends.append(1))
    settings = {**(sampler or Sampler())._asdict(), "speculative": speculative}
    for i, prompt in enumerate(prompts):
        assert served.new[i] == generate(model, [prompt], 12, seed=[i], **settings).tokens[
            0].tolist()
    assert len(served.new) == len(served.first) == len(ends) == 64
    config, layers = model.config, 2 + (speculative > 0)
    numbers = sum(map(len, prompts)) * layers * (config.kv_lora_rank + config.qk_rope_head_dim)
    assert served.nbytes == 8 * numbers
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("victim", ["prefill", "decode"])
def test_the_death_of_a_process_ends_in_one_clear_line(folder, victim):
    """Oracle: the message, at most 10 s after the kill, and no process is left."""
    killed = []

    def kill_once():
        if not killed:
            killed.append(time.monotonic())
            next(process for process in multiprocessing.active_children()
                 if process.name == victim).kill()

    # Most requests arrive much later, so that the prefill process is alive when it is killed.
    requests = requests_of(prompts_of(64))
    arrivals = [0.0] * 8 + [3600.0] * 56
    with pytest.raises(ChildProcessError) as caught:
        serve_separated(folder, requests, 4, 40, arrivals=arrivals, progress=kill_once)
    assert time.monotonic() - killed[0] < 10
    text = str(caught.value)
    assert text.startswith(f"the {victim} process ended (exit code -")
    assert " of 64 requests unfinished; " in text and "start again" in text
    assert 56 <= int(text.split(" with ")[1].split()[0]) < 64
    assert not multiprocessing.active_children()


def test_what_a_process_complains_of_is_passed_on(folder, tmp_path):
    """Oracle: the message of the process, for damaged weights; without a folder none is started."""
    torch.manual_seed(0)
    damaged = DeepSeekV3(SMALL)
    damaged.lm_head.weight.data.fill_(torch.nan)
    hf.save(damaged, tmp_path)
    with pytest.raises(ChildProcessError, match="the prefill process: .* weights are damaged"):
        serve_separated(tmp_path, requests_of(prompts_of(3)))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        serve_separated(folder / "nowhere", requests_of(prompts_of(3)))
    assert not multiprocessing.active_children()


def test_the_command_ends_with_code_2(monkeypatch, capfd, tmp_path):
    """Oracle: exit code 2 and one line, when decode is killed while it still loads its model."""
    from minidsv3.serve import engines
    monkeypatch.chdir(tmp_path)
    finished = threading.Event()

    def kill_decode():
        while not finished.wait(0.05):
            for process in multiprocessing.active_children():
                if process.name == "decode":
                    process.kill()
                    return

    killer = threading.Thread(target=kill_decode)
    killer.start()
    try:
        code = engines.main(["--requests", "3", "--max-new-tokens", "2"])
    finally:
        finished.set()
        killer.join()
    lines = capfd.readouterr().err.splitlines()
    assert code == 2 and "error: the decode process ended (exit code -" in lines[-1]
    assert "with 3 of 3 requests unfinished" in lines[-1]


def test_the_command_prints_both_forms(capsys, monkeypatch, tmp_path):
    """With the shipped checkpoint, all texts are equal and latents need a third of the bytes."""
    import json

    from minidsv3.serve import engines
    monkeypatch.chdir(tmp_path)
    arguments = ["--requests", "6", "--max-new-tokens", "5", "--rate", "50", "--speculative", "1"]
    assert engines.main([*arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {*figures} == {"colocated", "separated"}
    for form in figures.values():
        assert form["equal_texts"] == 6
        assert form["expanded_bytes"] == 3 * form["handed_over_bytes"] > 0
    assert engines.main(arguments) == 0
    text = capsys.readouterr().out
    assert "separated: 6 of 6 texts equal those made alone" in text and "3.0 times" in text

"""The lm-evaluation-harness on a folder of ours, and its bits per byte taken apart.

Needs tests/clients/requirements.txt; run it with: pytest -m clients tests/clients
"""

import json
import math
import shutil
import sys

import pytest
import torch

from minidsv3 import hf
from minidsv3.data.corpus import load
from minidsv3.data.tokenizer import Tokenizer
from minidsv3.hf.__main__ import main as hf_main
from minidsv3.measure.evaluate import main

# In the last text two windows are equal, of which the harness scores 32 tokens and 8: in a batch
# it would take them for the same.
TEXTS = ["".join(f"def g{n}(x):\n    return x * {n}  # é😀\n" for n in range(40)), "short é\n",
         "x" * 31 + "\n", "# Ünïcödé <｜end▁of▁sentence｜>\n" * 9]

TASK = """task: texts
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    """The YAML file of a task on TEXTS, whose data set is a local file."""
    pytest.importorskip("lm_eval", reason="pip install -r tests/clients/requirements.txt")
    import datasets
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data, file = tmp_path / "texts.jsonl", tmp_path / "task.yaml"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8")
    file.write_text(TASK.format(data=json.dumps(str(data))), "utf-8")
    return file


def harness(capsys, folder, file, *options):
    """Bits per byte by the harness, from the command."""
    capsys.readouterr()
    assert main([str(folder), "--tasks", str(file), "--device", "cpu", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])["texts"]["bits_per_byte,none"]


@torch.no_grad()
def nats(model, ids, scored):
    """-log p of the last `scored` of ids, each from all ids before it."""
    logs = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    return -sum(logs[i - 1, ids[i]].item() for i in range(len(ids) - scored, len(ids)))


def rolling(model, tokenizer, window, start):
    """-log p of TEXTS as the harness counts: each text alone after one token, its end not counted.

    All windows are full: the last one reaches back into tokens that were scored already.
    """
    total = 0.0
    for text in TEXTS:
        ids = [start, *tokenizer.encode(text)]
        for first in range(1, len(ids), window):
            end = min(first + window, len(ids))
            total += nats(model, ids[max(0, end - window - 1):end], end - first)
    return total


def packed(model, tokenizer, window):
    """-log p of TEXTS as `evaluate` counts: one stream, EOS before it and after each text."""
    ids = [tokenizer.eos_id]
    for text in TEXTS:
        ids += [*tokenizer.encode(text), tokenizer.eos_id]
    return sum(nats(model, ids[first:first + window + 1], len(ids[first + 1:first + window + 1]))
               for first in range(0, len(ids) - 1, window))


@pytest.mark.clients
@pytest.mark.parametrize("window", [32, 21])
def test_its_bits_per_byte_are_explained(finished_run, task, tmp_path, capsys, window):
    """Oracle: our model in plain loops, once as the harness counts and once as `evaluate` does."""
    model, tokenizer = hf.load(finished_run).double(), Tokenizer.load(finished_run)
    size = sum(len(text.encode()) for text in TEXTS) * math.log(2)
    theirs = harness(capsys, finished_run, task, "--window", str(window))
    assert theirs == pytest.approx(rolling(model, tokenizer, window, tokenizer.bos_id) / size,
                                   abs=1e-4)
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / f"texts/{number}.txt").write_text(text, "utf-8", newline="\n")
    assert [each.text for each in load(str(tmp_path / "texts")).documents] == TEXTS
    assert main([str(finished_run), "--data", str(tmp_path / "texts"), "--window", str(window),
                 "--samples", "0", "--device", "cpu", "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)["bits_per_byte"]
    assert ours == pytest.approx(packed(model, tokenizer, window) / size, abs=1e-4)
    assert abs(theirs - ours) > 1e-3             # else nothing would need an explanation


@pytest.mark.clients
def test_its_longest_context_is_the_trained_window(finished_run, task, tmp_path, capsys):
    """Oracle: the harness's own class without a length; the figure with the window named."""
    from lm_eval.models.huggingface import HFLM
    folder = shutil.copytree(finished_run, tmp_path / "run")
    for trained in (32, 45):
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(
            json.dumps(config | {"max_position_embeddings": trained}), "utf-8")
        assert HFLM(pretrained=str(folder), device="cpu").max_length == trained
    assert harness(capsys, folder, task) == harness(capsys, folder, task, "--window", "45")


@pytest.mark.clients
def test_the_table_is_that_of_the_harness(finished_run, task, capsys):
    """Oracle: the name of the task and of its metric in one row."""
    assert main([str(finished_run), "--tasks", str(task), "--device", "cpu"]) == 0
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("|texts")]
    assert len(rows) == 1 and "bits_per_byte" in rows[0]


@pytest.mark.clients
@pytest.mark.parametrize("content, words", [
    (None, "there is no file"), ("a: [1,", "is no task"), ("- a\n- b\n", "is no task"),
    ("hello: 1\n", "is no task"), (TASK.format(data="nowhere.jsonl"), "is no task")])
def test_a_file_that_is_no_task_is_one_line(finished_run, task, capfd, content, words):
    """Oracle: exit code 2, and a last line with the name of the file."""
    if content is None:
        task.unlink()
    else:
        task.write_text(content, "utf-8")
    assert main([str(finished_run), "--tasks", str(task), "--device", "cpu"]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and words in last and task.name in last


@pytest.mark.clients
def test_a_folder_in_fp8_is_converted_first(finished_run, task, tmp_path, capsys):
    """Oracle: exit code 2 and the command to paste."""
    assert hf_main(["convert", str(finished_run), str(tmp_path / "fp8"), "--fp8"]) == 0
    capsys.readouterr()
    assert main([str(tmp_path / "fp8"), "--tasks", str(task), "--device", "cpu"]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert "minidsv3.hf convert" in line


def test_without_the_harness_one_line_says_how_to_get_it(finished_run, tmp_path, capsys,
                                                         monkeypatch):
    """Oracle: the words; None in sys.modules is what Python takes for a package that is absent."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    (tmp_path / "t.yaml").write_text("task: t")
    assert main([str(finished_run), "--tasks", str(tmp_path / "t.yaml"), "--device", "cpu"]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert "pip install lm-eval" in line
    assert main([str(finished_run), "--tasks", "t.yaml", "--data", "texts/"]) == 2
    assert "leave --data out" in capsys.readouterr().err

"""The shipped extended model. Oracle: what the study says of its kind; chance is 1 in 1,024."""

from pathlib import Path

import pytest

from minidsv3 import hf
from minidsv3.context import needle
from minidsv3.data.foreign import read_tokenizer

ROOT = Path(__file__).resolve().parents[2]
LONG = ROOT / "checkpoints/long"


@pytest.fixture(scope="module")
def text():
    """The validation text, as ids."""
    return needle.ids_of(needle.unseen_documents(), read_tokenizer(LONG, hf.read_config(LONG)))


@pytest.mark.parametrize("folder, near, far", [
    (LONG / "before", (1.0, 1.0), (0.0, 0.0)), (LONG, (1.0, 1.0), (0.8, 1.0))],
    ids=["before", "extended"])
def test_notes_are_found_up_to_32_windows_after_extension_alone(folder, near, far, text):
    model = hf.load(folder)
    tokenizer = read_tokenizer(folder, model.config)
    for length, (least, most) in ((64, near), (2048, far)):
        found = [needle.accuracy(model, tokenizer, length, depth, 5, 5, text=text)
                 for depth in (0.1, 0.5)]
        assert least <= sum(found) / 2 <= most, length


def test_the_folder_is_small_and_says_where_it_comes_from():
    """Oracle: the sizes of the files; the settings of the phases."""
    assert sum(path.stat().st_size for path in LONG.rglob("*") if path.is_file()) < 8_000_000
    config = hf.read_config(LONG)
    assert config.max_position_embeddings == 2048 and config.rope_scaling.factor == 40
    assert hf.read_config(LONG / "before").max_position_embeddings == 64
    assert hf.read_json(LONG / "lineage.json")["windows"] == [512, 2048]

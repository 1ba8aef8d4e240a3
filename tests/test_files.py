"""Files are written whole or not at all; a programming mistake is not called a full disk."""

import pytest

from minidsv3.files import replacing, write_text


def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path):
    """Oracle: the old text, the advice in the error, and no temporary file."""
    path = tmp_path / "text"
    write_text(path, "old")
    with pytest.raises(OSError, match="cannot write .*text .*No space left.*make room"):
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("text", "old")]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a bug"), KeyError("a bug")])
def test_a_mistake_of_the_program_stays_what_it_is(tmp_path, error):
    """Oracle: the same exception; the old file is kept."""
    path = tmp_path / "text"
    write_text(path, "old")
    with pytest.raises(type(error)) as caught:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error
    assert caught.value is error
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("text", "old")]

"""A classroom without a network: a folder of wheels, and an environment from it alone."""

import os
import shutil
import sys
from zipfile import ZipFile

import pytest

from tests.notebooks.conftest import imported

BACKEND = '''
from zipfile import ZipFile


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    with ZipFile(wheel_directory + "/clone-1.0-py3-none-any.whl", "w") as built:
        built.writestr("clone-1.0.dist-info/METADATA",
                       "Metadata-Version: 2.1\\nName: clone\\nVersion: 1.0\\n"
                       "Requires-Dist: ruler\\n")
        built.writestr("clone-1.0.dist-info/WHEEL",
                       "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        built.writestr("clone-1.0.dist-info/RECORD", "")
    return "clone-1.0-py3-none-any.whl"
'''


def make_wheel(folder, name, tag="py3-none-any", requires=(), source=""):
    """A wheel `name` (with its version, as in pen-1.0) of one module, by hand."""
    module, version = name.split("-")
    with ZipFile(folder / f"{name}-{tag}.whl", "w") as wheel:
        wheel.writestr(f"{module}.py", source)
        wheel.writestr(f"{name}.dist-info/METADATA", "\n".join(
            ["Metadata-Version: 2.1", f"Name: {module}", f"Version: {version}",
             *(f"Requires-Dist: {each}" for each in requires)]) + "\n")
        wheel.writestr(f"{name}.dist-info/WHEEL",
                       f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The module notebooks/offline, for a clone and a shop of wheels that stand in tmp_path."""
    module = imported("offline")
    clone, shop = tmp_path / "clone", tmp_path / "shop"
    clone.mkdir(), shop.mkdir()
    (clone / "requirements.txt").write_text("# pins\ntorch==1.0\npen==1.0\n\n-e .\n", "utf-8")
    (clone / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["tinybuild"]\nbuild-backend = "tinybuild"\n'
        '[project]\nname = "clone"\nversion = "1.0"\ndependencies = ["pen", "ruler"]\n', "utf-8")
    make_wheel(shop, "torch-1.0+cpu")
    make_wheel(shop, "torch-1.0+cu99")                       # pip would prefer it
    make_wheel(shop, "pen-1.0", requires=[
        'ink; sys_platform == "win32"', 'feather; sys_platform != "win32"',
        'chalk; python_version < "3.12"', 'paint; platform_machine == "arm64"'])
    for name in ("ruler-2.0", "feather-1.0", "chalk-1.0", "paint-1.0"):
        make_wheel(shop, name)
    make_wheel(shop, "ink-1.0", tag="cp312-cp312-win_amd64")
    make_wheel(shop, "tinybuild-1.0", source=BACKEND)
    monkeypatch.setattr(module, "ROOT", clone)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop))
    return module


def names(folder):
    """Names and versions of the wheels in a folder."""
    return {"-".join(path.name.split("-")[:2]) for path in folder.glob("*.whl")}


@pytest.mark.slow
def test_a_folder_alone_makes_the_environment(offline, tmp_path, monkeypatch, capfd):
    """The shop is gone and the index answers nothing. Oracle: what the new environment imports."""
    folder, venv = tmp_path / "my wheels", tmp_path / "venv"
    offline.main(["download", str(folder)])
    assert names(folder) >= {"pen-1.0", "ruler-2.0", "tinybuild-1.0"}
    assert ("torch-1.0+cpu" in names(folder)) == (sys.platform == "linux")
    shutil.rmtree(tmp_path / "shop")
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    capfd.readouterr()
    offline.main(["install", str(folder), "--venv", str(venv)])
    printed = capfd.readouterr().out
    assert "127.0.0.1" not in printed and "Start the notebooks with" in printed
    installed = {path.name for path in venv.rglob("*.dist-info")}
    assert installed >= {"clone-1.0.dist-info", "pen-1.0.dist-info", "ruler-2.0.dist-info"}


@pytest.mark.slow
def test_another_system_gets_what_it_will_ask_for(offline, tmp_path):
    """Oracle: the conditions of the wheel pen, read by hand; one folder for two systems."""
    always = {"pen-1.0", "ruler-2.0", "tinybuild-1.0"}
    offline.main(["download", str(tmp_path / "w"), "--system", "windows", "--python", "3.12"])
    assert names(tmp_path / "w") == always | {"torch-1.0+cu99", "ink-1.0"}
    offline.main(["download", str(tmp_path / "w"), "--system", "macos", "--python", "3.11"])
    assert names(tmp_path / "w") >= {"ink-1.0", "feather-1.0", "chalk-1.0", "paint-1.0"}
    assert (tmp_path / "w" / "systems.txt").read_text("utf-8").splitlines() == [
        "Darwin arm64, Python 3.11", "Windows AMD64, Python 3.12"]


def refused(offline, capsys, *arguments):
    """The line with which a command is refused; its exit code is 2."""
    with pytest.raises(SystemExit) as end:
        offline.main([str(each) for each in arguments])
    assert end.value.code == 2
    line, = capsys.readouterr().err.splitlines()
    return line


def test_other_files_and_other_machines_are_refused(offline, tmp_path, capsys):
    """Each error is one line, and what was there is there still."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "requirements.txt").write_text("torch==0.9\n", "utf-8")
    assert "other versions; name a new folder" in refused(offline, capsys, "download", mine)
    (tmp_path / "file").write_text("x", "utf-8")
    assert "holds other files" in refused(offline, capsys, "download", tmp_path / "file")
    for version in ("12", "3.10", "3.12.1"):
        assert f"Python {version} will not do: 3.11 or newer is needed" in refused(
            offline, capsys, "download", tmp_path / "new", "--python", version)
    assert "it has no systems.txt" in refused(offline, capsys, "install", mine)
    (mine / "systems.txt").write_text("Amiga 68000, Python 3.12\n", "utf-8")
    assert "only for Amiga 68000, Python 3.12" in refused(offline, capsys, "install", mine)
    (mine / "systems.txt").write_text(f"{offline.label(*offline.this_machine())}\n", "utf-8")
    assert "is there already" in refused(offline, capsys, "install", mine, "--venv", mine)
    assert (mine / "requirements.txt").read_text("utf-8") == "torch==0.9\n"
    assert not (tmp_path / "new").exists()

"""Install in a classroom without a network: download once, then install from that folder alone.

    python notebooks/offline.py download wheels                     for machines like this one
    python notebooks/offline.py download wheels --system windows --python 3.12
    python notebooks/offline.py install wheels                      in the classroom: a new .venv

Take the folder and the clone to the classroom. A folder may hold wheels for several systems and
Pythons: repeat the download. Nothing is imported that a fresh Python does not have, because this
script runs before anything is installed.
"""

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"

# The platforms in the names of wheels, and what Python calls a machine of each system.
SYSTEMS = {
    "linux": (["manylinux2014_x86_64", *(f"manylinux_2_{n}_x86_64" for n in range(17, 29))],
              {"platform_system": "Linux", "platform_machine": "x86_64",
               "sys_platform": "linux", "os_name": "posix"}),
    "macos": (["macosx_14_0_arm64"],
              {"platform_system": "Darwin", "platform_machine": "arm64",
               "sys_platform": "darwin", "os_name": "posix"}),
    "windows": (["win_amd64"],
                {"platform_system": "Windows", "platform_machine": "AMD64",
                 "sys_platform": "win32", "os_name": "nt"}),
}

# `pip download --platform` chooses files for another machine. But it asks its own machine about
# conditions such as `colorama; sys_platform == "win32"`, so this tells it what they are there.
PIP_FOR_ANOTHER_MACHINE = """
import json, runpy, sys
from pip._vendor.packaging import markers
there = markers.default_environment() | json.loads(sys.argv.pop(1))
markers.default_environment = lambda: there
runpy.run_module("pip", run_name="__main__")
"""


def parse_arguments(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    get = actions.add_parser("download", help="with a network: fill the folder")
    get.add_argument("folder", type=Path, help="a new folder, or one of an earlier download")
    get.add_argument("--system", choices=SYSTEMS, help="of the classroom's machines: linux and "
                     "windows on x86, macos 14 on Apple's processors [this machine]")
    get.add_argument("--python", metavar="3.N", help="of the classroom's machines [this one]")
    get.add_argument("--torch-index", default=CPU_BUILDS, metavar="URL",
                     help=f"where the CPU builds of torch for Linux are [{CPU_BUILDS}]")
    put = actions.add_parser("install", help="without a network: make an environment from it")
    put.add_argument("folder", type=Path)
    put.add_argument("--venv", type=Path, default=ROOT / ".venv", metavar="DIR",
                     help="the environment, a new folder [.venv in the clone]")
    return parser.parse_args(arguments)


def stop(message):
    """End with one line on stderr and exit code 2, as all commands do."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def pins():
    """requirements.txt without the line that installs the clone itself."""
    return re.sub(r"^-e \.\n?", "", (ROOT / "requirements.txt").read_text("utf-8"), flags=re.M)


def needed_to_install_the_clone():
    """What pip looks for when it installs the clone: its build backend and its dependencies."""
    import tomllib  # new in 3.11; an older Python must be able to say that it is too old
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return [*project["build-system"]["requires"], *project["project"].get("dependencies", [])]


def label(machine, python):
    """One line that names a system and its Python, as listed in systems.txt."""
    return f"{machine['platform_system']} {machine['platform_machine']}, Python {python}"


def this_machine():
    """What label() needs of the machine that runs this script, and its Python's version."""
    return ({"platform_system": platform.system(), "platform_machine": platform.machine()},
            f"{sys.version_info.major}.{sys.version_info.minor}")


def download(folder, system=None, python=None, torch_index=CPU_BUILDS):
    """Fill a folder with all wheels for a system and a Python [those of this machine]."""
    listed = folder / "requirements.txt"
    ours = listed.is_file() and listed.read_text("utf-8") == pins()
    if folder.exists() and not ours and not (folder.is_dir() and not any(folder.iterdir())):
        stop(f"{folder} holds other files, or wheels for other versions; name a new folder.")
    machine, own_version = this_machine()
    version, platforms = python or own_version, []
    if not re.fullmatch(r"3\.\d+", version) or int(version[2:]) < 11:
        stop(f"Python {version} will not do: 3.11 or newer is needed, as in --python 3.12.")
    if system:
        platforms, machine = SYSTEMS[system]
    # 3.12 means 3.12.0: what is chosen for it runs on all of 3.12, and not on this machine's alone.
    asked = machine | {"python_version": version, "python_full_version": f"{version}.0"}
    where = ["--python-version", version, "--implementation", "cp",
             *(f"--platform={each}" for each in platforms)]

    extra = needed_to_install_the_clone()
    if machine["platform_system"] == "Linux":    # PyPI's own build brings gigabytes of CUDA
        extra += [f"{pin}+cpu" for pin in re.findall(r"^torch==[\d.]+", pins(), flags=re.M)]
        where += ["--extra-index-url", torch_index]
    folder.mkdir(parents=True, exist_ok=True)
    listed.write_text(pins(), encoding="utf-8", newline="\n")
    if subprocess.run([sys.executable, "-c", PIP_FOR_ANOTHER_MACHINE, json.dumps(asked), "download",
                       "--only-binary=:all:", "--dest", folder, *where, "-r", listed,
                       *extra]).returncode:
        stop("pip could not download everything; the reason stands above. If the network was "
             "lost, repeat the command: pip keeps what it has.")

    systems, name = folder / "systems.txt", label(machine, version)
    known = systems.read_text("utf-8").splitlines() if systems.exists() else []
    systems.write_text("\n".join(sorted({*known, name})) + "\n", encoding="utf-8", newline="\n")
    wheels = list(folder.glob("*.whl"))
    print(f"{folder}: {len(wheels)} wheels, {sum(p.stat().st_size for p in wheels) / 1e6:,.0f} MB "
          f"(for {name}). In the classroom: python notebooks/offline.py install {folder.name}")


def install(folder, venv):
    """Make an environment from the folder alone, with the clone in it."""
    systems, name = folder / "systems.txt", label(*this_machine())
    if not systems.is_file():
        stop(f"{folder} is no folder of a finished download: it has no systems.txt.")
    known = systems.read_text("utf-8").splitlines()
    if name not in known:
        stop(f"{folder} holds nothing for {name}, only for {' and '.join(known)}: start this "
             "script with that Python, or download for this one too.")
    if venv.exists():
        stop(f"{venv} is there already; name a new folder with --venv.")

    scripts = venv.resolve() / ("Scripts" if sys.platform == "win32" else "bin")
    for command in ([sys.executable, "-m", "venv", venv],
                    [scripts / "python", "-m", "pip", "install", "--no-index", "--find-links",
                     folder.resolve(), "-r", folder / "requirements.txt", "-e", ROOT]):
        if subprocess.run(command).returncode:
            shutil.rmtree(venv, ignore_errors=True)       # half an environment would only mislead
            stop("the environment could not be made; the reason stands above.")
    print(f"Done. Start the notebooks with: {scripts / 'jupyter'} lab notebooks")


def main(arguments=None):
    """Do what the command line says. Exit code 2 and one line for what the user can mend."""
    options = vars(parse_arguments(arguments))
    try:
        {"download": download, "install": install}[options.pop("action")](**options)
    except OSError as error:
        stop(f"{error}; check the disk and the permissions.")


if __name__ == "__main__":
    main()

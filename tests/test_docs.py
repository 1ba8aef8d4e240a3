"""README and docs/: links, paths, commands, counts and claims agree with the code.

`python tests/test_docs.py` writes the current line counts into README.md and docs/map.md.
"""

import json
import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP = {path.name for path in ROOT.iterdir()} - {"runs"}                # what runs write is left out
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
         for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")),
                      ROOT / "notebooks/README.md", *sorted(ROOT.glob("studies/*/README.md"))]}
README, MAP, TESTS = (TEXTS[name] for name in ("README.md", "docs/map.md", "docs/tests.md"))
PAGES = pytest.mark.parametrize("page", TEXTS)
ROW = re.compile(r"^(\| `([\w/]+(?:\.py|/))` \|.*\| )(\d+)( \|)$", flags=re.M)
MODEL_LINES = re.compile(r"\d+(?= lines (?:of model code|together))")
PROGRAM = re.compile(r"(train_tiny|generate)\.py|minidsv3(\.\w+)*|benchmarks/\w+\.py")

# ------------------------------------------------------------------------------ what a page holds


def prose(text):
    """The page without its fenced code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def code_marks(text):
    """The texts between backticks, on one line or across a line break."""
    return [" ".join(mark.split()) for mark in re.findall(r"`([^`]+)`", prose(text))]


def command_lines(text):
    """Shell commands, each as a list of words, from fenced blocks and backticks; no comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    lines += [mark for mark in code_marks(text) if " " in mark]
    return [alone(shlex.split(line, comments=True)) for line in lines if line.count('"') % 2 == 0
            and line.startswith(("python ", "pip ", "pytest ", "jupyter ", "torchrun "))]


def alone(words):
    """What torchrun starts, as the command of one process; any other command as it is."""
    if words[0] == "torchrun" and "train_tiny.py" in words:
        return ["python", *words[words.index("train_tiny.py"):]]
    return words


def our_commands():
    """{a command line: (program, its words)} of all pages, each once."""
    found = {}
    for text in TEXTS.values():
        for _, *words in command_lines(text):
            program, *rest = words[1:] if words[0] == "-m" else words
            if PROGRAM.fullmatch(program):
                found[shlex.join(words)] = program, rest
    return found


OURS = our_commands()
SOURCES = "".join(path.read_text(encoding="utf-8") for path in [
    *ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("notebooks/*.py"),
    *ROOT.glob("minidsv3/**/*.py")])

# ------------------------------------------------------------------------------------- the pages


def test_readme_is_one_page():
    """Oracle: a count of lines, at most 150."""
    assert len(README.splitlines()) <= 150


def test_readme_leads_to_every_page():
    """Oracle: the pages that exist; README has a link to each."""
    for page in TEXTS:
        assert page == "README.md" or page.startswith("studies/") or f"]({page}" in README, page


def anchor(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@PAGES
def test_every_link_leads_somewhere(page):
    """Links to files, and to headings in them, lead somewhere; web addresses are not fetched."""
    links = re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[page]))
    for link in links:
        if "://" in link:
            continue
        path, _, place = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if place:
            headings = re.findall(r"^#+ (.*)$", prose(target.read_text("utf-8")), flags=re.M)
            assert place in map(anchor, headings), link


@PAGES
def test_every_path_exists(page):
    """Oracle: the files. Paths in backticks and commands may be relative to minidsv3/."""
    words = [mark.partition("::")[0] for mark in code_marks(TEXTS[page])]
    words += [word for line in command_lines(TEXTS[page]) for word in line]
    for word in words:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", word):
            continue
        if "/" not in word and word.endswith(".py"):
            assert (ROOT / word).exists() or any((ROOT / "minidsv3").rglob(word)), word
        elif word.split("/")[0] in TOP or word.endswith(".py"):
            folders = ROOT, ROOT / "minidsv3", (ROOT / page).parent
            assert any((folder / word).exists() for folder in folders), word


# ------------------------------------------------------------------------------------ commands


def module_of(program, monkeypatch):
    """The module that a command line runs."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")                   # they import each other
    name = Path(program).stem if program.endswith(".py") else program
    package = find_spec(name).submodule_search_locations
    return import_module(f"{name}.__main__" if package else name)


class Understood(Exception):
    """Ends run() after its parser has accepted the arguments, before any work."""


def parse(module, words, monkeypatch):
    """Give words to the program's own parser, which raises UserError for what it does not know."""
    if hasattr(module, "parse_arguments"):
        return module.parse_arguments(words)
    if not hasattr(module, "run"):
        assert not words, "a program without a parser takes no arguments"
        return None
    from minidsv3.command import Parser
    original = Parser.parse_args

    def parse_args(parser, arguments):
        original(parser, arguments)
        raise Understood

    monkeypatch.setattr(Parser, "parse_args", parse_args)
    with pytest.raises(Understood):
        module.run(words)


@pytest.mark.parametrize("line", OURS)
def test_a_command_is_understood(line, monkeypatch):
    """Oracle: the program's own parser. Pages may not shorten options."""
    program, words = OURS[line]
    for word in words:
        assert not word.startswith("--") or word == "--help" or f'"{word}"' in SOURCES, word
    try:
        parse(module_of(program, monkeypatch), words, monkeypatch)
    except SystemExit as end:                    # --help
        assert end.code == 0


def test_many_commands_are_found():
    """The search for commands works: it finds more than 20 on all pages."""
    assert len(OURS) > 20


@pytest.mark.parametrize("line", [line for line, (program, _) in OURS.items()
                                  if program == "train_tiny.py" and "--help" not in line])
def test_a_training_command_names_what_exists(line):
    """Oracle: the two configurations of the run, with their presets and fields."""
    from minidsv3.train import options
    words = [str(ROOT / "checkpoints/tiny") if word == "DIR" else word for word in OURS[line][1]]
    options.configure(options.parse_arguments(words), None)


@PAGES
def test_every_option_in_a_code_mark_exists(page):
    """Oracle: the sources of the programs; for training options, the configurations too."""
    from minidsv3.train import options
    for mark in code_marks(TEXTS[page]):
        if re.match(r"--[a-z]", mark):
            name = re.match(r"--[\w-]+", mark).group()
            assert f'"{name}"' in SOURCES, mark
        if mark.startswith("--set "):
            options.configure(options.parse_arguments(shlex.split(mark)), None)


SHORTER = {"generate.py": ["--max-new-tokens", "3"], "minidsv3.hf": [],
           "minidsv3.measure.accounting": [], "minidsv3.measure.architecture": [],
           "minidsv3.measure.evaluate": ["--samples", "1", "--length", "3", "--data", "my_texts/"]}
LONGER = {"minidsv3.serve.engines": ["--requests", "2", "--max-new-tokens", "2"]}


def run(line, more, folder, monkeypatch):
    """Run a command in another folder, its placeholders filled -> exit code."""
    program, words = OURS[line]
    filled = {"DIR": ROOT / "checkpoints/tiny", "checkpoints/tiny": ROOT / "checkpoints/tiny"}
    monkeypatch.chdir(folder)
    (folder / "my_texts").mkdir()
    for name in "ab":                            # one to train on, one to validate
        (folder / "my_texts" / f"{name}.txt").write_text(f"def {name}():\n    pass\n", "utf-8")
    words = [str(filled.get(word, word)) for word in words]
    return module_of(program, monkeypatch).main([*words, *more])


@pytest.mark.parametrize("line", [line for line, (program, _) in OURS.items()
                                  if program in SHORTER and "--tasks" not in line])
def test_a_quick_command_runs(line, tmp_path, monkeypatch, capsys):
    """Oracle: its exit code, and that it prints something; it generates only three tokens.

    An evaluation reads two short files; on a run's own text tests/measure/ compares its figures.
    --tasks needs a package that not everybody has; tests/clients/ runs it.
    """
    assert run(line, SHORTER[OURS[line][0]], tmp_path, monkeypatch) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
@pytest.mark.multi
@pytest.mark.parametrize("line", [line for line, (program, _) in OURS.items()
                                  if program in LONGER])
def test_a_command_with_processes_runs(line, tmp_path, monkeypatch, capsys):
    """Oracle: its exit code, and that it prints something; it serves only two requests."""
    assert run(line, LONGER[OURS[line][0]], tmp_path, monkeypatch) == 0
    assert capsys.readouterr().out.strip()


# ------------------------------------------------------------------------------ counts and figures


def count(path):
    """Lines of a file, or of all Python files in a folder."""
    files = [ROOT / path] if (ROOT / path).is_file() else (ROOT / path).glob("*.py")
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def recounted(text):
    """The page with the current line counts."""
    text = ROW.sub(lambda row: f"{row[1]}{count(row[2])}{row[4]}", text)
    return MODEL_LINES.sub(str(count("minidsv3/model")), text)


@pytest.mark.parametrize("path, stated", [(row[2], int(row[3])) for row in ROW.finditer(MAP)])
def test_the_map_counts_lines_truly(path, stated):
    """Oracle: the files, within a tenth: only a file that has grown much makes this fail."""
    assert abs(count(path) - stated) <= max(5, count(path) / 10)


def test_the_map_names_every_file():
    """Oracle: the files of the package and the benchmarks, and both commands; each once."""
    rows = [row[2] for row in ROW.finditer(MAP) if row[2].endswith(".py")]
    files = [*ROOT.glob("*.py"), *ROOT.glob("minidsv3/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    wanted = {file.relative_to(ROOT).as_posix() for file in files}
    assert len(rows) == len(set(rows)) > 15
    assert sorted(wanted ^ set(rows)) == ["notebooks/check/verdict.py"]


def test_the_lines_of_the_model_are_counted_exactly():
    """Oracle: the files; three places state this number."""
    total = str(count("minidsv3/model"))
    assert MODEL_LINES.findall(README) == [total] * 2
    assert MODEL_LINES.findall(MAP) == [total]


def test_readme_reads_the_model_in_its_order():
    """Oracle: the docstring of the package, which names the modules in reading order."""
    order = re.search(r"in this order:\s+([\w\s,]+)\.", import_module("minidsv3.model").__doc__)
    listed = README.partition("## The model's files in reading order")[2].partition("##")[0]
    assert re.findall(r"`(\w+)\.py`", listed) == re.findall(r"\w+", order[1])


def test_every_claim_names_a_test_that_exists():
    """Each row has a claim and its test; README states the number of rows, at least 92."""
    rows = re.findall(r"^\| .+ \| `(tests/[\w/]+\.py)::(\w+)` \| .+ \| .+ \|$", TESTS, flags=re.M)
    assert len(set(rows)) == len(rows) >= 92
    assert re.findall(r"\[(\d+) claims", README) == [str(len(rows))]
    for path, name in rows:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), name


def test_figures_and_samples_of_the_default_run_are_those_stored():
    """Oracle: summary.json and sample.txt of the default run, and of the shipped checkpoint."""
    stored, shipped = (json.loads((ROOT / folder / "summary.json").read_text(encoding="utf-8"))
                       for folder in ("docs/default-run", "checkpoints/tiny"))
    samples = [(ROOT / folder / "sample.txt").read_text(encoding="utf-8").splitlines()
               for folder in ("docs/default-run", "checkpoints/tiny")]
    results = TEXTS["docs/results.md"]
    bits, busiest = stored["val_bits_per_byte"], max(stored["max_vio"])
    assert f"{bits:.3f} bits per byte" in README and f"| {bits:.4f} |" in results
    assert all(f"{1 + busiest:.2f} times" in " ".join(page.split()) for page in (README, results))
    assert f"| {', '.join(f'{each:.2f}' for each in stored['max_vio'])} (" in results
    assert f"{stored['tokens_per_s']:,.0f} tokens/s" in results
    assert f"{shipped['val_bits_per_byte_ema']:.3f}" in README
    assert f"| {shipped['val_bits_per_byte_ema']:.4f} (" in results
    for text, shown in ((README, [samples[1][:6]]), (results, samples)):
        found = re.findall(r"^```python\n(def .*?)\n```$", text, re.M | re.S)
        assert [each.splitlines() for each in found[:len(shown)]] == shown


def test_minutes_of_the_notebooks_are_the_same_in_both_lists():
    """README and notebooks/README give the same minutes for each notebook."""
    rows = re.findall(r"\(notebooks/([\w.]+)\) \| ([\d.]+) \|", README)
    assert rows == re.findall(r"\((\w+\.ipynb)\) \| ([\d.]+) \|", TEXTS["notebooks/README.md"])
    assert len(rows) == len(list(ROOT.glob("notebooks/*.ipynb")))


def test_the_glossary_has_each_term_once_in_two_lines():
    """Oracle: counts of terms and lines; a term has at most two lines."""
    entries = re.findall(r"^- \*\*(.+?)\*\*: (.+?)(?=\n- |\n\n##|\Z)", TEXTS["docs/glossary.md"],
                         flags=re.M | re.S)
    terms = [term for term, _ in entries]
    assert len(terms) == len(set(terms)) > 30
    for term, meaning in entries:
        assert len(meaning.strip().splitlines()) <= 2, term


if __name__ == "__main__":
    for name in ("README.md", "docs/map.md"):
        (ROOT / name).write_text(recounted(TEXTS[name]), encoding="utf-8", newline="\n")

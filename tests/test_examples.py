"""Every example runs as it stands, and so do the README's lines: in a folder of its own, warnings being errors."""

import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import typer

from bessemer.cli.main import app
from bessemer.training import Recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PYTHON = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
COMMANDS = re.findall(r"^(bessemer [^#\n]*)", README, re.MULTILINE)

# a piece of each output that is only there if the example answered its question
SAYS = {
    "balance_a_network_of_your_own": r"balanced: embed, .*\n9\d.* are right(.*\n)* *head +\d+, balanced +\d\d+",
    "compare_two_runs": r"adversarial-digits: .* in the worst case at Linf:0.1\nSide by side in compare\.html",
    "how_robust_is_my_model": r"Reasons to doubt these figures: none found\. The page is how_robust\.html",
    "is_this_gradient_hidden": r"logits × 100: .*\n(.*\n)* *doubt \(PGD-20\): the margin loss beats cross-entropy",
    "one_network_two_batch_norms": r"clean images alone .* +0\.0%\n(.*\n)*both, mixture norm, adv.* +\d\d",
    "put_an_attack_together": r"GradientAttack\(threat=Linf\(0.08\).*\n(.*\n)*PGD-10 on a loss of my own leaves",
    "train_with_bang_in_your_own_loop": r"regular: 9\d.*\nBANG: 9\d.* right, the first logit leads by",
    "what_did_adversarial_training_purify": r"all layers: .* 0\.\d+ \(medians\)\n\d+% of the neurons .* purified\.html",
    "write_your_own_attack": r"corners leaves .* of 200 images standing.*\nPGD-20 leaves",
    "README": r"tensor\(0\.\d+, dtype=torch\.float64\)\n9\d\.\d % \[.*\] \d\d\.\d % \[",
}
WRITES = {
    "compare_two_runs": ["compare.html", "runs/digits/records/quick*.json"],
    "how_robust_is_my_model": ["how_robust.html"],
    "what_did_adversarial_training_purify": ["purified.html"],
    "README": ["report.html", "runs/first/recipe.toml"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Every script's process, when it has ended, and its folder; two at a time, one thread each."""
    scripts = {path.stem: path for path in EXAMPLES}
    scripts["README"] = tmp_path_factory.mktemp("readme") / "readme.py"
    scripts["README"].write_text(PYTHON, encoding="utf-8")
    folders = {name: tmp_path_factory.mktemp(name) for name in scripts}

    def run(name):
        return subprocess.run(
            [sys.executable, "-W", "error", scripts[name]],
            cwd=folders[name],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )

    with ThreadPoolExecutor(2) as pool:
        return {name: (done, folders[name]) for name, done in zip(scripts, pool.map(run, scripts), strict=True)}


def test_every_example_has_its_sentence():
    assert {path.stem for path in EXAMPLES} | {"README"} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_the_script_answers_its_question(name, finished):
    done, folder = finished[name]
    assert done.returncode == 0, done.stderr
    assert re.search(SAYS[name], done.stdout), done.stdout
    assert [pattern for pattern in WRITES.get(name, []) if not list(folder.glob(pattern))] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_on_a_screen_and_begins_with_its_question(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert "?" in text.splitlines()[0]
    assert f"examples/{path.name}" in README


@pytest.mark.parametrize("line", COMMANDS)
def test_the_readmes_commands_are_understood(line):
    """Parsed, not carried out: every command, option and recipe is one that exists."""
    _, name, *words = shlex.split(line)
    command = typer.main.get_command(app).commands[name]
    if hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    parameters = command.make_context(name, words).params
    if name == "train":
        Recipe.named(parameters["recipe"], parameters["set_"] or [])


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/pitfalls.md"])
def test_every_link_of_a_page_leads_somewhere(page):
    path = ROOT / page
    links = [link for link in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")) if "://" not in link]
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_pitfall_names_tests_that_exist():
    pitfalls = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
    written = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", pitfalls))
    assert len(named) > 20
    assert named - set(re.findall(r"^def (test_\w+)", written, re.MULTILINE)) == set()
    for section in pitfalls.split("\n### ")[1:]:
        assert "*Here.*" in section

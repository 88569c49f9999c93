"""Every example of docs/interventions.md keeps the contract, and there is one for every hook."""

import re
from importlib import resources
from pathlib import Path

import pytest
from calling import call

from bitnetctl.plugins.composition import HOOKS

PAGE = (Path(__file__).parents[2] / "docs" / "interventions.md").read_text(encoding="utf-8")
# whole plug-in files, by the name of their class
EXAMPLES = {
    re.findall(r"class (\w+)\(Intervention\)", code)[0]: code
    for code in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
}


@pytest.mark.usefixtures("fresh_registry")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_keeps_the_contract(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name.lower()}.py"
    file.write_text(EXAMPLES[name], encoding="utf-8")
    done = call("interventions", "check", file)
    assert done.out == f"{name}: keeps the contract\n", done.err
    assert done.code == 0


def test_every_hook_is_in_the_table_and_in_an_example() -> None:
    for hook in (*HOOKS, "state_dict", "load_state_dict"):
        assert re.search(rf"^\|.*`{hook}`", PAGE, re.MULTILINE), hook
    defined = {hook for code in EXAMPLES.values() for hook in re.findall(r"def (\w+)\(self", code)}
    # one schedule stands for the other two
    assert {*HOOKS, "state_dict", "load_state_dict"} - {"quantization", "learning_rate"} <= defined


def test_links_within_the_page_lead_to_sections() -> None:
    sections = {line.removeprefix("## ").lower() for line in PAGE.splitlines() if line.startswith("## ")}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= sections


def test_the_template_of_a_plug_in_names_every_hook() -> None:
    template = (resources.files("bitnetctl.plugins") / "template" / "module.py.in").read_text(encoding="utf-8")
    for hook in (*HOOKS, "state_dict", "load_state_dict"):
        assert f"def {hook}(self" in template, hook

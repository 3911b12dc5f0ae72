"""The pages and the code say the same: methods, their parameters, links, the example."""

import re
from pathlib import Path

import pytest
import torch
from reference_merges import fast_merge

from merge_core import registry
from merge_core.registry import Base, MergeMethod, Parameter, merge_methods

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
METHODS = (ROOT / "docs/methods.md").read_text("utf-8")
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
)
BASES = {
    Base.REQUIRED: "needed",
    Base.ENDPOINT: "needed, the first model",
    Base.INPUT: "a model like the others",
    Base.OPTIONAL: "optional",
}
NAMED = re.compile(r"\|(?:[^|`]*\|)? ?`(\w+)` \|")
every_method = pytest.mark.parametrize("method", merge_methods().values(), ids=lambda m: m.name)


@every_method
def test_docs_tell_a_methods_parameters_base_models_and_source(method):
    _, _, parameters, base, models, source = row(METHODS, method.name)
    least, most = method.inputs
    assert parameters == described(method)
    assert base == BASES[method.base]
    assert models == (str(least) if least == most else f"{least} or more")
    assert f"({method.reference})" in source


@every_method
def test_readme_tells_what_is_searched(method):
    _, _, default, auto = row(README, method.name)
    ranged = [p for p in method.parameters if p.range]
    needed = [f"`{p.name}` {p.range.low:g} to {p.range.high:g}" for p in ranged if p.required]
    assert default == (", ".join(needed) or "-")
    assert auto == (", ".join(f"`{p.name}`" for p in ranged if not p.required) or "-")


@pytest.mark.parametrize("page", [README, METHODS], ids=["README", "methods"])
def test_tables_name_no_method_that_is_not_there(page):
    named = [match[1] for line in table(page) if (match := NAMED.match(line))]
    assert sorted(named) == list(merge_methods())


def test_docs_tell_which_methods_can_follow_mergekit():
    _, after = METHODS.split("## Where outcross differs")
    rows = [cells(line) for line in after.splitlines() if line.startswith("| `")]
    switched = [first for first, *between, compat in rows if len(between) == 3 and compat != "-"]
    told = set(re.findall(r"`(\w+)`", " ".join(switched)))
    files = (ROOT / "merge_core/methods").glob("*.py")
    assert told == {file.stem for file in files if "group.compat" in file.read_text("utf-8")}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text("utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), link


def test_readme_leads_to_every_page():
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in README


def test_the_example_of_a_method_works(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(merge_methods()))
    example = re.search(r"```python\n(.*?)```", METHODS, re.DOTALL)
    assert example
    exec(compile(example[1], "docs/methods.md", "exec"), {})
    assert registry.find_method("equal_lengths").parameter("lambda")
    base = torch.tensor([1.0, 1.0])
    parents = [base + torch.tensor([3.0, 0.0]), base + torch.tensor([0.0, 1.0]), base]
    merged = fast_merge("equal_lengths", parents[:2], base, lambda_=0.5)
    torch.testing.assert_close(merged, torch.tensor([1.5, 1.5]))
    torch.testing.assert_close(fast_merge("equal_lengths", [base, base], base), base)


def table(page: str) -> list[str]:
    """The lines of a page's table of methods."""
    start = page.index(" name |")
    return page[start : page.index("\n\n", start)].splitlines()


def row(page: str, name: str) -> list[str]:
    """The cells of a method's row from its name on."""
    (line,) = [line for line in table(page) if (match := NAMED.match(line)) and match[1] == name]
    found = cells(line)
    return found[found.index(f"`{name}`") :]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def described(method: MergeMethod) -> str:
    told = [p for p in method.parameters if p.name != "int8_mask"]
    each = ", ".join(parameter(p) for p in told if p.per_parent)
    once = ", ".join(parameter(p) for p in told if not p.per_parent)
    return (
        "; ".join(text for text in (each and f"each: {each}", once and f"all: {once}") if text)
        or "none"
    )


def parameter(p: Parameter) -> str:
    text = f"`{p.name}`"
    if p.choices:
        return f"{text} = " + " or ".join(sorted(p.choices, key=lambda word: word != p.default))
    if p.default is not None:
        text += f" = {str(p.default).lower()}" if p.kind is bool else f" = {p.default:g}"
    if p.range:
        text += f" [{p.range.low:g}, {p.range.high:g}]" + (" log" if p.range.log else "")
    return text


def anchors(page: str) -> set[str]:
    """GitHub's anchors of a page's headings."""
    heads = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}

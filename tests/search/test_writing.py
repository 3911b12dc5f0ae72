"""What a merge says before it writes."""

from headers import checkpoint, linear

from merge_core.plan import compile_plan
from merge_core.recipe import from_dict
from search.writing import summary


def test_a_summary_notes_what_differs_between_the_parents():
    parents = {
        name: checkpoint(name, config={"rope_theta": theta})
        for name, theta in (("a", 1e4), ("b", 5e5))
    }
    text = summary(compile_plan(from_dict(linear()), parents), {"a": 1000, "b": 2000})
    first, note = text.splitlines()
    assert first.startswith("15 tensors, 4 layers, writes ")
    assert "reads 3.0 kB from 2 models" in first
    assert note == (
        "Note: config.json: 'rope_theta' of model 'b' is 500000.0; the merge takes 10000.0 of 'a'."
    )

"""exercises.md, solutions.md and what lab/checks.py says of right and wrong answers."""
import ast
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import BLOCK, ROOT, Console, paste, run_blocks
from lab import checks


def read(page):
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


EXERCISES, SOLUTIONS = read("exercises.md"), read("solutions.md")


def said(capsys, name, function):
    checks.check(name, function)
    return capsys.readouterr().out


# The pages ----------------------------------------------------------------------------


def test_the_solutions_run_and_are_right(as_a_reader, capsys):
    solutions = run_blocks(SOLUTIONS).locals
    for name in checks.EXERCISES:
        assert said(capsys, name, solutions[name]) == f"{name}: right\n"


def test_the_exercises_run_with_nothing_filled_in(as_a_reader):
    console, lines = Console(), []
    for source, _ in BLOCK.findall(EXERCISES):
        lines += paste(console, source)
    assert lines == [f"{name}: not yet, it returns None" for name in checks.EXERCISES]


def test_exercises_and_solutions_have_the_same_headings():
    headings = re.findall(r"^##+ .*", EXERCISES, re.M)
    assert headings == re.findall(r"^##+ .*", SOLUTIONS, re.M)
    numbers = [int(number) for number in re.findall(r"^### (\d+)\. ", EXERCISES, re.M)]
    assert numbers == list(range(1, 23))


def test_the_functions_of_both_pages_have_the_same_arguments():
    for name in checks.EXERCISES:
        line = re.compile(rf"^def {name}\(.*\):$", re.M)
        assert line.findall(EXERCISES) == line.findall(SOLUTIONS) != []


def test_the_points_are_100_and_every_exercise_has_its_session():
    plan, points = read("teaching.md").split("## Points")
    total, seen = 0, []
    for row in re.findall(r"^\| (\d.*) \| (\d+) \|$", points, re.M):
        numbers = re.findall(r"\d+", row[0])
        total += int(row[1]) * (1 if " or " in row[0] else len(numbers))
        seen += numbers
    assert total == 100
    planned = [number for row in re.findall(r"^\|.*\| (\d.*) \|$", plan, re.M)
               for number in re.findall(r"\d+", row)]
    assert sorted(map(int, seen)) == sorted(map(int, planned)) == [*range(1, 23)]


def test_what_is_cited_is_in_the_list_of_references():
    references = re.split(r"^- ", read("references.md"), flags=re.M)
    citation = r"([A-Z]\w+)(?: et al\.| & ([A-Z]\w+))? \(?(\d{4})"
    cited = re.findall(citation, EXERCISES + SOLUTIONS)
    assert cited
    for first, second, year in cited:
        assert any(re.match(rf"\S.*?\b{first}\b[^:]*\b{second}\b.*\b{year}\b", entry,
                            re.S) for entry in references), (first, second, year)


# Wrong answers: the solution with one thing changed -----------------------------------


def solution(name):
    """The code of a function, with its helpers, and nothing after it."""
    source, = [source for source, _ in BLOCK.findall(SOLUTIONS)
               if f"def {name}(" in source]
    last, = [node for node in ast.parse(source).body
             if getattr(node, "name", None) == name]
    lines = source.splitlines()[:last.end_lineno]
    return "\n".join(lines[[line[:4] for line in lines].index("def "):]) + "\n"


WRONG = [
    ("aggregate", "h[cols]", "h[rows]", "numbers differ: row 0, column 0 is"),
    ("aggregate", "rows, num_rows", "rows, int(rows.max()) + 1", "shape is [4, 3]"),
    ("normalisation", ", nodes])", "])", "node 0 has no entry for itself"),
    ("normalisation", "bincount(rows,", "bincount(rows[:-num_nodes],", "is inf"),
    ("normalisation", "degree[cols]", "degree[rows]", "is not row"),
    ("gcn_layer", "jax.nn.relu", "", "numbers differ"),
    ("gcn_layer", "W, rows, cols, len(x)) + b", "W + b, rows, cols, len(x))", "differ"),
    ("gcn_layer", "rows, cols, len", "cols, rows, len", "numbers differ"),
    ("segment_softmax", "exp / total[rows]", "exp", "row 0 sums to 1.277"),
    ("segment_softmax", " - largest[rows]", "", "case 2, 12 of 14 numbers differ"),
    ("segment_softmax", "largest[rows]", "largest.max()", "case 2, "),
    ("segment_softmax", "segment_max", "segment_min", "case 2, "),
    ("attention", "cols], 0.2", "cols]", "14 numbers differ"),
    ("attention", "h @ a1, h @ a2", "h @ a2, h @ a1", "14 numbers differ"),
    ("attention", "softmax(scores, rows", "softmax(scores, cols", "and must to 1"),
    ("heads", " / len(outputs)", "", "case 2, all is 2 times"),
    ("heads", "aggregate(alpha, h", "aggregate(alpha, x", "shape is [6, 8]"),
    ("gatv2_scores", "units, 0.2) @ a", "units @ a, 0.2)", "14 numbers differ"),
    ("gatv2_scores", "W1)[rows] + (x @ W2)[cols]", "W1)[cols] + (x @ W2)[rows]",
     "numbers differ"),
    ("cross_entropy", ".mean()", ".sum()", " is 6 times what it must be"),
    ("cross_entropy", " - logits.max(axis=1, keepdims=True)", "",
     "case 3, nan is not right"),
    ("adam_step", "m / (1 - 0.9 ** t)", "m", "moves by 0.01, and must by 0.1"),
    ("adam_step", "1 - 0.999 ** t", "1 - 0.999", "step 2, params['W']"),
    ("adam_step", "param - ", "param + ", "moves along its gradient"),
    ("adam_step", "g ** 2", "g", "step 1, v['W']"),
    ("adam_step", "** t))", "** t) + 1e-8)", "step 1, params['W']: "),
    ("residual", "x + layer", "layer", "without a key"),
    ("residual", "adj, rng)\n", "adj)\n", "with a key"),
    ("mean_and_max", "jnp.where(count > 0, largest, 0)", "largest",
     "the maximum: 3 of 15 numbers differ: row 4, column 0 is -inf"),
    ("mean_and_max", "jnp.where(count > 0, largest, 0)", "jnp.maximum(largest, 0)",
     "the maximum: "),
    ("mean_and_max", "jnp.maximum(count, 1)", "count",
     "the mean: 3 of 15 numbers differ: row 4, column 0 is nan"),
    ("read_out", "jnp.maximum(count, 1)", "count",
     "3 of 24 numbers differ: row 3, column 3 is nan"),
    ("cross_entropy_gradient", " / n", "", "all is 6 times what it must be"),
    ("cross_entropy_gradient", "jax.nn.softmax(logits)", "0", "row 0 sums to -0."),
    ("compare", "ddof=1", "ddof=0", "the unpaired error"),
    ("compare", "error(a - b)", "abs(error(a) - error(b))", "the paired error"),
    ("compare", "jnp.mean(a - b)", "jnp.mean(b - a)", " is -1 times what it must be"),
]


@pytest.mark.parametrize("name, right, wrong, message", WRONG)
def test_a_typical_mistake_is_refused_and_named(name, right, wrong, message, capsys):
    session = {"jax": jax, "jnp": jnp}
    for earlier in ("aggregate", "segment_softmax", "attention"):
        exec(solution(earlier), session)
    source = solution(name)
    assert right in source
    exec(source.replace(right, wrong), session)
    line = said(capsys, name, session[name])
    assert re.fullmatch(rf"{name}: case \d, .*\n", line)
    assert message in line


# The rest of checks.py ----------------------------------------------------------------


def test_an_answer_in_another_form_is_told_the_form(capsys):
    line = said(capsys, "adam_step", lambda *args: args[:2])
    assert line == "adam_step: it must return params, m, v\n"
    with pytest.raises(NotImplementedError):
        checks.check("aggregate", lambda *args: jnp.add.at(args[0], 0, 1))


def test_adam_in_place_is_right(capsys):
    def adam_step(params, grads, m, v, t, step_size):
        for name, g in grads.items():
            m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g ** 2
            root = jnp.sqrt(v[name] / (1 - 0.999 ** t)) + 1e-8
            params[name] -= step_size * m[name] / (1 - 0.9 ** t) / root
        return params, m, v

    assert said(capsys, "adam_step", adam_step) == "adam_step: right\n"


def test_case_shows_what_check_gives():
    seen = []

    def mine(*args):
        seen.append(args)
        return checks.heads(*checks.map_arrays(np.asarray, args))

    checks.check("heads", mine)
    assert len(seen) == 5
    for number, args in enumerate(seen, start=1):
        jax.tree.map(np.testing.assert_array_equal, args, checks.case("heads", number))


def test_a_teacher_checks_a_file(tmp_path, capsys):
    path = tmp_path / "answers.py"
    path.write_text("import jax\nfrom lab.checks import check\nprint('hello')\n"
                    + solution("aggregate") + "check('aggregate', aggregate)\n"
                    + "def heads(params):\n    return 1\ncheck('heads', heads)\n"
                    + "def compare(a, b):\n    exit('two\\nlines')\n"
                    + "1 / 0\n")
    checks.main(path)
    stops, *lines = capsys.readouterr().out.splitlines()
    assert stops == f"{path} stops: ZeroDivisionError: division by zero"
    assert len(lines) == len(checks.EXERCISES)
    assert lines[:2] == ["aggregate: right", "normalisation: not yet"]
    assert lines[5].startswith("heads: TypeError: heads() takes 1 ")
    assert lines[-1] == "compare: SystemExit: two"


def test_the_nearest_mean_counts_only_nodes_that_do_not_make_it():
    """Two far heaps. 8 of class 0 are in the wrong one, but all 20 make its mean."""
    labels = np.repeat([0, 1], [20, 40])
    x = np.random.default_rng(0).normal(size=(60, 2))
    x[8:20] += 20
    assert checks.nearest_mean(x, labels, seed=0) == 1

"""Check the functions that a student writes in docs/exercises.md.

    from lab.checks import case, check
    check("aggregate", aggregate)   prints one line: right, not yet, or what differs
    case("aggregate", 2)            the arguments of the second case, to try by hand

    python -m lab.checks answers.py     checks all functions that a file defines

Each exercise has two functions here. One computes the result as the equation says, in
loops over NumPy's numbers. Another, with _case in its name, makes random arguments.
They are no secret: read them when you are stuck. What check says of a wrong result is
where it differs, or which rule it breaks.
"""
import contextlib
import dataclasses
import io
import math
import pathlib
import sys
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np


class NotAnswered(Exception):
    """A function returns None, or what has not the form of an answer."""


def check(name, mine):
    """Print one line on a function; an error that it raises is not caught."""
    if mine is ...:
        print(f"{name}: not yet")
        return
    exercise = EXERCISES[name]
    for number in range(1, 6):
        args = map_arrays(to_numpy, case(name, number))
        want = results(exercise, exercise.loops, args)
        try:
            got = results(exercise, mine, case(name, number))
        except NotAnswered as error:
            print(f"{name}: {error}")
            return
        problem = what_differs(exercise, args, got, want)
        if problem:
            print(f"{name}: case {number}, {problem}")
            return
    print(f"{name}: right")


def results(exercise, function, args):
    """Call a function -> its results, a dict whose keys are the words before each."""
    names = exercise.returns

    def answer(*args):
        result = function(*args)
        if result is None:
            raise NotAnswered("not yet, it returns None")
        is_tuple = isinstance(result, tuple | list)
        if names and not (is_tuple and len(result) == len(names)):
            raise NotAnswered(f"it must return {', '.join(names)}")
        return result

    if exercise.call:
        return exercise.call(answer, *args)
    if names:
        return dict(zip([f"{name}: " for name in names], answer(*args)))
    return {"": answer(*args)}


def case(name, number):
    """What a case, 1 to 5, gives a function: the same at every call."""
    rng = np.random.default_rng(number)
    return map_arrays(jnp.asarray, EXERCISES[name].case(rng, number))


def to_numpy(array):
    """The loops compute in float64; integers stay integers."""
    return np.asarray(array, float if array.dtype.kind == "f" else int)


def map_arrays(function, args):
    """Put function(array) in the place of each array; numbers and functions stay."""
    return jax.tree.map(lambda leaf: function(leaf) if np.ndim(leaf) else leaf, args)


def what_differs(exercise, args, got, want):
    """A phrase for the first difference, or None; got, want: {words before: part}."""
    for part, right in want.items():
        mine, right = np.asarray(got[part], float), np.asarray(right, float)
        if mine.shape != right.shape:
            return (f"{part}the shape is {list(mine.shape)}, "
                    f"and must be {list(right.shape)}")
        is_wrong = ~np.isclose(mine, right, rtol=1e-4, atol=1e-5)
        if is_wrong.any():
            return part + (exercise.rule(args, part, mine)
                           or difference(mine, right, is_wrong))
    return None


def difference(mine, right, is_wrong):
    """Say what is wrong with all numbers, or with the first that is."""
    largest = np.abs(right).argmax()
    factor = mine.flat[largest] / right.flat[largest]
    is_factor = np.isfinite(factor) and factor != 0 and abs(factor - 1) > 0.01
    if is_factor and np.allclose(mine, factor * right, rtol=1e-3, atol=1e-5):
        what = "all" if mine.ndim else f"{mine:.4g}"
        return f"{what} is {factor:.4g} times what it must be"
    if mine.ndim == 0:
        return f"{mine:.4g} is not right"
    is_finite = np.isfinite(mine)
    index = np.argwhere(is_wrong if is_finite.all() else ~is_finite)[0]
    names = ["entry"] if mine.ndim == 1 else ["row", "column"]
    place = ", ".join(f"{name} {i}" for name, i in zip(names, index))
    return (f"{is_wrong.sum()} of {mine.size} numbers differ: {place} is "
            f"{mine[tuple(index)]:.4g}")


@dataclasses.dataclass(frozen=True)
class Exercise:
    """What check needs to know of one."""

    case: Callable              # (random generator, number) -> arguments
    loops: Callable             # what a student's function has to equal
    rule: Callable = lambda args, part, got: None       # a phrase, if got breaks it
    returns: tuple = ()         # the names of what it returns, if more than one thing
    call: Callable = None       # (function, *arguments) -> results, in another way


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


# All cases have the same sizes, no two of which are equal: JAX compiles a function for
# each new shape, and that takes longer than all else here.
N, F, D, E = 6, 4, 3, 14


def random_graph(rng):
    """E entries in any order, not symmetric, N self-loops among them: rows, cols."""
    rows, cols = np.nonzero(~np.eye(N, dtype=bool))
    some = rng.choice(len(rows), E - N, replace=False)
    order = rng.permutation(E)
    return (np.append(rows[some], np.arange(N))[order],
            np.append(cols[some], np.arange(N))[order])


# 1 to 3: GCN --------------------------------------------------------------------------


def aggregate(weights, h, rows, cols, num_rows):
    out = np.zeros((num_rows, h.shape[1]))
    for e in range(len(rows)):
        out[rows[e]] += weights[e] * h[cols[e]]
    return out


def aggregate_case(rng, number):
    rows = rng.integers(4, size=E)                  # none in the last of 5 rows
    cols = rng.integers(N, size=E)
    return normal(rng, E), normal(rng, N, D), rows, cols, 5


def normalisation(rows, cols, num_nodes):
    neighbours = [{i} for i in range(num_nodes)]            # each hears itself
    for i, j in zip(rows, cols):
        neighbours[i].add(j)
    entries = []
    for i in range(num_nodes):
        for j in neighbours[i]:
            value = 1 / math.sqrt(len(neighbours[i]) * len(neighbours[j]))
            entries.append((i, j, value))
    return tuple(zip(*entries))


def normalisation_case(rng, number):
    rows, cols = np.triu_indices(N - 1, k=1)        # none at the last node
    some = rng.choice(len(rows), 5, replace=False)
    rows, cols = rows[some], cols[some]
    return np.append(rows, cols), np.append(cols, rows), N


def normalisation_call(function, rows, cols, num_nodes):
    """Make an array of the entries: their order is free."""
    rows, cols, values = map(np.asarray, function(rows, cols, num_nodes))
    matrix = np.zeros((num_nodes, num_nodes))
    np.add.at(matrix, (rows, cols), values)
    return {"": matrix}


def normalisation_rule(args, part, got):
    without = np.flatnonzero(got.diagonal() == 0)
    one_way = np.argwhere(~np.isclose(got, got.T, atol=1e-5, equal_nan=True))
    if len(without):
        return f"node {without[0]} has no entry for itself"
    if len(one_way):
        i, j = one_way[0]
        return f"row {i}, column {j} is not row {j}, column {i}"
    return None


def gcn_layer(W, b, x, rows, cols, values):
    out = aggregate(values, x @ W, rows, cols, len(x))
    return np.maximum(out + b, 0)


def gcn_layer_case(rng, number):
    return (normal(rng, F, D), normal(rng, D), normal(rng, N, F), *random_graph(rng),
            normal(rng, E))


# 4 to 7: GAT --------------------------------------------------------------------------


def leaky_relu(number):
    return number if number > 0 else 0.2 * number


def segment_softmax(scores, rows, num_rows):
    out = np.zeros(len(scores))
    for i in range(num_rows):
        entries = np.flatnonzero(rows == i)
        largest = max((scores[e] for e in entries), default=0)
        total = sum(math.exp(scores[e] - largest) for e in entries)
        for e in entries:
            out[e] = math.exp(scores[e] - largest) / total
    return out


def segment_softmax_case(rng, number):
    rows = rng.integers(N - 1, size=E)              # none in the last row
    scores = normal(rng, E)
    if number > 1:              # from the second case on, exp overflows in rows 0 and 3
        scores *= np.float32([300, 1, 1, 300, 1, 1])[rows]
        scores += np.float32([1000, -1000, 0, 1000, -1000, 0])[rows]
    return scores, rows, N


def sums_to(want, rows, got):
    for i in np.unique(rows):
        total = got[rows == i].sum()
        if abs(total - want) > 1e-3:
            return f"row {i} sums to {total:.4g}, and must to {want}"
    return None


def softmax_rule(args, part, got):
    *_, rows, _ = args                  # of segment_softmax, and of attention
    return sums_to(1, rows, got)


def attention(a1, a2, h, rows, cols):
    scores = [leaky_relu(a1 @ h[i] + a2 @ h[j]) for i, j in zip(rows, cols)]
    return segment_softmax(scores, rows, len(h))


def attention_case(rng, number):
    return 2 * normal(rng, D), 2 * normal(rng, D), normal(rng, N, D), *random_graph(rng)


def heads(params, x, rows, cols, average):
    outputs = []
    for W, a1, a2 in params:
        h = x @ W
        alpha = attention(a1, a2, h, rows, cols)
        outputs.append(aggregate(alpha, h, rows, cols, len(x)))
    return sum(outputs) / len(outputs) if average else np.hstack(outputs)


def heads_case(rng, number):
    params = [(normal(rng, F, D), normal(rng, D), normal(rng, D)) for _ in range(2)]
    return params, normal(rng, N, F), *random_graph(rng), number % 2 == 0


def gatv2_scores(W1, W2, a, x, rows, cols):
    scores = np.zeros(len(rows))
    for e in range(len(rows)):
        units = W1.T @ x[rows[e]] + W2.T @ x[cols[e]]           # [D]
        for k in range(len(a)):
            scores[e] += a[k] * leaky_relu(units[k])
    return scores


def gatv2_scores_case(rng, number):
    return (normal(rng, F, D), normal(rng, F, D), normal(rng, D), normal(rng, N, F),
            *random_graph(rng))


# 8 and 9: training --------------------------------------------------------------------


def cross_entropy(logits, labels):
    total = 0
    for row, label in zip(logits, labels):
        largest = max(row)
        log_sum = largest + math.log(sum(math.exp(z - largest) for z in row))
        total += log_sum - row[label]
    return total / len(labels)


def cross_entropy_case(rng, number):
    logits = normal(rng, N, F)
    if number > 2:                  # from the third case on, exp overflows
        logits *= 2000
    return logits, rng.integers(F, size=N)


def adam_step(params, grads, m, v, t, step_size):
    b1, b2, eps = 0.9, 0.999, 1e-8
    new_params, new_m, new_v = {}, {}, {}
    for name, param in params.items():
        new_params[name], new_m[name], new_v[name] = np.zeros((3, *param.shape))
        for i in np.ndindex(param.shape):
            g = grads[name][i]
            new_m[name][i] = b1 * m[name][i] + (1 - b1) * g
            new_v[name][i] = b2 * v[name][i] + (1 - b2) * g ** 2
            mean = new_m[name][i] / (1 - b1 ** t)
            root = math.sqrt(new_v[name][i] / (1 - b2 ** t))
            new_params[name][i] = param[i] - step_size * mean / (root + eps)
    return new_params, new_m, new_v


def adam_step_case(rng, number):
    """Parameters, and the gradients of four steps: from 1e-6 to 1e3 in size."""
    params = {"W": normal(rng, 3, 2), "b": normal(rng, 2)}
    sizes = np.float32([[0.01, 0.1], [1, 10], [100, 1000]])
    all_grads = [{"W": sizes * normal(rng, 3, 2),
                  "b": np.float32(1e-6) * normal(rng, 2)} for _ in range(4)]
    return params, all_grads, 0.1 * number


def adam_step_call(function, params, all_grads, step_size):
    m, v = (jax.tree.map(lambda param: 0 * param, params) for _ in "mv")
    parts = {}
    for t, grads in enumerate(all_grads, start=1):
        params, m, v = function(params, grads, m, v, t, step_size)
        for what, tree in (("m", m), ("v", v), ("params", params)):
            for name, array in tree.items():
                parts[f"step {t}, {what}['{name}']: "] = array
    return parts


def adam_step_rule(args, part, got):
    if part != "step 1, params['W']: ":
        return None
    params, all_grads, step_size = args
    moves = (params["W"] - got) * np.sign(all_grads[0]["W"])
    if (moves < 0).all():
        return "a parameter moves along its gradient, and must against it"
    size = np.abs(moves).flat[0]
    if not np.isclose(size, step_size, rtol=1e-2):
        return f"a parameter moves by {size:.4g}, and must by {step_size:.4g}, a step"
    return None


# 10 to 12: more layers ----------------------------------------------------------------


def residual(layer):
    init_fun, layer_apply = layer

    def apply_fun(params, x, adj, rng=None):
        return x + layer_apply(params, x, adj, rng)

    return init_fun, apply_fun


def residual_case(rng, number):
    def init_fun(key, input_shape):
        return input_shape, (jax.random.normal(key, input_shape[1:]),)

    def apply_fun(params, x, adj, rng=None):
        out = adj @ x * params[0]
        return out if rng is None else out * jax.random.uniform(rng, x.shape)

    layer = init_fun, apply_fun
    return layer, (normal(rng, D),), normal(rng, N, D), normal(rng, N, N)


def residual_call(function, layer, params, x, adj):
    init_fun, apply_fun = function(layer)
    key = jax.random.key(0)
    shape, (w,) = init_fun(key, x.shape)
    return {"init_fun's shape: ": shape, "init_fun's params: ": w,
            "without a key: ": apply_fun(params, x, adj),
            "with a key: ": apply_fun(params, x, adj, key)}


def mean_and_max(h, rows, cols, num_rows):
    mean, largest = np.zeros((2, num_rows, h.shape[1]))
    for i in range(num_rows):
        of_row = h[cols[rows == i]]             # [count, k]
        if len(of_row):
            mean[i] = of_row.mean(axis=0)
            largest[i] = of_row.max(axis=0)
    return mean, largest


def mean_and_max_case(rng, number):
    return aggregate_case(rng, number)[1:]          # all but the weights


def read_out(h, graph_of_node, num_graphs):
    out = np.zeros((num_graphs, 2 * h.shape[1]))
    for g in range(num_graphs):
        of_graph = h[graph_of_node == g]        # [count, k]
        total = of_graph.sum(axis=0)
        out[g] = np.hstack([total, total / max(len(of_graph), 1)])
    return out


def read_out_case(rng, number):
    graph_of_node = rng.integers(3, size=N)         # none in the last of 4 graphs
    return normal(rng, N, D), graph_of_node, 4


# 17: a derivative, 19: evaluation -----------------------------------------------------


def cross_entropy_gradient(logits, labels):
    """Wiggle one logit after the other."""
    grad = np.zeros(logits.shape)
    for index in np.ndindex(logits.shape):
        wiggle = np.zeros(logits.shape)
        wiggle[index] = 1e-5
        above = cross_entropy(logits + wiggle, labels)
        below = cross_entropy(logits - wiggle, labels)
        grad[index] = (above - below) / 2e-5
    return grad


def cross_entropy_gradient_rule(args, part, got):
    return sums_to(0, np.arange(len(got)), got)


def compare(a, b):
    n = len(a)

    def variance(numbers):
        mean = sum(numbers) / n
        squares = sum((number - mean) ** 2 for number in numbers)
        return squares / (n - 1)

    return (sum(a - b) / n,
            math.sqrt((variance(a) + variance(b)) / n),
            math.sqrt(variance(a - b) / n))


def compare_case(rng, number):
    of_split = normal(rng, E)               # an easy split is easy for both
    return of_split + 0.3 * normal(rng, E), of_split + 0.5 + 0.3 * normal(rng, E)


def nearest_mean(x, labels, seed):
    """Give each node the class whose mean is nearest -> the accuracy.

    The means are those of 20 nodes of each class, drawn by the seed; the others count.
    """
    x, labels = np.asarray(x), np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    classes = range(labels.max() + 1)
    train = np.stack([order[labels[order] == c][:20] for c in classes])     # [C, 20]
    means = x[train].mean(axis=1)                                           # [C, F]
    # |x - mean|^2 without |x|^2, which is the same for all classes: [N, C].
    distances = (means ** 2).sum(axis=1) - 2 * x @ means.T
    is_right = distances.argmin(axis=1) == labels
    return np.delete(is_right, train.ravel()).mean()


EXERCISES = {
    "aggregate": Exercise(aggregate_case, aggregate),
    "normalisation": Exercise(
        normalisation_case, normalisation, normalisation_rule,
        ("rows", "cols", "values"), normalisation_call),
    "gcn_layer": Exercise(gcn_layer_case, gcn_layer),
    "segment_softmax": Exercise(segment_softmax_case, segment_softmax, softmax_rule),
    "attention": Exercise(attention_case, attention, softmax_rule),
    "heads": Exercise(heads_case, heads),
    "gatv2_scores": Exercise(gatv2_scores_case, gatv2_scores),
    "cross_entropy": Exercise(cross_entropy_case, cross_entropy),
    "adam_step": Exercise(
        adam_step_case, adam_step, adam_step_rule,
        ("params", "m", "v"), adam_step_call),
    "residual": Exercise(
        residual_case, residual, returns=("init_fun", "apply_fun"), call=residual_call),
    "mean_and_max": Exercise(
        mean_and_max_case, mean_and_max, returns=("the mean", "the maximum")),
    "read_out": Exercise(read_out_case, read_out),
    "cross_entropy_gradient": Exercise(
        cross_entropy_case, cross_entropy_gradient, cross_entropy_gradient_rule),
    "compare": Exercise(
        compare_case, compare,
        returns=("the difference", "the unpaired error", "the paired error")),
}


def main(path):
    """Check what a file defines. What it prints and checks itself is not shown."""
    answers, quiet = {}, mock.patch("lab.checks.check", lambda name, mine: None)
    try:
        with quiet, contextlib.redirect_stdout(io.StringIO()):
            exec(compile(pathlib.Path(path).read_bytes(), path, "exec"), answers)
    except (Exception, SystemExit) as error:    # what it defined before is checked
        print(f"{path} stops: {first_line(error)}")
    for name in EXERCISES:
        try:
            check(name, answers.get(name, ...))
        except (Exception, SystemExit) as error:
            print(f"{name}: {first_line(error)}")


def first_line(error):
    return f"{type(error).__name__}: {error}".partition("\n")[0]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m lab.checks FILE")
    main(sys.argv[1])

"""What the tests share: small graphs, precision, and pasting a page's blocks."""
import code
import contextlib
import io
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minignn import load_graph

ROOT = pathlib.Path(__file__).resolve().parent
KEY = jax.random.key(0)
# Compile in half the time what runs a few times only, and need not be fast.
jax.config.update("jax_disable_most_optimizations", True)

slow = pytest.mark.skipif("CI" not in os.environ, reason="takes long: CI=true runs it")


def close(a, b, tolerance):
    """Equal but for the tolerance: absolute for numbers below 1, relative above."""
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def leaves_close(a, b, tolerance):
    """The same for two pytrees of the same form."""
    jax.tree.map(lambda one, other: close(one, other, tolerance), a, b)


def normal(*shape, seed=0):
    """Random numbers, in the type of floats that JAX uses at the moment."""
    numbers = np.random.default_rng(seed).normal(size=shape)
    return numbers.astype(jnp.result_type(float))


def dense(sparse):
    """The array [n, m] of a Sparse; what is in one place is added up."""
    return np.array(sparse.todense())


def small(**changes):
    """The arrays of a graph of six nodes, some of them replaced."""
    nodes = np.arange(6)
    return {
        "x": np.arange(18.0).reshape(6, 3),
        "edge_index": np.array([[0, 1, 2, 3], [1, 2, 3, 4]]),
        "y": np.array([0, 1, 1, 0, 1, -1]),
        "train_mask": np.isin(nodes, [0, 1]),
        "val_mask": np.isin(nodes, [2, 3]),
        "test_mask": np.isin(nodes, [4]),
    } | changes


@contextlib.contextmanager
def switch(name, on):
    """One of JAX's switches is on in this block and off after it, or the reverse."""
    jax.config.update(name, on)
    try:
        yield
    finally:
        jax.config.update(name, not on)


def x64():
    """Inside this block, JAX computes in float64."""
    return switch("jax_enable_x64", True)


@pytest.fixture(params=["float32", "float64"])
def tolerance(request):
    """Run a test in both precisions; the value is the largest error that is allowed."""
    if request.param == "float32":
        yield 1e-5
    else:
        with x64():
            yield 1e-10


@pytest.fixture(scope="session")
def cora():
    return load_graph()


# Pages --------------------------------------------------------------------------------

BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\s*^```text\n(.*?)^```\n)?", re.M | re.S)


class Console(code.InteractiveConsole):
    """The Python into which a reader pastes, line by line; an error ends the test."""

    def showtraceback(self, *_, **__):
        raise

    showsyntaxerror = showtraceback


def paste(console, source):
    """Paste a block -> the lines that it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for line in [*source.splitlines(), ""]:         # "" ends an indented block
            waiting = console.push(line)
    assert not waiting
    return [line.rstrip() for line in out.getvalue().splitlines()]


def run_blocks(text):
    """Paste all python blocks of a page; each must print the text block under it."""
    console = Console()
    for source, expected in BLOCK.findall(text):
        assert paste(console, source) == expected.splitlines()
    return console


@pytest.fixture
def as_a_reader(monkeypatch, tmp_path):
    """Files of a page go to a folder of their own; minignn.py is found from there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))

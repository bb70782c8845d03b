"""The files in data/, and the scripts that make them."""
import os
import pickle
import struct
import sys
import types
from collections import defaultdict

import numpy as np
import pytest

from conftest import ROOT
from data.make_cora import make_cora
from data.make_planetoid import make_planetoid
from minignn import load_graph


def read(name):
    with np.load(ROOT / "data" / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def check_edges_and_masks(arrays, num_edges, sizes):
    """Both directions of each edge, each once, no self-loop; masks without overlap."""
    edges = set(map(tuple, arrays["edge_index"].T.tolist()))
    assert arrays["edge_index"].shape == (2, 2 * num_edges)
    assert len(edges) == 2 * num_edges
    assert all((j, i) in edges and i != j for i, j in edges)
    masks = np.stack([arrays[f"{split}_mask"] for split in ("train", "val", "test")])
    assert masks.sum(axis=1).tolist() == sizes and masks.sum(axis=0).max() == 1
    assert set(np.bincount(arrays["y"][masks[0]])) == {20}


def test_cora():
    arrays = read("cora")
    x, class_names = arrays["x"], arrays["class_names"].tolist()
    assert x.shape == (2708, 1433) and set(np.unique(x)) == {0, 1} and x.sum() == 49216
    check_edges_and_masks(arrays, num_edges=5278, sizes=[140, 500, 1000])
    assert np.bincount(arrays["y"]).tolist() == [298, 418, 818, 426, 217, 180, 351]
    assert class_names == sorted(class_names) and class_names[2] == "Neural_Networks"
    assert len(set(arrays["paper_id"].tolist())) == 2708
    assert arrays["paper_id"][0] == 31336


def test_citeseer():
    arrays = read("citeseer")
    x, y = arrays["x"], arrays["y"]
    assert x.shape == (3327, 3703) and set(np.unique(x)) == {0, 1} and x.sum() == 105165
    check_edges_and_masks(arrays, num_edges=4552, sizes=[120, 500, 1000])

    left_out = y == -1                  # by the index of test papers
    assert left_out.sum() == 15 and np.bincount(y[~left_out]).tolist() == [
        249, 590, 668, 701, 596, 508]
    assert (left_out == (x.sum(axis=1) == 0)).all()
    degree = np.bincount(arrays["edge_index"][0], minlength=3327)
    assert (degree[left_out] > 0).all() and (degree == 0).sum() == 48
    assert (degree[arrays["test_mask"]] == 0).sum() == 12
    assert load_graph(ROOT / "data" / "citeseer.npz").class_names == tuple("012345")


# The scripts --------------------------------------------------------------------------


def test_make_cora(tmp_path):
    papers = ["11\t1\t0\tTheory", "7\t0\t1\tGenes", "5\t1\t1\tTheory"]
    (tmp_path / "cora.content").write_text("\n".join(papers))
    cites = ["11\t7", "7\t11", "11\t7", "5\t5", "5\t11"]    # reversed, repeated, itself
    (tmp_path / "cora.cites").write_text("\n".join(cites))
    split = ["paper_id\tsplit", "7\ttrain", "5\tval", "11\ttest"]
    (tmp_path / "public_split.tsv").write_text("\n".join(split))
    arrays = make_cora(tmp_path)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "x": [[1, 0], [0, 1], [1, 1]],
        "edge_index": [[0, 0, 1, 2], [1, 2, 0, 0]],
        "y": [1, 0, 1],
        "train_mask": [False, True, False],
        "val_mask": [False, False, True],
        "test_mask": [True, False, False],
        "class_names": ["Genes", "Theory"],
        "paper_id": [11, 7, 5]}


class csr_matrix:  # noqa: N801
    """What SciPy's class pickles, under its name."""

    __module__ = "scipy.sparse.csr"

    def __init__(self, array):
        array = np.array(array, np.float32)
        in_row = np.count_nonzero(array, axis=1)
        self._shape = array.shape
        self.data = array[array != 0]
        _, self.indices = np.nonzero(array)
        self.indptr = np.append(0, in_row.cumsum())


class Pickler(pickle._Pickler):
    """Pickles bytes as Python 2 pickled its strings."""

    def save_bytes(self, data):
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)

    dispatch = pickle._Pickler.dispatch | {bytes: save_bytes}


@pytest.fixture
def write(monkeypatch, tmp_path):
    """A function that writes a file of the set "tiny"."""
    scipy_sparse_csr = types.SimpleNamespace(csr_matrix=csr_matrix)
    for name in ("scipy", "scipy.sparse", "scipy.sparse.csr"):
        monkeypatch.setitem(sys.modules, name, scipy_sparse_csr)

    def write(part, content):
        with open(tmp_path / f"ind.tiny.{part}", "wb") as file:
            Pickler(file, protocol=2).dump(content)

    write("x", csr_matrix([[1, 0], [0, 1]]))
    write("y", np.eye(2))
    write("allx", csr_matrix([[1, 0], [0, 1], [1, 1], [0, 0]]))
    write("ally", np.eye(2)[[0, 1, 1, 0]])
    write("tx", csr_matrix([[0, 1], [1, 0]]))           # of paper 6, of paper 4
    write("ty", np.eye(2)[[1, 0]])
    (tmp_path / "ind.tiny.test.index").write_text("6\n4\n")     # 5 is left out
    write("graph", defaultdict(list, {0: [1, 1], 1: [0], 2: [2], 5: [6], 6: [], 4: []}))
    return write


def test_make_planetoid(write, tmp_path):
    arrays = make_planetoid(tmp_path, "tiny")
    assert arrays["x"].dtype == np.uint8
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "x": [[1, 0], [0, 1], [1, 1], [0, 0], [1, 0], [0, 0], [0, 1]],
        "edge_index": [[0, 1, 5, 6], [1, 0, 6, 5]],
        "y": [0, 1, 1, 0, 0, -1, 1],
        "train_mask": [True, True, False, False, False, False, False],
        # The 500 papers after those that train; there are fewer here.
        "val_mask": [False, False, True, True, True, True, True],
        "test_mask": [False, False, False, False, True, False, True]}


def test_make_planetoid_keeps_what_is_no_0_or_1(write, tmp_path):
    write("allx", csr_matrix([[0.5, 0], [0, 0.25], [1, 1], [0, 0]]))
    x = make_planetoid(tmp_path, "tiny")["x"]
    assert x.dtype == np.float32 and x[:2].tolist() == [[0.5, 0], [0, 0.25]]


@pytest.mark.parametrize("part", ["y", "tx", "ty", "allx", "ally", "graph"])
@pytest.mark.parametrize("function", [eval, os.mkdir])
def test_make_planetoid_refuses_what_could_run_code(write, tmp_path, part, function):
    write(part, [function])
    with pytest.raises(pickle.UnpicklingError, match="is not allowed"):
        make_planetoid(tmp_path, "tiny")

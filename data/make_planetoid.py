"""Make citeseer.npz or pubmed.npz from the published files of Planetoid.

    python data/make_planetoid.py FOLDER NAME

FOLDER holds ind.NAME.x, .y, .tx, .ty, .allx, .ally, .graph and .test.index, as in
https://github.com/kimiyoung/planetoid/tree/master/data. NAME is citeseer or pubmed. The
result, NAME.npz, stands beside this script.

Most of these files are pickles, and a pickle can run any code. So nothing is loaded
here but lists, dicts, numbers and arrays: another type is an error.
"""
import collections
import pathlib
import pickle
import sys

import numpy as np


class Csr:
    """SciPy's csr_matrix as it is pickled: data, indices, indptr and _shape."""

    def toarray(self):
        array = np.zeros(self._shape, self.data.dtype)
        rows = np.repeat(np.arange(len(array)), np.diff(self.indptr))
        array[rows, self.indices] = self.data
        return array


# The function that makes a pickled array anew; its module has had two names.
reconstruct, *_ = np.zeros(0).__reduce__()

ALLOWED = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "numpy.core.multiarray._reconstruct": reconstruct,
    "numpy._core.multiarray._reconstruct": reconstruct,
    "scipy.sparse.csr.csr_matrix": Csr,
    "collections.defaultdict": collections.defaultdict,
    "__builtin__.list": list,           # Python 2's name of builtins
}


class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if f"{module}.{name}" not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a pickle")
        return ALLOWED[f"{module}.{name}"]


def make_planetoid(folder, name):
    """Read the files; return the arrays that data/README.md describes, a dict."""

    def load(part):
        with open(pathlib.Path(folder) / f"ind.{name}.{part}", "rb") as file:
            return Unpickler(file, encoding="latin1").load()        # of Python 2

    # allx and ally hold the first papers, in their order. The test papers come after
    # them, and row k of tx and ty is the one that line k of test.index says. Citeseer's
    # index leaves papers out: they keep no words (0) and no class (-1).
    index_file = pathlib.Path(folder) / f"ind.{name}.test.index"
    test = np.array(index_file.read_text().split(), np.int64)
    first_x = load("allx").toarray()
    num_first, num_words = first_x.shape
    num_papers = test.max() + 1

    x = np.zeros((num_papers, num_words), first_x.dtype)
    x[:num_first] = first_x
    x[test] = load("tx").toarray()
    y = np.full(num_papers, -1, np.int32)
    y[:num_first] = load("ally").argmax(axis=1)             # one-hot: [n, C] -> [n]
    y[test] = load("ty").argmax(axis=1)
    if (x == x.astype(np.uint8)).all():                     # 0 and 1
        x = x.astype(np.uint8)

    # Both directions of each pair, each once, and no self-citation.
    edges = set()
    for paper, others in load("graph").items():
        for other in others:
            if paper != other:
                edges |= {(paper, other), (other, paper)}

    # The public split: the papers of x and y train, the 500 after them validate.
    num_train = len(load("y"))
    papers = np.arange(num_papers)
    return dict(
        x=x,
        edge_index=np.array(sorted(edges), np.int32).T,
        y=y,
        train_mask=papers < num_train,
        val_mask=(papers >= num_train) & (papers < num_train + 500),
        test_mask=np.isin(papers, test))


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[2] not in ("citeseer", "pubmed"):
        sys.exit(__doc__)
    _, folder, name = sys.argv
    output = pathlib.Path(__file__).with_name(f"{name}.npz")
    np.savez_compressed(output, **make_planetoid(folder, name))

"""Make cora.npz, beside this script, from the raw files of Cora.

    python data/make_cora.py FOLDER

FOLDER holds cora.content and cora.cites (the LINQS distribution) and public_split.tsv,
a table of paper_id and train, val or test.
"""
import pathlib
import sys

import numpy as np


def make_cora(folder):
    """Read the raw files; return the arrays that data/README.md describes, a dict."""
    folder = pathlib.Path(folder)

    # cora.content: paper_id, 1433 times 0 or 1, class name; in the order of the nodes.
    lines = (folder / "cora.content").read_text().splitlines()
    papers = [line.split("\t") for line in lines]
    paper_id = np.array([int(paper[0]) for paper in papers], np.int32)
    x = np.array([paper[1:-1] for paper in papers]).astype(np.uint8)
    # The names are sorted, and y is the place of each paper's name among them.
    class_names, y = np.unique([paper[-1] for paper in papers], return_inverse=True)
    node = {paper: i for i, paper in enumerate(paper_id)}

    # cora.cites: cited paper_id, citing paper_id. Both directions of each pair, each
    # once, and no self-citation.
    edges = set()
    for cited, citing in np.loadtxt(folder / "cora.cites", int):
        if cited != citing:
            edges |= {(node[cited], node[citing]), (node[citing], node[cited])}

    masks = {}
    for split in ("train", "val", "test"):
        masks[f"{split}_mask"] = np.zeros(len(papers), bool)
    for paper, split in np.loadtxt(folder / "public_split.tsv", str, skiprows=1):
        masks[f"{split}_mask"][node[int(paper)]] = True

    return dict(
        x=x,
        edge_index=np.array(sorted(edges), np.int32).T,
        y=y.astype(np.int32),
        **masks,
        class_names=class_names,
        paper_id=paper_id)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    _, folder = sys.argv
    output = pathlib.Path(__file__).with_name("cora.npz")
    np.savez_compressed(output, **make_cora(folder))

"""Make cora.npz from the raw files of Cora.

    python data/make_cora.py FOLDER [OUTPUT]

FOLDER holds cora.content and cora.cites (the LINQS distribution) and public_split.tsv,
a table of paper_id and train, val or test. OUTPUT is cora.npz beside this script unless
it is given.
"""
import pathlib
import sys

import numpy as np


def read_lines(path):
    return path.read_text().splitlines()


def make_cora(folder):
    """Read the raw files; return the arrays that data/README.md describes, a dict."""
    folder = pathlib.Path(folder)

    # cora.content: paper_id, 1433 times 0 or 1, class name. Its order is that of the
    # nodes.
    papers = [line.split("\t") for line in read_lines(folder / "cora.content")]
    paper_id = np.array([int(paper[0]) for paper in papers], np.int32)
    x = np.array([paper[1:-1] for paper in papers]).astype(np.uint8)
    # The names are sorted, and y is the place of each paper's name among them.
    class_names, y = np.unique([paper[-1] for paper in papers], return_inverse=True)
    node = {paper: i for i, paper in enumerate(paper_id)}

    # cora.cites: cited paper_id, citing paper_id. Both directions of each pair, each
    # once, and no self-citation.
    edges = set()
    for line in read_lines(folder / "cora.cites"):
        cited, citing = [node[int(paper)] for paper in line.split()]
        if cited != citing:
            edges |= {(cited, citing), (citing, cited)}

    masks = {}
    for split in ("train", "val", "test"):
        masks[f"{split}_mask"] = np.zeros(len(papers), bool)
    for line in read_lines(folder / "public_split.tsv")[1:]:
        paper, split = line.split("\t")
        masks[f"{split}_mask"][node[int(paper)]] = True

    return dict(
        x=x,
        edge_index=np.array(sorted(edges), np.int32).T,
        y=y.astype(np.int32),
        **masks,
        class_names=class_names,
        paper_id=paper_id)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    output = pathlib.Path(__file__).with_name("cora.npz")
    if len(sys.argv) == 3:
        output = sys.argv[2]
    arrays = make_cora(sys.argv[1])
    np.savez_compressed(output, **arrays)
    described = [f"{name} {a.dtype} {a.shape}" for name, a in arrays.items()]
    print(f"wrote {output}:", ", ".join(described))

"""Draw the pictures of docs/ from real runs.

    python lab/figures.py [NAME ...]        all of them without a name

A NAME is that of a file in docs/, without its .svg or .png. It needs more than
minignn.py does: pip install matplotlib scikit-learn
"""
import dataclasses
import functools
import pathlib
import sys

import jax
import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import minignn
from minignn import GAT_RECIPE, GCN_RECIPE

# Okabe & Ito's palette, with black in place of its yellow, which is too pale on white.
# Where a colour carries meaning, a marker or a word carries it, too.
COLORS = ["#E69F00", "#56B4E9", "#009E73", "#000000", "#0072B2", "#D55E00", "#CC79A7"]
TEXT_ON = ["black", "black", "white", "white", "white", "white", "black"]
MARKERS = ["o", "s", "^", "x", "D", "v", "+"]
BLUE, PALE_BLUE, ORANGE, GREY = "#0072B2", "#dceaf5", "#E69F00", "#8a8a8a"

plt.rcParams.update({
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "axes.titlesize": 11,
    "axes.spines.top": False, "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "svg.fonttype": "none",             # text stays text, not curves
    "svg.hashsalt": "minignn",          # the same picture is the same file
})

graph = minignn.load_graph()
rows, cols, y = map(np.asarray, (graph.adj.rows, graph.adj.cols, graph.y))
names = [name.replace("_", " ").capitalize() for name in graph.class_names]

KEY = jax.random.key(0)         # as in train_gcn.py and train_gat.py
GCN = minignn.GCN(16, 7)
GAT = minignn.GAT([8, 1], [8], 7)


@functools.cache
def run(model, recipe):
    """Train -> (params, history, the epoch of these params, by their loss)."""
    params, history = minignn.train(model, graph, KEY, recipe, log_every=0)
    val_loss = float(minignn.evaluate(model, params, graph)["val_loss"])
    return params, history, 1 + history["val_loss"].index(val_loss)


def in_two_dimensions(params):
    """The hidden layer of the GCN, ReLU(Â X W0), placed by t-SNE: [N, 16] -> [N, 2]."""
    from sklearn.manifold import TSNE
    (W0,), _ = params
    h = jax.nn.relu(graph.adj @ (graph.x @ W0))
    return TSNE(init="pca", random_state=0).fit_transform(np.asarray(h))


def write(ax, place, text, **style):
    ax.text(*place, text, **dict(ha="center", va="center", clip_on=False) | style)


def arrow(ax, start, end, **style):
    style = dict(arrowstyle="-|>", color="#555555", linewidth=1.5) | style
    ax.annotate("", end, start, arrowprops=style, zorder=1)


def draw_graph(ax, places, edges, texts, faces):
    """Circles with a text in each, and lines. places: [N, 2]; edges: [2, number]."""
    ax.plot(*places.T[:, edges], color="#aaaaaa", zorder=1)
    ax.scatter(*places.T, 560, faces, edgecolors="#444444", clip_on=False, zorder=2)
    for place, text in zip(places, texts):
        write(ax, place, text)
    ax.set_aspect("equal")
    ax.axis("off")


def draw_matrix(ax, matrix, darkest, **labels):
    """Numbers, each on a shade of blue: from 0, almost white, to the darkest."""
    ax.imshow(matrix, cmap="Blues", vmin=0, vmax=darkest)
    for (i, j), number in np.ndenumerate(matrix):
        color = "white" if number > darkest / 2 else "black" if number > 0 else GREY
        write(ax, (j, i), f"{number:.2g}", color=color)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(**labels)


def scatter_classes(ax, points):
    for c, name in enumerate(names):
        ax.scatter(*points[y == c].T, s=5, c=COLORS[c], marker=MARKERS[c], alpha=0.8,
                   linewidths=0.9 if MARKERS[c] in "x+" else 0, label=name)
    ax.set(xticks=[], yticks=[])


PAPER = 1515        # of its seven neighbours, one has 168, and two have no other


def neighbourhood(ax, weights, title):
    """The paper, its neighbours, its weights -> the neighbours, angles, places."""
    entries = np.flatnonzero(rows == PAPER)
    order = np.lexsort((y[cols[entries]], cols[entries] != PAPER))      # itself first
    weights, nodes = np.asarray(weights)[entries[order]], cols[entries[order]]
    angles = np.pi / 2 + np.linspace(0, 2 * np.pi, len(nodes))[:-1]
    places = np.vstack([[0, 0], np.transpose([np.cos(angles), np.sin(angles)])])
    for place, node, weight in zip(places, nodes, weights):
        if node != PAPER:
            arrow(ax, 0.85 * place, 0.21 * place, linewidth=0.5 + 14 * weight,
                  arrowstyle="-|>,head_width=0.22,head_length=0.4")
        write(ax, place, f"{weight:.2f}", fontsize=9, color=TEXT_ON[y[node]], zorder=4)
    for c in np.unique(y[nodes]):
        ax.scatter(*places[y[nodes] == c].T, s=520, c=COLORS[c], edgecolors="#333333",
                   clip_on=False, label=names[c], zorder=3)
    ax.scatter(0, 0, s=600, c="none", edgecolors="black", linewidths=2.5, zorder=3)
    ax.set_title(title, pad=16)
    ax.set_aspect("equal")
    ax.axis("off")
    return nodes[1:], angles, places[1:]


# The graph of five nodes.
FIVE_EDGES = np.array([[0, 0, 0, 1, 3],
                       [1, 2, 3, 2, 4]])
PLACES = np.array([[0, 0], [-1.75, 1.3], [-1.75, -1.3], [2.2, 0], [3.9, 0]])
five = minignn.normalize_adjacency(np.hstack([FIVE_EDGES, FIVE_EDGES[::-1]]), 5)
five_rows, five_cols = np.asarray(five.rows), np.asarray(five.cols)
A_hat = np.asarray(five.todense())


def adjacency():
    _, axes = plt.subplots(1, 3, figsize=(11, 3.6))
    draw_graph(axes[0], PLACES, FIVE_EDGES, range(5), PALE_BLUE)
    axes[0].set_title("Five nodes, five edges")
    A = (A_hat > 0).astype(int)
    panels = (A, "A, and the degrees"), (A_hat, "Â = D⁻½ A D⁻½")
    for ax, (matrix, title) in zip(axes[1:], panels):
        draw_matrix(ax, matrix, 2, title=title, xticks=range(5), yticks=range(5),
                    xlabel="from node j", ylabel="node i gathers")
    for i, d in enumerate(A.sum(axis=1)):
        write(axes[1], (5.2, i), f"d{'₀₁₂₃₄'[i]} = {d}")


def messages():
    h = np.array([4, 6, 3, 9, 2])
    products = A_hat[0] * h
    sums = A_hat @ h
    _, axes = plt.subplots(1, 3, figsize=(12, 3.3))
    panels = (("1. Fetch: h[cols]", h), ("2. Multiply: weights * h[cols]", h),
              ("3. Add up, at all nodes", sums.round(1)))
    for ax, (title, numbers) in zip(axes, panels):
        draw_graph(ax, PLACES, FIVE_EDGES, numbers, ["#f6d9a8"] + 4 * [PALE_BLUE])
        ax.set(title=title, ylim=(-2.1, 2.2))
        for i, place in enumerate(PLACES):
            place = place + [0, 0.62 if i == 1 else -0.62]
            write(ax, place, f"node {i}", fontsize=8.5, color="#666666")
    for ax in axes[:2]:
        arrow(ax, (-0.2, 0.36), (0.2, 0.36), connectionstyle="arc3,rad=-1.6")
        for source in (1, 2, 3):
            arrow(ax, PLACES[source], PLACES[0], shrinkA=14, shrinkB=14)
    red = "#B34700"
    for j, place in enumerate([(1.2, 1.1), (-0.3, 1.4), (-0.3, -1.4), (1.2, -0.65)]):
        multiplied = f"{A_hat[0, j]:.3f} · {h[j]}\n= {products[j]:.2f}"
        write(axes[0], place, h[j], color=red)
        write(axes[1], place, multiplied, color=red)
    total = " + ".join(f"{product:.2f}" for product in products[:4])
    write(axes[2], (1.2, 1.3), f"{total}\n= {sums[0]:.2f}", color=red)


def segment_softmax():
    scores = np.array([2., 1, 0, -1, 1, 3, 2, 0, 0, 1, 98, 100, 99, 1, 0])
    largest = np.asarray(jax.ops.segment_max(scores, five_rows, 5))
    exp = np.exp(scores - largest[five_rows])
    alpha = minignn.segment_softmax(scores[:, None], five_rows, 5)[:, 0]
    lines = (                                               # [E], or [5] for each row
        ("rows: node i", five_rows, "d"),
        ("cols: its neighbour j", five_cols, "d"),
        ("scores", scores, "g"),
        ("the largest of each row", largest, "g"),
        ("exp(score - largest)", exp, ".3f"),
        ("the total of each row", np.bincount(five_rows, exp), ".3f"),
        ("alpha = exp / total", np.asarray(alpha), ".3f"))
    faces = np.array(["#fbe3b5", "#d6ecf9", "#cdebdf", "#f3dbe8", "#e6e6e6"])
    _, (left, ax) = plt.subplots(1, 2, width_ratios=[1, 4.6], figsize=(12.4, 3.3))
    draw_graph(left, PLACES[:, ::-1] * [1, -1], FIVE_EDGES, range(5), faces)
    for line, (name, numbers, form) in enumerate(lines):
        is_sum = len(numbers) == 5
        bounds = np.searchsorted(five_rows, range(6)) if is_sum else range(16)
        for number, start, end in zip(numbers, bounds, bounds[1:]):
            ax.barh(line, end - start, left=start, height=0.84, edgecolor="white",
                    linewidth=2, color=faces[five_rows[start]])
            write(ax, ((start + end) / 2, line), format(number, form))
        write(ax, (-0.2, line), name, ha="right")
    ax.invert_yaxis()
    ax.axis("off")


def cora():
    is_edge = rows != cols
    counts, _, _ = np.histogram2d(y[rows[is_edge]], y[cols[is_edge]], bins=7)
    percent = (100 * counts / counts.sum(axis=1, keepdims=True)).round()
    _, ax = plt.subplots(figsize=(5.8, 4.8))
    draw_matrix(
        ax, percent, 100, title="Neighbours mostly share a class (% of each row)",
        xlabel="class of its neighbours", ylabel="class of a paper (number of papers)")
    ax.set_xticks(range(7), names, rotation=40, ha="right", rotation_mode="anchor")
    sizes = np.bincount(y)
    ax.set_yticks(range(7), [f"{name} ({size})" for name, size in zip(names, sizes)])


def eigenvalues():
    normalized = np.asarray(graph.adj.todense(), float)     # Â
    A = (normalized > 0) - np.eye(len(y))
    d = A.sum(axis=1)
    before = np.linalg.eigvalsh(A / np.sqrt(d[:, None] * d))
    panels = (
        ("D⁻½ A D⁻½: without self-loops", before, GREY),
        ("I + D⁻½ A D⁻½: the first-order filter", before + 1, ORANGE),
        ("Â: self-loops first, then normalised",
         np.linalg.eigvalsh(normalized), BLUE))
    edges = np.linspace(-1.025, 2.025, 62)
    _, axes = plt.subplots(3, 1, sharex=True, sharey=True, figsize=(7.6, 6))
    for ax, (title, values, color) in zip(axes, panels):
        heights, _, _ = ax.hist(values, edges, color=color, histtype="stepfilled")
        values = values.round(6) + 0                        # no -0
        ax.set_title(f"{title}. From {values[0]:.2f} to {values[-1]:.2f}", loc="left")
        ax.set(ylabel="eigenvalues", ylim=(0, 400))
        for place, count in zip(*np.unique(values, return_counts=True)):
            if count > 50:                                  # say what the spikes are
                height = heights[np.digitize(place, edges) - 1]
                write(ax, (place, height + 8), f"{count} at {place:g}", va="bottom")
    axes[2].set_xlabel("eigenvalue: by what the matrix multiplies its pattern")


def history():
    _, axes = plt.subplots(2, 2, sharex="col", figsize=(9, 5.4))
    panels = ("GCN", GCN, GCN_RECIPE), ("GAT", GAT, GAT_RECIPE)
    for column, (name, model, recipe) in zip(axes.T, panels):
        _, numbers, kept = run(model, recipe)
        epochs = np.arange(1, len(numbers["val_loss"]) + 1)
        for ax, what, top in zip(column, ("loss", "accuracy"), (2.05, 1.03)):
            train, val = numbers[f"train_{what}"], numbers[f"val_{what}"]
            ax.plot(epochs, train, color=BLUE, label="140 training nodes")
            ax.plot(epochs, val, "--", color=ORANGE, label="500 validation nodes")
            ax.plot(kept, val[kept - 1], "D", color="black", markersize=5,
                    label="the params that train returns")
            ax.set(ylabel=what, ylim=(0, top))
        column[0].set_title(f"{name}: {len(epochs)} epochs, params of epoch {kept}")
        column[1].set_xlabel("epoch")
    axes[1, 0].legend(loc="lower right")


def hidden():
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.9))
    init_rng, _ = jax.random.split(KEY)                     # as in the training
    _, untrained = GCN[0](init_rng, graph.x.shape)
    trained, _, _ = run(GCN, GCN_RECIPE)
    titles = "Before training: random weights", "After training"
    for ax, params, title in zip(axes, (untrained, trained), titles):
        scatter_classes(ax, in_two_dimensions(params))
        ax.set(title=title, xlabel="t-SNE 1", ylabel="t-SNE 2")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center",
                  ncols=4, markerscale=2.2,
                  title="Colours: the true class of each paper, its label in the data")


def attention():
    params, _, epoch = run(GAT, GAT_RECIPE)
    free_recipe = dataclasses.replace(GAT_RECIPE, weight_decay=0.0, epochs=epoch,
                                      rule=lambda history: (True, True))
    free_params, _, _ = run(GAT, free_recipe)
    alpha, free = [minignn.attention(a1, a2, (graph.x @ W).reshape(-1, 8, 8), graph.adj)
                   for (W, a1, a2, _), _ in (params, free_params)]      # [E, H]
    here = free[rows == PAPER]
    head = (here.max(axis=0) / here.min(axis=0)).argmax()   # where they differ most
    figure = plt.figure(figsize=(10, 7.4))
    upper, lower = figure.subfigures(2, 1, height_ratios=[3, 2.2])
    panels = (("GCN\nfixed by the degrees", graph.adj.values),
              (f"GAT\none head after {epoch} epochs", alpha[:, head]),
              ("GAT\nthe same without weight decay", free[:, head]))
    axes = upper.subplots(1, 3)
    for ax, (title, weights) in zip(axes, panels):
        neighbourhood(ax, weights, title)
    axes[1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=3,
                   markerscale=0.5)
    ax = lower.subplots()
    degrees = np.bincount(rows)[rows, None]
    times_mean = [(weights * degrees).ravel() for weights in (alpha, free)]
    ax.hist(times_mean, np.linspace(0.4, 2.1, 86), log=True, histtype="stepfilled",
            alpha=0.55, color=[BLUE, ORANGE],
            label=["with weight decay, as in the paper", "without weight decay"])
    ax.axvline(1, color="black", linewidth=0.8, linestyle=":")
    ax.set(xlabel="attention weight alpha_ij times degree d_i: 1 is the plain mean",
           ylabel="number of weights, all entries and heads", xlim=(0.4, 2.1))
    ax.legend(loc="upper right")


def overview():
    figure, (left, right) = plt.subplots(1, 2, width_ratios=[5, 6], figsize=(11, 5.2))
    title = "A paper gathers from its neighbours"
    around = neighbourhood(left, graph.adj.values, title)
    for node, angle, place in zip(*around):                 # and what is behind them
        beyond = np.setdiff1d(cols[rows == node], [node, PAPER])
        width = min(0.06 * len(beyond), 0.4)
        fan = angle + np.linspace(-width, width, len(beyond) + 2)[1:-1]
        ends = 1.62 * np.transpose([np.cos(fan), np.sin(fan)])
        for end, c in zip(ends, y[beyond]):
            left.plot(*zip(place, end), color="#bbbbbb", linewidth=0.8, zorder=1)
            left.scatter(*end, s=18, c=COLORS[c], zorder=2)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, markerscale=0.5)
    params, _, _ = run(GCN, GCN_RECIPE)
    percent = 100 * minignn.evaluate(GCN, params, graph)["test_accuracy"]
    points = in_two_dimensions(params)
    scatter_classes(right, points)
    for c, name in enumerate(names):
        write(right, np.median(points[y == c], axis=0), name,
              bbox=dict(boxstyle="round,pad=0.2", fc="white", ec=COLORS[c], alpha=0.9))
    right.axis("off")
    right.set_title(f"A GCN that saw 140 labels: {percent:.1f} % of test papers right")
    figure.supxlabel(
        "Left: a number, and the width of its arrow, is the weight of that paper's "
        "features in the sum.\nSmall dots are two steps away. Right: a dot is a paper. "
        "Colours are true classes, not predicted ones.", fontsize=10)


PICTURES = {picture.__name__: picture for picture in (
    adjacency, messages, segment_softmax, cora, eigenvalues, history, hidden,
    attention, overview)}


def draw(name, folder=pathlib.Path(minignn.__file__).parent / "docs"):
    """Draw a picture -> its path. The same run gives the same file: it has no date."""
    suffix = "png" if name in ("hidden", "overview") else "svg"     # too many dots
    path = folder / f"{name}.{suffix}"
    PICTURES[name]()
    plt.savefig(path, dpi=120, bbox_inches="tight", pad_inches=0.12,
                metadata={"Date": None})
    plt.close()
    return path


if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        print(draw(name).name, flush=True)

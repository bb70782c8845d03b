"""Draw the pictures of the course from real runs: python docs/figures.py [NAME ...], all of them without a name.

It needs matplotlib and scikit-learn, which minignn itself does not: pip install matplotlib scikit-learn
"""
import argparse
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Circle

DOCS = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))
from minignn import (GAT, GCN, accuracy, adam, load_graph, loss_or_accuracy_rule, matmul, normalize_adjacency,
                     segment_softmax, train)

# Okabe & Ito's palette, with black in place of its yellow, which is too pale on white. Where a colour carries
# meaning, a marker or a word carries it too.
COLORS = ["#E69F00", "#56B4E9", "#009E73", "#000000", "#0072B2", "#D55E00", "#CC79A7"]
MARKERS = ["o", "s", "^", "x", "D", "v", "+"]
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8a8a8a"

plt.rcParams.update({
    "figure.facecolor": "white", "savefig.facecolor": "white", "font.size": 10, "axes.titlesize": 11,
    "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "minignn", "legend.frameon": False})


def save(figure, name, dpi=110):
    metadata = {"Date": None} if name.endswith("svg") else {"Software": None}
    figure.savefig(DOCS / name, dpi=dpi, bbox_inches="tight", pad_inches=0.12, metadata=metadata)
    plt.close(figure)
    print(f"{name}: {(DOCS / name).stat().st_size / 1000:.0f} kB", flush=True)


# What several pictures share --------------------------------------------------------------------------------

@functools.cache
def cora():
    return load_graph()


def class_names():
    return [name.replace("_", " ").capitalize() for name in cora().class_names]


@functools.cache
def trained_gcn():
    """-> model, params at the start, params after training, history"""
    model = GCN(16, len(cora().class_names))
    _, start = model[0](jax.random.split(jax.random.key(2))[0], cora().x.shape)     # train splits its key like this
    return model, start, *train(model, cora(), jax.random.key(2), log_every=0)


@functools.cache
def trained_gat(weight_decay=5e-4, epochs=100000):
    """-> params, history"""
    model = GAT([8, 1], [8], len(cora().class_names))
    return train(model, cora(), jax.random.key(0), epochs=epochs, step_size=0.005, weight_decay=weight_decay,
                 penalise_all=True, rule=loss_or_accuracy_rule, patience=100, log_every=0)


def hidden_layer(params):
    """What the first layer of the GCN makes of each paper: ReLU(A X W0) [N, 16]."""
    graph = cora()
    return np.asarray(jax.nn.relu(matmul(graph.adj, matmul(graph.x, params[0][0]))))


@functools.cache
def in_two_dimensions(which):
    """The hidden layer at the start or after training, placed in two dimensions by t-SNE -> [N, 2]."""
    from sklearn.manifold import TSNE
    _, start, params, _ = trained_gcn()
    return TSNE(init="pca", random_state=0).fit_transform(hidden_layer({"start": start, "trained": params}[which]))


def attention(params, x, adj):
    """The attention of a layer, as the course writes it -> [E, H]."""
    W, a1, a2, b = params
    h = matmul(x, W.reshape(len(W), -1)).reshape(-1, *a1.shape)
    own, neighbour = (h * a1).sum(-1), (h * a2).sum(-1)
    e = jax.nn.leaky_relu(own[adj.rows] + neighbour[adj.cols], 0.2)
    return np.asarray(segment_softmax(e, adj.rows, adj.shape[0]))


def scatter_classes(ax, points, size=5):
    for c, name in enumerate(class_names()):
        chosen = points[np.asarray(cora().y) == c]
        ax.scatter(*chosen.T, s=size, c=COLORS[c], marker=MARKERS[c], linewidths=0.9 if MARKERS[c] in "x+" else 0,
                   alpha=0.8, label=name)
    ax.set_xticks([])
    ax.set_yticks([])


def blank(ax, limit):
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    ax.axis("off")


# The pictures -----------------------------------------------------------------------------------------------

def linear_fit():
    key_x, key_noise = jax.random.split(jax.random.key(1))
    xs = jax.random.uniform(key_x, (300,), minval=-3, maxval=3)
    ys = 2 * xs + 1 + jax.random.normal(key_noise, (300,))
    gradient = jax.jit(jax.grad(lambda params: jnp.mean((params[0] * xs + params[1] - ys) ** 2)))
    start = (-1.0, 3.0)
    sgd = start
    for _ in range(200):
        sgd = jax.tree.map(lambda p, g: p - 0.05 * g, sgd, gradient(sgd))
    init, update = adam(0.05)
    params, state = start, init(start)
    for _ in range(500):
        params, state = update(gradient(params), state, params)

    figure, ax = plt.subplots(figsize=(6.4, 4))
    ends = np.array([-3.1, 3.1])
    ax.scatter(xs, ys, s=9, color="#b5b5b5", label="300 noisy points")
    for (w, b), color, style, width, name in (
            (start, GREY, "--", 1.5, "start"), ((2, 1), "black", "-", 0.9, "truth"),
            (sgd, ORANGE, "-", 7, "fitted by gradient descent"), (params, BLUE, ":", 3.6, "fitted by Adam")):
        ax.plot(ends, w * ends + b, color=color, linestyle=style, linewidth=width, zorder=4 if name == "truth" else 2,
                label=f"{name}: y = {w:.2f} x + {b:.2f}")
    ax.set(xlabel="x", ylabel="y")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, "linear-fit.svg")


def cora_data():
    graph, names = cora(), class_names()
    rows, cols, y = np.asarray(graph.adj.rows), np.asarray(graph.adj.cols), np.asarray(graph.y)
    edge = rows != cols
    degree, C = np.bincount(rows[edge]), len(names)
    figure = plt.figure(figsize=(11, 5.4))
    grid = figure.add_gridspec(2, 2, width_ratios=[2.6, 4], wspace=0.78, hspace=0.62)
    left, middle, right = (figure.add_subplot(place) for place in (grid[0, 0], grid[1, 0], grid[:, 1]))

    counts = np.bincount(np.minimum(degree, 12))
    left.bar(range(1, 13), counts[1:], color=BLUE)
    left.set_xticks([1, 3, 5, 7, 9, 12], ["1", "3", "5", "7", "9", "12+"])
    left.set(xlabel="neighbours of a paper", ylabel="papers", title="Most papers have few neighbours")

    order = np.argsort(np.bincount(y))
    middle.barh(range(C), np.bincount(y)[order], color=[COLORS[c] for c in order])
    middle.set_yticks(range(C), [names[c] for c in order])
    middle.set(xlabel="papers", title="Seven classes, unequal")

    pairs = np.zeros((C, C))
    np.add.at(pairs, (y[rows[edge]], y[cols[edge]]), 1)
    share = pairs / pairs.sum(1, keepdims=True)
    right.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i in range(C):
        for j in range(C):
            right.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=9,
                       color="white" if share[i, j] > 0.5 else "black")
    right.set_xticks(range(C), names, rotation=40, ha="right", rotation_mode="anchor")
    right.set_yticks(range(C), names)
    right.set(xlabel="class of its neighbours", ylabel="class of a paper",
              title="Neighbours mostly share a class (% of each row)")
    save(figure, "cora.svg")


TINY = np.array([[0, 0, 0, 1, 3], [1, 2, 3, 2, 4]])


def adjacency():
    tiny = normalize_adjacency(np.hstack([TINY, TINY[::-1]]), 5)
    normalized = np.asarray(matmul(tiny, jnp.eye(5)))
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.7))
    places = np.array([[0, 0], [-0.9, 0.75], [-0.9, -0.75], [0.95, 0], [1.9, 0]])
    ax = axes[0]
    for i, j in TINY.T:
        ax.plot(*places[[i, j]].T, color=GREY, linewidth=2, zorder=1)
    for i, (a, b) in enumerate(places):
        ax.add_patch(Circle((a, b), 0.26, facecolor="#dceaf5", edgecolor=BLUE, linewidth=1.5, zorder=2))
        ax.text(a, b, i, ha="center", va="center", fontsize=12)
    ax.set(xlim=(-1.35, 2.3), ylim=(-1.4, 1.4), aspect="equal", title="Five nodes, five edges")
    ax.axis("off")
    degree = (normalized > 0).sum(1)
    for ax, matrix, title, form in ((axes[1], (normalized > 0) * 1.0, "$A + I$, and the degrees", "{:.0f}"),
                                    (axes[2], normalized, "$D^{-1/2} (A + I) D^{-1/2}$", "{:.2f}")):
        ax.imshow(matrix, cmap="Blues", vmin=0, vmax=1.6)
        for i in range(5):
            for j in range(5):
                ax.text(j, i, form.format(matrix[i, j]) if matrix[i, j] else "0", ha="center", va="center",
                        color="black" if matrix[i, j] else "#a0a0a0", fontsize=10.5)
        ax.set(title=title, xlabel="heard: node j", ylabel="hearing: node i", xticks=range(5), yticks=range(5))
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
    for i, d in enumerate(degree):
        axes[1].text(4.75, i, f"$d_{i}$ = {d}", va="center", fontsize=10.5)
    figure.subplots_adjust(wspace=0.6)
    save(figure, "adjacency.svg")


def hops():
    figure, ax = plt.subplots(figsize=(6.4, 4.4))
    first = [(90, 1), (215, 1), (330, 1)]
    second = [(60, 2), (90, 2), (120, 2), (200, 2), (235, 2), (330, 2)]
    third = [(48, 3), (75, 3), (120, 3), (195, 3), (320, 3), (343, 3)]
    joined = [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6), (2, 7), (2, 8), (3, 9), (2, 3), (4, 10), (4, 11), (6, 12),
              (7, 13), (9, 14), (9, 15), (5, 6)]
    angles, radii = np.array([(0, 0)] + first + second + third).T
    places = np.stack([radii * np.cos(np.deg2rad(angles)), radii * np.sin(np.deg2rad(angles))], axis=1)
    distance = list(radii)
    for radius in (1, 2):
        ax.add_patch(Circle((0, 0), radius + 0.5, fill=False, linestyle=":", edgecolor="#9a9a9a"))
    for i, j in joined:
        near = distance[max(i, j, key=lambda k: distance[k])] <= 2
        ax.plot(*places[[i, j]].T, color="#555555" if near else "#cccccc", linewidth=1.6, zorder=1)
    for (a, b), d in zip(places, distance):
        ax.add_patch(Circle((a, b), 0.22, facecolor=["#D55E00", "#E69F00", "#56B4E9", "#ececec"][d], zorder=2,
                            edgecolor="#444444" if d < 3 else "#aaaaaa", linewidth=1))
        ax.text(a, b, d, ha="center", va="center_baseline", fontsize=10, color="white" if d == 0 else
                "black" if d < 3 else "#777777")
    for height, text in ((2.3, "0: the node that is classified"),
                         (1.5, "1: its neighbours.\nOne layer brings their features."),
                         (0.5, "2: their neighbours.\nTwo layers bring these, too."),
                         (-0.5, "3: no path of two edges.\nA GCN of two layers never sees them.")):
        ax.text(3.5, height, text, va="center", fontsize=10)
    ax.set(xlim=(-3.3, 7), ylim=(-2.7, 3.3), aspect="equal")
    ax.axis("off")
    save(figure, "hops.svg")


def text_on(color):
    return "black" if color in ("#E69F00", "#56B4E9", "#CC79A7") else "white"


def neighbourhood(ax, centre, weights, title, second_hop=False):
    """Draw a paper, its neighbours around it, and the weight that it gives to each, and to itself."""
    graph = cora()
    rows, cols, y = np.asarray(graph.adj.rows), np.asarray(graph.adj.cols), np.asarray(graph.y)
    entries = np.flatnonzero(rows == centre)
    others = sorted((e for e in entries if cols[e] != centre), key=lambda e: (y[cols[e]], cols[e]))
    own, = (e for e in entries if cols[e] == centre)
    for k, e in enumerate(others):
        angle, node = np.pi / 2 + 2 * np.pi * k / len(others), cols[e]
        a, b = np.cos(angle), np.sin(angle)
        ax.annotate("", (0.21 * a, 0.21 * b), (0.85 * a, 0.85 * b), arrowprops=dict(
            arrowstyle="-|>,head_width=0.22,head_length=0.4", color="#555555", linewidth=0.5 + 14 * weights[e],
            shrinkA=0, shrinkB=0), zorder=1)
        if second_hop:
            beyond = [j for j in cols[rows == node] if j not in (node, centre)]
            beyond, left_out = beyond[:6], len(beyond[6:])

            def place(i):  # of the i-th of them
                turn = angle + (i - (len(beyond) - 1) / 2) * 0.8 / len(others)
                return 1.62 * np.cos(turn), 1.62 * np.sin(turn)

            if left_out:
                ax.text(*place(-1.3), f"+{left_out}", va="center", fontsize=9, color="#555555")
            for i, j in enumerate(beyond):
                c, d = place(i)
                ax.plot([a, c], [b, d], color="#bbbbbb", linewidth=1, zorder=1)
                ax.scatter(c, d, s=42, c=COLORS[y[j]], edgecolors="#777777", linewidths=0.5, zorder=2)
        ax.scatter(a, b, s=520, c=COLORS[y[node]], edgecolors="#333333", linewidths=0.8, zorder=3)
        ax.text(a, b, f"{weights[e]:.2f}", ha="center", va="center", fontsize=9, zorder=4,
                color=text_on(COLORS[y[node]]))
    ax.scatter(0, 0, s=620, c=COLORS[y[centre]], edgecolors="black", linewidths=2.5, zorder=3)
    ax.text(0, 0, f"{weights[own]:.2f}", ha="center", va="center", fontsize=9, zorder=4,
            color=text_on(COLORS[y[centre]]))
    ax.set_title(title)
    blank(ax, 1.75 if second_hop else 1.25)


def spread(weights, rows):
    """For each node, how far its smallest and its largest weight are apart, as a ratio -> [N]."""
    low, high = np.full(rows.max() + 1, np.inf), np.zeros(rows.max() + 1)
    np.minimum.at(low, rows, weights)
    np.maximum.at(high, rows, weights)
    return high / low


def candidates():
    """Papers that can be drawn: six to eight neighbours, of two or three classes -> [N] bool."""
    graph = cora()
    rows, cols, y = np.asarray(graph.adj.rows), np.asarray(graph.adj.cols), np.asarray(graph.y)
    count = np.bincount(rows) - 1
    classes = np.array([len(set(y[cols[rows == node]])) for node in range(len(y))])
    return (count >= 6) & (count <= 8) & (classes >= 2) & (classes <= 3)


def attention_heads():
    from matplotlib.lines import Line2D
    graph, names = cora(), class_names()
    rows, cols, y = np.asarray(graph.adj.rows), np.asarray(graph.adj.cols), np.asarray(graph.y)
    alpha = attention(trained_gat()[0][0], graph.x, graph.adj)                                  # [E, H]
    free = attention(trained_gat(0.0, 300)[0][0], graph.x, graph.adj)
    # the paper and the head where the attention without penalty differs most
    uneven = np.stack([np.where(candidates(), spread(free[:, head], rows), 0) for head in range(8)])
    head, centre = np.unravel_index(uneven.argmax(), uneven.shape)
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.9))
    neighbourhood(axes[0], centre, np.asarray(graph.adj.values), "GCN: fixed by the degrees")
    neighbourhood(axes[1], centre, alpha[:, head], "GAT: one trained head")
    neighbourhood(axes[2], centre, free[:, head], "The same head without weight decay")
    shown = sorted(set(y[cols[rows == centre]]))
    figure.legend([Line2D([], [], marker="o", linestyle="", markersize=11, markeredgecolor="#333333", color=COLORS[c])
                   for c in shown], [names[c] for c in shown], loc="lower center", ncols=len(shown), fontsize=10)
    figure.subplots_adjust(bottom=0.12, wspace=0.02)
    save(figure, "attention.svg")
    count = np.bincount(rows)[rows][:, None]
    for name, weights in (("trained", alpha), ("without weight decay", free)):
        print(f"  {name}: 99 % of the weights lie between {np.quantile(weights * count, 0.005):.2f} and "
              f"{np.quantile(weights * count, 0.995):.2f} times the plain mean's")


def history():
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.4), sharex="col")
    for column, (name, run) in enumerate((("GCN", trained_gcn()[3]), ("GAT", trained_gat()[1]))):
        for ax, what in zip(axes[:, column], ("loss", "accuracy")):
            epochs = np.arange(1, len(run["val_loss"]) + 1)
            ax.plot(epochs, run[f"train_{what}"], color=BLUE, linewidth=1.4, label="140 training nodes")
            ax.plot(epochs, run[f"val_{what}"], color=ORANGE, linewidth=1.4, linestyle="--",
                    label="500 validation nodes")
            ax.set(ylabel=what, ylim=(0, 2.05 if what == "loss" else 1.03))
        axes[0, column].set_title(name)
        axes[1, column].set_xlabel("epoch")
    axes[0, 1].legend(loc="upper right")
    figure.subplots_adjust(wspace=0.25, hspace=0.12)
    save(figure, "history.svg")


def hidden():
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.4))
    for ax, which, title in zip(axes, ("start", "trained"), ("Before training: random weights", "After training")):
        scatter_classes(ax, in_two_dimensions(which))
        ax.set(title=title, xlabel="t-SNE 1", ylabel="t-SNE 2")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=4, markerscale=2.2)
    figure.subplots_adjust(bottom=0.2, wspace=0.1)
    save(figure, "hidden.png", dpi=100)


def confusion():
    graph, names = cora(), class_names()
    (_, apply_fun), _, params, _ = trained_gcn()
    test, C = np.asarray(graph.test), len(names)
    guess, right = np.asarray(apply_fun(params, graph.x, graph.adj).argmax(-1))[test], np.asarray(graph.y)[test]
    counts = np.zeros((C, C), int)
    np.add.at(counts, (right, guess), 1)
    share = counts / counts.sum(1, keepdims=True)
    figure, ax = plt.subplots(figsize=(6, 4.6))
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i in range(C):
        for j in range(C):
            ax.text(j, i, counts[i, j], ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
    ax.set_xticks(range(C), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(C), [f"{name} ({n})" for name, n in zip(names, counts.sum(1))])
    ax.set(xlabel="predicted class", ylabel="right class (test papers)",
           title=f"GCN: {np.trace(counts)} of {counts.sum()} test papers right")
    save(figure, "confusion.svg")


# so that no name lies on another
SHIFT = {"Rule learning": (2, -9), "Reinforcement learning": (10, 0)}


def overview():
    graph, names = cora(), class_names()
    (_, apply_fun), _, params, _ = trained_gcn()
    y = np.asarray(graph.y)
    reached = float(accuracy(apply_fun(params, graph.x, graph.adj)[graph.test], graph.y[graph.test]))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), gridspec_kw=dict(width_ratios=[1, 1.35], wspace=0.06))
    values, rows = np.asarray(graph.adj.values), np.asarray(graph.adj.rows)
    centre = np.argmax(np.where(candidates(), spread(values, rows), 0))
    neighbourhood(left, centre, values, "A paper gathers from its neighbours", second_hop=True)
    left.set_anchor("N")
    points = in_two_dimensions("trained")
    scatter_classes(right, points, size=5)
    for c, name in enumerate(names):
        a, b = np.median(points[y == c], axis=0)
        right.text(a + SHIFT.get(name, (0, 0))[0], b + SHIFT.get(name, (0, 0))[1], name, ha="center", va="center",
                   fontsize=9.5, bbox=dict(boxstyle="round,pad=0.2", facecolor="white", edgecolor=COLORS[c], alpha=0.9))
    right.axis("off")
    right.set_title(f"A GCN that saw 140 labels: {100 * reached:.1f} % of the test papers right")
    save(figure, "overview.png", dpi=140)


PICTURES = {"linear-fit": linear_fit, "cora": cora_data, "adjacency": adjacency, "hops": hops,
            "attention": attention_heads, "history": history, "hidden": hidden, "confusion": confusion,
            "overview": overview}

if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("names", choices=PICTURES, nargs="*", metavar="NAME", help=", ".join(PICTURES))
    for name in flags.parse_args().names or PICTURES:
        PICTURES[name]()

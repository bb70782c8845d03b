"""Draw the pictures of the course from real runs.

    python docs/figures.py [NAME ...]       all of them without a name

It needs matplotlib and scikit-learn, which minignn itself does not:

    pip install matplotlib scikit-learn
"""
import argparse
import functools
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from experiments import RECIPES, last_hidden, make_model, mean_cosines

from minignn import (
    GAT,
    GAT_RECIPE,
    GCN,
    accuracy,
    attention,
    evaluate,
    load_graph,
    loss_or_accuracy_rule,
    normalize_adjacency,
    train,
)
from scale.faster import faster, faster_train

DOCS = pathlib.Path(__file__).resolve().parent

# Okabe & Ito's palette, with black in place of its yellow, which is too pale on white.
# Where a colour carries meaning, a marker or a word carries it too.
COLORS = ["#E69F00", "#56B4E9", "#009E73", "#000000", "#0072B2", "#D55E00", "#CC79A7"]
MARKERS = ["o", "s", "^", "x", "D", "v", "+"]
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREY = "#8a8a8a"

plt.rcParams.update({
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 10,
    # The first that is there; where an SVG is shown, others may be.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "minignn",
    "svg.fonttype": "none",         # text stays text, not curves
    "legend.frameon": False,
})


def save(figure, name, dpi=110):
    # Without the date and the version, the same picture is the same file.
    metadata = {"Date": None} if name.endswith("svg") else {"Software": None}
    figure.savefig(
        DOCS / name, dpi=dpi, bbox_inches="tight", pad_inches=0.12, metadata=metadata)
    plt.close(figure)
    print(f"{name}: {(DOCS / name).stat().st_size / 1000:.0f} kB", flush=True)


# What several pictures share ----------------------------------------------------------


@functools.cache
def cora():
    return load_graph()


def rows_cols_labels():
    """Cora's adjacency and labels as NumPy arrays: [E], [E], [N]."""
    graph = cora()
    return np.asarray(graph.adj.rows), np.asarray(graph.adj.cols), np.asarray(graph.y)


def class_names():
    return [name.replace("_", " ").capitalize() for name in cora().class_names]


@functools.cache
def trained_gcn():
    """-> model, params at the start, params after training, history."""
    model = GCN(16, len(cora().class_names))
    init_fun, _ = model
    rng = jax.random.key(2)
    init_rng, _ = jax.random.split(rng)         # as train splits its key
    _, start = init_fun(init_rng, cora().x.shape)
    params, history = train(model, cora(), rng, log_every=0)
    return model, start, params, history


@functools.cache
def trained_gat():
    """-> the params that train returns, history, and the epoch that they are from."""
    model = GAT([8, 1], [8], len(cora().class_names))
    params, history = train(model, cora(), jax.random.key(0), log_every=0, **GAT_RECIPE)
    kept = None
    for epoch in range(1, len(history["val_loss"]) + 1):
        so_far = {name: values[:epoch].tolist() for name, values in history.items()}
        _, keep = loss_or_accuracy_rule(so_far)
        if keep:
            kept = epoch
    return params, history, kept


def unpenalised_gat(epochs):
    """The params of the same GAT after so many epochs without weight decay."""
    def keep_all(history):
        return True, True

    model = GAT([8, 1], [8], len(cora().class_names))
    recipe = GAT_RECIPE | dict(weight_decay=0.0, epochs=epochs, rule=keep_all)
    params, _ = train(model, cora(), jax.random.key(0), log_every=0, **recipe)
    return params


def gcn_logits():
    (_, apply_fun), _, params, _ = trained_gcn()
    return apply_fun(params, cora().x, cora().adj)


def hidden_layer(params):
    """What the first layer of the GCN makes of each paper: ReLU(A X W0) [N, 16]."""
    (W0,), _ = params
    graph = cora()
    return np.asarray(jax.nn.relu(graph.adj @ (graph.x @ W0)))


@functools.cache
def in_two_dimensions(which):
    """The hidden layer "start" or "trained", placed by t-SNE -> [N, 2]."""
    from sklearn.manifold import TSNE
    _, start, params, _ = trained_gcn()
    h = hidden_layer({"start": start, "trained": params}[which])
    return TSNE(init="pca", random_state=0).fit_transform(h)


def first_attention(params):
    """The attention of the GAT's first layer, in evaluation -> [E, H]."""
    W, a1, a2, _ = params[0]
    graph = cora()
    h = graph.x @ W.reshape(len(W), -1)         # [N, F] -> [N, H*D]
    h = h.reshape(-1, *a1.shape)                # -> [N, H, D]
    return np.asarray(attention(a1, a2, h, graph.adj))


def scatter_classes(ax, points, size=5):
    y = np.asarray(cora().y)
    for c, name in enumerate(class_names()):
        is_line = MARKERS[c] in "x+"
        ax.scatter(
            *points[y == c].T, s=size, c=COLORS[c], marker=MARKERS[c],
            linewidths=0.9 if is_line else 0, alpha=0.8, label=name)
    ax.set_xticks([])
    ax.set_yticks([])


def show_matrix(ax, share, texts, fontsize):
    """A matrix of numbers from 0 to 1 as shades of blue, with a text in each cell."""
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(share.shape):
        color = "white" if share[i, j] > 0.5 else "black"
        ax.text(j, i, texts[i][j], ha="center", va="center", color=color,
                fontsize=fontsize)


def name_columns(ax, names):
    ax.set_xticks(
        range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")


def blank(ax, limit):
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    ax.axis("off")


# The pictures -------------------------------------------------------------------------


def cora_data():
    rows, cols, y = rows_cols_labels()
    names = class_names()
    num_classes = len(names)
    is_edge = rows != cols
    pairs = np.zeros((num_classes, num_classes))
    np.add.at(pairs, (y[rows[is_edge]], y[cols[is_edge]]), 1)
    share = pairs / pairs.sum(1, keepdims=True)
    percent = [[f"{100 * s:.0f}" for s in row] for row in share]
    between = []                                # each pair of classes once
    for i, j in itertools.combinations(range(num_classes), 2):
        between.append((int(pairs[i, j]), names[i], names[j]))
    print("  most edges between two classes:", *sorted(between)[:-4:-1])

    figure, ax = plt.subplots(figsize=(5.6, 4.6))
    show_matrix(ax, share, percent, fontsize=9)
    name_columns(ax, names)
    sizes = np.bincount(y)
    ax.set_yticks(
        range(num_classes), [f"{name} ({n})" for name, n in zip(names, sizes)])
    ax.set(xlabel="class of its neighbours", ylabel="class of a paper (their number)",
           title="Neighbours mostly share a class (% of each row)")
    save(figure, "cora.svg")


TINY = np.array([[0, 0, 0, 1, 3],
                 [1, 2, 3, 2, 4]])


def tiny_adjacency():
    return normalize_adjacency(np.hstack([TINY, TINY[::-1]]), 5)


def adjacency():
    normalized = np.asarray(tiny_adjacency() @ jnp.eye(5))
    has_entry = normalized > 0
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.7))

    places = np.array([[0, 0], [-0.9, 0.75], [-0.9, -0.75], [0.95, 0], [1.9, 0]])
    ax = axes[0]
    for i, j in TINY.T:
        ax.plot(*places[[i, j]].T, color=GREY, linewidth=2, zorder=1)
    for i, (a, b) in enumerate(places):
        ax.add_patch(Circle(
            (a, b), 0.26, facecolor="#dceaf5", edgecolor=BLUE, linewidth=1.5, zorder=2))
        ax.text(a, b, i, ha="center", va="center", fontsize=12)
    ax.set(xlim=(-1.35, 2.3), ylim=(-1.4, 1.4), aspect="equal",
           title="Five nodes, five edges")
    ax.axis("off")

    panels = (
        (axes[1], has_entry * 1.0, "A + I, and the degrees", "{:.0f}"),
        (axes[2], normalized, "D⁻½ (A + I) D⁻½", "{:.2f}"))
    for ax, matrix, title, form in panels:
        ax.imshow(matrix, cmap="Blues", vmin=0, vmax=1.6)
        for i, j in np.ndindex(matrix.shape):
            if has_entry[i, j]:
                text, color = form.format(matrix[i, j]), "black"
            else:
                text, color = "0", "#a0a0a0"
            ax.text(
                j, i, text, ha="center", va="center", color=color, fontsize=10.5)
        ax.set(title=title, xlabel="heard: node j", ylabel="hearing: node i",
               xticks=range(5), yticks=range(5))
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
    for i, d in enumerate(has_entry.sum(1)):
        axes[1].text(4.75, i, f"d{'₀₁₂₃₄'[i]} = {d}", va="center", fontsize=10.5)
    figure.subplots_adjust(wspace=0.6)
    save(figure, "adjacency.svg")


def messages():
    tiny = tiny_adjacency()
    rows, cols, values = (np.asarray(a) for a in (tiny.rows, tiny.cols, tiny.values))
    b = np.array([4, 6, 3, 9, 2])
    fetched = b[cols]
    message = values * fetched
    added = np.bincount(rows, message)
    places = np.array([[0, 0], [-1.75, 1.3], [-1.75, -1.3], [2.2, 0], [3.5, 0]])
    # Where the text of an arrow into node 0 stands, by the arrow's source.
    beside = {0: (0.9, 0.9), 1: (-0.45, 1.3), 2: (-0.45, -1.3), 3: (1.1, -0.5)}

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    panels = (
        ("1. Fetch: b[cols]", b, lambda e: f"{fetched[e]}"),
        ("2. Multiply: the messages", b,
         lambda e: f"{values[e]:.2f} · {fetched[e]}\n= {message[e]:.2f}"),
        ("3. Add up, at all nodes: aggregate", [f"{a:.1f}" for a in added], None))
    for ax, (title, numbers, text_of) in zip(axes, panels):
        for i, j in TINY.T:
            if text_of is None or 0 not in (i, j):
                ax.plot(*places[[i, j]].T, color="#cccccc", linewidth=1.5, zorder=1)
        for i, place in enumerate(places):
            is_centre = i == 0
            ax.add_patch(Circle(
                place, 0.36, facecolor="#f6d9a8" if is_centre else "#dceaf5", zorder=2,
                edgecolor="#D55E00" if is_centre else BLUE, linewidth=1.5))
            ax.text(*place, numbers[i], ha="center", va="center", fontsize=10.5)
            ax.text(place[0], place[1] - 0.58, f"node {i}", ha="center", va="center",
                    fontsize=8.5, color="#666666")
        if text_of is not None:
            arrow = dict(arrowstyle="-|>", color="#444444", linewidth=1.5, shrinkA=15,
                         shrinkB=15)
            for entry in np.flatnonzero(rows == 0):
                source = cols[entry]
                if source == 0:                     # the self-loop
                    loop = arrow | dict(
                        connectionstyle="arc3,rad=-1.6", shrinkA=0, shrinkB=0)
                    ax.annotate("", (0.2, 0.34), (-0.2, 0.34), arrowprops=loop)
                else:
                    ax.annotate("", places[0], places[source], arrowprops=arrow)
                a, c = beside[source]
                ax.text(a, c, text_of(entry), ha="center", va="center", fontsize=9.5,
                        color="#B34700")
        ax.set(title=title, xlim=(-2.3, 4), ylim=(-2.1, 1.8), aspect="equal")
        ax.axis("off")
    parts = " + ".join(f"{m:.2f}" for m in message[rows == 0])
    axes[2].text(-0.9, 1.2, f"{parts}\n= {added[0]:.2f}", fontsize=9.5,
                 color="#B34700", va="center")
    figure.subplots_adjust(wspace=0.02)
    save(figure, "messages.svg")


def eigenvalues():
    rows, cols, _ = rows_cols_labels()
    with_loops = np.zeros(cora().adj.shape)
    with_loops[rows, cols] = 1                  # A + I
    without_loops = with_loops - np.eye(len(with_loops))

    def normalized(matrix):                     # D^-1/2 matrix D^-1/2
        d = matrix.sum(1)
        return matrix / np.sqrt(d[:, None] * d)

    before = np.linalg.eigvalsh(normalized(without_loops))
    after = np.linalg.eigvalsh(normalized(with_loops))
    panels = (
        ("D⁻½ A D⁻½: without self-loops", before, GREY),
        ("I + D⁻½ A D⁻½: the first-order filter", before + 1, ORANGE),
        ("D⁻½ (A + I) D⁻½: self-loops first, then normalised. This is Â", after, BLUE))
    figure, axes = plt.subplots(3, 1, figsize=(7.2, 5.4), sharex=True, sharey=True)
    for ax, (title, values, color) in zip(axes, panels):
        ax.hist(values, bins=np.linspace(-1.025, 2.025, 62), color=color)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set(ylabel="how many")
        ax.set_title(title, loc="left")
        ax.axvline(1, color="black", linewidth=0.8, linestyle=":")
        low, high = values.min() + 0.0001, values.max()     # no -0.00
        ax.text(1, 0.86, f"from {low:.2f} to {high:.2f}", transform=ax.transAxes,
                ha="right", fontsize=9.5)
        print(f"  {title}: {low:.3f} to {high:.3f}; "
              f"{100 * np.mean(values < 0):.0f} % below 0, "
              f"{np.sum(values < -0.999)} at -1")
    axes[2].set_xlabel("eigenvalue: by what the matrix multiplies its pattern")
    figure.subplots_adjust(hspace=0.42)
    save(figure, "eigenvalues.svg")


# The nodes of the picture of hops: the angle and the distance of each from the middle.
HOPS = [
    (0, 0),
    (90, 1), (215, 1), (330, 1),
    (60, 2), (90, 2), (120, 2), (200, 2), (235, 2), (330, 2),
    (48, 3), (75, 3), (120, 3), (195, 3), (320, 3), (343, 3)]
HOPS_EDGES = [
    (0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6), (2, 7), (2, 8), (3, 9), (2, 3),
    (4, 10), (4, 11), (6, 12), (7, 13), (9, 14), (9, 15), (5, 6)]
HOPS_TEXTS = [
    (2.3, "0: the node that is classified"),
    (1.5, "1: its neighbours.\nOne layer brings their features."),
    (0.5, "2: their neighbours.\nTwo layers bring these, too."),
    (-0.5, "3: no path of two edges.\nA GCN of two layers never sees them.")]


def hops():
    figure, ax = plt.subplots(figsize=(6.4, 4.4))
    angles, distances = np.array(HOPS).T
    turn = np.deg2rad(angles)
    places = np.stack([distances * np.cos(turn), distances * np.sin(turn)], axis=1)

    for radius in (1.5, 2.5):
        ax.add_patch(Circle(
            (0, 0), radius, fill=False, linestyle=":", edgecolor="#9a9a9a"))
    for i, j in HOPS_EDGES:
        is_near = max(distances[i], distances[j]) <= 2
        ax.plot(*places[[i, j]].T, color="#555555" if is_near else "#cccccc",
                linewidth=1.6, zorder=1)

    styles = (                                          # face, edge, text
        ("#D55E00", "#444444", "white"),
        ("#E69F00", "#444444", "black"),
        ("#56B4E9", "#444444", "black"),
        ("#ececec", "#aaaaaa", "#777777"))
    for (a, b), distance in zip(places, distances):
        face, edge, text = styles[distance]
        ax.add_patch(Circle(
            (a, b), 0.22, facecolor=face, edgecolor=edge, linewidth=1, zorder=2))
        ax.text(a, b, distance, ha="center", va="center_baseline", fontsize=10,
                color=text)
    for height, text in HOPS_TEXTS:
        ax.text(3.5, height, text, va="center", fontsize=10)
    ax.set(xlim=(-3.3, 7), ylim=(-2.7, 3.3), aspect="equal")
    ax.axis("off")
    save(figure, "hops.svg")


def text_on(color):
    return "black" if color in ("#E69F00", "#56B4E9", "#CC79A7") else "white"


def weight_in_node(ax, place, weight, color):
    ax.text(*place, f"{weight:.2f}", ha="center", va="center", fontsize=9, zorder=4,
            color=text_on(color))


def neighbourhood(ax, centre, weights, title, second_hop=False):
    """Draw a paper, its neighbours around it, and the weight that it gives to each.

    weights: [E]. Its own weight stands in the middle.
    """
    rows, cols, y = rows_cols_labels()
    entries = np.flatnonzero(rows == centre)
    own, = entries[cols[entries] == centre]
    others = entries[cols[entries] != centre]
    others = others[np.lexsort((cols[others], y[cols[others]]))]    # by class

    for k, entry in enumerate(others):
        node = cols[entry]
        color = COLORS[y[node]]
        angle = np.pi / 2 + 2 * np.pi * k / len(others)
        direction = np.array([np.cos(angle), np.sin(angle)])
        arrow = dict(
            arrowstyle="-|>,head_width=0.22,head_length=0.4", color="#555555",
            linewidth=0.5 + 14 * weights[entry], shrinkA=0, shrinkB=0)
        ax.annotate("", 0.21 * direction, 0.85 * direction, arrowprops=arrow, zorder=1)
        if second_hop:
            draw_beyond(ax, centre, node, angle, 0.8 / len(others))
        ax.scatter(
            *direction, s=520, c=color, edgecolors="#333333", linewidths=0.8, zorder=3)
        weight_in_node(ax, direction, weights[entry], color)

    color = COLORS[y[centre]]
    ax.scatter(0, 0, s=620, c=color, edgecolors="black", linewidths=2.5, zorder=3)
    weight_in_node(ax, (0, 0), weights[own], color)
    ax.set_title(title)
    blank(ax, 1.75 if second_hop else 1.25)


def draw_beyond(ax, centre, node, angle, step):
    """The neighbours of a neighbour, at most six of them, and how many are left out.

    angle: the direction of the neighbour. step: the angle from one to the next.
    """
    rows, cols, y = rows_cols_labels()
    beyond = [j for j in cols[rows == node] if j not in (node, centre)]
    shown = beyond[:6]
    left_out = len(beyond) - len(shown)

    def place(i):               # of number i
        turn = angle + (i - (len(shown) - 1) / 2) * step
        return 1.62 * np.cos(turn), 1.62 * np.sin(turn)

    if left_out:
        ax.text(*place(-1.3), f"+{left_out}", va="center", fontsize=9, color="#555555")
    for i, j in enumerate(shown):
        a, b = place(i)
        ax.plot([np.cos(angle), a], [np.sin(angle), b], color="#bbbbbb", linewidth=1,
                zorder=1)
        ax.scatter(a, b, s=42, c=COLORS[y[j]], edgecolors="#777777", linewidths=0.5,
                   zorder=2)


def class_legend(figure, classes, place):
    """Which class each colour is, in a line whose upper middle is at the place."""
    handles = []
    for c in classes:
        handles.append(Line2D(
            [], [], marker="o", linestyle="", markersize=10, markeredgecolor="#333333",
            color=COLORS[c]))
    names = class_names()
    figure.legend(handles, [names[c] for c in classes], loc="upper center",
                  bbox_to_anchor=place, ncols=len(classes), fontsize=10)


def spread(weights, rows):
    """How far each node's smallest and largest weight are apart, a ratio -> [N]."""
    low = np.full(rows.max() + 1, np.inf)
    high = np.zeros(rows.max() + 1)
    np.minimum.at(low, rows, weights)
    np.maximum.at(high, rows, weights)
    return high / low


def candidates():
    """Papers that can be drawn: six to eight neighbours, two or three classes: [N]."""
    rows, cols, y = rows_cols_labels()
    count = np.bincount(rows) - 1
    classes = []
    for node in range(len(y)):
        classes.append(len(set(y[cols[rows == node]])))
    classes = np.array(classes)
    return (count >= 6) & (count <= 8) & (classes >= 2) & (classes <= 3)


def attention_heads():
    graph = cora()
    rows, cols, y = rows_cols_labels()
    trained, _, kept = trained_gat()
    alpha = first_attention(trained)                    # [E, H]
    free = first_attention(unpenalised_gat(kept))       # [E, H]

    # the paper and the head where the attention without penalty differs most
    can_be_drawn = candidates()
    uneven = []
    for head in range(8):
        uneven.append(np.where(can_be_drawn, spread(free[:, head], rows), 0))
    head, centre = np.unravel_index(np.argmax(uneven), np.shape(uneven))

    figure = plt.figure(figsize=(10, 7.4))
    grid = figure.add_gridspec(2, 3, height_ratios=[3, 2.2], hspace=0.2, wspace=0.02)
    panels = (
        (graph.adj.values, "GCN\nfixed by the degrees"),
        (alpha[:, head], f"GAT\none head after {kept} epochs"),
        (free[:, head], "GAT\nthe same without weight decay"))
    for k, (weights, title) in enumerate(panels):
        ax = figure.add_subplot(grid[0, k])
        neighbourhood(ax, centre, np.asarray(weights), title)
    class_legend(figure, sorted(set(y[cols[rows == centre]])), (0.5, 0.46))

    ax = figure.add_subplot(grid[1, :])
    degree = np.bincount(rows)[rows]
    bins = np.linspace(0.4, 2.1, 86)
    of_centre = rows == centre
    kinds = (
        ("with weight decay, as in the paper", alpha, BLUE, "o", 0.5),
        ("without weight decay", free, ORANGE, "^", 0.2))
    for name, weights, color, marker, height in kinds:
        times_mean = weights * degree[:, None]          # 1: as much as the plain mean
        ax.hist(times_mean.ravel(), bins=bins, log=True, color=color, alpha=0.55,
                label=f"all edges and heads, {name}")
        here = times_mean[of_centre, head]
        ax.plot(here, np.full(len(here), height), marker, color=color,
                markeredgecolor="black", label=f"the head and paper above, {name}")
        low, high = np.quantile(times_mean, [0.005, 0.995])
        print(f"  {name}: 99 % of the weights lie between {low:.2f} and {high:.2f} "
              f"times the plain mean's, all between {times_mean.min():.2f} and "
              f"{times_mean.max():.2f}; above {here.min():.2f} to {here.max():.2f}")
    ax.axvline(1, color="black", linewidth=0.8, linestyle=":")
    ax.set(xlabel="weight times degree: 1 is the plain mean", ylabel="weights",
           xlim=(bins[0], bins[-1]), ylim=(0.1, None))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.legend(loc="upper right", fontsize=8.5)
    save(figure, "attention.svg")
    print(f"  weights above: {alpha[of_centre, head].round(2)} with weight decay, "
          f"{free[of_centre, head].round(2)} without")


def history():
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.4), sharex="col")
    _, _, _, gcn_history = trained_gcn()
    _, gat_history, gat_kept = trained_gat()
    runs = ("GCN", gcn_history, len(gcn_history["val_loss"])), (
        "GAT", gat_history, gat_kept)
    for column, (name, run, kept) in enumerate(runs):
        epochs = np.arange(1, len(run["val_loss"]) + 1)
        for ax, what, top in zip(axes[:, column], ("loss", "accuracy"), (2.05, 1.03)):
            ax.plot(epochs, run[f"train_{what}"], color=BLUE, linewidth=1.4,
                    label="140 training nodes")
            ax.plot(epochs, run[f"val_{what}"], color=ORANGE, linewidth=1.4,
                    linestyle="--", label="500 validation nodes")
            ax.axvline(kept, color="black", linewidth=0.8, linestyle=":")
            ax.plot(kept, run[f"val_{what}"][kept - 1], "D", color="black",
                    markersize=5, label="the params that train returns")
            ax.set(ylabel=what, ylim=(0, top))
        axes[0, column].set_title(
            f"{name}: {len(epochs)} epochs, params of epoch {kept}")
        axes[1, column].set_xlabel("epoch")
        for epoch in (50, 100, 200):
            print(f"  {name}, epoch {epoch}: accuracy on the training nodes "
                  f"{run['train_accuracy'][epoch - 1]:.2f}, on the validation nodes "
                  f"{run['val_accuracy'][epoch - 1]:.2f}")
    axes[1, 0].legend(loc="lower right")
    figure.subplots_adjust(wspace=0.25, hspace=0.12)
    save(figure, "history.svg")


def depth_runs(number, rate):
    """GCNs of so many layers: test accuracy, and the mean cosine of two papers.

    -> [20, 3], for each seed: accuracy, and of the last hidden layer the cosine in a
    class and between classes. They are the runs of

        python docs/experiments.py depth NUMBER --dropout RATE

    but for rounding, since matrices sum faster.
    """
    graph = faster(cora())
    num_classes = len(graph.class_names)
    model = make_model("depth", number, rate, num_classes)
    _, apply_fun = model
    runs = []
    for seed in range(20):
        params, _ = faster_train(
            model, graph, jax.random.key(seed), log_every=0, **RECIPES["depth"])
        metrics = evaluate(apply_fun, params, graph)
        h = last_hidden(params, graph, num_classes)
        runs.append([metrics["test_accuracy"], *mean_cosines(h, graph.y)])
    return np.array(runs)


def depth():
    layers = [1, 2, 4, 8]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.6))
    for rate, color, name in (0.5, BLUE, "dropout 0.5"), (0, ORANGE, "no dropout"):
        runs = []
        for number in layers:
            runs.append(depth_runs(number, rate))
            reached, same, different = runs[-1].mean(0)
            print(f"  {number} layers, {name}: accuracy {reached:.3f} "
                  f"± {runs[-1][:, 0].std():.3f}, cosines {same:.2f} and "
                  f"{different:.2f}", flush=True)
        runs = np.array(runs)                               # [layers, seeds, 3]
        percent, same, different = runs.mean(1).T
        left.plot(layers, 100 * percent, "-o", color=color, label=name)
        left.plot(layers, 100 * runs[:, :, 0], ".", color=color, alpha=0.5)
        right.plot(layers, same, "-o", color=color, label=f"same class, {name}")
        right.plot(layers, different, "--s", color=color, markerfacecolor="white",
                   label=f"different classes, {name}")

    # The same for the products alone: a network of k layers has k - 1 before its last.
    h = cora().x @ jnp.eye(cora().x.shape[1])               # [N, F] as an array
    products = []
    for number in range(1, 9):
        products.append(mean_cosines(h, cora().y))
        print("  {} products alone, cosines {:.2f} and {:.2f}".format(
            number - 1, *products[-1]))
        h = cora().adj @ h
    same, different = np.array(products).T
    right.plot(range(1, 9), same, "-", color=GREY, label="same class, products alone")
    right.plot(range(1, 9), different, "--", color=GREY,
               label="different classes, products alone")

    left.set(xlabel="layers", ylabel="test accuracy in %", ylim=(0, 100))
    left.legend(loc="lower left")
    right.set(xlabel="layers", ylabel="mean cosine of two papers", ylim=(0, 1.02))
    right.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8.5)
    for ax in (left, right):
        ax.set_xticks(layers)
    figure.subplots_adjust(wspace=0.3)
    save(figure, "depth.svg")


def hidden():
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.4))
    titles = "Before training: random weights", "After training"
    for ax, which, title in zip(axes, ("start", "trained"), titles):
        scatter_classes(ax, in_two_dimensions(which))
        ax.set(title=title, xlabel="t-SNE 1", ylabel="t-SNE 2")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, markerscale=2.2)
    figure.subplots_adjust(bottom=0.2, wspace=0.1)
    save(figure, "hidden.png", dpi=100)


def confusion():
    graph = cora()
    names = class_names()
    test = np.asarray(graph.test)
    guess = np.asarray(gcn_logits().argmax(-1))[test]
    right = np.asarray(graph.y)[test]
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (right, guess), 1)
    sizes = counts.sum(1)

    figure, ax = plt.subplots(figsize=(6, 4.6))
    show_matrix(ax, counts / sizes[:, None], counts, fontsize=10)
    name_columns(ax, names)
    ax.set_yticks(range(len(names)), [f"{name} ({n})" for name, n in zip(names, sizes)])
    ax.set(xlabel="predicted class", ylabel="right class (test papers)",
           title=f"GCN: {np.trace(counts)} of {counts.sum()} test papers right")
    save(figure, "confusion.svg")


def push_apart(labels):
    """Move labels up and down, a pixel at a time, until none lies on another."""
    moved = True
    while moved:
        moved = False
        for upper, lower in itertools.permutations(labels, 2):
            box = upper.get_window_extent().padded(4)
            other = lower.get_window_extent().padded(4)
            if box.overlaps(other) and box.y0 >= other.y0:
                move(upper, 1)
                move(lower, -1)
                moved = True


def move(label, pixels):
    to_pixels = label.axes.transData
    x, y = to_pixels.transform(label.get_position())
    label.set_position(to_pixels.inverted().transform((x, y + pixels)))


def overview():
    graph = cora()
    rows, _, y = rows_cols_labels()
    reached = accuracy(gcn_logits()[graph.test], graph.y[graph.test])
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.8), gridspec_kw=dict(width_ratios=[1, 1.35], wspace=0.06))

    # the paper whose weights differ most
    values = np.asarray(graph.adj.values)
    centre = np.argmax(np.where(candidates(), spread(values, rows), 0))
    neighbourhood(
        left, centre, values, "A paper gathers from its neighbours", second_hop=True)
    left.set_anchor("N")
    rows, cols, _ = rows_cols_labels()
    class_legend(figure, sorted(set(y[cols[rows == centre]])), (0.3, 0.115))
    figure.text(
        0.5, 0.03, "Left: a number, and the width of its arrow, is the weight of that "
        "paper's features in the sum.\nSmall dots are two steps away. Right: each dot "
        "is a paper. A colour is a class, on both sides.",
        ha="center", va="top", fontsize=10)

    points = in_two_dimensions("trained")
    scatter_classes(right, points, size=5)
    labels = []
    for c, name in enumerate(class_names()):
        place = np.median(points[y == c], axis=0)
        box = dict(boxstyle="round,pad=0.2", facecolor="white", edgecolor=COLORS[c],
                   alpha=0.9)
        labels.append(right.text(
            *place, name, ha="center", va="center", fontsize=9.5, bbox=box))
    right.axis("off")
    right.set_title(
        f"A GCN that saw 140 labels: {100 * reached:.1f} % of the test papers right")
    push_apart(labels)
    save(figure, "overview.png", dpi=140)


PICTURES = {
    "cora": cora_data,
    "adjacency": adjacency,
    "messages": messages,
    "eigenvalues": eigenvalues,
    "hops": hops,
    "depth": depth,
    "attention": attention_heads,
    "history": history,
    "hidden": hidden,
    "confusion": confusion,
    "overview": overview,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    names = parser.parse_args().names or list(PICTURES)
    for name in names:
        if name not in PICTURES:
            parser.error(f"{name} is no picture: choose from {', '.join(PICTURES)}")
    for name in names:
        PICTURES[name]()

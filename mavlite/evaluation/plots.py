"""The pictures of a report: where digits are lost and how long they last, which are confused, how motion
follows the rate."""

from pathlib import Path

from matplotlib.figure import Figure  # not pyplot: a notebook's backend stays as it is

DIGITS = range(10)


def save_plots(report, folder):
    """Write a PNG for each part of a report (a dict, as in report.json) that has one; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, plot in (("accuracy", plot_accuracy), ("confusion", plot_confusion),
                       ("distances", plot_distances), ("motion", plot_motion),
                       ("extension", plot_extension)):
        figure = plot(report)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=110, bbox_inches="tight")
    return paths


def plot_accuracy(report):
    """Prompt accuracy along the cascade, with its intervals; the dashed line is the score of real clips."""
    rows = [row for row in report["scores"] if row["section"] == "prompt accuracy" and row["unit"] == "clips"]
    figure = Figure(figsize=(7, 3))
    axes = figure.subplots()
    values = [row["value"] for row in rows]
    low, high = zip(*(row["interval"] for row in rows))
    errors = [[value - a for value, a in zip(values, low)], [b - value for value, b in zip(values, high)]]
    axes.barh([row["score"] for row in rows], values, xerr=errors, color="0.7", ecolor="0.2", capsize=3)
    axes.axvline(rows[0]["value"], linestyle="--", color="black")
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="clips whose pair of digits is found")
    return figure


def plot_confusion(report):
    """Left: accuracy for each pair of digits. Right: which digit was found in place of another."""
    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2)
    matrix = report["confusion"]
    share = [[count / max(1.0, sum(row)) for count in row] for row in matrix]
    for axes, table, title in ((left, report["accuracy_by_pair"], "pair found (share of clips)"),
                               (right, share, "digit asked (row), found (column)")):
        filled = [[float("nan") if x is None else x for x in row] for row in table]
        image = axes.imshow(filled, vmin=0, vmax=1, cmap="gray")
        axes.set(xticks=DIGITS, yticks=DIGITS, title=title)
        figure.colorbar(image, ax=axes, fraction=0.046)
    return figure


def plot_distances(report):
    """MM-FID and MM-FVD of generated clips between those of real ones and of known corruptions."""
    tables = [name for name in ("MM-FID", "MM-FVD") if name in report["distances"]]
    figure = Figure(figsize=(4.5 * len(tables), 3))
    all_axes = figure.subplots(1, len(tables), squeeze=False)
    for axes, name in zip(all_axes[0], tables):
        table = report["distances"][name]
        colours = ["black" if key == "generated" else "0.7" for key in table]
        axes.barh(list(table), list(table.values()), color=colours)
        axes.set(title=name, xscale="log")
        axes.invert_yaxis()
    figure.tight_layout()
    return figure


def plot_motion(report):
    """Median speed against the key-frame rate: 36 px/s is right at any rate."""
    figure = Figure(figsize=(5, 3))
    axes = figure.subplots()
    for which, marker in (("real", "o"), ("generated", "x")):
        axes.plot([m["fps"] for m in report["motion"]], [m[which]["speed"] for m in report["motion"]],
                  marker=marker, label=which)
    axes.axhline(36, linestyle="--", color="0.5")
    axes.set(xscale="log", xlabel="key frames per second", ylabel="median speed, px/s", ylim=(0, 60))
    axes.legend()
    return figure


def plot_extension(report):
    """Both digits found in each second of extended videos and of real clips as long; grey: the interval."""
    table = report["extension"]
    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    middle = [second + 0.5 for second in range(len(table["extended"]))]
    axes.fill_between(middle, *zip(*table["interval"]), color="0.85")
    axes.plot(middle, table["real"], marker="o", markersize=3, color="0.5", label="real")
    axes.plot(middle, table["extended"], marker="x", color="black", label="extended")
    axes.plot(middle, table["told"], linestyle="--", color="black", label="extended with a prompt")
    axes.axvline(table["given_seconds"], linestyle="--", color="0.5")
    axes.set(ylim=(0, 1.02), xlabel="second of the video (left of the dashed line: as given)",
             ylabel="clips with both digits")
    axes.legend()
    return figure

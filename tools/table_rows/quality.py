"""The tables of precision and of what clusters are like, and the one of the front page: as in `speed.py`."""

from functools import partial

from benchmarks.lib.cli import describe
from benchmarks.lib.methods import Published

from .cells import MISSING, Content, Rows, Table, difference, percent, pick, plain_name, share_of, spread, times

TASKS = {"outline": "shapes", "context": "context"}
# What the front page shows of every detector: a method, and the same with ENACT.
FRONT = (
    *((name, f"{name} + ENACT") for name in ("DETR", "Conditional DETR", "Anchor DETR")),
    ("PnP-DETR, 1/3", "PnP-DETR + ENACT, 1/3"),
    ("Deformable DETR",),
    ("Sparse DETR, ρ = 0.1",),
    ("DAC-DETR",),
)


def accuracy(content: Content, detector: str | None = None) -> Rows:
    """Of all detectors, or of one."""
    rows = [["demo of"] * (not detector) + ["`--clustering`", "σ", "AP", "AP50", "AP − none"]]
    for r in content["results"]:
        if detector in (None, r["detector"]):
            sigma = "" if r["sigma"] is None else f"{r['sigma']:g}"
            to_none = "" if r["clustering"] == "none" else difference(r["AP_to_none"])
            cells = [r["clustering"], sigma, *(spread(r, key) for key in ("AP", "AP50")), to_none]
            rows.append([f"`{r['detector']}`"] * (not detector) + cells)
    return rows


def fidelity(*contents: Content) -> Rows:
    """Of plain-trained detectors whose encoder is clustered as it is: what AP loses, clusters, and errors layer by layer."""
    records = [(TASKS[content["settings"]["task"]], r) for content in contents for r in content["results"]]
    rows, plain = [[""]], ["plain attention"]
    for task, r in records:
        rows[0] += [f"{plain_name(r['detector'])}, {task}: AP", "clusters M", "errors"]
        plain += [f"{r['AP_plain']:.1f}", MISSING, MISSING]
    rows.append(plain)
    for variant in dict.fromkeys(variant for _, r in records for variant in r["variants"]):
        cells = [f"`{variant}`"]
        for _, r in records:
            if not (found := r["variants"].get(variant)):
                cells += [MISSING] * 3
                continue
            loss = spread(found, "AP_to_plain").replace("-", "−")
            clusters, errors = ([layer[key] for layer in found["layers"]] for key in ("M", "error"))
            cells += [loss, ", ".join(f"{M:.0f}" for M in clusters), ", ".join(f"{error:.2f}" for error in errors)]
        rows.append(cells)
    return rows


def warmstart(content: Content) -> Rows:
    """A row per detector and way to cluster; without clusters nothing is drawn, and AP before has no spread."""
    rows = [["plain demo of", "with", "AP", f"after {content['settings']['epochs']} epoch of fine-tuning"]]
    for r in content["results"]:
        rows.append([f"`{r['detector']}`", f"`{r['variant']}`", *(spread(r, key) for key in ("AP_before", "AP_after"))])
    return rows


def regions(content: Content) -> Rows:
    rows = [["model", "training", "pixels of a region, layer by layer", "rows = columns", "by chance"]]
    for r in content["results"]:
        layers = r["layers"]
        decoupled = "mean_agreement" in layers[0]
        means = [sum(x[f"mean_{key}"] for x in layers) / len(layers) for key in ("agreement", "chance")] if decoupled else []
        lengths = ", ".join(f"{layer['mean_length']:.2f}" for layer in layers)
        rows.append([r["label"], r["state"], lengths, *(map(percent, means) if means else [MISSING] * 2)])
    return rows


def information(content: Content) -> Rows:
    rows = [["layer", "training", "inside over outside", "images that are brighter inside"]]
    return rows + [[str(r["layer"]), r["state"], f"{r['ratio']:.1f}×", percent(r["brighter"])] for r in content["results"]]


def tradeoff(content: Content) -> Rows:
    rows = [["polled", "AP", "of plain", "AP50", "multiply-adds, sampler and encoder", "all"]]
    for r in content["results"]:
        polled = "all: `--sampling none`" if r["sampling"] == "none" else share_of(r["share"])
        ratios = [times(r["ratios"][key]) for key in ("encoder_mflops", "mflops")]
        rows.append([polled, spread(r, "AP"), percent(r["AP_ratio"]), spread(r, "AP50"), *ratios])
    return rows


def compare(content: Content) -> Rows:
    """What every method reaches on the machine of the file, in equal epochs and in equal time."""
    epochs, minutes = (content["settings"][key] for key in ("epochs", "minutes"))
    rows = [["method", f"AP, {epochs} epochs", "AP50", "minutes", f"AP, {minutes:g} minutes", "epochs", "encoder MFLOPs"]]
    for r in content["results"]:
        here = r["machines"][describe(content["machine"])]
        within = [spread(here["minutes"], "AP"), f"{here['minutes']['epochs']:.0f}"] if "minutes" in here else [MISSING] * 2
        cells = [spread(r, "AP"), f"{r['AP50']:.1f}", f"{here['epochs']['minutes']:.1f}", *within]
        rows.append([r["name"], *cells, f"{1e3 * r['gflops']['encoder']:.3g}"])
    return rows


def front(cost: Content, quality: Content) -> Rows:
    """One row per detector, what ENACT makes of it behind an arrow: published precision, cost, and precision on the shapes."""
    reached_in = f"AP on the shapes, {quality['settings']['minutes']:g} minutes"
    rows = [
        ["folder", "method", "published AP on COCO", "GFLOPs, encoder", "training step (s)", "memory of a step (GiB)", reached_in]
    ]
    for names in FRONT:
        costs, qualities = ([pick(content["results"], name=name) for name in names] for content in (cost, quality))
        published = [Published(**r["published"]) for r in qualities if r["published"]]
        within = [r["machines"][describe(quality["machine"])].get("minutes") for r in qualities]
        cells = [
            [str(found.AP) for found in published],
            [f"{r['gflops']['encoder']:.3g}" for r in costs],
            [f"{r['train']:.3g}" for r in costs],
            [f"{r['memory'] / 2**30:.3g}" for r in costs],
            [spread(found, "AP") if found else MISSING for found in within],
        ]
        known, *others = map(" → ".join, cells)
        training = str(published[0]).partition(" ")[2]
        folder = qualities[0]["detector"]
        rows.append([f"[`{folder}`]({folder}/README.md)", names[0], f"{known} {training}", *others])
    return rows


FIDELITY = ("DETR-ENACT", "Anchor-DETR-ENACT", "context-Conditional-DETR-ENACT")  # detectors, and what they were trained on

TABLES = {
    "accuracy": Table(("accuracy-cpu",), accuracy),
    "accuracy-DETR-ENACT": Table(("accuracy-cpu",), partial(accuracy, detector="DETR-ENACT")),
    "accuracy-Conditional-DETR-ENACT": Table(("accuracy-cpu",), partial(accuracy, detector="Conditional-DETR-ENACT")),
    "accuracy-Anchor-DETR-ENACT": Table(("accuracy-cpu",), partial(accuracy, detector="Anchor-DETR-ENACT")),
    "fidelity": Table(tuple(f"fidelity-{name}-cpu" for name in FIDELITY), fidelity),
    "warmstart": Table(("warmstart-cpu",), warmstart),
    "regions": Table(("regions-cpu",), regions),
    "information": Table(("information-cpu",), information),
    "tradeoff": Table(("tradeoff-cpu",), tradeoff),
    "compare": Table(("compare-cpu",), compare),
    "front": Table(("compare-cost-cpu", "compare-cpu"), front),
}

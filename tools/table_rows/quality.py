"""The tables of precision and of what clusters are like: as in `speed.py`."""

from functools import partial

from .cells import MISSING, Content, Rows, Table, difference, percent, plain_name, share_of, spread, times

TASKS = {"outline": "shapes", "context": "context"}


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
    """A row per detector and clustering; without clustering nothing is drawn, and AP before has no spread."""
    rows = [["plain demo of", "`--clustering`", "AP", f"after {content['settings']['epochs']} epoch of fine-tuning"]]
    for r in content["results"]:
        rows.append([f"`{r['detector']}`", r["clustering"], *(spread(r, key) for key in ("AP_before", "AP_after"))])
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


TABLES = {
    "accuracy": Table(("accuracy-cpu",), accuracy),
    "accuracy-DETR-ENACT": Table(("accuracy-cpu",), partial(accuracy, detector="DETR-ENACT")),
    "accuracy-Conditional-DETR-ENACT": Table(("accuracy-cpu",), partial(accuracy, detector="Conditional-DETR-ENACT")),
    "accuracy-Anchor-DETR-ENACT": Table(("accuracy-cpu",), partial(accuracy, detector="Anchor-DETR-ENACT")),
    "fidelity": Table(("fidelity-cpu", "fidelity-context-cpu"), fidelity),
    "warmstart": Table(("warmstart-cpu",), warmstart),
    "regions": Table(("regions-cpu",), regions),
    "information": Table(("information-cpu",), information),
    "tradeoff": Table(("tradeoff-cpu",), tradeoff),
}

"""The tables of memory and time: a function takes the contents of results and returns rows of cells, the head first."""

from functools import partial

from benchmarks.lib.methods import METHODS as COMPARED
from benchmarks.speed.compare import COLUMNS
from tools.detectors import options as detector_options

from .cells import MISSING, Content, Rows, Table, difference, percent, pick, plain_name, share_of, spread, times

PARTS = ("clustering", "attention")  # what tells rows of a detector apart
OPTIONS = {"bf16": "--amp bf16"}  # an option of options.py is called as on the command line, but for these
METHODS = ("region", "ToMe")
ALL_MASKS = "all queries at once"


def gains(table1: Content, shares: Content, accuracy: Content) -> Rows:
    """What regions change of the plain detectors, in short; AP also with the recommended setting, where it was trained."""
    rows = [["", "training step", "memory of a step", "memory of the process", "inference", "AP on the shapes"]]
    for name in dict.fromkeys(record["detector"] for record in shares["results"]):
        chosen = {"detector": name, "clustering": "region", "attention": "fused"}
        ratios = pick(table1["results"], **chosen)["ratios_to_math"]
        sigmas = (None, detector_options(name, ["--demo"]).smoothing_sigma)
        trained = {r["clustering"]: r for r in accuracy["results"] if r["detector"] == name and r["sigma"] in sigmas}
        clustered = ", ".join(_against_none(trained[name]) for name in ("region", "region+") if name in trained)
        cells = [pick(shares["results"], **chosen)["ratio"], *(ratios[key] for key in ("step_memory", "memory", "inference"))]
        rows.append([plain_name(name), *map(times, cells), f"{spread(trained['none'], 'AP')} → {clustered}"])
    return rows


def _against_none(record: Content) -> str:
    """AP of a clustering, its name, and the difference over the seeds that the plain detector has as well."""
    to_none = f", {difference(record['AP_to_none'])}" if "AP_to_none" in record else ""
    return f"{spread(record, 'AP')} (`{record['clustering']}`{to_none})"


def detectors(table1: Content, shares: Content) -> Rows:
    """Memory and inference of table1.py, where every row has a process of its own; training of shares.py, whose rows take turns.

    What only the latter has measured has gaps.
    """
    rows = [["detector", "clusters", "attention", "N", "M", "memory", "of that, a step", "training", "inference"]]
    for step in shares["results"]:
        training = f"{step['step']:.2f} s, {times(step['ratio'])}"
        same = [r for r in table1["results"] if all(r[key] == step[key] for key in ("detector", *PARTS))]
        cells = [*[MISSING] * 4, training, MISSING]
        if same:
            [whole], ratios = same, same[0]["ratios_to_math"]
            sizes = [f"{whole[key]:.0f}" if key in whole else MISSING for key in "NM"]
            memory = [f"{whole[key] / 2**30:.2f} GiB, {times(ratios[key])}" for key in ("memory", "step_memory")]
            cells = [*sizes, *memory, training, f"{whole['inference']:.2f} s, {times(ratios['inference'])}"]
        rows.append([plain_name(step["detector"]), *(step[key] for key in PARTS), *cells])
    return rows


def shares(content: Content) -> Rows:
    """Percent of a training step."""
    records = content["results"]
    rows = [["detector", "clusters", "attention", *records[0]["shares"]]]
    return rows + [
        [plain_name(r["detector"]), *(r[key] for key in PARTS), *(f"{100 * part:.1f}" for part in r["shares"].values())]
        for r in records
    ]


def _methods(content: Content) -> dict[int, dict[str, Content]]:
    """Of attention.py: N -> method -> record."""
    found: dict[int, dict[str, Content]] = {}
    for record in content["results"]:
        found.setdefault(record["N"], {})[record["method"]] = record
    return found


def attention(content: Content) -> Rows:
    """Ratios of regions, and of the materialised matrix, to plain fused attention."""
    titles = {"forward": "forward", "forward_backward": "forward + backward", "memory": "peak memory"}
    head = ["N", "clusters M"]
    for title in titles.values():
        head += [f"{title}: region", "plain math"]
    rows = [head]
    for N, methods in _methods(content).items():
        row = [str(N), f"{methods['region']['M']:.0f}"]
        for key in titles:
            math = methods.get("plain math")
            row += [times(methods["region"]["ratios"][key]), times(math["ratios"][key]) if math else "does not fit"]
        rows.append(row)
    return rows


def attention_windows(content: Content) -> Rows:
    """Time of regions, as a ratio to that of equal windows."""
    rows = [["N", "to `window`: forward", "forward + backward", "to the loop over windows: forward", "forward + backward"]]
    for N, methods in _methods(content).items():
        region = methods["region"]
        others = [methods["window"], methods["window loop"]]
        rows.append([str(N), *(times(region[key] / other[key]) for other in others for key in ("forward", "forward_backward"))])
    return rows


def attention_plus(*contents: Content) -> Rows:
    """Clusters, time and memory of the recommended regions, as ratios to those of the paper's."""
    rows = [["layer of", "", "N", "clusters M", "forward", "forward + backward", "peak memory"]]
    for layer, content in zip(("DETR", "Anchor-DETR"), contents, strict=True):
        by_size = _methods(content)
        for name in ("region+", "region+, steps"):
            for N, methods in by_size.items():
                if name in methods:
                    region, plus = methods["region"], methods[name]
                    ratios = [times(plus[key] / region[key]) for key in ("M", "forward", "forward_backward", "memory")]
                    rows.append([layer, f"`{name}`", str(N), *ratios])
    return rows


def options(content: Content) -> Rows:
    rows = [["option", "training", "inference"]]
    for record in content["results"]:
        if record["option"] != "default":
            name = OPTIONS.get(record["option"], f"--{record['option']}")
            rows.append([f"`{name}`", *(times(record["ratios"][key]) for key in ("train", "inference"))])
    return rows


def loading(content: Content) -> Rows:
    padding, images = content["padding"], content["loading"]
    batches = {"default": "drawn at random", "--bucket": "`--bucket`"}
    rows = [["batches and workers", ""]]
    rows += [[f"padding of {padding['batch_size']} images, {name}", percent(padding[key], 1)] for key, name in batches.items()]
    tasks = ("training", "evaluation")
    return rows + [[f"{task} images per second and worker", f"{images[task]['images_per_second']:.0f}"] for task in tasks]


def hosts(content: Content) -> Rows:
    """Ratios to the plain model: time of the patched part and of the whole model, and memory that training keeps of the part."""
    head = ["model", "image (px)", "N", "M", "share of the part"]
    rows = [head + [f"{name}: {method}" for name in ("part", "whole", "memory") for method in METHODS]]
    for plain in (r for r in content["results"] if r["method"] == "plain"):
        row = [plain["model"], str(plain["size"]), str(plain["N"]), f"{plain['M']:.0f}", percent(plain["share"])]
        of_size = {r["method"]: r["ratios"] for r in content["results"] if all(r[k] == plain[k] for k in ("model", "size"))}
        rows.append(row + [times(of_size.get(method, {}).get(key)) for key in ("part", "whole", "memory") for method in METHODS])
    return rows


def cost(content: Content, detectors: tuple[str, ...]) -> Rows:
    """Parameters, multiply-adds, and images per second where these were measured."""
    records = [r for r in content["results"] if r["detector"] in detectors]
    parts = [part for part in records[0]["gflops"] if part not in ("heads", "all")]
    batches = [f"images/s at batch {size}" for size in records[0].get("images_per_second", ())]
    rows = [["model", "trained parameters (M)", "of these, in an inference", "GFLOPs", *parts, *batches]]
    for r in records:
        parameters = [f"{r['parameters'][key] / 1e6:.2f}" for key in ("trainable", "detecting")]
        gflops = [f"{r['gflops'][part]:.1f}" for part in ("all", *parts)]
        rows.append([r["name"], *parameters, *gflops, *(f"{speed:.2f}" for speed in r.get("images_per_second", {}).values())])
    return rows


def sampling(content: Content) -> Rows:
    """Ratios to DETR's encoder on the same map."""
    measured = {"forward": "forward", "forward_backward": "forward + backward", "memory": "memory"}
    head = ["map", "polled", "keys", *measured.values()]
    rows = [head + ["+ ENACT: keys", *measured.values()]]
    records = sorted(content["results"], key=lambda r: (r["N"], r["share"]))
    for plain in (r for r in records if r["encoder"] == "plain"):
        enact = pick(records, map=plain["map"], share=plain["share"], encoder="region")
        row = [f"{plain['map']}, {plain['N']} pixels", "all: DETR" if plain["share"] == 1 else share_of(plain["share"])]
        for r in (plain, enact):
            row += [f"{r['keys']:.0f}", *(times(r["ratios"][key]) for key in measured)]
        rows.append(row)
    return rows


def deformable_layer(content: Content) -> Rows:
    rows = [["image", "tokens", "forward + backward: time", "memory", "inference: time", "memory"]]
    keys = ("forward_backward", "forward_backward_memory", "forward", "forward_memory")
    for r in content["layers"]:
        if r["method"] == "this repository":
            rows.append([f"{r['height']} × {r['width']}", str(r["N"]), *(times(r["ratios"][key]) for key in keys)])
    return rows


def deformable_encoder(content: Content) -> Rows:
    records = content["encoders"]
    first, *others = records[0]["shares"]
    rows = [["ρ", "time", f"of which {first}", *others]]
    for r in records:
        parts = [percent(r["shares"][name]) for name in others]
        scoring = percent(r["shares"][first]) if r["rho"] else MISSING
        rows.append([f"{r['rho']:g}" if r["rho"] else "all tokens", f"{r['seconds']:.2f} s, {times(r['ratio'])}", scoring, *parts])
    return rows


def masks(content: Content) -> Rows:
    """Masks for the queries that need one, as a ratio to all at once."""
    rows = [["", "memory", "time"]]
    for r in content["results"]:
        if r["masks"] != ALL_MASKS:
            all_at_once = pick(content["results"], task=r["task"], part=r["part"], masks=ALL_MASKS)
            amounts = " of ".join(f"{x['memory'] / 2**20:.0f}" for x in (r, all_at_once))
            memory = f"{amounts} MiB, {times(r['ratios']['memory'])}"
            rows.append([f"{r['task']}, {r['part']}", memory, times(r["ratios"]["time"])])
    return rows


def methods(content: Content) -> Rows:
    """What every method costs on one backbone, and its published precision."""
    published = {method.name: method.published for method in COMPARED}
    rows = [["method", *COLUMNS, "published AP on COCO (backbone, epochs)"]]
    for r in content["results"]:
        rows.append([r["name"], *(cell(r) for cell in COLUMNS.values()), str(published[r["name"]] or MISSING)])
    return rows


def versions(content: Content) -> Rows:
    rows = [["detector", "clusters", "training step", "inference"]]
    return rows + [
        [r["detector"], r["clustering"], *(times(r[task]["ratio"]) for task in ("train", "infer"))] for r in content["results"]
    ]


ENACT = ("DETR-ENACT", "Conditional-DETR-ENACT", "Anchor-DETR-ENACT")
TABLES = {
    "gains": Table(("table1-cpu", "shares-cpu", "accuracy-cpu"), gains),
    "detectors": Table(("table1-cpu", "shares-cpu"), detectors),
    "shares": Table(("shares-cpu",), shares),
    "attention": Table(("attention-cpu",), attention),
    "attention-windows": Table(("attention-cpu",), attention_windows),
    "attention-plus": Table(("attention-cpu", "attention-rcda-cpu"), attention_plus),
    "options": Table(("options-cpu",), options),
    "loading": Table(("options-cpu",), loading),
    "hosts": Table(("hosts-cpu",), hosts),
    "cost": Table(("cost-cpu",), partial(cost, detectors=ENACT)),
    "cost-Sparse-DETR": Table(("cost-cpu",), partial(cost, detectors=("Sparse-DETR",))),
    "cost-DAC-DETR": Table(("cost-cpu",), partial(cost, detectors=("DAC-DETR",))),
    "cost-PnP-DETR": Table(("cost-PnP-DETR-cpu",), partial(cost, detectors=("PnP-DETR",))),
    "methods": Table(("compare-cost-cpu",), methods),
    "sampling": Table(("sampling-cpu",), sampling),
    "deformable-layer": Table(("deformable-cpu",), deformable_layer),
    "deformable-encoder": Table(("deformable-cpu",), deformable_encoder),
    "masks": Table(("masks-cpu",), masks),
    "versions": Table(("versions-cpu",), versions),
}

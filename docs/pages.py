"""Tables and pictures of the documentation, made of the repository's own files.

``write(folder)`` is called by ``conf.py`` at each build. Figures come from the JSON files of
``examples/results``, pictures from the same folders, presets from the package, measurements from
``benchmarks``; nothing is typed.
"""

import ast
import json
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
RESULTS = EXAMPLES / "results"
BENCHMARKED = ROOT / "benchmarks"

# Of which script a kept run is; all others are of the command line.
RUNS = {
    "train_mixerflow": ["digits", "cifar10-unshuffled", "cifar10-shuffled", "cifar10-fresh"],
    "maf_mnist": ["maf-mnist", "maf-mnist-zuko", "maf-mnist-6-layers"],
    "zuko_spline": ["zuko-spline"],
    "tarflow": ["tarflow"],
    "train_denseflow": ["denseflow-digits"],
    "class_conditional": ["class-conditional"],
    "hybrid_digits": ["hybrid-digits"],
    "moons_nflows": ["moons/nflows"],
    "moons_mixer": ["moons/mixer"],
}
COMMAND = "command line"

# Page to include -> what it shows: tables and pictures of kept measurements, in this order.
BENCHMARKS = {
    "loading": ["loading/results.md"],
    "speed": ["speed/results/speed-*.md", "speed/results/speed-*.png"],
    "memory": ["speed/results/memory-*.md", "speed/results/memory-*.png"],
    "maf": ["speed/results/maf-*.md"],
    "exactness": ["speed/results/exactness-*.md"],
    "scaling": ["scaling/results.md", "scaling/results.png"],
    "structured": ["scaling/likelihood.md"],
    "precision": ["precision/results.md", "precision/results.png"],
    "compatibility": ["compatibility/results.md"],
    "own_parts": ["speed/results/own-parts-*.md"],
    "parameters": ["papers/results/parameters.md"],
    "step_times": ["papers/results/step-times.md"],
    "quality": ["papers/results/quality.md"],
    **{
        f"papers_{size}_{budget}": [
            f"papers/results/{size}-{budget}/*.{kind}" for kind in ("md", "png")
        ]
        for size, budget in (("small", "short"), ("small", "long"), ("paper", "short"))
    },
    "denseflow_cost": ["denseflow/results/cost-*.md", "denseflow/results/cost-*.png"],
    "denseflow_ablation": ["denseflow/results/ablation-*.md", "denseflow/results/ablation-*.png"],
}


def write(folder):
    """Write everything that the pages include to ``folder``, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "pictures").mkdir(parents=True)
    runs = find_runs()
    for run in runs:
        run["pictures"] = copy_pictures(run, folder / "pictures")
    for name in RUNS:
        kept = [run for run in runs if run["script"] == name]
        text = "\n\n".join(map(section, kept)) if kept else "No run of it is kept yet."
        (folder / f"{name}.md").write_text(text + "\n")
    (folder / "results.md").write_text(overview(runs))
    (folder / "shuffles.md").write_text(shuffles(runs))
    (folder / "presets.md").write_text(presets())
    (folder / "denseflow_presets.md").write_text(denseflow_presets())
    (folder / "tarflow_presets.md").write_text(tarflow_presets())
    for name in BENCHMARKS:
        (folder / f"{name}.md").write_text(benchmark(name, folder / "pictures"))
    (folder / "evaluation.md").write_text(evaluation(folder / "pictures"))
    draw_layer(folder / "pictures" / "layer.png")


def evaluation(folder):
    """Figures and pictures of the kept evaluation of weights."""
    kept = RESULTS / "digits-evaluation"
    report = json.loads((kept / "evaluation.json").read_text())
    rows = {
        f"mean of {report['draws']} draws": report["bits_per_dim"],
        f"importance-weighted, {report['draws']} draws": report["importance_weighted_bits_per_dim"],
    }
    lines = ["| bits/dim | mean | standard error | worst image |", "|---|---|---|---|"]
    for name, bits in rows.items():
        figures = (f"{bits[key]:.4f}" for key in ("mean", "standard_error", "worst"))
        lines.append(f"| {name} | {' | '.join(figures)} |")
    lines += ["", "| linear probe after | cross-entropy | accuracy |", "|---|---|---|"]
    for probe in report["linear_probe"]:
        name = f"{probe['depth']}: {probe['layer']}"
        lines.append(f"| {name} | {probe['loss']:.3f} | {probe['accuracy']:.1%} |")
    for picture in sorted(kept.glob("*.png")):
        shutil.copyfile(picture, folder / f"digits-evaluation-{picture.name}")
        lines += ["", f"![{picture.stem}](/_generated/pictures/digits-evaluation-{picture.name})"]
    return "\n".join(lines) + "\n"


def benchmark(name, folder):
    """Tables of kept measurements, with a way to their figures, and pictures copied to a folder."""
    parts = []
    for path in (p for each in BENCHMARKS[name] for p in sorted(BENCHMARKED.glob(each))):
        if path.suffix == ".png":
            shutil.copyfile(path, folder / f"{name}-{path.name}")
            parts.append(f"![{path.stem}](/_generated/pictures/{name}-{path.name})")
            continue
        parts.append(path.read_text().strip())
        if path.with_suffix(".json").exists():
            figures = path.with_suffix(".json").relative_to(ROOT)
            parts.append(f"(All figures: {{download}}`{figures} </../{figures}>`.)")
    return "\n\n".join(parts or ["No measurement is kept yet."]) + "\n"


def find_runs():
    """Every kept run: where it is, its figures, and what made it."""
    scripts = {run: script for script, kept in RUNS.items() for run in kept}
    files = sorted([*RESULTS.glob("*/results.json"), *RESULTS.glob("moons/*.json")])
    runs = []
    for file in files:
        name = str(file.relative_to(RESULTS).with_suffix("")).removesuffix("/results")
        figures = json.loads(file.read_text())
        script = scripts.get(name) or (COMMAND if "recipe" in figures else None)
        if script is None:
            raise ValueError(f"{file}: expected a run that docs/pages.py knows; name it in RUNS")
        runs.append({"name": name, "file": file, "figures": figures, "script": script})
    return runs


def copy_pictures(run, folder):
    """Copy the PNG files of a run, and return their names, samples first."""
    file = run["file"]
    alone = file.stem != "results"  # several runs in one folder, told apart by the names of files
    found = [file.with_suffix(".png")] if alone else sorted(file.parent.glob("*.png"))[::-1]
    names = []
    for picture in found:
        names.append(f"{run['name'].replace('/', '-')}-{picture.name}")
        shutil.copyfile(picture, folder / names[-1])
    return names


def command(run):
    """The command line that made a run; arguments at their defaults are left out."""
    figures, folder, script = run["figures"], run["file"].parent, run["script"]
    start = f"python examples/{script}.py"
    if script == COMMAND:
        start = "nflows-mixer train"
    if (folder / "config.yaml").exists():
        return f"{start} --config {(folder / 'config.yaml').relative_to(ROOT)}"
    if "arguments" in figures:
        flags = {k.replace("_", "-"): v for k, v in figures["arguments"].items() if k != "device"}
    else:
        given = {**figures.get("recipe", {}), **figures}
        known = defaults(EXAMPLES / f"{script}.py")
        flags = {k: given[k] for k, v in known.items() if k in given and given[k] != v}
        if "data" in flags:
            flags["data"] += ".npz"
    words = [f"--{k} {_word(v)}" for k, v in flags.items() if v is not None and v != {}]
    return " ".join([start, *words])


def defaults(script):
    """The arguments of a script's ``main``, or those that its parser adds, with their defaults."""
    tree = ast.parse(script.read_text())
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "main" and node.args.args:
            values = [ast.literal_eval(value) for value in node.args.defaults]
            found = dict(zip([argument.arg for argument in node.args.args], values))
    if not found:
        names = re.findall(r'add(?:_argument)?\(\s*"--([a-z-]+)"', script.read_text())
        found = {name.replace("-", "_"): None for name in names}
    return {name: value for name, value in found.items() if name not in ("out", "overwrite")}


def _word(value):
    text = json.dumps(value) if isinstance(value, (list, dict, bool)) else str(value)
    return f"'{text}'" if re.search(r"[\s\[{]", text) else text


def bits_of(figures):
    """Bits per dimension of the reported part, and what that part is called."""
    bits = figures.get("bits_per_dim")
    if isinstance(bits, dict):
        part = list(bits)[-1]
        return bits[part], part
    return bits, "held out"


def section(run):
    """One run: its command, its table, its pictures."""
    table = run["file"].with_suffix(".md")
    if table.exists():
        text = table.read_text().strip()
    else:
        text = table_of(run)
    parts = [f"```console\n$ {command(run)}\n```", text]
    parts += [f"![{run['name']}](/_generated/pictures/{picture})" for picture in run["pictures"]]
    return "\n\n".join(parts)


def table_of(run):
    """Figures of a run that kept no results.md."""
    figures = run["figures"]
    if run["script"] == COMMAND:
        from nflows_mixer.training import table

        return table(figures).strip()
    rows = {"MixerFlow": bits_of(figures)[0], **figures["reference_models"]}
    lines = [f"| {name} | {value:.3f} |" for name, value in rows.items()]
    head = [f"| {figures['data']}, {bits_of(figures)[1]} | bits/dim |", "|---|---|"]
    return "\n".join(head + lines)


def overview(runs):
    """One table of all runs on images, one of those on points, and the runs one by one."""
    images = [run for run in runs if "bits_per_dim" in run["figures"]]
    points = [run for run in runs if "log_density" in run["figures"]]
    head = "| run | data | images to train on | split | parameters | steps | bits/dim | s |"
    lines = [head, "|---|---|--:|---|--:|--:|--:|--:|"]
    for run in images:
        f = run["figures"]
        bits, part = bits_of(f)
        shuffle = f" {f['shuffle']['mode']}ly shuffled" if f.get("shuffle") else ""
        version = f", {f['version']}" if f.get("version") else ""
        split = f"`{f['split_hash']}`" if f.get("split_hash") else "by seed"
        lines.append(
            f"| [{run['name']}](#{anchor(run)}) | {f['data']}{version}{shuffle} | "
            f"{f['train_images']:,} | {split} | {f['parameters']:,} | {steps_of(f):,} | "
            f"{bits:.3f} ({part}) | {f['train_seconds']:,.0f} |"
        )
    text = ["\n".join(lines)]
    lines = ["| run | layer | points | parameters | steps | nats per point | s |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|"]
    for run in points:
        f = run["figures"]
        lines.append(
            f"| [{run['name']}](#{anchor(run)}) | {f['layer']} | {f['train_points']:,} | "
            f"{f['parameters']:,} | {f['steps']:,} | {f['log_density']:.3f} | "
            f"{f['train_seconds']:,.0f} |"
        )
    if points:
        text += ["Two moons, log-density of held-out points:", "\n".join(lines)]
    for run in runs:
        facts = [f"- machine: {run['figures']['machine']}"]
        if "round_trip_error" in run["figures"]:
            error = run["figures"]["round_trip_error"]
            facts.append(f"- largest error of the round trip, over the pixel range: {error:.1e}")
        if "versions" in run["figures"]:
            versions = ", ".join(f"{k} {v}" for k, v in run["figures"]["versions"].items())
            facts.append(f"- versions: {versions}")
        path = run["file"].relative_to(ROOT)
        facts.append(f"- all figures: {{download}}`{path} </../{path}>`")
        text += [f"({anchor(run)})=\n## {run['name']}", section(run), "\n".join(facts)]
    return "\n\n".join(text) + "\n"


def anchor(run):
    """Name of a run's section."""
    return "run-" + run["name"].replace("/", "-")


def steps_of(figures):
    """Optimizer steps of a run."""
    return figures["steps"] if "steps" in figures else figures["arguments"]["steps"]


def shuffles(runs):
    """Runs that differ in the shuffle of the pixels alone, side by side."""
    kept = [run for run in runs if run["script"] == COMMAND]
    groups = {}
    for run in kept:
        f = run["figures"]
        same = {k: f.get(k) for k in ("data", "version", "architecture", "recipe", "seed")}
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(run)
    pairs = [group for group in groups.values() if len({_shuffle(run) for run in group}) > 1]
    if not pairs:
        return "No pair of runs is kept yet.\n"
    text = []
    for group in pairs:
        group.sort(key=lambda run: _shuffle(run) != "none")
        part = bits_of(group[0]["figures"])[1]
        lines = [f"| {group[0]['figures']['data']}, shuffle of the pixels | {part} bits/dim |"]
        lines.append("|---|--:|")
        lines += [f"| {_shuffle(run)} | {bits_of(run['figures'])[0]:.3f} |" for run in group]
        text.append("\n".join(lines))
        text += [f"**Shuffle: {_shuffle(run)}.**\n\n{section(run)}" for run in group]
    return "\n\n".join(text) + "\n"


def _shuffle(run):
    return (run["figures"].get("shuffle") or {}).get("mode", "none")


def presets():
    """The columns of the paper's Table 8 and flows of ours, with measured sizes."""
    from nflows_mixer.flows import MIXERFLOW_PRESETS, mixerflow
    from nflows_mixer.training import Recipe

    head = "| preset | image | patch | layers | width | row flows | local flows | parameters |"
    head += " learning rate | steps | batch |"
    lines = [head, "|---|---|--:|--:|--:|---|---|--:|--:|--:|--:|"]
    for name in MIXERFLOW_PRESETS:
        flow, recipe = mixerflow(name), Recipe.from_preset(name)
        spec = flow.architecture.arguments
        size = sum(p.numel() for p in flow.parameters())
        row_flow, local = spec["channel_flow"], spec["local_flow"]
        sizes = local and local.keywords
        steps = local and f"{sizes['num_steps']} steps of Glow, {sizes['hidden_channels']} channels"
        lines.append(
            f"| `{name}` | {' x '.join(map(str, spec['image_shape']))} | {spec['patch_size']} | "
            f"{spec['num_layers']} | {spec['hidden_features'] or 128} | "
            f"{getattr(row_flow, 'func', row_flow).__name__} | {steps or ''} | {size:,} | "
            f"{recipe.learning_rate:g} | "
            f"{recipe.steps:,} | {recipe.batch_size} |"
        )
    return "\n".join(lines) + "\n"


def denseflow_presets():
    """The models of the DenseFlow paper, as the package has them, with counted sizes."""
    import torch

    from nflows_mixer.flows import DENSEFLOW_PRESETS, denseflow
    from nflows_mixer.training import Recipe

    head = "| preset | in the paper | image | units x modules | noise channels | parameters |"
    lines = [head + " steps | batch |", "|---|---|---|---|---|--:|--:|--:|"]
    for name, preset in DENSEFLOW_PRESETS.items():
        with torch.device("meta"):
            flow = denseflow(name)
        spec, recipe = flow.architecture.arguments, Recipe.from_preset(name)
        size = sum(p.numel() for p in flow.parameters())
        place = preset.source.removeprefix("DenseFlow, ")
        blocks = ", ".join(f"{units} x {n}" for units, n in zip(spec["units"], spec["modules"]))
        kinds = {"block": "preconditioned", None: "white"}
        kind = kinds.get(spec["preconditioning"], spec["preconditioning"])
        noise = f"{spec['growth']}, {kind}" if spec["growth"] else "none"
        lines.append(
            f"| `{name}` | {place} | {' x '.join(map(str, spec['image_shape']))} | {blocks} | "
            f"{noise} | {size:,} | {recipe.steps:,} | {recipe.batch_size} |"
        )
    return "\n".join(lines) + "\n"


def tarflow_presets():
    """The models of TarFlow, as the package has them, with counted sizes."""
    import torch

    from nflows_mixer.flows import TARFLOW_PRESETS, tarflow
    from nflows_mixer.training import Recipe

    head = "| preset | image | patch | blocks x layers | width | parameters |"
    lines = [head + " learning rate | steps | batch |", "|---|---|--:|---|--:|--:|--:|--:|--:|"]
    for name in TARFLOW_PRESETS:
        with torch.device("meta"):
            flow = tarflow(name)
        spec, recipe = flow.architecture.arguments, Recipe.from_preset(name)
        size = sum(p.numel() for p in flow.parameters())
        lines.append(
            f"| `{name}` | {' x '.join(map(str, spec['image_shape']))} | {spec['patch_size']} | "
            f"{spec['num_blocks']} x {spec['num_layers']} | {spec['hidden_features']} | {size:,} | "
            f"{recipe.learning_rate:g} | {recipe.steps:,} | {recipe.batch_size} |"
        )
    return "\n".join(lines) + "\n"


def draw_layer(path):
    """Draw what a mixer layer does: an image, its matrix, a row and a column of it."""
    import torch
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from sklearn.datasets import load_digits

    from nflows_mixer.transforms import PatchTransform

    image = torch.tensor(load_digits().images[3], dtype=torch.float32)
    matrix, _ = PatchTransform((1, 8, 8), patch_size=2)(image[None, None])
    figure = Figure(figsize=(8.5, 3.4))
    axes = figure.subplots(1, 3, width_ratios=[8, 4, 4])
    row, column = 5, 2
    axes[0].imshow(image, cmap="gray_r")
    for at in range(0, 9, 2):
        axes[0].axhline(at - 0.5, color="tab:gray", linewidth=0.8)
        axes[0].axvline(at - 0.5, color="tab:gray", linewidth=0.8)
    top, left = 2 * (row // 4), 2 * (row % 4)
    axes[0].add_patch(_frame(Rectangle, left, top, 2, 2, "tab:orange"))
    for patch in range(16):
        x, y = 2 * (patch % 4) + column % 2, 2 * (patch // 4) + column // 2
        axes[0].add_patch(_frame(Rectangle, x, y, 1, 1, "tab:blue", 1.2))
    axes[0].set_title("image of 16 patches")
    for axis in axes[1:]:
        axis.imshow(matrix[0], cmap="gray_r", aspect="auto")
        axis.set(xlabel="channels", ylabel="patches")
    axes[1].add_patch(_frame(Rectangle, 0, row, 4, 1, "tab:orange"))
    axes[1].set_title("channel flow:\nevery row")
    axes[2].add_patch(_frame(Rectangle, column, 0, 1, 16, "tab:blue"))
    axes[2].set_title("patch flow:\nevery column")
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _frame(kind, x, y, width, height, color, linewidth=2.5):
    corner = (x - 0.5, y - 0.5)
    return kind(corner, width, height, fill=False, edgecolor=color, linewidth=linewidth)

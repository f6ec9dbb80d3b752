"""Train a DenseFlow on images, with any number of devices; evaluate it; draw samples.

    python examples/train_denseflow.py                        # handwritten digits, on a laptop
    python examples/train_denseflow.py --config denseflow-74-10

Takes the arguments of ``nflows-mixer train``, and writes the same to --out. A DenseFlow draws noise
on the way, and its likelihood is a bound: bits per dimension are given of one draw, and of the
importance-weighted mean of several, which is tighter. neighbours.png has samples beside the
training images that are nearest to them.
"""

import sys
from pathlib import Path

import torch
import yaml

from nflows_mixer import cli
from nflows_mixer.evaluation import Evaluation, evaluate_weights
from nflows_mixer.training import write_results

DRAWS = 64  # of all noise, for each held-out image


def main(argv):
    arguments = ["train", "--config", "denseflow-digits", *argv]
    out = Path(cli.build_parser().parse_args(arguments).train.out)
    if "--config" not in argv and "--data" not in argv:
        # Maps of 4 x 4 pixels of the digits are too small to share between threads.
        torch.set_num_threads(1)
    results = cli.run(arguments)
    if not results:  # of several processes the first one has them
        return
    config = yaml.safe_load((out / "config.yaml").read_text())
    report = evaluate_weights(
        out / "weights.safetensors",
        **{name: config[name] for name in ("data", "test_data", "root", "size")},
        options=Evaluation(draws=DRAWS, images=config["evaluation_images"], seed=config["seed"]),
        # Not into the folder of the run, whose files alone --overwrite deletes.
        out=out.with_name(f"{out.name}-evaluation"),
    )
    average = report["bits_per_dim"]["mean"]
    weighted = report["importance_weighted_bits_per_dim"]["mean"]
    near, usual = (report["memorisation"][name]["median"] for name in ("samples", "held_out"))
    results |= {"draws": DRAWS, "average_bits_per_dim": average}
    results |= {"importance_weighted_bits_per_dim": weighted}
    results |= {"distance_to_training_images": {"samples": near, "held-out images": usual}}
    results["notes"] = [
        f"With {DRAWS} draws for each image: {weighted:.3f} bits/dim importance-weighted, and "
        f"{average:.3f} on average.",
        "Mean squared difference to the nearest training image, median: "
        f"{near:.2f} of samples, {usual:.2f} of held-out images.",
        "",
    ]
    write_results(results, out)
    print("\n".join(results["notes"]))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Count MACs, FLOPs, parameters and activations of networks, in three conventions.

    python flops.py --model resnet18 resnet50 --image-size 224
    python flops.py --preset study

Method: the network runs on PyTorch's meta device, shapes without values, on one 3-channel image,
in evaluation mode; nothing is timed. common/cost.py says what each convention counts. A single
configuration is also shown layer by layer. FLOPs are 2 a MAC; a training step is a forward and a
backward pass of one image; weights are in fp32.

Writes to --results-dir: log.jsonl (kind flops, one row a convention). A count that the log already
has is not added again.
"""

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out
from common.base.cli import as_dict, expand_grid, parse_command_line, run_script
from common.base.config import FlopsConfig, Options
from common.base.log import Log, run_id

TOTALS = ("macs", "flops", "params", "activations", "weight_bytes", "train_step_flops")


def main(argv: Sequence[str] | None = None) -> int:
    """Count every configuration in every convention, log what is new, and print them all."""
    grid, options = parse_command_line(argv, __doc__, FlopsConfig, Options)
    from common.cost import CONVENTIONS, count_costs
    from common.models import build_on_meta

    configs, log, results = expand_grid(FlopsConfig, grid), Log(options.results_dir), []
    done = {} if options.force else log.finished("flops")
    for config, convention in product(configs, CONVENTIONS):
        settings, size = as_dict(config) | {"convention": convention}, config.image_size
        with log.failed_rows("flops", [settings]) as failed:
            model = build_on_meta(config.model, config.classes, size)
            costs = count_costs(model, (1, 3, size, size), convention)
            metrics = {"convention": convention, "input_shape": list(costs.input_shape)}
            metrics |= {name: getattr(costs, name) for name in TOTALS}
            if done.get(run_id("flops", settings), {}).get("metrics") != metrics:
                log.append("flops", settings, metrics)
            results.append((config, costs))
        for row in failed:
            label = f"{config.model} at {size}, {convention}"
            print(f"{label}: failed, {row['error']}", file=sys.stderr)
    if results:
        print_costs(results, by_layer=len(configs) == 1 and len(results) == len(CONVENTIONS))
        options.print_next()
    return int(len(results) < len(configs) * len(CONVENTIONS))


def print_costs(results: Sequence[tuple[FlopsConfig, Any]], by_layer: bool) -> None:
    """If wanted, a row a layer of one network; a row a network, input size and convention."""
    if by_layer:
        headers = ["layer", "type", "output", *(f"MACs\n{c.convention}" for _, c in results)]
        lines = []
        for layers in zip(*(costs.layers for _, costs in results), strict=True):
            first, macs = layers[0], [layer.macs for layer in layers]
            shape = "x".join(map(str, first.output_shape))
            lines.append([first.name, first.kind, shape, *macs, first.params, first.activations])
        headers += ["parameters", "activations"]
        print(tabulate(lines, headers, intfmt=",", disable_numparse=[0, 1, 2]), end="\n\n")
    headers, lines = ["model", "image\nsize", "classes", "convention", "GMACs", "GFLOPs"], []
    headers += ["training step\nGFLOPs", "parameters\nmillions", "activations\nmillions"]
    for config, costs in results:
        line = [config.model, config.image_size, config.classes, costs.convention]
        line += [f"{n / 1e9:.4f}" for n in (costs.macs, costs.flops, costs.train_step_flops)]
        line += [f"{n / 1e6:.3f}" for n in (costs.params, costs.activations)]
        lines.append([*line, f"{costs.weight_bytes / 1e6:.2f}"])
    aligned = ["left", "right", "right", "left"] + ["right"] * 6
    print(tabulate(lines, [*headers, "weights\nMB"], colalign=aligned, disable_numparse=True))


if __name__ == "__main__":
    run_script(main)

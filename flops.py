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
from collections.abc import Iterator, Sequence
from typing import Any

from tabulate import tabulate

from common.base.cli import as_dict, expand_grid, parse_command_line, run_script
from common.base.config import FLOPS_PRESETS, FlopsConfig, Options
from common.base.log import Log, run_id

TOTALS = ("macs", "flops", "params", "activations", "weight_bytes", "train_step_flops")


def count(config: FlopsConfig, log: Log, done: dict[str, Any]) -> Iterator[Any]:
    """The Costs of a configuration in each convention, logged unless the log has them; None where
    counting failed."""
    from common import cost, models

    shape = (1, 3, config.image_size, config.image_size)
    for convention in cost.CONVENTIONS:
        costs, settings = None, as_dict(config) | {"convention": convention}
        with log.failed_rows("flops", [settings]) as failed:
            model = models.build_on_meta(config.model, config.classes, config.image_size)
            costs = cost.count_costs(model, shape, convention)
            metrics = {"convention": convention, "input_shape": list(costs.input_shape)}
            metrics |= {name: getattr(costs, name) for name in TOTALS}
            if done.get(run_id("flops", settings), {}).get("metrics") != metrics:
                log.append("flops", settings, metrics)
        for row in failed:
            label = f"{config.model} at {config.image_size}, {convention}"
            print(f"{label}: failed, {row['error']}", file=sys.stderr)
        yield costs


def main(argv: Sequence[str] | None = None) -> int:
    """Count every configuration in every convention, and print them all."""
    grid, options = parse_command_line(argv, __doc__, FlopsConfig, Options, FLOPS_PRESETS)
    configs = expand_grid(FlopsConfig, grid)
    log = Log(options.results_dir)
    done = {} if options.force else log.finished("flops")
    tried = [(config, costs) for config in configs for costs in count(config, log, done)]
    results = [(config, costs) for config, costs in tried if costs]
    if len(configs) == 1 and len(results) == len(tried):
        print_layers([costs for _, costs in results])
    if results:
        print_totals(results)
    return int(len(results) < len(tried))


def print_layers(by_convention: Sequence[Any]) -> None:
    """One network, a row a layer, with the MACs of each convention."""
    headers = ["layer", "type", "output", *(f"MACs\n{costs.convention}" for costs in by_convention)]
    headers += ["parameters", "activations"]
    lines = []
    for layers in zip(*(costs.layers for costs in by_convention), strict=True):
        first, macs = layers[0], [layer.macs for layer in layers]
        shape = "x".join(map(str, first.output_shape))
        lines.append([first.name, first.kind, shape, *macs, first.params, first.activations])
    print(tabulate(lines, headers, intfmt=",", disable_numparse=[0, 1, 2]), end="\n\n")


def print_totals(results: Sequence[tuple[FlopsConfig, Any]]) -> None:
    """A row a network, input size and convention."""
    lines = [
        {
            "model": config.model,
            "image\nsize": config.image_size,
            "classes": config.classes,
            "convention": costs.convention,
            "GMACs": f"{costs.macs / 1e9:.4f}",
            "GFLOPs": f"{costs.flops / 1e9:.4f}",
            "training step\nGFLOPs": f"{costs.train_step_flops / 1e9:.4f}",
            "parameters\nmillions": f"{costs.params / 1e6:.3f}",
            "activations\nmillions": f"{costs.activations / 1e6:.3f}",
            "weights\nMB": f"{costs.weight_bytes / 1e6:.2f}",
        }
        for config, costs in results
    ]
    aligned = ["left", "right", "right", "left"] + ["right"] * 6
    print(tabulate(lines, "keys", colalign=aligned, disable_numparse=True))


if __name__ == "__main__":
    run_script(main)

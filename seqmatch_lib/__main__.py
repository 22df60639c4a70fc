"""The command line: `python -m seqmatch_lib run | evaluate | show | presets`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from seqmatch_lib.config import SCALES, RunConfig, parse_override, preset_names
from seqmatch_lib.data import load_dataset
from seqmatch_lib.errors import OutOfTime, SeqMatchError, require
from seqmatch_lib.evaluation import evaluate_sequence
from seqmatch_lib.experiment import prepare_data, run_experiment
from seqmatch_lib.methods import get_method
from seqmatch_lib.results import format_records, load_runs
from seqmatch_lib.synthetic import load_sequence

EXIT_ERROR = 2
EXIT_OUT_OF_TIME = 75  # EX_TEMPFAIL: the state is saved, the same command goes on


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors take one line, as all our errors do."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see --help", file=sys.stderr)
        sys.exit(EXIT_ERROR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    0: done; 2: an error the user can act on, told in one line; 75: out of time, the state is saved.
    """
    options = _make_parser().parse_args(arguments)
    try:
        options.command(options)
    except SeqMatchError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except OutOfTime:
        print("out of time: the state is saved, the same command goes on from here", file=sys.stderr)
        return EXIT_OUT_OF_TIME
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="seqmatch_lib", description="SeqMatch: sequential subset matching for dataset distillation")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="distil, evaluate and record one preset, or go on with it")
    run.add_argument("preset", metavar="PRESET", help="<dataset>-ipc<n>-<method>; `presets` lists them")
    run.add_argument("--scale", default="paper", choices=SCALES, help="default: paper")
    run.add_argument("--seed", type=int, default=0, help="default: 0")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for example mtt.syn_steps=20")
    run.add_argument("--results", type=Path, default=Path("paper_results"), metavar="DIR", help="default: paper_results")
    run.add_argument("--max-minutes", type=float, metavar="M", help="stop at the first checkpoint after M minutes")
    run.add_argument("--download", action="store_true", help="download the data set if it is missing")
    run.add_argument("--force", action="store_true", help="run again although there is a record")
    run.set_defaults(command=_run)

    evaluate = commands.add_parser("evaluate", help="train fresh networks on a distilled set and test them")
    evaluate.add_argument("path", type=Path, metavar="PATH", help="a .safetensors file below <results>/distilled")
    evaluate.add_argument("--networks", nargs="+", metavar="NAME", help="default: those of the set's own run")
    evaluate.add_argument("--num-networks", type=int, metavar="N", help="default: as in the set's own run")
    evaluate.add_argument("--seed", type=int, default=0, help="default: 0")
    evaluate.add_argument("--joint", action="store_true", help="train on all subsets at once instead of stage by stage")
    evaluate.set_defaults(command=_evaluate)

    show = commands.add_parser("show", help="print the accuracies of all records of a results folder")
    show.add_argument("results", type=Path, nargs="?", default=Path("paper_results"), metavar="DIR")
    show.set_defaults(command=_show)

    presets = commands.add_parser("presets", help="list the presets")
    presets.set_defaults(command=lambda options: print("\n".join(preset_names())))
    return parser


def _run(options: argparse.Namespace) -> None:
    overrides = dict(parse_override(text) for text in options.set)
    config = RunConfig.from_preset(options.preset, options.scale, options.seed, overrides)
    record = run_experiment(
        config, options.results, max_minutes=options.max_minutes, force=options.force, download=options.download
    )
    print(format_records([record]))
    print(f"record: {options.results / 'runs' / record.table / record.run_id}.json")


def _evaluate(options: argparse.Namespace) -> None:
    sequence = load_sequence(options.path)
    require("config" in sequence.metadata, f"{options.path} does not say how it was made; give a file written by `run`")
    config = RunConfig.from_dict(sequence.metadata["config"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = prepare_data(load_dataset(config.dataset), config.zca, config.select_on, device)
    require(
        data.identity["fingerprint"] == sequence.metadata["data"]["fingerprint"],
        f"{options.path} was distilled from other {config.dataset} images than those found; set SEQMATCH_DATA to them",
    )
    recipe = config.training
    if config.options is not None:
        recipe = get_method(config.base_method)(config.options).training_recipe(recipe)
    accuracies = evaluate_sequence(
        (sequence.joint() if options.joint else sequence).to(device),
        *data.test,
        data.num_classes,
        [config.network.named(name) for name in options.networks or config.evaluation.networks],
        recipe,
        options.seed,
        options.num_networks or config.evaluation.num_networks,
    )
    for name, accuracy in accuracies.items():
        print(f"{name}: {accuracy}")


def _show(options: argparse.Namespace) -> None:
    records = load_runs(options.results)
    require(bool(records), f"{options.results} holds no records; make one with `python -m seqmatch_lib run PRESET`")
    print(format_records(records))


if __name__ == "__main__":
    sys.exit(main())

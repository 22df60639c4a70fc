"""The command line: `python -m seqmatch_lib run | evaluate | export | import | show | presets | tables | notebook | …`."""

import argparse
import io
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch

from seqmatch_lib.bench.batch import Batch
from seqmatch_lib.bench.benchmark import run_benchmark
from seqmatch_lib.bench.cost import CostModel, format_cost, format_pending, trajectory_bytes
from seqmatch_lib.bench.report import format_benchmark, format_row, save_benchmark
from seqmatch_lib.data.datasets import (
    DATASETS,
    DatasetSpec,
    find_dataset,
    fit_preprocessing,
    load_dataset,
    register_dataset,
)
from seqmatch_lib.data.multi_formation import AS_STORED
from seqmatch_lib.engine.evaluation import format_accuracy
from seqmatch_lib.errors import OutOfTime, SeqMatchError, first_line, require
from seqmatch_lib.exchange.formats import FORMATS, PREPROCESSED, export_sequence, import_sequence
from seqmatch_lib.exchange.pixel_layouts import share_outside
from seqmatch_lib.front import RESULTS, config_of, evaluate, find_folder
from seqmatch_lib.runs.config import SCALES, RunConfig, config_asked_for, parse_overrides, preset_names
from seqmatch_lib.runs.experiment import record_shared_teachers, run_experiment
from seqmatch_lib.runs.listing import format_records, format_reevaluations
from seqmatch_lib.runs.pictures import preprocessing_of
from seqmatch_lib.runs.records import load_reevaluations, load_runs, record_path
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.subsets import SubsetSequence, check_sequence, load_sequence

EXECUTED = Path(RESULTS) / "executed"  # copies of all notebooks with their outputs, to be read where nothing can be run
EXIT_ERROR = 2
EXIT_OUT_OF_TIME = 75  # EX_TEMPFAIL: the state is saved, the same command goes on
GOES_ON = "the same command goes on from the last checkpoint"
NOTEBOOK_PACKAGES = "the notebook packages; in the repository: pip install -e '.[notebooks]'"
GIB = 2**30  # bytes


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors take one line, as all our errors do."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see --help", file=sys.stderr)
        sys.exit(EXIT_ERROR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    0: done; 2: an error the user can act on, told in one line; 75: out of time, the state is saved.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a ± that the locale has no sign for ends no run
    options = _make_parser().parse_args(arguments)
    try:
        _check_folder_options(options)
        options.command(options)
        sys.stdout.flush()
    except SeqMatchError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except OutOfTime:
        print("out of time: the state is saved, the same command goes on from here", file=sys.stderr)
        return EXIT_OUT_OF_TIME
    except (MemoryError, RuntimeError) as error:
        where = _out_of_memory(error)
        if where is None:
            raise
        less = "or lower network.width, mtt.batch_syn, training.batch_size or evaluation.num_networks (another run)"
        full = f"{first_line(error).rstrip('.')}. Free memory of the {where}"
        print(f"error: {full}, then {GOES_ON}; {less}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:  # the reader has seen enough: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit finds a reader
    except KeyboardInterrupt:
        is_lost = options.command is _evaluate and options.results is None
        goes_on = "nothing is kept; with --results DIR the same command would go on" if is_lost else GOES_ON
        print(f"interrupted: {goes_on}", file=sys.stderr)
        return 130
    return 0


def _out_of_memory(error: Exception) -> str | None:
    """Returns which memory an error says is too small, that of the GPU or of the machine; None for any other error."""
    if isinstance(error, torch.OutOfMemoryError):
        return "GPU"
    texts = ("DefaultCPUAllocator", "Storage size calculation overflowed")
    return "machine" if isinstance(error, MemoryError) or any(text in str(error) for text in texts) else None


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="seqmatch_lib", description="SeqMatch: sequential subset matching for dataset distillation")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for add in (_add_runs, _add_sets, _add_results, _add_predictions):
        add(commands)
    return parser


def _add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(command=run)
    return command


def _add_runs(commands: Any) -> None:
    """Adds the commands that compute: a run, the teachers that runs share."""
    run = _add_command(commands, "run", _run, "distil, evaluate and record one preset, or go on with a stopped run")
    _add_preset_arguments(run)
    _add_results_argument(run)
    _add_minutes_argument(run)
    run.add_argument("--download", action="store_true", help="download the data set if it is missing")
    again = "discard the record and run again; an unfinished run goes on (delete <results>/state/<run id> to begin it afresh)"
    run.add_argument("--force", action="store_true", help=again)
    _add_folder_arguments(run, of_set=False)

    teachers = _add_command(commands, "teachers", _teachers, "train the teachers of a preset's first stage, which runs share")
    _add_preset_arguments(teachers)
    _add_results_argument(teachers)
    _add_folder_arguments(teachers, of_set=False)
    _add_minutes_argument(teachers)


def _add_sets(commands: Any) -> None:
    """Adds the commands for distilled sets: evaluate, export, import."""
    evaluate = _add_command(commands, "evaluate", _evaluate, "train fresh networks on a distilled set and test them")
    evaluate.add_argument("path", type=Path, metavar="PATH", help="a .safetensors file in distilled/ or selected/")
    evaluate.add_argument("--networks", nargs="+", metavar="NAME", help="architectures; default: those of the set's own run")
    evaluate.add_argument("--num-networks", type=int, metavar="N", help="per architecture; default: as in the set's own run")
    evaluate.add_argument("--seed", type=int, default=0, help="default: 0")
    evaluate.add_argument("--joint", action="store_true", help="train on all subsets at once instead of stage by stage")
    evaluate.add_argument("--random", action="store_true", help="also train on the same number of random real images")
    _add_set_argument(evaluate, "training.epochs=600")
    evaluate.add_argument("--results", type=Path, metavar="DIR", help="keep a record in <DIR>/reevaluations")
    _add_minutes_argument(evaluate)
    _add_folder_arguments(evaluate, of_set=True)

    export = _add_command(commands, "export", _export, "write a distilled set in the layout of another code, or as pictures")
    export.add_argument("path", type=Path, metavar="PATH", help="a .safetensors file in distilled/ or selected/")
    export.add_argument("--to", required=True, choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS))
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder for the files")
    _add_folder_arguments(export, of_set=True)

    import_ = _add_command(commands, "import", _import, "read a distilled set in the layout of another code, for `evaluate`")
    import_.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="folder of the set, or of each subset in order")
    import_.add_argument("--from", dest="kind", required=True, choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS))
    import_.add_argument("--preset", required=True, metavar="PRESET", help="it gives the data set, ipc and method")
    import_.add_argument("--scale", default="paper", choices=SCALES, help="of the training of networks; default: paper")
    _add_set_argument(import_, "zca=false")
    import_.add_argument("--lr", type=float, nargs="+", default=[], metavar="LR", help="one step size, or one for each subset")
    import_.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    _add_folder_arguments(import_, of_set=False)


def _add_results(commands: Any) -> None:
    """Adds the commands that read records: all of them, as tables, in notebooks."""
    show = _add_command(commands, "show", _show, "print the accuracies of all runs and re-evaluations of a results folder")
    show.add_argument("results", type=Path, nargs="?", default=RESULTS, metavar="DIR")

    text = "write the paper's tables and figures, which show presets; `show`, and sm.records in Python, show every run"
    tables = _add_command(commands, "tables", _tables, text)
    _add_results_argument(tables)
    tables.add_argument("--readme", action="store_true", help="print the README's table of results instead")
    tables.add_argument("--pending", action="store_true", help="list the cells without a record instead")
    tables.add_argument("--scale", choices=SCALES, help="of the pending cells; default: paper")

    notebook = _add_command(commands, "notebook", _notebook, "execute a notebook; a parameter it does not have is an error")
    notebook.add_argument("path", type=Path, nargs="?", metavar="PATH", help="for example notebooks/20_ablation_k.ipynb")
    notebook.add_argument("--all", action="store_true", help=f"all notebooks, parameters unchanged, into {EXECUTED}")
    notebook.add_argument("--out", type=Path, metavar="PATH", help="the executed copy; default: build/executed/<name>")
    notebook.add_argument("--html", action="store_true", help="also write the copy as an HTML page")
    _add_set_argument(notebook, "scale=reduced")


def _add_predictions(commands: Any) -> None:
    """Adds the commands for before a run: list the presets, plan a batch, measure the machine, predict the cost."""
    _add_command(commands, "presets", lambda options: print("\n".join(preset_names())), "list the presets")

    plan = _add_command(
        commands, "plan", _plan, "list the runs that a batch (`make tables`) has yet to make, with time and memory"
    )
    plan.add_argument("--scale", default="smoke", help=f"{', '.join(SCALES)}; default: smoke")
    for name, others in (("datasets", "presets"), ("presets", "datasets")):
        plan.add_argument(f"--{name}", nargs="+", metavar="NAME", help=f"{name} of the batch, instead of {others}")
    plan.add_argument("--seeds", nargs="+", default=[0], metavar="N", help="default: 0")
    plan.add_argument("--results", metavar="DIR", help="default: build/<scale>")

    bench = _add_command(commands, "bench", _bench, "measure speed, memory and exactness of the engines on this machine")
    quick = "small networks only, under three minutes on two CPU cores; on a GPU only those of width 128"
    bench.add_argument("--quick", action="store_true", help=quick)
    _add_results_argument(bench)

    cost = _add_command(commands, "cost", _cost, "predict operations, seconds and memory of a preset from a benchmark")
    _add_preset_arguments(cost)
    cost.add_argument("--threads", type=int, metavar="N", help="threads of the run; default: those of torch")
    cost.add_argument("--benchmark", type=Path, metavar="FILE", help="default: the newest below <results>/benchmarks")
    _add_results_argument(cost)
    cost.add_argument("--image-size", type=int, metavar="PIXELS", help="image side of another data set; default: the preset's")
    cost.add_argument("--num-classes", type=int, metavar="N", help="classes of another data set")
    cost.add_argument("--train-images", type=int, metavar="N", help="training images of another data set")


def _add_preset_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("preset", metavar="PRESET", help="<dataset>-ipc<n>-<method>; `presets` lists them")
    command.add_argument("--scale", default="paper", choices=SCALES, help="default: paper")
    command.add_argument("--seed", type=int, default=0, help="default: 0")
    _add_set_argument(command, "mtt.syn_steps=20")


def _add_set_argument(command: argparse.ArgumentParser, example: str) -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"change a setting, for example {example}"
    )


def _add_results_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help=f"folder of results; default: {RESULTS}")


def _add_minutes_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument("--max-minutes", type=float, metavar="M", help="stop at the first checkpoint after M minutes")


def _add_folder_arguments(command: argparse.ArgumentParser, of_set: bool) -> None:
    """Adds the options for a folder of your own images: as a new data set, or as the one that a set was distilled from."""
    command.add_argument(
        "--images", type=Path, metavar="FOLDER", help="your own images, FOLDER/train/<class>/, as the data set"
    )
    default = "that of the distilled set" if of_set else "their own"
    command.add_argument("--image-size", type=int, metavar="PIXELS", help=f"side they are resized to; default: {default}")
    if not of_set:
        command.add_argument("--name", help="name of your images in records; default: that of their folder")


def _check_folder_options(options: argparse.Namespace) -> None:
    """Raises ConfigError if options describe a folder of images that was not given."""
    described = "images" in options and (options.image_size, getattr(options, "name", None)) != (None, None)
    require(not described or options.images is not None, "--image-size and --name describe your images; give --images too")


def _read_config(options: argparse.Namespace) -> RunConfig:
    overrides = parse_overrides(options.set)
    if getattr(options, "images", None) is not None:
        require("dataset" not in overrides, "--images gives the data set, and --name names it; leave out --set dataset=…")
        spec = DatasetSpec.from_folder(options.images.resolve(), options.image_size, options.name)
        register_dataset(spec)
        overrides = {"dataset": spec.name, "zca": False} | overrides
    make = config_asked_for if options.command is _run else RunConfig.from_preset  # an imported set may be divided in any way
    return make(options.preset, options.scale, getattr(options, "seed", 0), overrides)


def _run(options: argparse.Namespace) -> None:
    config = _read_config(options)
    Budget(options.max_minutes)  # a wrong number is told before what the run takes
    if options.force or not record_path(options.results, config).is_file():
        _announce_hours(config)
        _announce_disk(config, options.results)
    record = run_experiment(
        config, options.results, max_minutes=options.max_minutes, force=options.force, download=options.download
    )
    print(format_records([record]))
    print(f"record: {record_path(options.results, record)}")


def _announce_hours(config: RunConfig) -> None:
    """Says on stderr how long a run will take, if a committed benchmark predicts an hour or more."""
    try:
        model = CostModel.load(Path(RESULTS), device="cuda" if torch.cuda.is_available() else "cpu")
        hours = sum(model.predict(config).values()) / 3600
    except SeqMatchError:  # no benchmark of such a device, or one that does not cover the run
        return
    if hours >= 1:
        stop = "Ctrl-C stops it, and the same command goes on from there. --max-minutes sets a limit."
        takes = f"takes about {hours:,.0f} hours, predicted for {model.machine}"
        print(f"{config.preset} at scale {config.scale} {takes}; {stop}", file=sys.stderr)


def _announce_disk(config: RunConfig, results: Path) -> None:
    """Says on stderr what the teachers of a run take on disk, if that is a GiB or more, and whether there is room for them."""
    needed = trajectory_bytes(config, find_dataset(config.dataset)) / GIB
    if needed < 1:
        return
    folder = results / "teachers" / config.dataset
    there = sum(path.stat().st_size for path in folder.glob("*/*.npy")) / GIB  # perhaps those of other runs
    free = shutil.disk_usage(next(path for path in folder.absolute().parents if path.is_dir())).free / GIB
    short = "; that is too little: free some, or give --results on a larger disk" if needed > there + free else ""
    takes = f"take {needed:.1f} GiB in {folder}, which holds {there:.1f} GiB of teachers"
    print(f"the teachers of {config.preset} {takes}; {free:,.1f} GiB are free{short}", file=sys.stderr)


def _evaluate(options: argparse.Namespace) -> None:
    dataset = None if options.images is None else load_dataset(_find_images(options, load_sequence(options.path)))
    changes = parse_overrides(options.set)
    for name in ("num_networks", "networks"):
        twice = getattr(options, name) is not None and f"evaluation.{name}" in changes
        require(not twice, f"--{name.replace('_', '-')} and --set evaluation.{name} are both given; give one of them")
    if options.num_networks is not None:
        changes["evaluation.num_networks"] = options.num_networks
    reevaluation = evaluate(
        options.path, options.networks, options.joint, options.random, options.seed, changes, dataset, options.results,
        options.max_minutes,
    )  # fmt: skip
    for prefix, accuracies in (("", reevaluation.accuracy), ("random real images, ", reevaluation.random_baseline or {})):
        for name, accuracy in accuracies.items():
            print(f"{prefix}{name}: {format_accuracy(accuracy)}")
    if options.results is not None:
        print(f"record: {reevaluation.path(options.results)}")


def _find_images(options: argparse.Namespace, sequence: SubsetSequence) -> DatasetSpec:
    """Returns the data set that a distilled set was made from: by its name, or from a folder, whatever that is called."""
    config = config_of(sequence, options.path)
    if options.images is None:
        return find_dataset(config.dataset)
    registered = DATASETS.get(config.dataset)
    problem = f"{options.path} was distilled from {config.dataset}, not from images of your own"
    is_own = registered is None or registered.folder is not None
    require(is_own, f"{problem}; leave out --images, or import it with them")
    sides = set(sequence.subsets[0].images.shape[2:])
    size = sides.pop() if options.image_size is None and len(sides) == 1 else options.image_size
    return DatasetSpec.from_folder(options.images.resolve(), size, config.dataset)


def _export(options: argparse.Namespace) -> None:
    sequence = load_sequence(options.path)
    spec = _find_images(options, sequence)
    preprocessing = preprocessing_of(sequence, config_of(sequence, options.path), spec)
    check_sequence(sequence, str(options.path), spec.shape, spec.num_classes)
    names = sequence.metadata.get("class_names") or [str(label) for label in range(spec.num_classes)]
    written = export_sequence(sequence, options.to, options.out, preprocessing, names)
    if options.to in ("parquet", "folder"):
        share = share_outside(sequence, preprocessing)
        print(f"clipped: {100 * share:.1f} % of the values, which lie beyond black or white; the .safetensors file keeps them")
    print(f"{len(written)} files in {options.out}")


def _import(options: argparse.Namespace) -> None:
    config = _read_config(options)
    spec, lrs, method = find_dataset(config.dataset), options.lr, config.options
    formation, is_preprocessed = AS_STORED, options.kind in PREPROCESSED
    preprocessing = None if is_preprocessed else fit_preprocessing(spec, config.zca)
    if options.kind == "idc":  # its files say neither
        lrs = lrs or [getattr(method, "syn_lr", config.evaluation.real_lr)]
        formation = getattr(method, "formation", AS_STORED)
    sequence = import_sequence(
        options.paths, options.kind, spec, preprocessing, config.subset_ipcs, config.as_dict(), lrs, formation
    )
    sequence.save(options.out)
    if is_preprocessed:
        taken, other = ("ZCA whitened", "false") if config.zca else ("normalised and not ZCA whitened", "true")
        print(f"notice: the images are taken as {taken}; if they are not, import them with --set zca={other}", file=sys.stderr)
    print(f"imported: {options.out}")


def _show(options: argparse.Namespace) -> None:
    runs, again = load_runs(options.results), load_reevaluations(options.results)
    _require_records([*runs, *again], options.results)
    tables = [format_records(runs)] * bool(runs) + [format_reevaluations(again)] * bool(again)
    print("\n\n".join(tables))


def _require_records(records: Sequence[Any], results_dir: Path) -> None:
    """Raises ConfigError if a folder has no records, for example because its name is mistyped."""
    require(bool(records), f"{results_dir} holds no records; make one with `python -m seqmatch_lib run PRESET`")


def _bench(options: argparse.Namespace) -> None:
    result = run_benchmark(options.quick, report=lambda table, row: print(format_row(table, row), file=sys.stderr, flush=True))
    path = save_benchmark(result, options.results / "benchmarks")
    print(format_benchmark(result))
    print(f"\nrecord: {path}")
    if find_spec("seaborn") is None:
        print(f"no figures: they need {NOTEBOOK_PACKAGES}")
        return
    from seqmatch_lib.report.figures import plot_benchmark, save_figure, set_style

    set_style()
    print("figures:", *save_figure(plot_benchmark(result), path.with_suffix("")))


def _tables(options: argparse.Namespace) -> None:
    require(not (options.pending and options.readme), "--readme and --pending print different things; give one of them")
    require(options.pending or options.scale is None, "--scale is that of pending cells; give --pending, too, or leave it out")
    if options.pending:
        print(format_pending(options.scale or "paper", CostModel.load(options.results)))
        return
    require(find_spec("pandas") is not None, f"tables need {NOTEBOOK_PACKAGES}")
    from seqmatch_lib.report.charts import write_figures
    from seqmatch_lib.report.evidence import Evidence
    from seqmatch_lib.report.tables import load_published, published_path, readme_table, write_tables

    evidence = Evidence.load(options.results)
    _require_records(evidence.runs, options.results)
    has_own = published_path(options.results).is_file()
    published = load_published(options.results if has_own else find_folder(Path(RESULTS) / "published").parent)
    if options.readme:
        print(readme_table(evidence, published), end="")
        return
    written = write_tables(evidence, published, options.results) + write_figures(evidence, published, options.results)
    print("\n".join(map(str, written)))


def _notebook(options: argparse.Namespace) -> None:
    require(find_spec("papermill") is not None, f"notebooks need {NOTEBOOK_PACKAGES}")
    from seqmatch_lib.report.notebooks import list_copies, run_notebook
    from seqmatch_lib.report.pages import export_html

    require(options.all != (options.path is not None), "give the PATH of one notebook, or --all")
    if options.all:
        message = f"--all executes notebooks with their own parameters, into {EXECUTED}; leave out --out and --set"
        require(not (options.out or options.set), message)
        notebooks = {EXECUTED / f"{name}.ipynb": copy for name, copy in list_copies("notebooks").items()}
        require(bool(notebooks), "there is no folder notebooks/ here; use --all in a checkout of the repository")
    else:
        out = options.out or Path("build") / "executed" / options.path.name
        notebooks = {out: (options.path, parse_overrides(options.set))}
    for out, (path, parameters) in notebooks.items():
        run_notebook(path, out, parameters)
        print(f"executed: {out}")
        if options.html:
            print(f"open {export_html(out)}")


def _teachers(options: argparse.Namespace) -> None:
    folder = record_shared_teachers(_read_config(options), options.results, max_minutes=options.max_minutes)
    print(f"teachers: {folder}")


def _plan(options: argparse.Namespace) -> None:
    names = ("scale", "datasets", "presets", "seeds", "results")
    print(Batch.read({name: getattr(options, name) for name in names}).plan())


def _cost(options: argparse.Namespace) -> None:
    for name in ("threads", "image_size", "num_classes", "train_images"):
        value, option = getattr(options, name), f"--{name.replace('_', '-')}"
        least = 2 if name == "num_classes" else 1
        require(value is None or value >= least, f"{option} {value} must be at least {least}")
    config = _read_config(options)
    model = CostModel.load(options.results, options.benchmark)
    dataset = find_dataset(config.dataset)
    changes = {"num_classes": options.num_classes, "train_size": options.train_images}
    if options.image_size is not None:
        changes["shape"] = (dataset.shape[0], options.image_size, options.image_size)
    dataset = replace(dataset, **{name: value for name, value in changes.items() if value is not None})
    print(format_cost(config, dataset, model, options.threads))


if __name__ == "__main__":
    sys.exit(main())

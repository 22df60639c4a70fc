"""Records of the ablation of order and division, `notebooks/21_ablation_order.ipynb`: one a seed of distillation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.records import describe_code, describe_environment, load_fields
from seqmatch_lib.store.files import write_json

SCHEMA = 1


@dataclass(frozen=True)
class OrderRecord:
    """What sets of equal size, divided and ordered in other ways, are worth.

    Args:
        schema: version of this format.
        dataset: and `ipc`, `scale`, `seed`: of the SeqMatch run that the others are compared with.
        config: of that run.
        accuracy: set -> accuracy in per cent, one a network.
        device: and all that follows: as in `RunRecord`.
    """

    schema: int
    dataset: str
    ipc: int
    scale: str
    seed: int
    config: dict[str, Any]
    accuracy: dict[str, list[float]]
    device: str
    device_name: str
    threads: int
    torch: str
    python: str
    git_commit: str
    dirty: bool

    @property
    def method(self) -> str:
        """The sequence that the others are compared with, for example seqmatch_mtt."""
        return self.config["method"]


def save_order(
    config: RunConfig, accuracy: Mapping[str, Sequence[float]], device: torch.device, results_dir: Path | str
) -> Path:
    """Writes `results_dir/order/<run_id>.json`, named by the SeqMatch run; returns the path.

    Args:
        config: of the SeqMatch run.
        accuracy: set -> accuracy in per cent, one a network.
        device: that networks were trained on.
        results_dir: of all records.
    """
    commit, dirty = describe_code()
    record = OrderRecord(
        schema=SCHEMA,
        dataset=config.dataset,
        ipc=config.ipc,
        scale=config.scale,
        seed=config.seed,
        config=config.as_dict(),
        accuracy={name: [round(value, 4) for value in found] for name, found in accuracy.items()},
        **describe_environment(device),
        git_commit=commit,
        dirty=dirty,
    )
    path = Path(results_dir) / "order" / f"{config.run_id}.json"
    write_json(path, asdict(record))
    return path


def load_orders(results_dir: Path) -> list[OrderRecord]:
    """Reads all of them below a results folder, sorted by file name.

    Raises:
        StorageError: one is damaged, or of another schema version.
    """
    paths = sorted((results_dir / "order").glob("*.json"))
    return [OrderRecord(**load_fields(OrderRecord, path, SCHEMA, "run 21_ablation_order again")) for path in paths]

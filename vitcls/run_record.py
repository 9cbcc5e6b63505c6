"""What a fit writes into its run folder when its training begins."""

from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from vitcls import records, sessions, tracking
from vitcls.together import check_same

SHARED_RUN = "Put the run folder (--trainer.default_root_dir) on a disk that all machines see, or copy it to each."


class RunRecord(SaveConfigCallback):
    """Writes config.yaml and splits.json of a fit, right before its first step and not earlier.

    A resume that is refused, or has nothing left to train, must leave the run's own record alone.
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Namespace,
        run: Path | None = None,
        data_of: Path | None = None,
        starts_from: str = "none",
    ) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self._starts_from = starts_from
        self._run = run
        self._data_of = data_of

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Where the data is to be that of an earlier run, check that it is; all processes go on from the same."""
        check_same("The checkpoint to go on from", self._starts_from, SHARED_RUN)
        if self._data_of is not None:
            records.check_same_data(self._data_of, trainer.datamodule.splits)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights are loaded and there is something to train."""
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")
            if self._run is not None:
                sessions.write_start(self._run)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write both; earlier ones of a resumed run are kept beside them."""
        if stage != "fit" or self._run is None:
            return
        text = self.parser.dump(self.config, skip_none=False)
        tracking.keep(trainer.loggers, self._run, text)
        records.write_start(self._run, text, trainer.datamodule.splits, trainer.datamodule.hparams)  # type: ignore[attr-defined]

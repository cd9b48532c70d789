"""Fitting on a Dask cluster: the parameters, the rows and the file are those of a local training.

The rows are cut into one run of consecutive rows per worker and sent there; bins are found together
and gradient histograms summed over all workers. The edges of the bins come from merged sketches, so
the trees are not those of a local training to the bit: they differ from them as those of the same
rows in another order do. One cluster gives equal bytes for equal rows. No worker writes anything.

Dask's wire format lets whoever reaches the scheduler run code on it, on the workers and here: use
only clusters of your own, over TLS where others share the network.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hedge_pipeline.learning.training import (
    TrainingFailed,
    TrainingPlan,
    check_classes,
    native_xgboost,
)

if TYPE_CHECKING:
    import numpy as np
    import xgboost

    from hedge_pipeline.learning.dataset import Block, TrainingSet

log = logging.getLogger(__name__)

INSTALL = (
    "HEDGE_TRAIN_BACKEND=dask needs Dask, which is not installed: pip install "
    "'dask>=2026.8' 'distributed>=2026.8' (or the extra hedge-pipeline[dask])"
)
_LOOK_SECONDS = 1.0
_PATIENCE_SECONDS = 30.0


class _WorkerLost(RuntimeError):
    """A worker that held rows is gone."""


@dataclass(frozen=True)
class DaskTrainer:
    """Fits training sets on the cluster of a scheduler; see `training.fit`.

    Attributes:
        address: of the scheduler, tcp://host:8786 or tls://host:8786.
        attempts: how often a training is begun before it fails because workers were lost.
        connect_seconds: how long the scheduler has to answer, and a worker to appear.
        gather_seconds: how long workers wait for each other before a training.
    """

    address: str
    attempts: int = 3
    connect_seconds: float = 10.0
    gather_seconds: int = 60

    def __call__(self, data: TrainingSet, plan: TrainingPlan) -> tuple[bytes, xgboost.Booster]:
        """Fits one candidate; returns its UBJ bytes and the booster.

        If a worker is lost the training begins anew on those that are left.

        Raises:
            ValueError: one class only, or no rows.
            TrainingFailed: Dask is not installed, the scheduler does not answer, it has no workers,
                workers were lost in every attempt, or XGBoost failed.
        """
        check_classes(data)
        native_xgboost()
        try:
            import distributed  # noqa: F401
            import xgboost.dask  # noqa: F401
        except ImportError:
            raise TrainingFailed(INSTALL) from None
        booster = asyncio.run(self._train(data, plan))
        return bytes(booster.save_raw("ubj")), booster

    async def _train(self, data: TrainingSet, plan: TrainingPlan) -> xgboost.Booster:
        for attempt in range(1, self.attempts + 1):
            try:
                async with await self._connected() as client:
                    return await self._attempt(client, data, plan)
            except _WorkerLost as error:
                log.warning("%s; attempt %d of %d", error, attempt, self.attempts)
        raise TrainingFailed(
            f"workers of the Dask cluster at {self.address} were lost in {self.attempts} attempts; "
            "nothing was written, look at their logs"
        )

    async def _connected(self) -> Any:
        import distributed

        client = distributed.Client(
            self.address, asynchronous=True, timeout=self.connect_seconds, set_as_default=False
        )
        try:
            return await client
        except (OSError, ValueError, TimeoutError) as error:
            raise TrainingFailed(
                f"the Dask scheduler at {self.address} (HEDGE_DASK_SCHEDULER) does not answer: "
                f"{_first_line(error)}"
            ) from error

    async def _attempt(self, client: Any, data: TrainingSet, plan: TrainingPlan) -> xgboost.Booster:
        workers = await self._workers(client)
        with client.as_current():  # parts of xgboost.dask ask for it
            work = asyncio.create_task(_fit(client, workers, data, plan, self.gather_seconds))
        try:
            await _finished(client, workers, work)
            return work.result()
        except _WorkerLost:
            raise
        except Exception as error:  # Dask raises whatever the worker did
            await self._tell(client, workers, error)
            raise
        finally:
            work.cancel()

    async def _tell(self, client: Any, workers: list[str], error: Exception) -> None:
        """Raises what the error means."""
        lost = await _lost(client, workers, self.address)
        if lost:
            raise _WorkerLost(f"{lost} of {len(workers)} Dask workers lost in a training")
        raise TrainingFailed(
            f"the training on the Dask cluster at {self.address} failed: {_first_line(error)}"
        ) from error

    async def _workers(self, client: Any) -> list[str]:
        """Addresses of the workers in order of name; equal clusters get equal rows."""
        deadline = asyncio.get_running_loop().time() + self.connect_seconds
        while True:
            present = (await client.scheduler.identity())["workers"]
            if present:
                return sorted(present, key=lambda x: (str(present[x]["name"]), x))
            if asyncio.get_running_loop().time() > deadline:
                raise TrainingFailed(f"the Dask cluster at {self.address} has no workers")
            await asyncio.sleep(_LOOK_SECONDS)


async def _lost(client: Any, workers: list[str], address: str) -> int:
    try:
        present = (await client.scheduler.identity())["workers"]
    except Exception as error:  # a closed connection has many names
        raise TrainingFailed(
            f"the Dask scheduler at {address} was lost in a training: {_first_line(error)}"
        ) from error
    return len(set(workers) - set(present))


async def _finished(client: Any, workers: list[str], work: asyncio.Task[Any]) -> None:
    """Waits for the work; a worker that is lost ends it even if the others wait for it for ever."""
    patience = _PATIENCE_SECONDS
    while not (await asyncio.wait({work}, timeout=_LOOK_SECONDS))[0]:
        lost = await _lost(client, workers, client.scheduler.address)
        patience = patience - _LOOK_SECONDS if lost else _PATIENCE_SECONDS
        if patience <= 0:
            raise _WorkerLost(f"{lost} of {len(workers)} Dask workers lost in a training")
    work.result()


async def _fit(
    client: Any, workers: list[str], data: TrainingSet, plan: TrainingPlan, gather_seconds: int
) -> xgboost.Booster:
    import dask.array as da
    from xgboost import dask as xgboost_dask
    from xgboost.collective import Config

    pieces = []
    for place, block in _runs(data, len(workers)):
        values: list[np.ndarray[Any, Any]] = [block.features, block.labels, block.weights]
        values += [] if block.base_margin is None else [block.base_margin]
        sent = await client.scatter(values, workers=[workers[place]], hash=False)
        pieces.append(
            [da.from_delayed(x, y.shape, y.dtype) for x, y in zip(sent, values, strict=True)]
        )
    columns = [da.concatenate(column) for column in zip(*pieces, strict=True)]
    matrix = await xgboost_dask.DaskQuantileDMatrix(
        client,
        columns[0],
        columns[1],
        weight=columns[2],
        base_margin=columns[3] if len(columns) > 3 else None,
        feature_names=list(data.names),
        max_bin=plan.bins,
    )
    parameters = plan.xgboost_parameters(data.base_rate)
    del parameters["nthread"]  # as many as the worker has
    found = await xgboost_dask.train(
        client,
        parameters,
        matrix,
        plan.trees,
        # otherwise a worker would wait for ever for one that died before they met
        coll_cfg=Config(tracker_timeout=gather_seconds),
    )
    booster: xgboost.Booster = found["booster"]
    return booster


def _runs(data: TrainingSet, workers: int) -> Iterator[tuple[int, Block]]:
    """Blocks of rows with the number of their worker; every worker has consecutive rows."""
    share = max(1, -(-data.rows // workers))
    rows = max(1, share // max(1, round(share / 250_000)))
    for number, block in enumerate(data.blocks(rows)):
        yield min(number * rows // share, workers - 1), block


def _first_line(error: BaseException) -> str:
    said = str(error).strip().split("\n", 1)[0][:200]
    return said or type(error).__name__

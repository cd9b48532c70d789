"""The models of a store: `models/<line>/<version>.json` and `<version>-<sha256>.ubj` beside it.

A line is a symbol, or the pool: a model of the pool is a version of every symbol. Numbers do not
repeat between the pool and a symbol, so a version of a symbol means one file, whatever the scope
was when it was trained.

The description is written last and only if there is none, so a version exists whole or not at all,
and of two trainings at once one gets the version. A file is named after its content: neither can
harm the other's. Loaded models are kept and their sha256 is checked once, when they are loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from dataclasses import replace

from hedge_pipeline.learning.pooling import POOL
from hedge_pipeline.learning.training import Model, ModelCard, ModelError, load_model
from hedge_pipeline.store import Store


class ModelShelf:
    """Reads and writes the model files of one store.

    Args:
        store: where they are.
        pooled: new versions belong to the pool.
        models_kept: how many loaded models are remembered.
    """

    def __init__(self, store: Store, *, pooled: bool = False, models_kept: int = 64) -> None:
        self._store = store
        self._pooled = pooled
        self._models_kept = models_kept
        self._lock = threading.Lock()
        self._models: dict[tuple[str, int], Model] = {}
        self._cards: dict[tuple[str, int], ModelCard] = {}

    def versions(self, symbol: str) -> tuple[int, ...]:
        """Versions with a description, ascending; the pool's only while models are pooled."""
        own = self._numbers(symbol)
        return tuple(sorted(own | self._numbers(POOL))) if self._pooled else tuple(sorted(own))

    def next_version(self, symbol: str) -> int:
        """The number of a version trained now."""
        lines = self._store.names("models") if self._pooled else (symbol, POOL)
        return max((number for line in lines for number in self._numbers(line)), default=0) + 1

    def card(self, symbol: str, version: int) -> ModelCard:
        """The description of a version; that of a pooled model says the symbol it is asked for.

        Raises:
            ModelError: there is none, or it cannot be read.
        """
        key = (symbol, version)
        if key not in self._cards:
            self._cards[key] = self._described(symbol, version)
        return self._cards[key]

    def newest(self, symbol: str) -> ModelCard | None:
        """The newest version of the line that is trained now, rejected ones included; or None."""
        numbers = self._numbers(POOL if self._pooled else symbol)
        return self.card(symbol, max(numbers)) if numbers else None

    def content(self, symbol: str, version: int) -> bytes:
        """The UBJ file.

        Raises:
            ModelError: there is none.
        """
        return self._content(self.card(symbol, version))

    def load(self, symbol: str, version: int) -> Model:
        """The model, verified.

        Raises:
            ModelError: missing, changed, or no UBJ model.
        """
        key = (symbol, version)
        if key not in self._models:
            card = self._described(symbol, version)
            # one booster of the pool serves every symbol
            shared = self._models.get((POOL, version)) if card.members else None
            if shared is None or shared.card.sha256 != card.sha256:
                shared = load_model(card, self._content(card))
                if card.members:
                    self._models[POOL, version] = shared
            self._models[key] = replace(shared, card=card)
            with self._lock:
                while len(self._models) > self._models_kept:
                    self._models.pop(next(iter(self._models)))
        return self._models[key]

    def put_content(self, symbol: str, version: int, content: bytes) -> None:
        """Writes the UBJ file of a version that has no description yet."""
        digest = hashlib.sha256(content).hexdigest()
        self._store.write_bytes(_content_name(symbol, version, digest), content)

    def written(self, symbol: str, version: int, digest: str) -> bytes:
        """The UBJ file of a version that has no description yet, by its sha256.

        Raises:
            ModelError: there is none.
        """
        return self._bytes(symbol, _content_name(symbol, version, digest), version)

    def put_card(self, card: ModelCard) -> bool:
        """Writes the description: from now on the version exists.

        Returns whether it was written; False if another training has the version already.
        """
        return self._store.create_bytes(_card_name(_line(card), card.version), card.to_json())

    def _content(self, card: ModelCard) -> bytes:
        return self.written(_line(card), card.version, card.sha256)

    def _numbers(self, line: str) -> set[int]:
        names = self._store.names(f"models/{line}")
        return {int(x.removesuffix(".json")) for x in names if x.endswith(".json")}

    def _described(self, symbol: str, version: int) -> ModelCard:
        for line in (symbol, POOL):
            with contextlib.suppress(FileNotFoundError):
                content = self._store.read_bytes(_card_name(line, version))
                try:
                    card = ModelCard.from_json(content)
                except ModelError as error:
                    raise ModelError(f"model {version} of {symbol}: {error}") from None
                return replace(card, symbol=symbol) if line == POOL else card
        raise ModelError(f"model {version} of {symbol} has no .json file") from None

    def _bytes(self, symbol: str, name: str, version: int) -> bytes:
        try:
            return self._store.read_bytes(name)
        except FileNotFoundError:
            ending = name.rpartition(".")[2]
            raise ModelError(f"model {version} of {symbol} has no .{ending} file") from None


def _line(card: ModelCard) -> str:
    return POOL if card.members else card.symbol


def _card_name(symbol: str, version: int) -> str:
    return f"models/{symbol}/{version:06d}.json"


def _content_name(symbol: str, version: int, digest: str) -> str:
    return f"models/{symbol}/{version:06d}-{digest[:12]}.ubj"

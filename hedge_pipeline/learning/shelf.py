"""The models of a store: `models/<symbol>/<version>.json` and `<version>-<sha256>.ubj` beside it.

The description is written last and only if there is none, so a version exists whole or not at all,
and of two trainings at once one gets the version. A file is named after its content: neither can
harm the other's. Loaded models are kept and their sha256 is checked once, when they are loaded.
"""

from __future__ import annotations

import hashlib
import threading

from hedge_pipeline.learning.training import Model, ModelCard, ModelError, load_model
from hedge_pipeline.store import Store


class ModelShelf:
    """Reads and writes the model files of one store.

    Args:
        store: where they are.
        models_kept: how many loaded models are remembered.
    """

    def __init__(self, store: Store, models_kept: int = 64) -> None:
        self._store = store
        self._models_kept = models_kept
        self._lock = threading.Lock()
        self._models: dict[tuple[str, int], Model] = {}
        self._cards: dict[tuple[str, int], ModelCard] = {}

    def versions(self, symbol: str) -> tuple[int, ...]:
        """Versions with a description, ascending."""
        names = self._store.names(f"models/{symbol}")
        return tuple(sorted(int(x.removesuffix(".json")) for x in names if x.endswith(".json")))

    def card(self, symbol: str, version: int) -> ModelCard:
        """The description of a version.

        Raises:
            ModelError: there is none, or it cannot be read.
        """
        key = (symbol, version)
        if key not in self._cards:
            content = self._bytes(symbol, _card_name(symbol, version), version)
            self._cards[key] = ModelCard.from_json(content)
        return self._cards[key]

    def newest(self, symbol: str) -> ModelCard | None:
        """The newest version, rejected ones included; None if there is none."""
        versions = self.versions(symbol)
        return self.card(symbol, versions[-1]) if versions else None

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
            card = ModelCard.from_json(self._bytes(symbol, _card_name(symbol, version), version))
            self._models[key] = load_model(card, self._content(card))
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
        return self._store.create_bytes(_card_name(card.symbol, card.version), card.to_json())

    def _content(self, card: ModelCard) -> bytes:
        return self.written(card.symbol, card.version, card.sha256)

    def _bytes(self, symbol: str, name: str, version: int) -> bytes:
        try:
            return self._store.read_bytes(name)
        except FileNotFoundError:
            ending = name.rpartition(".")[2]
            raise ModelError(f"model {version} of {symbol} has no .{ending} file") from None


def _card_name(symbol: str, version: int) -> str:
    return f"models/{symbol}/{version:06d}.json"


def _content_name(symbol: str, version: int, digest: str) -> str:
    return f"models/{symbol}/{version:06d}-{digest[:12]}.ubj"

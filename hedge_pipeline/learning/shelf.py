"""The models of a store: `models/<symbol>/<version>.ubj` with its description beside it.

The description is written last, so a version exists whole or not at all. Loaded models are kept
and their sha256 is checked once, when they are loaded.
"""

from __future__ import annotations

import threading

from hedge_pipeline.learning.training import Model, ModelCard, ModelError, load_model
from hedge_pipeline.store import Store


class ModelShelf:
    """Reads and writes the model files of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
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
            self._cards[key] = ModelCard.from_json(self._bytes(symbol, version, "json"))
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
        return self._bytes(symbol, version, "ubj")

    def load(self, symbol: str, version: int) -> Model:
        """The model, verified.

        Raises:
            ModelError: missing, changed, or no UBJ model.
        """
        key = (symbol, version)
        if key not in self._models:
            card = self._bytes(symbol, version, "json")
            self._models[key] = load_model(card, self.content(symbol, version))
            with self._lock:
                while len(self._models) > 64:
                    self._models.pop(next(iter(self._models)))
        return self._models[key]

    def put_content(self, symbol: str, version: int, content: bytes) -> None:
        """Writes the UBJ file of a version that has no description yet."""
        self._store.write_bytes(_name(symbol, version, "ubj"), content)

    def put_card(self, card: ModelCard) -> None:
        """Writes the description: from now on the version exists."""
        self._store.write_bytes(_name(card.symbol, card.version, "json"), card.to_json())

    def _bytes(self, symbol: str, version: int, ending: str) -> bytes:
        try:
            return self._store.read_bytes(_name(symbol, version, ending))
        except FileNotFoundError:
            raise ModelError(f"model {version} of {symbol} has no .{ending} file") from None


def _name(symbol: str, version: int, ending: str) -> str:
    return f"models/{symbol}/{version:06d}.{ending}"

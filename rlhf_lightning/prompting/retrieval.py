"""Retrieval of the texts closest to a query: by tf-idf, or by a sentence-transformers model."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

_WORD = re.compile(r"\w+")


class Index(Protocol):
    """Texts that can be compared with a query."""

    def similarities(self, query: str) -> Sequence[float]:
        """Similarity of every text, higher is closer; 0 and below: nothing in common."""
        ...


class TfIdf:
    r"""Cosine of tf-idf vectors of words, in lower case.

    .. math:: w_{t,d} = \mathrm{tf}_{t,d} \left(\ln\frac{1 + n}{1 + \mathrm{df}_t} + 1\right)

    divided by their Euclidean length: the smoothed form that scikit-learn's ``TfidfVectorizer`` has by default, with
    words of one letter. Words of the query that no text has are ignored.

    Args:
        texts: to be found.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [_words(text) for text in texts]
        documents = Counter(word for each in counts for word in each)
        self._size = len(texts)
        self._idf = {word: math.log((1 + len(texts)) / (1 + df)) + 1 for word, df in documents.items()}
        self._postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, each in enumerate(counts):
            for word, weight in self._weights(each).items():
                self._postings[word].append((number, weight))

    def similarities(self, query: str) -> list[float]:
        """See :class:`Index`."""
        sums = [0.0] * self._size
        for word, weight in self._weights(_words(query)).items():
            for number, other in self._postings[word]:
                sums[number] += weight * other
        return sums

    def _weights(self, counts: Counter[str]) -> dict[str, float]:
        weights = {word: count * self._idf[word] for word, count in counts.items() if word in self._idf}
        length = math.sqrt(math.fsum(weight**2 for weight in weights.values()))
        return {word: weight / length for word, weight in weights.items()} if length else {}


class Embeddings:
    """Cosine of sentence embeddings, which are always normalised here.

    Args:
        texts: to be found.
        model: name or folder of a sentence-transformers model.

    Raises:
        ValueError: sentence-transformers is not installed.
    """

    def __init__(self, texts: Sequence[str], model: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ValueError(
                f"prompting.embedder={model} needs sentence-transformers: pip install 'rlhf-lightning[retrieval]', or "
                "set prompting.embedder=null for tf-idf"
            ) from error
        self._model: Any = SentenceTransformer(model)
        self._texts = self._embedded(texts)

    def similarities(self, query: str) -> list[float]:
        """See :class:`Index`."""
        return [float(value) for value in self._texts @ self._embedded([query])[0]]

    def _embedded(self, texts: Sequence[str]) -> Any:
        return self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)


def nearest(similarities: Sequence[float], allowed: Sequence[int], top_k: int) -> list[int]:
    """Find the closest allowed texts, closest first, earlier ones first among equals; never one at 0 or below."""
    candidates = [number for number in allowed if similarities[number] > 0]
    return sorted(candidates, key=lambda number: -similarities[number])[:top_k]


def _words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.lower()))
